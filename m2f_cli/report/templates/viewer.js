"use strict";
// The large view of one image: zoom, pan, blink, and a list of its segments.

const viewer = make("dialog", {className: "viewer"});
const stage = make("div", {className: "stage"});
const sheet = make("canvas", {});
const listed = make("ul", {className: "segments"});
const heading = make("h2", {id: "viewer-title"});
const bar = make("nav", {});
const place = {view: null, layer: "found", zoom: 1, x: 0, y: 0, drag: null};
sheet.setAttribute("role", "img");
stage.append(sheet);
viewer.setAttribute("aria-labelledby", "viewer-title");
viewer.append(make("header", {}, heading, bar), make("div", {className: "body"}, stage, listed));
document.body.append(viewer);

function tool(text, name, action) {
  const button = make("button", {type: "button", className: "choice", textContent: text, onclick: action});
  if (name) button.setAttribute("aria-label", name);
  bar.append(button);
  return button;
}

const layerButtons = Object.entries(LAYERS).map(([layer, text], i) => Object.assign(
  tool(`${i + 1} ${text}`, text, () => showLayer(layer)), {layer}));
tool("+", "Zoom in", () => zoomBy(1.5));
tool("−", "Zoom out", () => zoomBy(1 / 1.5));
tool("Fit", "Fit the image", () => fit());
tool("←", "Previous image", () => step(-1));
tool("→", "Next image", () => step(1));
tool("Close (Esc)", "", () => viewer.close());

function openViewer(view, layer = "found") {
  place.layer = layer;
  viewer.showModal();
  showView(view);
}

function showView(view) {
  place.view = view;
  state.hovered = null;
  hideTip();
  const sum = tally(view);
  const other = data.compares ? ` → ${percent(tally(view, true).figure)}` : "";
  heading.textContent = `${view.name} · ${data.alone ? inWords(sum) : percent(sum.figure)}${other} · ${view.size[1]} x ${view.size[0]}`;
  const rows = ["true", "found", ...(data.compares ? ["found2"] : [])].flatMap((layer) => {
    const sides = sidesOf(view, isSecond(layer)), side = sideOf(layer);
    return sides[side].map((segment, index) => ({layer, side, sides, segment, index, kind: verdictIn(sides)(segment, side)}));
  });
  const order = (row) => row.kind === "hit" ? 2 : ["crowd", "excused"].includes(row.kind) ? 1 : 0;
  rows.sort((a, b) => order(a) - order(b) || b.segment.area - a.segment.area);
  listed.replaceChildren(...rows.filter((row) => isKept(row.segment)).map((row) => {
    const {head, why} = explain(row.sides, row.segment, row.side);
    const button = make("button", {type: "button", onclick: () => showLayer(row.layer)},
      dot(colorOf(row.segment.label)), make("b", {textContent: data.compares && row.side === "found" ? `${LAYERS[row.layer]}: ${head}` : head}), make("span", {className: `why is-${row.kind}`, textContent: why}));
    const highlight = () => { state.hovered = {view, layer: row.layer, index: row.index}; showLayer(row.layer); };
    button.addEventListener("focus", highlight);
    button.addEventListener("pointermove", () => state.hovered?.index === row.index && place.layer === row.layer || highlight());
    return make("li", {}, button);
  }));
  fit();
  loadPicture(view).then(() => place.view === view && draw());
}

function draw() {
  sheet.setAttribute("aria-label", `${LAYERS[place.layer]} of ${place.view.name}`);
  drawLayer(sheet, place.view, place.layer);
  layerButtons.forEach((button) => button.setAttribute("aria-pressed", button.layer === place.layer));
}

function showLayer(layer) {
  place.layer = layer;
  draw();
}

function step(by) {
  const shown = [...gallery.children].map((card) => card.view);
  if (shown.length) showView(shown[(shown.indexOf(place.view) + by + shown.length) % shown.length]);
}

// The sheet has one pixel for each of the thumbnail; the size on the screen is a matter of style.
function put() {
  const [height, width] = place.view.thumbnail.size;
  sheet.style.width = `${width * place.zoom}px`;
  sheet.style.height = `${height * place.zoom}px`;
  sheet.style.transform = `translate(${place.x}px, ${place.y}px)`;
  sheet.classList.toggle("close", place.zoom >= 3);
}

function fit() {
  const [height, width] = place.view.thumbnail.size, box = stage.getBoundingClientRect();
  place.zoom = Math.min(box.width / width, box.height / height) || 1;
  place.x = (box.width - width * place.zoom) / 2;
  place.y = (box.height - height * place.zoom) / 2;
  put();
}

function zoomBy(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const zoom = Math.min(60, Math.max(0.1, place.zoom * factor));
  place.x = x - (x - place.x) * zoom / place.zoom;
  place.y = y - (y - place.y) * zoom / place.zoom;
  place.zoom = zoom;
  put();
}

function panBy(x, y) {
  place.x += x;
  place.y += y;
  put();
}

stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  zoomBy(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
}, {passive: false});
stage.addEventListener("pointerdown", (event) => {
  place.drag = [event.clientX, event.clientY];
  stage.setPointerCapture(event.pointerId);
});
stage.addEventListener("pointerup", () => { place.drag = null; });
stage.addEventListener("pointermove", (event) => {
  if (place.drag) {
    panBy(event.clientX - place.drag[0], event.clientY - place.drag[1]);
    place.drag = [event.clientX, event.clientY];
    hideTip();
  } else if (showTip(place.view, place.layer, sheet, event)) draw();
});
stage.addEventListener("pointerleave", () => hideTip() && draw());
stage.addEventListener("dblclick", () => fit());
viewer.addEventListener("close", () => { hideTip(); document.body.append(tip); refresh(); });
addEventListener("resize", () => viewer.open && fit());
viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const pans = {ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40]};
  if (event.shiftKey && event.key in pans) panBy(...pans[event.key]);
  else if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
  else if (event.key === "+" || event.key === "=") zoomBy(1.5);
  else if (event.key === "-") zoomBy(1 / 1.5);
  else if (event.key === "b") showLayer(nextLayer(place.layer));
  else if (event.key === "0") fit();
  else if (Object.keys(LAYERS)[event.key - 1]) showLayer(Object.keys(LAYERS)[event.key - 1]);
  else return;
  event.preventDefault();
});
