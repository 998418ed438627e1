"use strict";
// What the page says is there without scripts; this one adds the buttons that copy.
document.documentElement.classList.add("has-script");

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Buttons that copy a command.
for (const block of document.querySelectorAll(".command")) {
  const button = make("button", {type: "button", textContent: "Copy"});
  button.addEventListener("click", async () => {
    const code = block.querySelector("code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C"; // the browser forbids it; the line is selected
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  block.append(button);
}

// Links to sections. In a frame of a notebook the browser would load the notebook itself.
document.addEventListener("click", (event) => {
  const link = location.protocol === "about:" ? event.target.closest("a[href^='#']") : null;
  if (!link) return;
  event.preventDefault();
  document.getElementById(link.hash.slice(1)).scrollIntoView();
});
