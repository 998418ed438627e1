"use strict";
// The large view: the images of one section in one place, to blink between them.
const large = make("img", {alt: ""});
const choices = make("nav", {});
const view = make("dialog", {}, choices, large);
view.setAttribute("aria-label", "Large view");
document.body.append(view);
let shown = [];
let current = 0;

function show(index) {
  current = (index + shown.length) % shown.length;
  large.src = shown[current].src;
  large.alt = shown[current].alt;
  [...choices.children].forEach((button, i) => button.setAttribute("aria-pressed", i === current));
  choices.children[current].focus();
}

function open(images, index) {
  shown = images;
  const buttons = shown.map((image, i) => make("button", {
    type: "button", className: "choice", textContent: image.closest("figure").querySelector("figcaption").textContent, onclick: () => show(i),
  }));
  choices.replaceChildren(...buttons, make("button", {
    type: "button", className: "choice", textContent: "Close (Esc)", onclick: () => view.close(),
  }));
  view.showModal();
  show(index);
}

for (const section of document.querySelectorAll(".compared")) {
  const images = [...section.querySelectorAll("img")];
  images.forEach((image, i) => {
    const button = make("button", {type: "button", onclick: () => open(images, i)});
    button.setAttribute("aria-haspopup", "dialog");
    image.replaceWith(button);
    button.append(image);
  });
}
large.addEventListener("click", () => show(current + 1));
view.addEventListener("keydown", (event) => {
  const steps = {ArrowRight: 1, ArrowLeft: -1, " ": 1};
  if (event.key in steps) {
    event.preventDefault();
    show(current + steps[event.key]);
  }
});
