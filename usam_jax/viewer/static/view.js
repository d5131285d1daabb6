// Geometry of the three views. Pure functions.
//
// A volume has the shape [n, h, w]; `cross` is [slice, row, column]. Planes are drawn as they
// come: axial [h w], coronal [n w] and sagittal [n h] with the head up.

export const AXES = ["axial", "coronal", "sagittal"];
export const LETTERS = { // left, right, top, bottom
  axial: ["R", "L", "A", "P"],
  coronal: ["R", "L", "H", "F"],
  sagittal: ["A", "P", "H", "F"],
};

export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// Columns and rows of a plane, and the width and height of its pixels in mm.
export function planeGrid(axis, shape, spacing) {
  const [n, h, w] = shape;
  const [z, y, x] = spacing;
  if (axis === "axial") return { columns: w, rows: h, dx: x, dy: y, count: n };
  if (axis === "coronal") return { columns: w, rows: n, dx: x, dy: z, count: h };
  return { columns: h, rows: n, dx: y, dy: z, count: w };
}

export const indexOf = (axis, cross) => cross[AXES.indexOf(axis)];

// Where the crosshair lies in a plane, in pixels of the plane.
export function crossInPlane(axis, cross, shape) {
  const [k, j, i] = cross;
  if (axis === "axial") return [i, j];
  return [axis === "coronal" ? i : j, shape[0] - 1 - k];
}

// The crosshair after a click at (x, y) of a plane.
export function crossFromPlane(axis, x, y, cross, shape) {
  const [n, h, w] = shape;
  const column = Math.round(x);
  const row = Math.round(y);
  if (axis === "axial") return [cross[0], clamp(row, 0, h - 1), clamp(column, 0, w - 1)];
  const k = clamp(n - 1 - row, 0, n - 1);
  if (axis === "coronal") return [k, cross[1], clamp(column, 0, w - 1)];
  return [k, clamp(column, 0, h - 1), cross[2]];
}

// Maps plane pixels to canvas pixels: left = x of the plane's left edge, sx = pixels per column.
// `zoom` 1 fits the plane; `pan` is in mm from the middle.
export function placement(grid, canvas, zoom, pan) {
  const fit = Math.min(canvas.width / (grid.columns * grid.dx), canvas.height / (grid.rows * grid.dy));
  const perMm = fit * zoom;
  const sx = perMm * grid.dx;
  const sy = perMm * grid.dy;
  return {
    sx,
    sy,
    perMm,
    left: canvas.width / 2 - (sx * grid.columns) / 2 + pan[0] * perMm,
    top: canvas.height / 2 - (sy * grid.rows) / 2 + pan[1] * perMm,
  };
}

// Plane coordinates (pixel centres at integers) of a point of the canvas, and back.
export const toPlane = (p, x, y) => [(x - p.left) / p.sx - 0.5, (y - p.top) / p.sy - 0.5];
export const toCanvas = (p, x, y) => [p.left + (x + 0.5) * p.sx, p.top + (y + 0.5) * p.sy];

export const inside = (grid, x, y) =>
  x >= -0.5 && y >= -0.5 && x <= grid.columns - 0.5 && y <= grid.rows - 0.5;

// The pan that keeps the plane's point under (x, y) of the canvas in place at another zoom.
export function zoomAt(grid, canvas, zoom, pan, x, y, newZoom) {
  const before = placement(grid, canvas, zoom, pan);
  const [px, py] = toPlane(before, x, y);
  const after = placement(grid, canvas, newZoom, pan);
  const [cx, cy] = toCanvas(after, px, py);
  return [pan[0] + (x - cx) / after.perMm, pan[1] + (y - cy) / after.perMm];
}

// Where a slice lies among all, counted from 0 as in points.json.
export const describeIndex = (index, count) => `${index} (0 to ${count - 1})`;

// A round length in mm that takes at most `limit` pixels.
export function scaleBarMm(perMm, limit) {
  const lengths = [200, 100, 50, 20, 10, 5, 2, 1, 0.5];
  return lengths.find((mm) => mm * perMm <= limit) ?? 0.2;
}
