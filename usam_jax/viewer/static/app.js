// What a user can do. Mouse, keys and buttons call these methods.

import { Stroke } from "./brush.js";
import { classColour, greyTable } from "./draw.js";
import { AXES, clamp, crossFromPlane, indexOf, inside } from "./view.js";

const AHEAD = 5; // planes fetched ahead of the scroll
const ENCODE_AFTER_MS = 150;
const NO_CLICKS = "Clicks are off: ";

export class App {
  constructor(store) {
    this.store = store;
    this.tool = "look";
    this.activeClass = 1;
    this.brush = 4;
    this.opacity = 0.45;
    this.window = { width: 400, level: 40 };
    this.grey = greyTable(400, 40);
    this.showMask = this.showCross = true;
    this.outlinesOnly = this.nextNegative = this.comparing = this.spaceHeld = false;
    this.styleVersion = 0; // grows with everything that changes the colours of pixels
    this.pointer = this.stroke = this.draggedBox = this.comparison = this.encodeTimer = null;
    this.views = [];
    this.saving = false;
    this.propagation = null; // what was started: {slice, revision, stopped}
    this.say = () => {};
    this.listCases = () => {};
    this.drawPanel = () => {};
    this.scheduled = false;
  }

  // Takes the first state of the server.
  start() {
    const { shape, classes, model_window: window } = this.store.state;
    this.cross = shape.map((size) => Math.floor(size / 2));
    this.styles = classes.map((name, c) => ({
      name, colour: c ? classColour(c) : [0, 0, 0], opacity: 1, visible: true,
    }));
    if (window) this.setWindow(...window);
    this.range = [0, shape[0] - 1];
    this.moved(1);
  }

