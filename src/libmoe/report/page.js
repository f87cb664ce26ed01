"use strict";
// Text from data is only ever set through textContent, so nothing in it can become markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byName = new Map(data.methods.map((m) => [m.method, m]));
const tip = document.getElementById("tip");

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (key.startsWith("--")) node.style.setProperty(key, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const fixed = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));
const percent = (value, digits = 0) => `${(100 * value).toFixed(digits)} %`;
const tokens = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(2)}G` : n >= 1e6 ? `${(n / 1e6).toFixed(2)}M` : n >= 1e3 ? `${(n / 1e3).toFixed(1)}k` : `${n}`);

function showTip(lines, x, y) {
  tip.replaceChildren(...lines.map((line) => make("div", {}, ...[].concat(line))));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 16 + box.width > innerWidth ? x - box.width - 16 : x + 16;
  const top = y + 16 + box.height > innerHeight ? y - box.height - 12 : y + 16;
  tip.style.left = `${Math.max(6, Math.min(left, innerWidth - box.width - 6))}px`;
  tip.style.top = `${Math.max(6, top)}px`;
}
const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

// ---------------------------------------------------------------------------------------------- tables
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.v;
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

// ---------------------------------------------------------------------------------------------- curves
const hidden = new Set();
const marks = () => document.querySelectorAll(".curves g[data-method]");
for (const button of document.querySelectorAll(".legend button")) {
  const name = button.dataset.method;
  const emphasise = (on) => marks().forEach((mark) => mark.classList.toggle("dimmed", on && !hidden.has(name) && mark.dataset.method !== name));
  button.addEventListener("click", () => {
    const off = !hidden.has(name);
    if (off) hidden.add(name); else hidden.delete(name);
    button.setAttribute("aria-pressed", String(!off));
    marks().forEach((mark) => { if (mark.dataset.method === name) mark.classList.toggle("off", off); });
    emphasise(!off);
  });
  for (const on of ["pointerenter", "focus"]) button.addEventListener(on, () => emphasise(true));
  for (const off of ["pointerleave", "blur"]) button.addEventListener(off, () => emphasise(false));
}

for (const plot of document.querySelectorAll("svg.plot")) {
  const [left, right, end] = ["left", "right", "end"].map((key) => Number(plot.dataset[key]));
  const series = data.curves[plot.dataset.curves];
  const cursor = plot.querySelector(".cursor");
  const stops = [...new Set(series.flatMap((s) => s.tokens))].sort((a, b) => a - b);
  let at = stops.length - 1;

  function show(clientX, clientY) {
    const x = left + (stops[at] / end) * (right - left);
    cursor.setAttribute("visibility", "visible");
    cursor.firstChild.setAttribute("x1", x);
    cursor.firstChild.setAttribute("x2", x);
    const read = series.filter((s) => !hidden.has(s.method)).map((s) => [byName.get(s.method), interpolate(s, stops[at])])
      .filter(([, value]) => value !== null).sort((a, b) => a[1] - b[1]);
    const lines = read.map(([method, value]) => [make("i", { class: method.class }), `${fixed(value)}  ${method.label}`]);
    const box = plot.getBoundingClientRect();
    const scale = box.width / plot.viewBox.baseVal.width;
    showTip([`${tokens(stops[at])} tokens`, ...lines], clientX ?? box.left + x * scale, clientY ?? box.top + 30);
  }
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const wanted = ((event.clientX - box.left) * (plot.viewBox.baseVal.width / box.width) - left) / (right - left) * end;
    at = stops.reduce((best, stop, i) => (Math.abs(stop - wanted) < Math.abs(stops[best] - wanted) ? i : best), 0);
    show(event.clientX, event.clientY);
  });
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -stops.length, End: stops.length }[event.key];
    if (!step) return;
    event.preventDefault();
    at = Math.max(0, Math.min(stops.length - 1, at + step));
    show();
  });
  const leave = () => { hideTip(); cursor.setAttribute("visibility", "hidden"); };
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
}

function interpolate(s, x) {
  if (x < s.tokens[0] || x > s.tokens[s.tokens.length - 1]) return null;
  const i = s.tokens.findIndex((t) => t >= x);
  if (i === 0 || s.tokens[i] === x) return s.mean[i];
  const share = (x - s.tokens[i - 1]) / (s.tokens[i] - s.tokens[i - 1]);
  return s.mean[i - 1] + share * (s.mean[i] - s.mean[i - 1]);
}

// --------------------------------------------------------------------------------------------- helpers
function select(title, options, chosen, changed) {
  const box = make("select", { onchange: () => changed(box.value) }, ...options.map(([value, label]) => make("option", { value }, label)));
  if (options.some(([value]) => value === String(chosen))) box.value = String(chosen);
  return [make("label", {}, title, box), box];
}
const runTitle = (run, seeds) => (byName.get(run.method)?.label ?? run.method) + (seeds > 1 ? `, seed ${run.seed}` : "");
const inOrder = (runs) => data.methods.flatMap((m) => runs.filter((run) => run.method === m.method));

// -------------------------------------------------------------------------------------------- heat map
const heat = document.getElementById("heat");
if (heat) {
  const runs = inOrder(data.routing).filter((run) => run.layers.some((layer) => Object.keys(layer.domain_load).length));
  const seeds = new Set(runs.map((run) => run.seed)).size;
  const start = data.start;
  let run = Math.max(0, runs.findIndex((r) => start && r.method === start.method && r.seed === start.seed));
  let layer = start ? start.layer : runs[run].layers[0].layer;
  drawHeat();

  function drawHeat(focus) {
    const layers = runs[run].layers;
    const shown = layers.find((item) => item.layer === layer) ?? layers[layers.length - 1];
    layer = shown.layer;
    const [runLabel, runBox] = select("Method", runs.map((r, i) => [String(i), runTitle(r, seeds)]), run, (value) => { run = Number(value); drawHeat("run"); });
    const [layerLabel, layerBox] = select("Layer", layers.map((item) => [item.layer, `layer ${item.layer}`]), layer, (value) => { layer = value; drawHeat("layer"); });
    const most = shown.information_limit_bits === null ? "" : ` of at most ${fixed(shown.information_limit_bits, 2)}`;
    const information = make("output", {}, `mutual information ${fixed(shown.mutual_information_bits)}${most} bits`);
    heat.replaceChildren(
      make("div", { class: "controls" }, runLabel, layerLabel, information),
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Share of each domain's tokens by expert" }, heatTable(shown)),
    );
    if (focus) (focus === "run" ? runBox : layerBox).focus();
  }
}

function heatTable(layer) {
  const domains = Object.entries(layer.domain_load);
  const dense = layer.load.length > 24;
  const greatest = Math.max(...domains.flatMap(([, shares]) => shares), 2 / layer.load.length);
  const cell = (domain, share, expert, top) => make(
    "td",
    {
      class: top ? "top" : null, title: `${domain}, expert ${expert}: ${percent(share, 1)}`,
      "--fill": `color-mix(in srgb, var(--heat) ${Math.round(100 * share / greatest)}%, var(--paper))`,
      "--on": share / greatest > 0.8 ? "#fff" : "var(--ink)",
    },
    dense ? "" : percent(share),
  );
  return make(
    "table", { class: dense ? "heat-map dense" : "heat-map" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "expert"), ...layer.load.map((_, i) => make("th", { scope: "col" }, dense && i % 4 ? "" : String(i))))),
    make("tbody", {}, ...domains.map(([domain, shares]) => {
      const top = shares.indexOf(Math.max(...shares));
      return make("tr", {}, make("th", { scope: "row", title: domain }, domain), ...shares.map((share, i) => cell(domain, share, i, i === top)));
    })),
    dense ? "" : make("tfoot", {}, make("tr", {}, make("th", { scope: "row" }, "all text"), ...layer.load.map((share) => make("td", {}, percent(share))))),
  );
}

// ----------------------------------------------------------------------------------------- sample text
const TINTS = 9;
const GLANCE = 90; // tokens of each text when all are shown
const sample = document.getElementById("sample");
if (sample) {
  const runs = inOrder(data.samples);
  const start = data.start;
  let run = Math.max(0, runs.findIndex((r) => start && r.method === start.method));
  let layer = start ? start.layer : runs[run].layers[runs[run].layers.length - 1];
  let text = "all";
  let only = null;
  drawSample();

  function drawSample(focus) {
    const { layers, texts } = runs[run];
    if (!layers.includes(layer)) layer = layers[layers.length - 1];
    if (!texts[text]) text = "all";
    const shown = text === "all" ? texts.map((t) => cut(t, GLANCE)) : [texts[text]];
    const pick = (name, set) => (value) => { set(value); only = null; drawSample(name); };
    const boxes = {
      run: select("Method", runs.map((r, i) => [String(i), runTitle(r, 1)]), run, pick("run", (value) => { run = Number(value); })),
      layer: select("Layer", layers.map((name) => [name, `layer ${name}`]), layer, pick("layer", (value) => { layer = value; })),
      text: select("Text", [["all", "all, beginnings"], ...texts.map((t, i) => [String(i), t.domain || `text ${i + 1}`])], text, pick("text", (value) => { text = value; })),
    };
    const tops = shown.flatMap((t) => (t.experts[layer] ?? []).filter((c) => c.length).map((c) => c[0]));
    const legend = [...new Set(tops)].sort((a, b) => a - b).map((expert) => make(
      "button",
      { type: "button", class: "choice", "aria-pressed": String(only === expert), "data-expert": expert, onclick: () => { only = only === expert ? null : expert; drawSample(expert); } },
      make("i", { class: look(expert) }), `expert ${expert}`, make("small", {}, percent(tops.filter((top) => top === expert).length / tops.length)),
    ));
    sample.replaceChildren(
      make("div", { class: "controls" }, ...Object.values(boxes).map(([label]) => label)),
      make("div", { class: "experts", role: "group", "aria-label": "Show one expert's tokens alone" }, ...legend),
      ...shown.map((t) => make("div", { class: "passage" }, shown.length > 1 ? make("h3", {}, t.domain) : "", passage(t, t.experts[layer] ?? [], only))),
    );
    if (typeof focus === "string") boxes[focus][1].focus();
    else if (focus !== undefined) sample.querySelector(`[data-expert="${focus}"]`)?.focus();
  }
}

function cut(text, most) {
  return { ...text, tokens: text.tokens.slice(0, most) };
}

// Colours repeat after TINTS experts; an underline tells the rounds apart.
function look(expert) {
  const round = Math.floor(expert / TINTS) % 4;
  return `e${expert % TINTS}${round ? ` mark${round}` : ""}`;
}

function passage(text, chosen, only) {
  const spans = text.tokens.map((token, i) => {
    const experts = chosen[i] ?? [];
    const on = experts.length ? ` on ${look(experts[0])}` : "";
    const away = only !== null && experts[0] !== only ? " away" : "";
    return make("span", { class: `token${on}${away}`, tabindex: i ? -1 : 0, "data-i": i }, token);
  });
  const describe = (event) => {
    const i = Number(event.target.dataset.i);
    if (!event.target.dataset.i) return;
    const experts = chosen[i] ?? [];
    const lines = [];
    for (let k = 0; k < experts.length; k += 2) lines.push([make("i", { class: look(experts[k]) }), `expert ${experts[k]}   weight ${fixed(experts[k + 1], 2)}`]);
    const loss = text.nll[i] === null ? "loss not recorded" : `loss ${fixed(text.nll[i], 2)} nats`;
    const box = event.target.getClientRects()[0];
    showTip([`“${text.tokens[i].replace(/\n/g, "⏎")}”  ${loss}`, ...(lines.length ? lines : ["no expert"])], box.left, box.bottom - 8);
  };
  const move = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const next = step && spans[Number(event.target.dataset.i) + step];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
  return make(
    "pre",
    { class: "sample", "aria-label": `${text.domain}; arrow keys move between tokens`, onpointerover: describe, onfocusin: describe, onpointerleave: hideTip, onfocusout: hideTip, onkeydown: move },
    ...spans,
  );
}
