// Outlines of labels along the edges of pixels. Pure functions.

// Line segments [x0, y0, x1, y1, ...] by label, in pixels from the plane's corner.
export function outlines(labels, columns, rows) {
  const found = new Map();
  const add = (label, x0, y0, x1, y1) => {
    if (!label) return;
    let list = found.get(label);
    if (!list) found.set(label, (list = []));
    list.push(x0, y0, x1, y1);
  };
  // An edge between the labels a and b is on the outline of both; equal neighbours share a run.
  for (let y = 0; y <= rows; y += 1) {
    let start = 0;
    let a = 0;
    let b = 0;
    for (let x = 0; x <= columns; x += 1) {
      const above = x < columns && y > 0 ? labels[(y - 1) * columns + x] : 0;
      const below = x < columns && y < rows ? labels[y * columns + x] : 0;
      if (above === a && below === b) continue;
      if (a !== b) {
        add(a, start, y, x, y);
        add(b, start, y, x, y);
      }
      start = x;
      a = above;
      b = below;
    }
  }
  for (let x = 0; x <= columns; x += 1) {
    let start = 0;
    let a = 0;
    let b = 0;
    for (let y = 0; y <= rows; y += 1) {
      const left = y < rows && x > 0 ? labels[y * columns + x - 1] : 0;
      const right = y < rows && x < columns ? labels[y * columns + x] : 0;
      if (left === a && right === b) continue;
      if (a !== b) {
        add(a, x, start, x, y);
        add(b, x, start, x, y);
      }
      start = y;
      a = left;
      b = right;
    }
  }
  return found;
}

const cache = new WeakMap();

// The same, computed once per array of labels.
export function cachedOutlines(labels, columns, rows) {
  let found = cache.get(labels);
  if (!found) cache.set(labels, (found = outlines(labels, columns, rows)));
  return found;
}

// Draws segments on a canvas, 1.5 screen pixels wide at any zoom.
export function strokeSegments(context, place, segments, colour, ratio) {
  context.strokeStyle = colour;
  context.lineWidth = 1.5 * ratio;
  context.beginPath();
  for (let i = 0; i < segments.length; i += 4) {
    context.moveTo(place.left + segments[i] * place.sx, place.top + segments[i + 1] * place.sy);
    context.lineTo(place.left + segments[i + 2] * place.sx, place.top + segments[i + 3] * place.sy);
  }
  context.stroke();
}
