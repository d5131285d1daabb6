// The strip: one row per slice, head at the top, with classes, prompts, edits, locks and errors.

import { css } from "./draw.js";

export class Strip {
  constructor(app) {
    this.app = app;
    this.canvas = document.getElementById("strip");
    this.context = this.canvas.getContext("2d");
    this.canvas.addEventListener("pointerdown", (event) => this.jump(event));
    this.canvas.addEventListener("pointermove", (event) => event.buttons === 1 && this.jump(event));
    new ResizeObserver(() => app.draw()).observe(this.canvas);
  }

  jump(event) {
    const n = this.app.store.state.shape[0];
    const box = this.canvas.getBoundingClientRect();
    this.app.moveTo("axial", n - 1 - Math.floor(((event.clientY - box.top) / box.height) * n));
  }

  draw() {
    const { app, canvas, context } = this;
    const { state, filled } = app.store;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    const n = state.shape[0];
    const height = canvas.height / n;
    const w = canvas.width;
    const bar = (k, left, width, colour) => {
      context.fillStyle = colour;
      const top = (n - 1 - k) * height;
      context.fillRect(left * w, top, width * w, Math.max(height, ratio));
    };
    context.fillStyle = "#181818";
    context.fillRect(0, 0, w, canvas.height);
    const share = 0.5 / (app.styles.length - 1);
    for (const [k, classes] of filled) {
      for (const c of classes) if (c) bar(k, (c - 1) * share, share, css(app.styles[c].colour));
    }
    for (const k of state.propagated) bar(k, 0.53, 0.07, "#2e7d4f");
    for (const k of state.prompted) bar(k, 0.53, 0.07, "#3ddc84");
    for (const k of state.edited) bar(k, 0.63, 0.07, "#fff");
    for (const k of state.locked) bar(k, 0.73, 0.07, "#f0e442");
    if (app.comparing && app.comparison) {
      const most = Math.max(1, ...app.comparison.wrong);
      app.comparison.wrong.forEach((x, k) => x && bar(k, 0.83, 0.17 * (x / most), "#ff8a65"));
    }
    const y = (n - 0.5 - app.cross[0]) * height;
    context.strokeStyle = "#56b4e9";
    context.lineWidth = 2 * ratio;
    context.strokeRect(ratio, y - Math.max(height, 3 * ratio) / 2, w - 2 * ratio, Math.max(height, 3 * ratio));
  }
}
