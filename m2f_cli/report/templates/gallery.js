"use strict";
// The gallery: cards of images with their segments; filters, order, score slider, and what a segment is.

const data = JSON.parse(document.getElementById("data").textContent);
const ways = JSON.parse(document.getElementById("ways").textContent);
// Layers that end in 2 are those of the second of two evaluations. `data.alone` names the only side of images whose
// segments are compared with nothing: "prediction" or "annotation".
const LAYERS = data.alone ? {image: "image", found: data.alone} : data.compares ? {image: "image", found: "A", found2: "B", true: "annotation", difference: "errors of A", difference2: "errors of B"}
  : {image: "image", true: "annotation", found: "prediction", difference: "difference"};
const isSecond = (layer) => layer.endsWith("2");
const sideOf = (layer) => layer.replace("2", "");
const gallery = document.getElementById("gallery");
const control = (name) => document.getElementById(name);
const state = {task: data.tasks[0], order: data.alone ? "given" : data.compares ? "change" : "worst", label: "", kind: "", size: "", name: "", pair: null, span: null, score: 0, only: null, layer: "all", hovered: null, palette: ""};
const NONE = {true: [], found: [], figure: null};
const dialogIsOpen = () => document.querySelector("dialog[open]") !== null;

const colorOf = (label) => state.palette ? data.palette[label % data.palette.length] : data.categories[label].color;

// --- segments under the score slider ---

const sidesOf = (view, second = false) => ({...NONE, ...(second ? view.second : view.tasks)[state.task]});
const isKept = (segment) => segment.score === undefined || segment.score >= state.score;
const isShown = (segment) => isKept(segment) && (state.only === null || segment.label === state.only);
const partnerOf = (sides, segment, side) => sides[side === "true" ? "found" : "true"][segment.partner];

// What a segment counts as while weak segments are taken away: one whose partner is away was missed.
function verdictIn(sides) {
  return (segment, side) => {
    const partner = partnerOf(sides, segment, side);
    return side === "true" && partner && !isKept(partner) && segment.kind !== "crowd" ? "missed" : segment.kind;
  };
}

function tally(view, second = false) {
  if (data.alone) return {count: sidesOf(view).found.filter(isKept).length};
  const sides = sidesOf(view, second), verdict = verdictIn(sides);
  const sum = {hits: 0, wrong: 0, missed: 0, iou: 0, sure: 0};
  for (const segment of sides.found) {
    if (!isKept(segment)) continue;
    if (segment.kind === "hit") { sum.hits++; sum.iou += segment.iou; } else if (segment.kind !== "excused") {
      sum.wrong++;
      sum.sure += Math.max(0, 2 * (segment.score ?? 1) - 1);
    }
  }
  for (const segment of sides.true) if (!["hit", "crowd"].includes(verdict(segment, "true"))) sum.missed++;
  const weight = sum.hits + (sum.wrong + sum.missed) / 2;
  sum.lost = weight - sum.iou;
  sum.figure = state.task === "semantic" ? sides.figure ?? null : weight ? 100 * sum.iou / weight : null;
  return sum;
}

const percent = (value) => value === null || value === undefined ? "–" : value.toFixed(1);

function explain(sides, segment, side) {
  const kind = verdictIn(sides)(segment, side), partner = partnerOf(sides, segment, side);
  const name = data.categories[segment.label].name;
  const facts = data.alone ? [name] : [`${side === "true" ? "annotated" : "predicted"}: ${name}`];
  if (segment.score !== undefined) facts.push(`score ${segment.score.toFixed(2)}`);
  if (partner) facts.push(`IoU ${segment.iou.toFixed(2)}`);
  facts.push(`${segment.area.toLocaleString("en")} pixels`);
  if (data.alone) return {head: facts.join(" · "), why: "", kind: segment.kind};
  const other = partner && data.categories[partner.label].name;
  const why = {
    crowd: "a group that is not counted", excused: "on a group or where nothing is annotated: not counted",
    class: other && other !== name ? `wrong class: ${side === "true" ? "predicted as" : "annotated as"} ${other}` : "wrong class",
    boundary: "too little overlap: a hit needs IoU above 0.5",
    missed: !partner ? "missed: nothing of this class is there" : isKept(partner) ? "missed: little of this class is there"
      : `missed: its prediction has score ${partner.score.toFixed(2)}`,
  }[kind] ?? ways[kind] ?? kind;
  return {head: facts.join(" · "), why: kind === "hit" ? "hit" : why, kind};
}

