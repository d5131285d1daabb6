// A stroke of the brush or eraser: shown at once, sent when the button is released.

import { stampSegment } from "./draw.js";

export class Stroke {
  constructor(number, label, labels, columns, rows) {
    this.number = number;
    this.label = label;
    this.columns = columns;
    this.rows = rows;
    this.mask = new Uint8Array(columns * rows);
    this.original = labels ?? new Uint8Array(columns * rows);
    this.preview = this.original.slice();
    this.box = null;
    this.last = null;
  }

  extend(plane, radius) {
    const box = stampSegment(this.mask, this.columns, this.rows, this.last ?? plane, plane, radius);
    this.last = plane;
    if (!box) return;
    const [x0, y0, x1, y1] = this.box ?? box;
    this.box = [Math.min(x0, box[0]), Math.min(y0, box[1]), Math.max(x1, box[2]), Math.max(y1, box[3])];
    this.preview = this.preview.slice(); // a new array: outlines are cached per array
    for (let y = box[1]; y <= box[3]; y += 1) {
      for (let i = y * this.columns + box[0]; i <= y * this.columns + box[2]; i += 1) {
        if (this.mask[i]) this.preview[i] = this.label;
      }
    }
  }

  // What the server takes: the box [x, y, w, h] and its mask, or null for an empty stroke.
  content() {
    if (!this.box) return null;
    const [x0, y0, x1, y1] = this.box;
    const w = x1 - x0 + 1;
    const h = y1 - y0 + 1;
    const mask = new Uint8Array(w * h);
    for (let y = 0; y < h; y += 1) {
      const start = (y0 + y) * this.columns + x0;
      mask.set(this.mask.subarray(start, start + w), y * w);
    }
    return [{ slice: this.number, box: [x0, y0, w, h], label: this.label }, mask];
  }
}
