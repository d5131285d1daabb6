// One view on the screen: its canvas, zoom and pan, and how it is drawn.

import { css, labelTable, paintComparison, paintPlane } from "./draw.js";
import { cachedOutlines, strokeSegments } from "./outline.js";
import { crossInPlane, describeIndex, indexOf, LETTERS, placement, scaleBarMm, toCanvas, toPlane } from "./view.js";

const GREEN = "#3ddc84";
const RED = "#ff5252";

export class View {
  constructor(axis, app) {
    this.axis = axis;
    this.app = app;
    this.canvas = document.getElementById(axis);
    this.context = this.canvas.getContext("2d");
    this.zoom = 1;
    this.pan = [0, 0];
    this.buffer = document.createElement("canvas"); // the plane, one pixel per voxel
    this.pixels = null;
    this.painted = ""; // what the buffer shows
    new ResizeObserver(() => this.app.draw()).observe(this.canvas);
  }

  get ratio() {
    return window.devicePixelRatio || 1;
  }

  get grid() {
    return this.app.store.grid(this.axis);
  }

  place() {
    return placement(this.grid, this.canvas, this.zoom, this.pan);
  }

  // Plane coordinates of a mouse event.
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const scaleX = this.canvas.width / box.width;
    const scaleY = this.canvas.height / box.height;
    const x = (event.clientX - box.left) * scaleX;
    const y = (event.clientY - box.top) * scaleY;
    return { canvas: [x, y], plane: toPlane(this.place(), x, y) };
  }

  resize() {
    const width = Math.max(1, Math.round(this.canvas.clientWidth * this.ratio));
    const height = Math.max(1, Math.round(this.canvas.clientHeight * this.ratio));
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
  }

  draw() {
    if (!this.canvas.offsetParent) return; // another view is enlarged
    this.resize();
    const { context, canvas, app } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const index = indexOf(this.axis, app.cross);
    const image = app.store.image(this.axis, index);
    const labels = app.previewLabels(this.axis, index) ?? app.store.labelsOf(this.axis, index);
    const place = this.place();
    if (image) {
      this.paint(image, labels, index);
      context.imageSmoothingEnabled = false;
      const { columns, rows } = this.grid;
      context.drawImage(this.buffer, place.left, place.top, columns * place.sx, rows * place.sy);
      if (labels && app.showMask) this.drawOutlines(labels, place, index);
    }
    if (app.showCross) this.drawCross(place);
    if (this.axis === "axial") this.drawPrompts(place);
    this.drawFrame(place, image !== null);
    canvas.dataset.drawn = image && labels ? String(index) : "";
  }

  // Fills the buffer with the plane's image and labels, unless it shows them already.
  paint(image, labels, index) {
    const { app } = this;
    const { columns, rows } = this.grid;
    const reference = app.comparing ? app.store.referenceOf(this.axis, index) : null;
    const fill = labels && app.showMask && !(app.outlinesOnly || reference);
    const known = [image, fill && labels, reference && labels, reference, app.styleVersion];
    if (this.painted.length && known.every((x, i) => x === this.painted[i])) return;
    if (this.buffer.width !== columns || this.buffer.height !== rows || !this.pixels) {
      this.buffer.width = columns;
      this.buffer.height = rows;
      this.pixels = this.buffer.getContext("2d").createImageData(columns, rows);
    }
    const table = labelTable(app.styles, app.opacity, Boolean(fill));
    paintPlane(this.pixels.data, image, app.grey, fill ? labels : null, table);
    if (reference && labels && app.showMask) {
      paintComparison(this.pixels.data, labels, reference, app.opacity + 0.25);
    }
    this.buffer.getContext("2d").putImageData(this.pixels, 0, 0);
    this.painted = known;
  }

  drawOutlines(labels, place, index) {
    const { app, context } = this;
    const { columns, rows } = this.grid;
    if (app.comparing) {
      const reference = app.store.referenceOf(this.axis, index);
      for (const segments of reference ? cachedOutlines(reference, columns, rows).values() : []) {
        strokeSegments(context, place, segments, "#fff", this.ratio);
      }
      return;
    }
    for (const [label, segments] of cachedOutlines(labels, columns, rows)) {
      const style = app.styles[label];
      if (style.visible) strokeSegments(context, place, segments, css(style.colour), this.ratio);
    }
  }

  drawCross(place) {
    const { context, canvas, app } = this;
    const [x, y] = toCanvas(place, ...crossInPlane(this.axis, app.cross, app.store.state.shape));
    const gap = 8 * this.ratio;
    context.strokeStyle = "rgba(86, 180, 233, 0.7)";
    context.lineWidth = this.ratio;
    context.beginPath();
    for (const [a, b] of [[0, x - gap], [x + gap, canvas.width]]) {
      context.moveTo(a, y);
      context.lineTo(b, y);
    }
    for (const [a, b] of [[0, y - gap], [y + gap, canvas.height]]) {
      context.moveTo(x, a);
      context.lineTo(x, b);
    }
    context.stroke();
  }

  drawPrompts(place) {
    const { context, app, ratio } = this;
    const prompts = app.store.promptsOf(app.cross[0]);
    const box = app.draggedBox ?? prompts.box;
    if (box) {
      const [x0, y0] = toCanvas(place, box[0], box[1]);
      const [x1, y1] = toCanvas(place, box[2], box[3]);
      context.strokeStyle = GREEN;
      context.lineWidth = 2 * ratio;
      context.setLineDash([6 * ratio, 4 * ratio]);
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      context.setLineDash([]);
    }
    for (const [px, py, c] of prompts.points) this.drawMarker(...toCanvas(place, px, py), c);
    if (!app.pointer || app.pointer.axis !== "axial") return;
    const [x, y] = toCanvas(place, ...app.pointer.plane);
    const beside = 14 * ratio;
    if (app.isBrush()) this.drawBrush(place, x, y);
    else if (app.tool === "prompt") this.drawMarker(x + beside, y + beside, app.nextClass(), 4);
  }

  // A point of class c, 0 if negative, in its class's colour if the model uses the class.
  drawMarker(x, y, c, radius = 6) {
    const { context, app, ratio } = this;
    const r = radius * ratio;
    const positive = app.store.state.points_carry_class ? css(app.styles[c].colour) : GREEN;
    context.beginPath();
    context.arc(x, y, r, 0, 2 * Math.PI);
    context.fillStyle = c ? positive : RED;
    context.fill();
    context.lineWidth = (radius * ratio) / 3;
    context.strokeStyle = "#fff";
    context.stroke();
    context.strokeStyle = "#111";
    context.beginPath();
    context.moveTo(x - r / 2, y);
    context.lineTo(x + r / 2, y);
    if (c) {
      context.moveTo(x, y - r / 2);
      context.lineTo(x, y + r / 2);
    }
    context.stroke();
  }

  drawBrush(place, x, y) {
    const { context, app } = this;
    context.beginPath();
    context.ellipse(x, y, app.brush * place.sx, app.brush * place.sy, 0, 0, 2 * Math.PI);
    context.strokeStyle = app.paintLabel() ? css(app.styles[app.paintLabel()].colour) : "#fff";
    context.lineWidth = 1.5 * this.ratio;
    context.stroke();
  }

  drawFrame(place, isLoaded) {
    const { context, canvas, ratio, app } = this;
    const [left, right, top, bottom] = LETTERS[this.axis];
    const pad = 12 * ratio;
    context.font = `${13 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const text = (words, x, y, colour = "#f0e442") => {
      context.lineWidth = 3 * ratio;
      context.strokeStyle = "rgba(0, 0, 0, 0.8)";
      context.strokeText(words, x, y);
      context.fillStyle = colour;
      context.fillText(words, x, y);
    };
    text(left, pad, canvas.height / 2);
    text(right, canvas.width - pad, canvas.height / 2);
    text(top, canvas.width / 2, pad);
    text(bottom, canvas.width / 2, canvas.height - pad);
    const mm = scaleBarMm(place.perMm, canvas.width / 3);
    const y = canvas.height - pad;
    context.fillStyle = "#111"; // an edge, for bright bone
    context.fillRect(2 * pad - ratio, y - ratio, mm * place.perMm + 2 * ratio, 4 * ratio);
    context.fillStyle = "#ddd";
    context.fillRect(2 * pad, y, mm * place.perMm, 2 * ratio);
    context.textAlign = "left";
    text(`${mm} mm`, 2 * pad, y - pad, "#ddd");
    const index = indexOf(this.axis, app.cross);
    text(`${this.axis} ${describeIndex(index, this.grid.count)}`, 2 * pad, pad, "#aaa");
    const waits = this.axis === "axial" && app.store.isWaiting(app.cross[0]);
    if (waits || !isLoaded) text(waits ? "predicting …" : "loading …", 2 * pad, 2.6 * pad, "#56b4e9");
  }
}
