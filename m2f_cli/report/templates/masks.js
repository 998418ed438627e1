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
      let column = Math.floor(at / height), row = at % height;
      for (let p = at; p < end; p++) {
        map[row * width + column] = value;
        if (++row === height) { row = 0; column++; }
      }
    }
    at = end;
  });
}

// Number of the segment on top at each pixel, -1 for none; those of `order` are painted one after the other.
function segmentMap(view, segments, order) {
  const [height, width] = view.thumbnail.size;
  const map = new Int16Array(height * width).fill(-1);
  for (const i of order) paint(map, height, width, segments[i], i);
  return map;
}

// Kinds of errors by pixel, as numbers of KIND_COLORS: a false segment gives its kind to all of its pixels; of hits, it is
// "boundary" where only one of both segments is.
function errorMap(view, sides, isShown, verdict) {
  const kinds = Object.keys(KIND_COLORS), boundary = kinds.indexOf("boundary");
  const counted = (side) => sides[side].map((segment, i) => [i, verdict(segment, side), segment]).filter(([, kind, segment]) => isShown(segment) && kind !== "crowd" && kind !== "excused");
  const trueKinds = [], foundKinds = [];
  for (const [i, kind] of counted("true")) trueKinds[i] = kind;
  for (const [i, kind] of counted("found")) foundKinds[i] = kind;
  // Hits that overlap lie in the same order on both sides.
  const rank = (i) => foundKinds[i] === "hit" ? sides.found[i].partner : -1;
  const trueMap = segmentMap(view, sides.true, Object.keys(trueKinds).map(Number));
  const foundMap = segmentMap(view, sides.found, Object.keys(foundKinds).map(Number).sort((a, b) => rank(a) - rank(b)));
  const map = new Int16Array(trueMap.length).fill(-1);
  for (let p = 0; p < map.length; p++) {
    const t = trueMap[p], f = foundMap[p];
    if (t < 0 && f < 0) continue;
    if (t >= 0 && f >= 0 && trueKinds[t] === "hit" && sides.true[t].partner === f) continue;
    if (t >= 0 && trueKinds[t] !== "hit") map[p] = kinds.indexOf(trueKinds[t]);
    else if (f >= 0 && foundKinds[f] !== "hit") map[p] = kinds.indexOf(foundKinds[f]);
    else map[p] = boundary;
  }
  return map;
}

// Mixes colours into pixels: `colorOf(number)` gives [r, g, b]; edges of segments are drawn stronger.
function tint(pixels, map, width, colorOf, {grey = 0, strength = 0.5, edges = true, only = -1} = {}) {
  const data = pixels.data, colors = [];
  for (let p = 0, at = 0; p < map.length; p++, at += 4) {
    const number = map[p];
    let red = data[at], green = data[at + 1], blue = data[at + 2];
    if (grey) {
      const ground = grey * (0.55 * (red + green + blue) / 3 + 90), rest = 1 - grey;
      red = rest * red + ground;
      green = rest * green + ground;
      blue = rest * blue + ground;
    }
    if (number >= 0) {
      const color = colors[number] ??= colorOf(number);
      const isEdge = edges && (map[p + 1] !== number || map[p - 1] !== number || map[p + width] !== number || map[p - width] !== number);
      const share = number === only ? 0.85 : isEdge ? 0.95 : strength, rest = 1 - share;
      red = rest * red + share * color[0];
      green = rest * green + share * color[1];
      blue = rest * blue + share * color[2];
    } else if (!grey) continue;
    data[at] = red;
    data[at + 1] = green;
    data[at + 2] = blue;
  }
}
