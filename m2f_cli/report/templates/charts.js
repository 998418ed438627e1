"use strict";
// Line charts: the values of all lines at the point of the mouse, or at the point that the arrow keys chose.

const readout = make("div", {className: "tip", hidden: true});
readout.setAttribute("aria-live", "polite");
document.body.append(readout);

for (const chart of document.querySelectorAll(".chart > svg:has(polyline)")) {
  const marks = [...chart.querySelectorAll("g")].reverse().map((line) => [...line.querySelectorAll("circle")]);
  const places = [...new Set(marks.flat().map((mark) => mark.cx.baseVal.value))].sort((a, b) => a - b);
  let last = [], at = -1;
  const forget = () => { last.forEach((mark) => mark.classList.remove("near")); readout.hidden = true; };
  const showAt = (x, left, top) => {
    const distance = (mark) => Math.abs(mark.cx.baseVal.value - x);
    forget();
    last = marks.map((line) => line.reduce((a, b) => distance(a) <= distance(b) ? a : b));
    last.forEach((mark) => mark.classList.add("near"));
    readout.replaceChildren(...last.map((mark) => make("span", {textContent: mark.textContent})));
    readout.hidden = false;
    readout.style.left = `${Math.max(4, Math.min(left + 14, innerWidth - readout.offsetWidth - 8))}px`;
    readout.style.top = `${top + 18}px`;
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    showAt((event.clientX - box.left) * chart.viewBox.baseVal.width / box.width, event.clientX, event.clientY);
  });
  chart.addEventListener("pointerleave", forget);
  chart.setAttribute("tabindex", "0");
  chart.setAttribute("aria-label", `${chart.getAttribute("aria-label")} The arrow keys go from point to point.`);
  chart.addEventListener("blur", () => { at = -1; forget(); });
  chart.addEventListener("keydown", (event) => {
    const next = {ArrowLeft: at < 0 ? places.length - 1 : at - 1, ArrowRight: at + 1, Home: 0, End: places.length - 1}[event.key];
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    at = Math.max(0, Math.min(places.length - 1, next));
    const box = chart.getBoundingClientRect();
    showAt(places[at], box.left + places[at] * box.width / chart.viewBox.baseVal.width, box.top + box.height / 2);
  });
}
