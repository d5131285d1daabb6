// The side panel, the tool bar and the status line.

import { css } from "./draw.js";
import { WINDOWS } from "./keys.js";
import { describeIndex } from "./view.js";

const HINTS = {
  look: "Click: crosshair. Drag: window. Wheel: slices.",
  prompt: "Left: point. Right: negative. Click on a point: remove it. Drag: box (no class, goes by undo).",
  brush: "Drag: paint the class. Ctrl: erase.",
  erase: "Drag: erase to background.",
};
const UNTRAINED = "This model was trained without prompts: clicks may change nothing.";
const NEGATIVE_HINT = "The next click is negative (T). ";
const FORMATS = { nifti: "NIfTI", "dicom-seg": "DICOM-SEG" };
const byId = (id) => document.getElementById(id);
const number = (x, digits) => (x === null ? "-" : x.toFixed(digits));

export class Panel {
  constructor(app) {
    this.app = app;
    this.notes = "";
    this.rows = [];
    this.connect();
  }

  connect() {
    const { app } = this;
    for (const button of byId("tools").children) {
      button.addEventListener("click", () => app.setTool(button.dataset.tool));
    }
    const clicks = {
      undo: () => app.step("undo"),
      redo: () => app.step("redo"),
      propagate: () => app.propagate(),
      lock: () => app.toggleLock(),
      compare: () => app.toggleComparison(),
      save: () => app.save(),
      help: () => app.toggleHelp(),
      stop: () => app.stop(),
      "clear-prompts": () => app.changeSlice("clear_prompts"),
      "clear-edits": () => app.changeSlice("clear_edits"),
    };
    for (const [id, action] of Object.entries(clicks)) byId(id).addEventListener("click", action);
    byId("opacity").addEventListener("input", (event) => app.setOpacity(event.target.value / 100));
    byId("show-mask").addEventListener("change", () => app.toggle("showMask"));
    byId("outlines").addEventListener("change", () => app.toggle("outlinesOnly"));
    byId("first").addEventListener("change", (event) => (app.range[0] = Number(event.target.value)));
    byId("last").addEventListener("change", (event) => (app.range[1] = Number(event.target.value)));
    byId("cases").addEventListener("change", (event) => app.openCase(Number(event.target.value)));
    document.body.addEventListener("click", (event) => {
      if (event.target instanceof HTMLButtonElement) event.target.blur();
    });
  }

  // Fills what depends on the volume alone.
  fill() {
    const { app } = this;
    const { state } = app.store;
    byId("name").textContent = document.title = state.name;
    for (const format of state.formats) byId("format").add(new Option(FORMATS[format], format));
    byId("format").hidden = state.formats.length < 2;
    for (const [key, name, width, level] of WINDOWS) {
      const button = document.createElement("button");
      button.textContent = name;
      button.title = `${width}/${level} (${key})`;
      button.addEventListener("click", () => app.setWindow(width, level));
      byId("windows").append(button);
    }
    byId("first").value = app.range[0];
    byId("last").value = app.range[1];
    byId("first").max = byId("last").max = state.shape[0] - 1;
    state.classes.forEach((name, c) => c && this.addClass(name, c));
    if (state.num_cases > 1) this.fillCases().catch((error) => app.say(error));
  }

  // Fills the work list, in which saving sets a tick.
  async fillCases() {
    const { app } = this;
    const { cases } = await app.store.api.getJson("cases");
    const list = byId("cases");
    list.hidden = false;
    list.replaceChildren();
    cases.forEach(({ name, saved, open }, i) => {
      list.add(new Option(`${saved ? "✓ " : "   "}${name}`, String(i), open, open));
    });
  }

  addClass(name, c) {
    const { app } = this;
    const style = app.styles[c];
    const row = byId("classes").insertRow();
    const [visible, title, opacity, volume] = [0, 1, 2, 3].map(() => row.insertCell());
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.title = "Show this class";
    box.addEventListener("change", () => {
      style.visible = box.checked;
      app.restyle();
    });
    visible.append(box);
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = css(style.colour);
    title.className = "name";
    title.append(swatch, ` ${name}`);
    const range = document.createElement("input");
    range.type = "range";
    range.value = "100";
    range.title = "Opacity of this class";
    range.addEventListener("input", () => {
      style.opacity = range.value / 100;
      app.restyle();
    });
    opacity.append(range);
    row.addEventListener("click", (event) => {
      if (!(event.target instanceof HTMLInputElement)) app.setClass(c);
    });
    this.rows[c] = { row, volume };
  }

