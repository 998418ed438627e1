"use strict";
// Line charts: the values of all lines at the point of the mouse.

const readout = make("div", {className: "tip", hidden: true});
document.body.append(readout);

for (const chart of document.querySelectorAll(".chart > svg")) {
  const marks = [...chart.querySelectorAll("g")].reverse().map((line) => [...line.querySelectorAll("circle")]);
  if (!marks.length) continue;
  let last = [];
  const forget = () => { last.forEach((mark) => mark.classList.remove("near")); readout.hidden = true; };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    const distance = (mark) => Math.abs(mark.cx.baseVal.value - x);
    forget();
    last = marks.map((line) => line.reduce((a, b) => distance(a) <= distance(b) ? a : b));
    last.forEach((mark) => mark.classList.add("near"));
    readout.replaceChildren(...last.map((mark) => make("span", {textContent: mark.textContent})));
    readout.hidden = false;
    readout.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - readout.offsetWidth - 8))}px`;
    readout.style.top = `${event.clientY + 18}px`;
  });
  chart.addEventListener("pointerleave", forget);
}