// --- drawing ---

// The surest segments lie on top. Maps are kept as long as what they show stays the same.
function mapOf(view, layer) {
  const key = `${state.task} ${state.score} ${state.only}`;
  if (view.maps?.key !== key) view.maps = {key};
  const segments = sidesOf(view, isSecond(layer))[sideOf(layer)];
  view.maps[layer] ??= segmentMap(view, segments, segments.map((_, i) => i).reverse().filter((i) => isShown(segments[i])));
  return view.maps[layer];
}

function drawLayer(canvas, view, layer) {
  const [height, width] = view.thumbnail.size;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.fillStyle = "#888";
  context.fillRect(0, 0, width, height);
  if (view.picture) context.drawImage(view.picture, 0, 0, width, height);
  if (layer === "image") return;
  const sides = sidesOf(view, isSecond(layer)), verdict = verdictIn(sides);
  const pixels = context.getImageData(0, 0, width, height);
  if (sideOf(layer) === "difference") {
    const colors = Object.values(KIND_COLORS);
    tint(pixels, errorMap(view, sides, isShown, verdict), width, (k) => colors[k], {grey: 1, strength: 0.7, edges: false});
  } else {
    const map = mapOf(view, layer);
    const hovered = state.hovered && state.hovered.view === view && state.hovered.layer === layer ? state.hovered.index : -1;
    tint(pixels, map, width, (i) => colorOf(sides[sideOf(layer)][i].label), {grey: state.only === null ? 0.25 : 0.8, only: hovered});
  }
  context.putImageData(pixels, 0, 0);
}

// The picture is decoded once; a missing or broken one leaves the ground grey.
function loadPicture(view) {
  view.loading ??= (async () => {
    if (!view.thumbnail.jpeg) return;
    const picture = new Image();
    picture.src = `data:image/jpeg;base64,${view.thumbnail.jpeg}`;
    try {
      await picture.decode();
      view.picture = picture;
    } catch {
      view.isBroken = true;
    }
  })();
  return view.loading;
}

function segmentAt(view, layer, x, y) {
  const [height, width] = view.thumbnail.size;
  const column = Math.min(width - 1, Math.max(0, Math.floor(x * width))), row = Math.min(height - 1, Math.max(0, Math.floor(y * height)));
  const predicted = isSecond(layer) ? "found2" : "found";
  const wanted = data.alone ? ["found"] : layer === "true" || layer === predicted ? [layer] : ["true", predicted];
  return wanted.map((each) => ({layer: each, index: mapOf(view, each)[row * width + column]})).filter(({index}) => index >= 0);
}

// --- cards ---

const cards = data.views.map((view) => {
  const title = make("h3", {textContent: view.name});
  const facts = make("span", {className: "facts-line"});
  const open = make("button", {type: "button", className: "plain", textContent: "Large", onclick: () => openViewer(view)});
  open.setAttribute("aria-label", `Large view of ${view.name}`);
  open.setAttribute("aria-haspopup", "dialog");
  const panes = make("div", {className: "panes"});
  const card = make("article", {className: "card"}, make("header", {}, title, facts, open), panes, make("p", {className: "chips"}));
  card.setAttribute("aria-label", view.name);
  return Object.assign(card, {view, facts, panes, chips: card.lastChild});
});

