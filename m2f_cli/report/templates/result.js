"use strict";
// One result: its image with its segments, what the segment below the mouse is, a slider for scores, and its classes.

const {thumbnail, names, segments} = JSON.parse(document.getElementById("data").textContent);
const [height, width] = thumbnail.size;
const canvas = Object.assign(document.getElementById("canvas"), {height, width});
const context = canvas.getContext("2d", {willReadFrequently: true});
const what = document.getElementById("what"), masks = document.getElementById("masks"), slider = document.getElementById("score");
const state = {score: 0, only: null, current: -1};
let base = null, map = null;

const isShown = ({label, score}) => (score === null || score >= state.score) && (state.only === null || label === state.only);
const shown = () => segments.map((_, i) => i).filter((i) => isShown(segments[i]));

function draw() {
  const pixels = new ImageData(new Uint8ClampedArray(base.data), width, height);
  if (masks.checked) tint(pixels, map, width, (i) => segments[i].color, {only: state.current});
  context.putImageData(pixels, 0, 0);
  const segment = segments[state.current];
  what.textContent = segment ? `${names[segment.label]}${segment.score === null ? "" : ` · score ${segment.score.toFixed(2)}`} · ${segment.area.toLocaleString("en")} pixels`
    : `${shown().length} of ${segments.length} segments`;
}

function apply(values) {
  Object.assign(state, {current: -1}, values);
  map = segmentMap({thumbnail}, segments, shown().reverse()); // the first of them lie on top
  document.querySelectorAll("#classes button").forEach((button) => button.setAttribute("aria-pressed", Number(button.dataset.label) === state.only));
  draw();
}

function choose(index) {
  if (index === state.current) return;
  state.current = index;
  draw();
}

canvas.addEventListener("pointermove", (event) => {
  const box = canvas.getBoundingClientRect(), scale = Math.min(box.width / width, box.height / height);
  const x = Math.floor((event.clientX - box.left) / scale), y = Math.floor((event.clientY - box.top) / scale);
  choose(x >= 0 && y >= 0 && x < width && y < height ? map[y * width + x] : -1);
});
canvas.addEventListener("pointerleave", () => choose(-1));
canvas.addEventListener("blur", () => choose(-1));
canvas.addEventListener("keydown", (event) => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key], order = shown();
  if (!step || !order.length) return;
  event.preventDefault();
  const at = order.indexOf(state.current);
  choose(order[at < 0 ? (step < 0 ? order.length - 1 : 0) : (at + step + order.length) % order.length]);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "b" || event.ctrlKey || event.metaKey || event.altKey) return;
  masks.checked = !masks.checked;
  draw();
});
masks.addEventListener("input", draw);
slider.addEventListener("input", () => {
  document.querySelector("output").textContent = Number(slider.value).toFixed(2);
  apply({score: Number(slider.value)});
});
document.getElementById("slider").hidden = segments.every(({score}) => score === null);

for (const label of new Set(segments.map((segment) => segment.label))) {
  const dot = make("span", {className: "dot"});
  dot.style.background = `rgb(${segments.find((segment) => segment.label === label).color.join(",")})`;
  const button = make("button", {type: "button", onclick: () => apply({only: state.only === label ? null : label})}, dot, names[label]);
  button.dataset.label = label;
  document.getElementById("classes").append(button);
}

// The image stays grey where it is missing or cannot be decoded.
async function start() {
  context.fillStyle = "#888";
  context.fillRect(0, 0, width, height);
  const picture = new Image();
  picture.src = `data:image/jpeg;base64,${thumbnail.jpeg}`;
  await picture.decode().then(() => context.drawImage(picture, 0, 0), () => {});
  base = context.getImageData(0, 0, width, height);
  apply({});
}
start();
