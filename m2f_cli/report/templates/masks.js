"use strict";
// Segments as pixels: run lengths to maps of segments, and maps to colours.

const css = getComputedStyle(document.documentElement);
const KIND_COLORS = Object.fromEntries(
  ["class", "split", "merged", "boundary", "missed", "spurious", "duplicate"].map((kind) => [kind, rgb(css.getPropertyValue(`--${kind}`))]));

function rgb(text) { // "#rrggbb"
  const number = parseInt(text.trim().slice(1), 16);
  return [number >> 16 & 255, number >> 8 & 255, number & 255];
}

// COCO's compressed run lengths: five bits a letter, each run as its difference to the last but one.
function runLengths(text) {
  const runs = [];
  for (let i = 0; i < text.length;) {
    let value = 0, shift = 0, code = 32;
    while (code & 32 && i < text.length) {
      code = text.charCodeAt(i++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    }
    if (code & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

// Writes `value` into a map (rows of pixels) wherever a segment is. Its runs go down the columns and begin outside.
function paint(map, height, width, segment, value) {
  segment.runs ??= runLengths(segment.counts);
  const most = height * width;
  let at = 0;
  segment.runs.forEach((length, i) => {
    const end = Math.min(most, at + Math.max(0, length));
    if (i % 2) {
      for (let p = at; p < end; p++) map[(p % height) * width + Math.floor(p / height)] = value;
    }
    at = end;
  });
}

// Number of the segment on top at each pixel, -1 for none. Later segments are painted first: the surest is on top.
function segmentMap(view, segments, isShown) {
  const [height, width] = view.thumbnail.size;
  const map = new Int16Array(height * width).fill(-1);
  for (let i = segments.length - 1; i >= 0; i--) {
    if (isShown(segments[i])) paint(map, height, width, segments[i], i);
  }
  return map;
}

// Kinds of errors by pixel: of hits where only one of both segments is, of others the whole segment.
function errorMap(view, sides, isShown, verdict) {
  const [height, width] = view.thumbnail.size;
  const kinds = Object.keys(KIND_COLORS);
  const map = new Int16Array(height * width).fill(-1);
  const own = new Uint8Array(height * width);
  sides.true.forEach((segment) => {
    const other = sides.found[segment.partner];
    if (!isShown(segment) || verdict(segment, "true") !== "hit" || !other) return;
    own.fill(0);
    paint(own, height, width, segment, 1);
    const both = Uint8Array.from(own);
    paint(both, height, width, other, 0);
    own.fill(0);
    paint(own, height, width, other, 1);
    paint(own, height, width, segment, 0);
    for (let p = 0; p < map.length; p++) if (both[p] || own[p]) map[p] = kinds.indexOf("boundary");
  });
  for (const side of ["found", "true"]) {
    sides[side].forEach((segment) => {
      const kind = kinds.indexOf(verdict(segment, side));
      if (isShown(segment) && kind >= 0) paint(map, height, width, segment, kind);
    });
  }
  return map;
}

// Mixes colours into pixels: `colorOf(number)` gives [r, g, b] or nothing; edges of segments are drawn stronger.
function tint(pixels, map, width, colorOf, {grey = 0, strength = 0.5, edges = true, only = -1} = {}) {
  const data = pixels.data;
  for (let p = 0; p < map.length; p++) {
    const at = 4 * p, number = map[p];
    if (grey) {
      const mean = (data[at] + data[at + 1] + data[at + 2]) / 3;
      for (let c = 0; c < 3; c++) data[at + c] += grey * (0.55 * mean + 90 - data[at + c]);
    }
    const color = number < 0 ? null : colorOf(number);
    if (!color) continue;
    const isEdge = edges && (map[p + 1] !== number || map[p - 1] !== number || map[p + width] !== number || map[p - width] !== number);
    const share = only >= 0 && number === only ? 0.85 : isEdge ? 0.95 : strength;
    for (let c = 0; c < 3; c++) data[at + c] += share * (color[c] - data[at + c]);
  }
}