  draw() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      for (const view of this.views) view.draw();
      this.drawPanel();
    });
  }

  restyle() {
    this.styleVersion += 1;
    this.draw();
  }

  // Where to look.

  setCross(cross) {
    const before = this.cross;
    this.cross = cross;
    if (cross[0] !== before[0]) this.moved(cross[0] - before[0]);
    this.draw();
  }

  moveTo(axis, index) {
    const a = AXES.indexOf(axis);
    const next = clamp(index, 0, this.store.state.shape[a] - 1);
    const step = next - this.cross[a];
    if (!step) return;
    const cross = [...this.cross];
    cross[a] = next;
    this.cancelStroke();
    this.setCross(cross);
    this.prefetch(axis, Math.sign(step));
  }

  prefetch(axis, direction) {
    const { count } = this.store.grid(axis);
    for (let i = 1; i <= AHEAD; i += 1) {
      const index = indexOf(axis, this.cross) + i * direction;
      if (index < 0 || index >= count) return;
      this.store.image(axis, index);
      this.store.labelsOf(axis, index);
    }
  }

  // Has the displayed slice encoded when scrolling stops, so that the first click is fast.
  moved() {
    clearTimeout(this.encodeTimer);
    if (!this.store.state.promptable) return;
    this.encodeTimer = setTimeout(() => {
      this.store.api.post("encode", { slice: this.cross[0] }).catch((error) => this.say(error));
    }, ENCODE_AFTER_MS);
  }

  moveToMarked(direction) {
    const { prompted, edited } = this.store.state;
    this.moveAmong([...new Set([...prompted, ...edited])].sort((a, b) => a - b), direction);
  }

  moveAmong(numbers, direction) {
    const k = this.cross[0];
    const next = direction > 0 ? numbers.find((x) => x > k) : numbers.filter((x) => x < k).pop();
    const wrapped = next ?? numbers[direction > 0 ? 0 : numbers.length - 1];
    if (wrapped === undefined) this.say("No slice has prompts or brush strokes.");
    else this.moveTo("axial", wrapped);
  }

  enlarge(axis) {
    const main = document.getElementById("main");
    const isLarge = main.classList.toggle("enlarged");
    for (const name of AXES) {
      document.getElementById(`view-${name}`).classList.toggle("large", isLarge && name === axis);
    }
    this.draw();
  }

  fit() {
    for (const view of this.views) {
      view.zoom = 1;
      view.pan = [0, 0];
    }
    this.draw();
  }

  setPointer(pointer) {
    this.pointer = pointer;
    if (this.tool === "look") this.drawPanel();
    else this.draw();
  }

  // The voxel [slice, row, column] under the pointer, its HU and its label, or null.
  voxelUnderPointer() {
    if (!this.pointer) return null;
    const { axis, plane } = this.pointer;
    const grid = this.store.grid(axis);
    if (!inside(grid, ...plane)) return null;
    const voxel = crossFromPlane(axis, ...plane, this.cross, this.store.state.shape);
    const offset = Math.round(plane[1]) * grid.columns + Math.round(plane[0]);
    const index = indexOf(axis, this.cross);
    const at = (pixels) => (pixels ? pixels[offset] : null);
    return { voxel, hu: at(this.store.image(axis, index)), label: at(this.store.labelsOf(axis, index)) };
  }

  // How it looks.

  setWindow(width, level) {
    this.window = { width: clamp(Math.round(width), 1, 6000), level: clamp(Math.round(level), -2000, 4000) };
    this.grey = greyTable(this.window.width, this.window.level);
    this.restyle();
  }

  dragWindow(dx, dy) {
    this.setWindow(this.window.width + 2 * dx, this.window.level - 2 * dy);
  }

  setModelWindow() {
    const found = this.store.state.model_window;
    if (found) this.setWindow(...found);
    else this.say("There is no model, so it has no window.");
  }

  setOpacity(value) {
    this.opacity = clamp(value, 0, 1);
    this.restyle();
  }

  toggle(name) {
    this[name] = !this[name];
    this.restyle();
  }

  // Tools.

  // Whether the slice can be changed now. Says why not.
  canChange(number) {
    if (this.store.api.isGone) {
      this.say("Not taken: the server does not answer.");
      return false;
    }
    if (this.isLocked(number)) this.say(`Slice ${number} is locked; unlock it first (L).`);
    return !this.isLocked(number);
  }

  isBrush() {
    return this.tool === "brush" || this.tool === "erase";
  }

  setTool(tool) {
    if (tool === "prompt" && !this.store.state.promptable) {
      this.say(NO_CLICKS + this.whyNoClicks());
      return;
    }
    this.cancelStroke();
    this.tool = tool;
    this.nextNegative = false;
    this.draw();
  }

  whyNoClicks() {
    const { model, problem } = this.store.state;
    if (model === "none") return "there is no model; start usam-view with --checkpoint=WORKDIR.";
    if (model === "failed") return `the model could not be loaded (${problem}).`;
    return model === "loading" ? "the model is still loading." : "this model takes no prompts.";
  }

  // The class of the next click, 0 if it is negative.
  nextClass() {
    return this.nextNegative ? 0 : this.activeClass;
  }

  setClass(c) {
    const count = this.styles.length - 1;
    this.activeClass = ((c - 1 + count) % count) + 1;
    this.draw();
  }

  pickClass(axis, [x, y]) {
    const { columns, rows } = this.store.grid(axis);
    const labels = this.store.labelsOf(axis, indexOf(axis, this.cross));
    const column = Math.round(x);
    const row = Math.round(y);
    if (!labels || column < 0 || row < 0 || column >= columns || row >= rows) return;
    const c = labels[row * columns + column];
    if (c) this.setClass(c);
  }

  setBrush(radius) {
    this.brush = clamp(radius, 0.5, 100);
    this.draw();
  }

  escape() {
    if (this.stroke || this.draggedBox) {
      this.cancelStroke();
      this.draggedBox = null;
      for (const view of this.views) view.mouse.drag = null;
    } else if (!document.getElementById("help-page").hidden) {
      this.toggleHelp();
    } else if (this.store.state.busy?.what === "propagation") {
      this.stop();
    } else {
      this.setTool("look");
    }
    this.draw();
  }

  // Brush.

  paintLabel() {
    return this.tool === "erase" || this.erasing ? 0 : this.activeClass;
  }

  startStroke(plane, isErasing) {
    const number = this.cross[0];
    if (!this.canChange(number)) return;
    this.erasing = isErasing;
    const { columns, rows } = this.store.grid("axial");
    const labels = this.store.labelsOf("axial", number);
    this.stroke = new Stroke(number, this.paintLabel(), labels, columns, rows);
    this.continueStroke(plane);
  }

  continueStroke(plane) {
    this.stroke?.extend(plane, this.brush);
    this.draw();
  }

  cancelStroke() {
    this.stroke = null;
    this.erasing = false;
  }

  async endStroke() {
    const { stroke } = this;
    const content = stroke?.content();
    this.cancelStroke();
    if (!content) return;
    this.store.setLabels(stroke.number, stroke.preview);
    try {
      this.store.merge(await this.store.api.postStroke(...content));
    } catch (error) {
      this.store.setLabels(stroke.number, stroke.original);
      this.say(error);
    }
  }

  previewLabels(axis, index) {
    const { stroke } = this;
    return stroke && axis === "axial" && index === stroke.number ? stroke.preview : null;
  }
}
