// ------------------------------------------------------------------------- text, coloured by expert
const textView = document.getElementById("text-view");
if (textView) {
  const layers = Object.keys(data.samples[0].experts);
  const state = { layer: layers[Math.floor(layers.length / 2)], text: "all", only: null };
  const GLANCE = 90; // tokens of each text when all are shown
  const drawText = (focus) => {
    const shown = state.text === "all" ? data.samples.map((s) => ({ ...s, tokens: s.tokens.slice(0, GLANCE) })) : [data.samples[Number(state.text)]];
    const [bar, refocus] = controls(
      textView,
      select("Layer", layers.map((name) => [name, `layer ${name}`]), state.layer, (value) => { Object.assign(state, { layer: value, only: null }); drawText(); }),
      select("Text", [["all", "all, beginnings"], ...data.samples.map((s, i) => [i, s.domain || `text ${i + 1}`])], state.text, (value) => { Object.assign(state, { text: value, only: null }); drawText(); }),
    );
    const count = new Map();
    shown.forEach((s) => (s.experts[state.layer] ?? []).slice(0, s.tokens.length).forEach((row) => { if (row.length) count.set(row[0], (count.get(row[0]) ?? 0) + 1); }));
    const total = sum([...count.values()]) || 1;
    const legend = [...count].sort((a, b) => b[1] - a[1]).slice(0, 24).map(([expert, tokens]) => make(
      "button", { type: "button", class: "choice", "aria-pressed": String(state.only === expert), "data-expert": expert, onclick: () => { state.only = state.only === expert ? null : expert; drawText(expert); } },
      make("i", { class: tint(expert) }), `expert ${expert}`, make("small", {}, percent(tokens / total)),
    ));
    textView.replaceChildren(
      bar, make("div", { class: "experts", role: "group", "aria-label": "Show one expert's tokens alone" }, ...legend, ...(count.size > 24 ? [make("small", {}, `and ${count.size - 24} more`)] : [])),
      ...shown.map((s) => make("div", { class: "passage" }, shown.length > 1 ? make("h3", {}, s.domain) : "", passage(s))),
    );
    textView.dataset.drawn = shown.length;
    refocus();
    if (focus !== undefined) textView.querySelector(`[data-expert="${focus}"]`)?.focus();
  };
  const passage = (s) => {
    const rows = s.experts[state.layer] ?? [];
    const weights = s.weights[state.layer];
    const spans = s.tokens.map((token, i) => {
      const first = rows[i]?.[0];
      const away = state.only !== null && first !== state.only ? " away" : "";
      return make("span", { class: `token${first === undefined ? "" : ` on ${tint(first)}`}${away}`, tabindex: i ? -1 : 0, "data-i": i }, token);
    });
    const describe = (event) => {
      const i = event.target.dataset.i;
      if (i === undefined) return;
      const lines = (rows[i] ?? []).map((expert, k) => [make("i", { class: tint(expert) }), `expert ${expert}${weights ? `   weight ${percent(weights[i][k] / 100)}` : ""}`]);
      const box = event.target.getClientRects()[0];
      showTip([`“${visible(s.tokens[i])}”`, ...(lines.length ? lines : ["no expert"])], box.left, box.bottom - 8);
    };
    const move = (event) => {
      const i = Number(event.target.dataset.i);
      if (event.key === "Enter" && rows[i]?.length) choose(layerNames.indexOf(state.layer), rows[i][0], true);
      const next = spans[i + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? NaN)];
      if (!next) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    };
    return make("pre", { class: "sample", "aria-label": `${s.domain}; arrow keys move between tokens`, onpointerover: describe, onfocusin: describe, onpointerleave: hideTip, onfocusout: hideTip, onkeydown: move }, ...spans);
  };
  drawText();
}

// Begin with the busiest expert of the layer in the middle.
const middle = Math.floor(data.layers.length / 2);
choose(middle, data.layers[middle].load.indexOf(Math.max(...data.layers[middle].load)));
