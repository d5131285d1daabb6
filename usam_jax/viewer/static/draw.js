// Pixels of a plane. Pure functions.

const OKABE_ITO = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"];

// Colour [r, g, b] of class c, from 1 upwards.
export function classColour(c) {
  if (c <= OKABE_ITO.length) {
    const value = parseInt(OKABE_ITO[c - 1].slice(1), 16);
    return [value >> 16, (value >> 8) & 255, value & 255];
  }
  const hue = (c * 137.508) % 360; // the golden angle: neighbours differ
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.6 - 0.4 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

export const css = ([r, g, b], alpha = 1) => `rgba(${r}, ${g}, ${b}, ${alpha})`;

export const COMPARED = {
  same: [127, 191, 154],
  onlyMask: [230, 159, 0],
  onlyReference: [86, 160, 233],
  otherClass: [199, 125, 204],
};

// Grey for each int16 value + 32768, for a window.
export function greyTable(width, level) {
  const table = new Uint8ClampedArray(65536);
  const low = level - width / 2;
  for (let i = 0; i < 65536; i += 1) table[i] = (255 * (i - 32768 - low)) / width;
  return table;
}

// Colour and share of each label 0 to 255, for `styles` by class: {colour, opacity, visible}.
export function labelTable(styles, opacity, shown) {
  const table = new Float32Array(256 * 4);
  styles.forEach((style, c) => {
    if (c === 0 || !style.visible || !shown) return;
    table.set([...style.colour, style.opacity * opacity], 4 * c);
  });
  return table;
}

// Paints HU and labels (or null) of a plane into RGBA pixels.
export function paintPlane(rgba, hu, grey, labels, table) {
  for (let i = 0, o = 0; i < hu.length; i += 1, o += 4) {
    const value = grey[hu[i] + 32768];
    const t = labels ? 4 * labels[i] : 0;
    const share = table[t + 3];
    if (share === 0) {
      rgba[o] = rgba[o + 1] = rgba[o + 2] = value;
    } else {
      rgba[o] = value + (table[t] - value) * share;
      rgba[o + 1] = value + (table[t + 1] - value) * share;
      rgba[o + 2] = value + (table[t + 2] - value) * share;
    }
    rgba[o + 3] = 255;
  }
}

// Whether two labels agree, and if not how they differ: a name of COMPARED, or null.
export function difference(label, reference) {
  if (label === reference) return label ? "same" : null;
  if (!reference) return "onlyMask";
  return label ? "otherClass" : "onlyReference";
}

// Paints how labels differ from a reference over RGBA pixels.
export function paintComparison(rgba, labels, reference, opacity) {
  for (let i = 0, o = 0; i < labels.length; i += 1, o += 4) {
    const name = difference(labels[i], reference[i]);
    if (!name) continue;
    const share = name === "same" ? 0.35 * opacity : opacity;
    const colour = COMPARED[name];
    for (let c = 0; c < 3; c += 1) rgba[o + c] += (colour[c] - rgba[o + c]) * share;
  }
}

// Sets mask[y * w + x] = 1 on the disc of `radius` pixels around each point of a segment.
// Returns the box [x0, y0, x1, y1] of what was touched, or null.
export function stampSegment(mask, w, h, from, to, radius) {
  const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) * 2));
  let box = null;
  for (let s = 0; s <= steps; s += 1) {
    const cx = from[0] + ((to[0] - from[0]) * s) / steps;
    const cy = from[1] + ((to[1] - from[1]) * s) / steps;
    const y1 = Math.min(h - 1, Math.floor(cy + radius));
    const x1 = Math.min(w - 1, Math.floor(cx + radius));
    for (let y = Math.max(0, Math.ceil(cy - radius)); y <= y1; y += 1) {
      for (let x = Math.max(0, Math.ceil(cx - radius)); x <= x1; x += 1) {
        if ((x - cx) ** 2 + (y - cy) ** 2 > radius * radius) continue;
        mask[y * w + x] = 1;
        box = box ?? [x, y, x, y];
        box = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x), Math.max(box[3], y)];
      }
    }
  }
  return box;
}
