"use strict";
// Tables that sort, filter and save themselves, and bars and cells that filter the gallery.

const value = (cell) => cell.dataset.value ?? cell.textContent;

function sortTable(table, column, isUp) {
  const isNumber = table.tHead.rows[0].cells[column].classList.contains("number");
  const key = (text) => isNumber ? (text === "" ? -Infinity : Number(text)) : text;
  const rows = [...table.tBodies[0].rows].map((row) => [key(value(row.cells[column])), row]);
  const compare = isNumber ? ([a], [b]) => a - b || 0 : ([a], [b]) => a.localeCompare(b); // two without a value: NaN
  rows.sort((a, b) => isUp ? compare(a, b) : compare(b, a));
  const body = table.tBodies[0];
  body.remove(); // rows of a table that is shown are moved slowly
  body.append(...rows.map(([, row]) => row));
  table.append(body);
  [...table.tHead.rows[0].cells].forEach((cell, i) => i === column ? cell.setAttribute("aria-sort", isUp ? "ascending" : "descending") : cell.removeAttribute("aria-sort"));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    if (cell.classList.contains("bar-head")) return;
    const button = make("button", {type: "button", className: "link", textContent: cell.textContent});
    button.addEventListener("click", () => {
      const now = cell.getAttribute("aria-sort");
      sortTable(table, column, now ? now === "descending" : !cell.classList.contains("number"));
    });
    cell.replaceChildren(button);
  });
}

for (const input of document.querySelectorAll("input[data-table]")) {
  const table = document.getElementById(input.dataset.table);
  const count = document.querySelector(`[data-count="${input.dataset.table}"]`);
  input.addEventListener("input", () => {
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(input.value.toLowerCase());
      shown += !row.hidden;
    }
    count.textContent = input.value ? `${shown} of ${table.tBodies[0].rows.length} classes` : "";
  });
}

// A text that a spreadsheet would take for a formula gets an apostrophe before it.
function csvField(text) {
  const safe = /^[=+\-@\t\r]/.test(text) && !/^-?[\d.]+(e-?\d+)?$/i.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

for (const button of document.querySelectorAll("[data-csv]")) {
  button.addEventListener("click", () => {
    const table = document.getElementById(button.dataset.csv);
    const rows = [table.tHead.rows[0], ...[...table.tBodies[0].rows].filter((row) => !row.hidden)];
    const isBar = (cell) => cell.classList.contains("bar") || cell.classList.contains("bar-head");
    const text = rows.map((row) => [...row.cells].filter((cell) => !isBar(cell)).map((cell) => csvField(value(cell))).join(",")).join("\r\n");
    const address = URL.createObjectURL(new Blob([text, "\r\n"], {type: "text/csv"}));
    make("a", {href: address, download: `${button.dataset.csv}.csv`}).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
}

// Bars and cells: a click or Enter filters the gallery. One of each group takes part in the order of Tab.
const wanted = (element) => {
  const {label, kind, size, side, key, from, to, hit, true: t, found: f} = element.dataset;
  const whole = (text) => text === "" ? null : Number(text);
  if (t !== undefined) return {pair: [whole(t), whole(f)]};
  if (side !== undefined) return {span: {side, key, from: Number(from), to: Number(to), isHit: hit === "1", text: element.querySelector("title").textContent}};
  return {label: label === undefined ? "" : Number(label), kind: kind ?? "", size: size ?? ""};
};

for (const group of document.querySelectorAll(".filters")) {
  const items = [...group.querySelectorAll("[role=button]")];
  if (items.length) items[0].setAttribute("tabindex", "0");
  const go = (index) => {
    if (!items[index]) return;
    items.forEach((item, i) => item.setAttribute("tabindex", i === index ? "0" : "-1"));
    items[index].focus();
  };
  group.addEventListener("click", (event) => {
    const item = event.target.closest("[role=button]");
    if (item) showFiltered(wanted(item));
  });
  group.addEventListener("keydown", (event) => {
    const index = items.indexOf(event.target);
    if (index < 0) return;
    if (event.key === "Enter" || event.key === " ") showFiltered(wanted(event.target));
    else if (event.key === "ArrowRight" || event.key === "ArrowDown") go(index + 1);
    else if (event.key === "ArrowLeft" || event.key === "ArrowUp") go(index - 1);
    else return;
    event.preventDefault();
  });
}

for (const button of document.querySelectorAll("th button[data-label], th button[data-kind]")) button.addEventListener("click", () => showFiltered(wanted(button)));
