"use strict";
// Text from data is only ever set through textContent, so nothing in it can become markup.
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("--")) node.style.setProperty(key, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}
const make = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const draw = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));
const percent = (value, digits = 0) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
const times = (value) => (value === null || value === undefined ? "–" : `${value >= 9.95 ? value.toFixed(0) : value >= 0.095 ? value.toFixed(1) : value.toFixed(2)} ×`);
const brief = (value) => (typeof value !== "number" ? String(value) : Math.abs(value) >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M` : Math.abs(value) >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : String(+value.toPrecision(3)).replace("-", "−"));
const sum = (values) => values.reduce((a, b) => a + b, 0);
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣") || "∅";

function showTip(lines, x, y) {
  tip.replaceChildren(...lines.map((line) => make("div", {}, ...[].concat(line))));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 16 + box.width > innerWidth ? x - box.width - 16 : x + 16;
  const top = y + 16 + box.height > innerHeight ? y - box.height - 12 : y + 16;
  tip.style.left = `${clamp(left, 6, Math.max(6, innerWidth - box.width - 6))}px`;
  tip.style.top = `${Math.max(6, top)}px`;
}
const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

function select(title, options, chosen, changed) {
  const box = make("select", { onchange: () => changed(box.value) }, ...options.map(([value, label]) => make("option", { value }, label)));
  box.value = String(chosen);
  return make("label", {}, title, box);
}
// A control that redraws its own view keeps the focus: it is found again by its place.
function controls(host, ...labels) {
  const old = host.querySelector(".controls");
  const at = old ? [...old.querySelectorAll("select, input")].indexOf(document.activeElement) : -1;
  const bar = make("div", { class: "controls" }, ...labels.filter(Boolean));
  return [bar, () => { if (at >= 0) bar.querySelectorAll("select, input")[at]?.focus(); }];
}

// Runs again when the width or the colour scheme changes.
let redraws = [];
function onLayout(host, paint) {
  let width = host.clientWidth;
  paint();
  redraws = [...redraws.filter(([other]) => other.isConnected), [host, paint]];
  new ResizeObserver(() => {
    if (Math.abs(host.clientWidth - width) < 2) return;
    width = host.clientWidth;
    paint();
  }).observe(host);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach(([, paint]) => paint()));

// ------------------------------------------------------------------------------------------- colours
const paint = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
function mixed(from, to, share) {
  const [a, b] = [channels(from), channels(to)];
  return `rgb(${a.map((value, i) => Math.round(value + (b[i] - value) * share)).join(",")})`;
}
// Colour of a value on a scale: "share" from 0 to its greatest, "range" from its least, "ratio" around 1, "signed" around 0.
function colouring(scale, [least, greatest]) {
  const [paper, high, low] = ["--paper", "--heat", "--bad"].map(paint);
  const none = paint("--none");
  return (value) => {
    if (value === null || value === undefined) return [none, 0];
    const at = scale === "ratio" ? Math.log2(Math.max(value, 1 / 8)) / 3 : scale === "signed" ? value : scale === "range" ? (value - least) / (greatest - least || 1) : value / (greatest || 1);
    const share = clamp(Math.abs(at), 0, 1);
    return [mixed(paper, at < 0 ? low : high, share), at < 0 ? 0 : share]; // dark text reads best on orange
  };
}
function scaleKey(scale, [least, greatest]) {
  const [from, to] = { ratio: ["≤ 1/8", "≥ 8"], signed: ["−1", "1"], range: [brief(least), brief(greatest)] }[scale] ?? ["0", brief(greatest)];
  return make("div", { class: "key" }, make("span", {}, from), make("i", { class: `ramp ${scale}` }), make("span", {}, to), scale === "ratio" ? make("span", {}, "(middle: 1)") : "");
}
const TINTS = 9;
const tint = (i) => `e${i % TINTS}${Math.floor(i / TINTS) % 4 ? ` mark${Math.floor(i / TINTS) % 4}` : ""}`;

// ----------------------------------------------------------------------------------- the chosen expert
const chosen = { layer: 0, expert: 0 };
const listeners = [];
function choose(layer, expert, go = false) {
  chosen.layer = clamp(layer, 0, data.layers.length - 1);
  chosen.expert = clamp(expert, 0, data.layers[chosen.layer].n - 1);
  listeners.forEach((listen) => listen());
  if (!go) return;
  const title = document.getElementById("card");
  title.tabIndex = -1;
  title.focus({ preventScroll: true });
  title.scrollIntoView();
}

// ------------------------------------------------------------------------------------------- tables
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => (row.cells[column].dataset.v === undefined ? Infinity : Number(row.cells[column].dataset.v));
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)) || 0));
  }));
}
