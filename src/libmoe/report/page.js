const byName = new Map(data.methods.map((m) => [m.method, m]));
const tokens = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(2)}G` : n >= 1e6 ? `${(n / 1e6).toFixed(2)}M` : n >= 1e3 ? `${(n / 1e3).toFixed(1)}k` : `${n}`);
const runTitle = (run, seeds) => (byName.get(run.method)?.label ?? run.method) + (seeds > 1 ? `, seed ${run.seed}` : "");
const inOrder = (runs) => data.methods.flatMap((m) => runs.filter((run) => run.method === m.method));

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

// -------------------------------------------------------------------------------------------- heat map
const heat = document.getElementById("heat");
if (heat) {
  const runs = inOrder(data.routing).filter((run) => run.layers.some((layer) => Object.keys(layer.domain_load).length));
  const seeds = new Set(runs.map((run) => run.seed)).size;
  const start = data.start;
  let run = Math.max(0, runs.findIndex((r) => start && r.method === start.method && r.seed === start.seed));
  let layer = start ? start.layer : runs[run].layers[0].layer;
  drawHeat();

  function drawHeat() {
    const layers = runs[run].layers;
    const shown = layers.find((item) => item.layer === layer) ?? layers[layers.length - 1];
    layer = shown.layer;
    const most = shown.information_limit_bits === null ? "" : ` of at most ${fixed(shown.information_limit_bits, 2)}`;
    const [bar, refocus] = controls(
      heat,
      select("Method", runs.map((r, i) => [i, runTitle(r, seeds)]), run, (value) => { run = Number(value); drawHeat(); }),
      select("Layer", layers.map((item) => [item.layer, `layer ${item.layer}`]), layer, (value) => { layer = value; drawHeat(); }),
      make("output", {}, `mutual information ${fixed(shown.mutual_information_bits)}${most} bits`),
    );
    heat.replaceChildren(bar, make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Share of each domain's tokens by expert" }, heatTable(shown)));
    refocus();
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
const sample = document.getElementById("sample");
if (sample) {
  const runs = inOrder(data.samples);
  const start = data.start;
  let run = Math.max(0, runs.findIndex((r) => start && r.method === start.method));
  let layer = start ? start.layer : runs[run].layers[runs[run].layers.length - 1];
  let text = "all";
  let only = null;
  drawSample();

  function drawSample() {
    const { layers, texts } = runs[run];
    if (!layers.includes(layer)) layer = layers[layers.length - 1];
    if (!texts[text]) text = "all";
    const pick = (set) => (value) => { set(value); only = null; drawSample(); };
    const [bar, refocus] = controls(
      sample,
      select("Method", runs.map((r, i) => [i, runTitle(r, 1)]), run, pick((value) => { run = Number(value); })),
      select("Layer", layers.map((name) => [name, `layer ${name}`]), layer, pick((value) => { layer = value; })),
      select("Text", [["all", "all, beginnings"], ...texts.map((t, i) => [i, t.domain || `text ${i + 1}`])], text, pick((value) => { text = value; })),
    );
    colouredText(sample, text === "all" ? texts.map((t) => ({ ...t, tokens: t.tokens.slice(0, GLANCE) })) : [texts[text]], {
      bar, only, choose: (expert) => { only = expert; drawSample(); },
      // An expert and its weight take turns.
      rows: (t) => (t.experts[layer] ?? []).map((flat) => Array.from({ length: flat.length / 2 }, (_, k) => [flat[2 * k], flat[2 * k + 1]])),
      tell: (t, i) => `  ${t.nll[i] === null ? "loss not recorded" : `loss ${fixed(t.nll[i], 2)} nats`}`,
      pick: () => {},
    });
    refocus();
  }
}