function fillCard(card) {
  const {view} = card;
  if (!card.panes.children.length) {
    for (const [layer, text] of Object.entries(LAYERS)) {
      const canvas = make("canvas", {});
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${text} of ${view.name}`);
      canvas.dataset.layer = layer;
      [canvas.height, canvas.width] = view.thumbnail.size;
      const pane = make("figure", {className: "pane"}, canvas, make("figcaption", {textContent: text}));
      pane.dataset.layer = layer;
      card.panes.append(pane);
    }
  }
  const sum = tally(view);
  card.facts.textContent = data.compares ? `A ${inWords(sum)}  ·  B ${inWords(tally(view, true))}` : inWords(sum);
  const labels = [...new Set([...sidesOf(view).true, ...sidesOf(view).found, ...(data.compares ? sidesOf(view, true).found : [])].filter(isKept).map((s) => s.label))];
  card.chips.replaceChildren(...(view.remarks ?? []).map(({text}) => make("em", {textContent: text})), ...(view.thumbnail.jpeg && !view.isBroken ? [] : [make("em", {textContent: "The image is missing."})]),
    ...labels.map((label) => classChip(label)));
  loadPicture(view).then(() => drawSoon(card));
}

const inWords = (sum) => data.alone ? `${sum.count} segment${sum.count === 1 ? "" : "s"}` : `${percent(sum.figure)} · ${sum.hits} hit${sum.hits === 1 ? "" : "s"}, ${sum.wrong} wrong, ${sum.missed} missed`;

function classChip(label) {
  const chip = make("button", {type: "button", className: "chip", onclick: () => showOnly(state.only === label ? null : label)},
    dot(colorOf(label)), data.categories[label].name);
  chip.setAttribute("aria-pressed", state.only === label);
  chip.title = "Show only this class in all images";
  return chip;
}

function dot(color) {
  const mark = make("span", {className: "dot"});
  mark.style.background = `rgb(${color.join(",")})`;
  return mark;
}

function drawCard(card) {
  if (!card.isNear) return;
  card.classList.add("drawn");
  for (const canvas of card.panes.querySelectorAll("canvas")) drawPane(card, canvas);
}

function drawPane(card, canvas) {
  if (state.layer === "all" || state.layer === canvas.dataset.layer) drawLayer(canvas, card.view, canvas.dataset.layer);
}

// Images are drawn one after the other, as many between two frames as leave time to scroll.
const waiting = new Map(); // canvas → its card

function drawSoon(card) {
  if (!card.isNear) return;
  card.classList.add("drawn");
  if (!waiting.size) requestAnimationFrame(drawWaiting);
  for (const canvas of card.panes.querySelectorAll("canvas")) waiting.set(canvas, card);
}

function drawWaiting() {
  const started = performance.now();
  for (const [canvas, card] of waiting) {
    waiting.delete(canvas);
    if (card.isNear) drawPane(card, canvas);
    if (performance.now() - started > 5) break;
  }
  if (waiting.size) requestAnimationFrame(drawWaiting);
}

const near = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) {
    target.isNear = isIntersecting;
    if (isIntersecting) fillCard(target);
    else target.view.maps = undefined;
  }
}, {rootMargin: "500px"});

const refresh = () => cards.forEach((card) => card.isNear && card.isConnected && fillCard(card));

// --- which cards are shown ---

function matches(view) {
  if (state.name && !view.name.toLowerCase().includes(state.name)) return false;
  if (data.alone) {
    return (state.kind === "" || (view.remarks ?? []).some(({kind}) => kind === state.kind))
      && (state.label === "" || sidesOf(view).found.some((segment) => isKept(segment) && segment.label === state.label));
  }
  return matchesIn(sidesOf(view), view.tasks[state.task]) || Boolean(data.compares) && matchesIn(sidesOf(view, true), view.second[state.task]);
}

function matchesIn(sides, comparison) {
  const verdict = verdictIn(sides);
  if (state.pair && !hasPair(comparison, sides)) return false;
  if (state.span && !sides[state.span.side].some((segment) => isInSpan(segment, verdict(segment, state.span.side)))) return false;
  if (state.label === "" && state.kind === "" && state.size === "") return true;
  const [least, below] = SIZES[state.size] ?? [0, Infinity];
  return ["true", "found"].some((side) => sides[side].some((segment) => isKept(segment)
    && (state.label === "" || segment.label === state.label) && (state.kind === "" || verdict(segment, side) === state.kind)
    && segment.area >= least && segment.area < below));
}

// Columns of histograms count hits, and all others of one side.
function isInSpan(segment, kind) {
  const {key, from, to, isHit} = state.span;
  return isKept(segment) && !["crowd", "excused"].includes(kind) && (kind === "hit") === isHit && segment[key] >= from && segment[key] < to;
}

function hasPair(comparison, sides) {
  const [t, f] = state.pair, isPair = (kind) => kind === "hit" || kind === "class";
  if (comparison && comparison.confusion) return comparison.confusion.some(([a, b]) => a === t && b === f);
  if (t === null) return sides.found.some((s) => s.label === f && !isPair(s.kind) && s.kind !== "excused");
  return sides.true.some((s) => s.label === t && s.kind !== "crowd"
    && (isPair(s.kind) && sides.found[s.partner] ? sides.found[s.partner].label : null) === f);
}

const SIZES = {small: [0, 32 ** 2], medium: [32 ** 2, 96 ** 2], large: [96 ** 2, Infinity]}; // pixels, as COCO's

const ORDERS = {
  given: () => 0,
  most: (a, b) => b.sum.count - a.sum.count,
  fewest: (a, b) => a.sum.count - b.sum.count,
  worst: (a, b) => (a.sum.figure ?? 101) - (b.sum.figure ?? 101),
  best: (a, b) => (b.sum.figure ?? -1) - (a.sum.figure ?? -1),
  lost: (a, b) => b.sum.lost - a.sum.lost,
  sure: (a, b) => b.sum.sure - a.sum.sure,
  name: (a, b) => a.view.name.localeCompare(b.view.name),
  random: (a, b) => a.chance - b.chance,
  better: (a, b) => b.change - a.change,
  worse: (a, b) => a.change - b.change,
  change: (a, b) => Math.abs(b.change) - Math.abs(a.change),
};

const counts = (sum) => data.alone ? inWords(sum) : `${sum.hits} hits, ${sum.wrong} wrong, ${sum.missed} missed`;

function apply() {
  const shown = [], total = data.alone ? {count: 0} : {hits: 0, wrong: 0, missed: 0}, second = {hits: 0, wrong: 0, missed: 0};
  for (const card of cards) {
    if (!matches(card.view)) continue;
    card.sum = tally(card.view);
    const other = data.compares ? tally(card.view, true) : card.sum;
    card.change = (other.figure ?? 0) - (card.sum.figure ?? 0);
    for (const key of Object.keys(total)) {
      total[key] += card.sum[key];
      second[key] += other[key];
    }
    shown.push(card);
  }
  shown.sort(ORDERS[state.order]);
  gallery.replaceChildren(...shown);
  const filters = [];
  if (state.kind) filters.push(state.kind);
  if (state.size) filters.push(`${state.size} segments`);
  if (state.label !== "") filters.push(data.categories[state.label].name);
  if (state.pair) filters.push(state.pair.map((k) => k === null ? "nothing" : data.categories[k].name).join(" predicted as "));
  if (state.span) filters.push(state.span.text);
  if (state.name) filters.push(`“${state.name}”`);
  control("gallery-status").textContent = `${shown.length} of ${cards.length} images${filters.length ? ` with ${filters.join(", ")}` : ""}`
    + ` · ${data.compares ? "A: " : ""}${counts(total)}${data.compares ? `; B: ${counts(second)}` : ""}` + (state.score ? ` at score ${state.score.toFixed(2)} and more` : "")
    + (state.only === null ? "" : ` · showing only ${data.categories[state.only].name}`);
  control("reset").hidden = !(filters.length || state.only !== null || state.score !== startScore(state.task));
  refresh();
}

function change(values) {
  Object.assign(state, values);
  control("by-class").value = state.label;
  if (control("by-kind")) control("by-kind").value = state.kind;
  control("by-name").value = state.name;
  apply();
}

// Filters of charts and tables: a class, a kind of error, or a cell of the confusion matrix.
function showFiltered({label = "", kind = "", size = "", pair = null, span = null}) {
  const score = span?.key === "score" ? Math.min(state.score, span.from) : state.score; // weaker segments are behind that column
  change({label, kind, size, pair, span, score, name: ""});
  showScore();
  document.getElementById("images")?.scrollIntoView();
}

function showOnly(label) {
  change({only: label});
}

function setLayer(layer) {
  state.layer = layer;
  gallery.dataset.layer = layer;
  for (const button of document.querySelectorAll("#gallery-tools [data-layer]")) button.setAttribute("aria-pressed", button.dataset.layer === layer);
  refresh();
}

function nextLayer(layer) {
  const names = Object.keys(LAYERS);
  return names[(names.indexOf(layer) + 1) % names.length];
}

// --- printing: images that were seen, and the first ones in any case ---

const PRINTED = 24;

function loadFirst() {
  [...gallery.children].slice(0, PRINTED).forEach((card) => loadPicture(card.view));
}

addEventListener("beforeprint", () => {
  for (const card of [...gallery.children].slice(0, PRINTED)) {
    const wasNear = card.isNear;
    card.isNear = true;
    fillCard(card);
    drawCard(card);
    card.isNear = wasNear;
  }
});

// --- hovering ---

const tip = make("div", {className: "tip", hidden: true});
tip.setAttribute("role", "status");
document.body.append(tip);

function showTip(view, layer, canvas, event) {
  const box = canvas.getBoundingClientRect();
  const found = segmentAt(view, layer, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  tip.replaceChildren(...found.flatMap(({layer: own, index}) => {
    const sides = sidesOf(view, isSecond(own) || isSecond(layer)), side = sideOf(own);
    const {head, why, kind} = explain(sides, sides[side][index], side);
    return [make("b", {textContent: head}), ...(why ? [make("span", {className: `why is-${kind}`, textContent: why})] : [])];
  }));
  tip.hidden = !found.length;
  const host = canvas.closest("dialog") ?? document.body; // a modal dialog covers all that is outside of it
  if (tip.parentNode !== host) host.append(tip);
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
  const hovered = found.length === 1 && found[0].layer === layer ? found[0] : undefined;
  const before = state.hovered;
  state.hovered = hovered ? {view, ...hovered} : null;
  if (before?.view !== state.hovered?.view || before?.index !== state.hovered?.index || before?.layer !== state.hovered?.layer) return true;
  return false;
}

function hideTip() {
  tip.hidden = true;
  const was = state.hovered;
  state.hovered = null;
  return was;
}

gallery.addEventListener("pointermove", (event) => {
  const canvas = event.target.closest("canvas"), card = canvas?.closest(".card");
  if (!card) return void (hideTip() && refresh());
  if (showTip(card.view, canvas.dataset.layer, canvas, event)) drawSoon(card);
});
gallery.addEventListener("pointerleave", () => hideTip() && refresh());
gallery.addEventListener("click", (event) => {
  const canvas = event.target.closest("canvas");
  if (canvas) openViewer(canvas.closest(".card").view, canvas.dataset.layer);
});

// --- controls ---

function fillControls() {
  const used = new Set(data.views.flatMap((view) => [...Object.values(view.tasks), ...Object.values(view.second ?? {})].flatMap((c) => [...c.true, ...c.found].map((s) => s.label))));
  const labels = [...used].sort((a, b) => data.categories[a].name.localeCompare(data.categories[b].name));
  control("by-class").append(...labels.map((label) => make("option", {value: label, textContent: data.categories[label].name})));
  const kinds = data.alone ? new Set(data.views.flatMap((view) => (view.remarks ?? []).map(({kind}) => kind))) : [...Object.keys(KIND_COLORS), "hit"];
  control("by-kind")?.append(...[...kinds].map((kind) => make("option", {value: kind, textContent: kind})));
  const changes = {
    "by-task": (value) => ({task: value, score: startScore(value)}), "by-order": (value) => ({order: value}),
    "by-class": (value) => ({label: value === "" ? "" : Number(value)}), "by-kind": (value) => ({kind: value}),
    "by-name": (value) => ({name: value.toLowerCase()}), "by-palette": (value) => ({palette: value}), "by-score": (value) => ({score: Number(value)}),
  };
  for (const [name, values] of Object.entries(changes)) {
    control(name)?.addEventListener("input", (event) => {
      if (name === "by-order" && event.target.value === "random") cards.forEach((card) => { card.chance = Math.random(); });
      change(values(event.target.value));
      showScore();
    });
  }
  for (const button of document.querySelectorAll("#gallery-tools [data-layer]")) button.addEventListener("click", () => setLayer(button.dataset.layer));
  control("reset").addEventListener("click", () => {
    change({label: "", kind: "", size: "", name: "", pair: null, span: null, only: null, score: startScore(state.task)});
    showScore();
  });
  control("gallery-tools").hidden = control("gallery-keys").hidden = false;
}

// Published settings keep objects of any score: as long as nobody moves the slider, those from 0.5 on are shown.
function startScore(task) {
  return task === "instance" && !data.alone ? 0.5 : 0;
}

function showScore() {
  control("by-score").closest("label").hidden = state.task === "semantic" || data.alone === "annotation";
  control("by-score").value = state.score;
  document.querySelector("output[for=by-score]").textContent = state.score.toFixed(2);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || dialogIsOpen() || event.target.matches("input:not([type=range]), select, textarea")) return;
  const chosen = ["all", ...Object.keys(LAYERS)][Number(event.key)];
  if (event.key === "b") setLayer(nextLayer(state.layer));
  else if (/^[0-9]$/.test(event.key) && chosen) setLayer(chosen);
});

fillControls();
gallery.classList.toggle("compares", Boolean(data.compares));
gallery.classList.toggle("alone", Boolean(data.alone));
state.score = startScore(state.task);
showScore();
cards.forEach((card) => near.observe(card));
apply();
requestIdleCallback(loadFirst);
