"use strict";
// What every page begins with.  Text from data is only ever set through textContent, so nothing in it can become markup.
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");

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

const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));
const percent = (value, digits = 0) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
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


// -------------------------------------------------------------------------------------------- controls
function select(title, options, chosen, changed) {
  const box = make("select", { onchange: () => changed(box.value) }, ...options.map(([value, label]) => make("option", { value }, label)));
  box.value = String(chosen);
  return make("label", {}, title, box);
}
// A control that redraws its own view keeps the focus: it is found again by its place.  Returns the bar, and what to
// call when it is in the page.
function controls(host, ...labels) {
  const old = host.querySelector(".controls");
  const at = old ? [...old.querySelectorAll("select, input")].indexOf(document.activeElement) : -1;
  const bar = make("div", { class: "controls" }, ...labels.filter(Boolean));
  return [bar, () => { if (at >= 0) bar.querySelectorAll("select, input")[at]?.focus(); }];
}

// ---------------------------------------------------------------------------------------------- tables
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.v; // none sorts last
    const rows = [...table.tBodies[0].rows];
    const numeric = rows.every((row) => value(row) === undefined || !Number.isNaN(Number(value(row))));
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const order = numeric ? Number(x) - Number(y) : x.localeCompare(y);
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}

// ----------------------------------------------------------------------------- text, coloured by expert
// Colours repeat after TINTS experts; an underline tells the rounds apart.
const TINTS = 9;
const tint = (i) => { const round = Math.floor(i / TINTS) % 4; return `e${i % TINTS}${round ? ` mark${round}` : ""}`; };
const GLANCE = 90; // tokens of each text when all are shown
const MOST_CHOICES = 24; // experts to choose among, the busiest

// texts: [{domain, tokens}]; rows(text): of each token its [expert, weight or null] pairs, heaviest first; tell(text, i): what
// is known of a token besides; pick(expert) on Enter; bar: what stands above.
function colouredText(host, texts, { bar, only, choose, rows, tell, pick }) {
  const focus = host.contains(document.activeElement) ? document.activeElement.dataset.expert : undefined;
  const count = new Map();
  const known = texts.map((text) => rows(text).slice(0, text.tokens.length));
  known.flat().forEach((row) => { if (row.length) count.set(row[0][0], (count.get(row[0][0]) ?? 0) + 1); });
  const total = [...count.values()].reduce((a, b) => a + b, 0) || 1;
  const legend = [...count].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, MOST_CHOICES).map(([expert, tokens]) => make(
    "button", { type: "button", class: "choice", "aria-pressed": String(only === expert), "data-expert": expert, onclick: () => choose(only === expert ? null : expert) },
    make("i", { class: tint(expert) }), `expert ${expert}`, make("small", {}, percent(tokens / total)),
  ));
  const more = count.size - legend.length;
  host.replaceChildren(
    bar,
    make("div", { class: "experts", role: "group", "aria-label": "Show one expert's tokens alone" }, ...legend, more ? make("small", {}, `and ${more} more`) : ""),
    ...texts.map((text, t) => make("div", { class: "passage" }, texts.length > 1 ? make("h3", {}, text.domain) : "", passage(text, known[t], only, tell, pick))),
  );
  host.dataset.drawn = texts.length;
  if (focus !== undefined) host.querySelector(`[data-expert="${focus}"]`)?.focus();
}

function passage(text, rows, only, tell, pick) {
  const spans = text.tokens.map((token, i) => {
    const first = rows[i]?.[0]?.[0];
    const away = only !== null && first !== only ? " away" : "";
    return make("span", { class: `token${first === undefined ? "" : ` on ${tint(first)}`}${away}`, tabindex: i ? -1 : 0, "data-i": i }, token);
  });
  const describe = (event) => {
    const i = event.target.dataset.i;
    if (i === undefined) return;
    const lines = (rows[i] ?? []).map(([expert, weight]) => [make("i", { class: tint(expert) }), `expert ${expert}${weight === null ? "" : `   weight ${fixed(weight, 2)}`}`]);
    const box = event.target.getClientRects()[0];
    showTip([`“${visible(text.tokens[i])}”${tell(text, i)}`, ...(lines.length ? lines : ["no expert"])], box.left, box.bottom - 8);
  };
  const move = (event) => {
    const i = Number(event.target.dataset.i);
    if (event.key === "Enter" && rows[i]?.length) pick(rows[i][0][0]);
    const next = spans[i + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? NaN)];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
  return make("pre", { class: "sample", "aria-label": `${text.domain}; arrow keys move between tokens`, onpointerover: describe, onfocusin: describe, onpointerleave: hideTip, onfocusout: hideTip, onkeydown: move }, ...spans);
}
