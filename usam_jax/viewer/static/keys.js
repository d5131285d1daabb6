// Keyboard, and the help page that lists mouse and keys.

export const WINDOWS = [
  ["1", "Soft tissue", 400, 40],
  ["2", "Lung", 1500, -600],
  ["3", "Liver", 150, 90],
  ["4", "Bone", 2500, 480],
  ["5", "Brain", 80, 40],
];

const MOUSE = [
  ["Wheel", "previous or next slice of that view"],
  ["Ctrl + wheel", "zoom at the pointer"],
  ["Right drag", "window: right is wider, down is a lower level"],
  ["Middle drag, Space + left drag", "pan"],
  ["Shift + move", "the crosshair follows in all views"],
  ["Ctrl + click (not with a brush)", "make the class under the pointer the active one"],
  ["Double click (where clicks do not prompt or paint)", "enlarge one view and back"],
  ["Look: left click; left drag", "set the crosshair; window"],
  ["Prompt, axial view: left click", "a point of the active class (+, in its colour if the model uses it, otherwise green)"],
  ["Prompt, axial view: right click", "a negative point (red, -)"],
  ["Prompt, axial view: left drag", "a box; it has no class, and goes by undo or Clear prompts"],
  ["Prompt: click on a marker", "remove that point"],
  ["Brush, axial view: left drag; Ctrl held", "paint the active class; erase"],
];

const KEYS = [
  ["V, P, B, E", "look, prompt, brush, eraser"],
  ["Esc", "cancel a drag, stop the propagation, back to Look"],
  ["Up, Down", "one slice towards the head or the feet"],
  ["Page Up, Page Down; Home, End", "ten slices; top and bottom slice"],
  ["1 to 5; 0", "windows: soft tissue, lung, liver, bone, brain; the model's window"],
  ["Q, W", "previous and next class"],
  ["T", "the next click is negative"],
  ["S, O", "mask on and off; outlines or fill"],
  ["Comma, period", "less and more opacity"],
  ["X, F", "crosshair lines on and off; fit the views"],
  ["[ and ]", "smaller and larger brush"],
  ["K, L", "propagate this slice's mask; lock or unlock the slice"],
  ["N, Shift + N", "next and previous slice with prompts or brush"],
  ["M, Shift + M", "next and previous volume of the work list"],
  ["C, D", "compare with the reference; next slice by error"],
  ["Ctrl + Z; Ctrl + Y", "undo; redo (also Ctrl + Shift + Z)"],
  ["Ctrl + S", "save the mask"],
  ["?", "this list"],
];

const ADVICE =
  "Everything is kept next to the mask at once, also after a crash or a closed tab: open the viewer " +
  "again with the same command. Save writes the mask itself. Brush strokes are never changed by a " +
  "later click or propagation; undo takes back every step.";

function table(rows) {
  const element = document.createElement("table");
  for (const [what, effect] of rows) {
    const row = element.insertRow();
    row.insertCell().textContent = what;
    row.insertCell().textContent = effect;
  }
  return element;
}

export function fillHelp(element) {
  const close = document.createElement("button");
  close.textContent = "Close (Esc)";
  close.addEventListener("click", () => (element.hidden = true));
  element.append(close);
  for (const [title, rows] of [["Mouse", MOUSE], ["Keys", KEYS]]) {
    const heading = document.createElement("h2");
    heading.textContent = title;
    element.append(heading, table(rows));
  }
  const advice = document.createElement("p");
  advice.textContent = ADVICE;
  element.append(advice);
}

const withControl = (app, key, shift) => ({
  z: () => app.step(shift ? "redo" : "undo"),
  y: () => app.step("redo"),
  s: () => app.save(),
})[key];

const plain = (app, key, shift) => ({
  v: () => app.setTool("look"),
  p: () => app.setTool("prompt"),
  b: () => app.setTool("brush"),
  e: () => app.setTool("erase"),
  escape: () => app.escape(),
  arrowup: () => app.moveTo("axial", app.cross[0] + 1),
  arrowright: () => app.moveTo("axial", app.cross[0] + 1),
  arrowdown: () => app.moveTo("axial", app.cross[0] - 1),
  arrowleft: () => app.moveTo("axial", app.cross[0] - 1),
  pageup: () => app.moveTo("axial", app.cross[0] + 10),
  pagedown: () => app.moveTo("axial", app.cross[0] - 10),
  home: () => app.moveTo("axial", app.store.state.shape[0] - 1),
  end: () => app.moveTo("axial", 0),
  0: () => app.setModelWindow(),
  q: () => app.setClass(app.activeClass - 1),
  w: () => app.setClass(app.activeClass + 1),
  t: () => app.toggle("nextNegative"),
  s: () => app.toggle("showMask"),
  o: () => app.toggle("outlinesOnly"),
  ",": () => app.setOpacity(app.opacity - 0.1),
  ".": () => app.setOpacity(app.opacity + 0.1),
  x: () => app.toggle("showCross"),
  f: () => app.fit(),
  "[": () => app.setBrush(app.brush / 1.25),
  "]": () => app.setBrush(app.brush * 1.25),
  k: () => app.propagate(),
  l: () => app.toggleLock(),
  n: () => app.moveToMarked(shift ? -1 : 1),
  m: () => app.openNeighbour(shift ? -1 : 1),
  c: () => app.toggleComparison(),
  d: () => app.moveToWorst(),
  "?": () => app.toggleHelp(),
})[key];

export function listen(app) {
  const isText = (element) =>
    element instanceof HTMLSelectElement ||
    (element instanceof HTMLInputElement && element.type === "number");
  window.addEventListener("keydown", (event) => {
    if (isText(event.target) || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key === " ") {
      app.spaceHeld = true;
      if (!(event.target instanceof HTMLButtonElement)) event.preventDefault();
      return;
    }
    const control = event.ctrlKey || event.metaKey;
    const preset = WINDOWS.find((x) => x[0] === key);
    const action = control ? withControl(app, key, event.shiftKey) : plain(app, key, event.shiftKey);
    if (!action && (control || !preset)) return;
    event.preventDefault();
    if (action) action();
    else app.setWindow(preset[2], preset[3]);
  });
  window.addEventListener("keyup", (event) => {
    if (event.key === " ") app.spaceHeld = false;
  });
}