  // Shows the state of server and page.
  draw() {
    const { app } = this;
    const { state } = app.store;
    for (const button of byId("tools").children) {
      button.classList.toggle("active", button.dataset.tool === app.tool);
      if (button.dataset.tool === "prompt") button.disabled = !state.promptable;
    }
    byId("undo").disabled = !state.undo;
    byId("redo").disabled = !state.redo;
    byId("undo").title = state.undo ? `Undo: ${state.undo} (Ctrl+Z)` : "Undo (Ctrl+Z)";
    byId("redo").title = state.redo ? `Redo: ${state.redo} (Ctrl+Y)` : "Redo (Ctrl+Y)";
    byId("propagate").disabled = !state.promptable || state.busy?.what === "propagation";
    byId("lock").textContent = app.isLocked(app.cross[0]) ? "Unlock" : "Lock";
    byId("compare").disabled = !state.has_reference;
    byId("compare").classList.toggle("active", app.comparing);
    byId("opacity").value = String(Math.round(100 * app.opacity));
    byId("show-mask").checked = app.showMask;
    byId("outlines").checked = app.outlinesOnly;
    byId("brush-size").textContent = `${(2 * app.brush * state.spacing_mm[2]).toFixed(1)} mm`;
    byId("window").textContent = `Width ${app.window.width}, level ${app.window.level} HU`;
    state.volume_ml.forEach((ml, i) => {
      this.rows[i + 1].volume.textContent = `${ml.toFixed(ml < 10 ? 2 : 1)} ml`;
      this.rows[i + 1].row.classList.toggle("active", i + 1 === app.activeClass);
    });
    this.drawSlice(state);
    this.drawStatus(state);
    this.drawComparison();
    this.drawNotes(state);
  }

  drawSlice(state) {
    const k = this.app.cross[0];
    byId("slice").textContent = describeIndex(k, state.shape[0]);
    const has = ["prompted", "propagated", "edited", "locked"].filter((x) => state[x].includes(k));
    byId("slice-state").textContent = has.length ? has.join(", ") : state.base;
    byId("clear-prompts").disabled = !has.includes("prompted") && !has.includes("propagated");
    byId("clear-edits").disabled = !has.includes("edited");
  }

  drawStatus(state) {
    const { app } = this;
    const name = app.styles[app.activeClass].name;
    const next = app.nextNegative ? NEGATIVE_HINT : "";
    // A network with published prompts is told where, not which class.
    const target = state.points_carry_class || app.isBrush() ? `${name}: ` : "";
    byId("hint").textContent = `${next}${target}${HINTS[app.tool]}`;
    byId("hint").title = byId("hint").textContent;
    byId("pointer").textContent = this.describePointer();
    if (app.store.api.isGone) this.showProgress(null, "no connection: nothing is taken", "bad");
    else this.showProgress(state.busy, ...this.describeSaved(state));
  }

  // What there is to save, and how to show it.
  describeSaved(state) {
    if (this.app.saving) return ["saving …", ""];
    if (state.autosave_problem) return [state.autosave_problem, "bad"];
    if (state.saved_revision === state.revision) return ["", ""];
    return [state.undo || state.redo ? "edits kept, mask not saved" : "mask not saved", "unsaved"];
  }

  showProgress(busy, saved, style) {
    const total = busy?.total ? ` ${busy.done} of ${busy.total} slices` : "";
    const first = busy?.what === "loading the model" ? " (the first start compiles for about a minute)" : "";
    byId("busy").textContent = busy ? `${busy.what}${total}${first}` : "";
    byId("stop").hidden = busy?.what !== "propagation";
    byId("saved").textContent = saved;
    byId("saved").className = style;
  }

  describePointer() {
    const { app } = this;
    const found = app.voxelUnderPointer();
    if (!found) return "";
    const { voxel, hu, label } = found;
    const value = hu === null ? "" : ` ${hu} HU`;
    return `column ${voxel[2]}, row ${voxel[1]}, slice ${voxel[0]}:${value} ${label ? app.styles[label].name : ""}`;
  }

  drawNotes(state) {
    const notes = [...state.warnings];
    if (!state.promptable && state.model !== "loading") notes.push(`Clicks are off: ${this.app.whyNoClicks()}`);
    if (state.trained_without_prompts) notes.push(UNTRAINED);
    if (state.problem) notes.push(`Error: ${state.problem}`);
    const text = notes.join("\n");
    if (text === this.notes) return;
    this.notes = text;
    byId("notes").replaceChildren(
      ...notes.map((note) => {
        const element = document.createElement("li");
        element.textContent = note;
        if (note.startsWith("Error")) element.className = "bad";
        return element;
      }),
    );
  }

  describeErrors({ wrong, dice, worst }, k) {
    const name = this.app.styles[worst[k]].name;
    return `slice ${k}: ${wrong[k]} wrong voxels, Dice ${number(dice[k], 2)}, worst ${name}`;
  }

  drawComparison() {
    const { app } = this;
    byId("comparison").hidden = !app.comparing;
    const found = app.comparing && app.comparison;
    if (!found || found === this.shown) return;
    this.shown = found;
    const table = byId("scores");
    table.replaceChildren();
    const add = (cells, isHead) => {
      const row = table.insertRow();
      cells.forEach((text, i) => {
        const cell = isHead ? row.appendChild(document.createElement("th")) : row.insertCell();
        cell.textContent = text;
        if (i === 0) cell.className = "name";
      });
    };
    add(["", "Dice", "HD95 mm", "ml", "ref. ml"], true);
    found.classes.forEach((x, i) => {
      const name = app.styles[i + 1].name;
      add([name, number(x.Dice, 3), number(x.HD95, 1), number(x.volume, 1), number(x.reference_volume, 1)]);
    });
    byId("worst").replaceChildren(
      ...app.worstSlices().slice(0, 20).map((k) => {
        const element = document.createElement("li");
        element.textContent = this.describeErrors(found, k);
        element.addEventListener("click", () => app.moveTo("axial", k));
        return element;
      }),
    );
  }
}
