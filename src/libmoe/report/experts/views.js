// ------------------------------------------------------------------------------- layers × experts
const layerNames = data.layers.map((item) => String(item.layer));
const widestLayer = Math.max(...data.layers.map((item) => item.n));
const expertNames = Array.from({ length: widestLayer }, (_, i) => String(i));
const shareOf = (layer, expert) => data.layers[layer].load[expert] / (sum(data.layers[layer].load) || 1);
const ratioOf = (layer, expert) => shareOf(layer, expert) * data.layers[layer].n;

// Share of an expert's assignments by group: each group's share on it times the group's size is not known here, so
// groups count alike.
function groupsOf(column, layer, expert) {
  const shares = data.by[column]?.shares[layer];
  if (!shares) return [];
  const mean = sum(shares.map((row) => row[expert])) / shares.length;
  return data.by[column].names.map((name, g) => [name, mean ? shares[g][expert] / mean : null, shares[g][expert] / 10000]);
}
const MAPS = {
  load: ["load, in fair shares", "ratio", ratioOf],
  first: ["how often a token's heaviest", "share", (l, e) => (data.layers[l].first ? data.layers[l].first[e] / (data.layers[l].tokens || 1) : null)],
  weight: ["weight of its outputs, in fair shares", "ratio", (l, e) => (data.layers[l].weight ? data.layers[l].weight[e] / 1000 : null)],
  dropped: ["share dropped by capacity", "share", (l, e) => (data.layers[l].dropped ? data.layers[l].dropped[e] / (data.layers[l].load[e] || 1) : null)],
  focus: ["strongest preference of a domain", "ratio", (l, e) => { const found = groupsOf("domain", l, e).map(([, ratio]) => ratio ?? 0); return found.length ? Math.max(...found) : null; }],
};
const within = (read) => (l, e) => (e < data.layers[l].n ? read(l, e) : null);

const mapView = document.getElementById("map-view");
let mapKind = "load";
let repaintMap = () => {};
function drawMap() {
  const usable = Object.entries(MAPS).filter(([, [, , read]]) => data.layers.some((item, l) => item.load.some((_, e) => read(l, e))));
  const [title, scale, read] = MAPS[mapKind];
  const [bar, refocus] = controls(mapView, select("Show", usable.map(([name, [label]]) => [name, label]), mapKind, (value) => { mapKind = value; drawMap(); }));
  const place = make("div", {});
  mapView.replaceChildren(bar, place);
  refocus();
  repaintMap = heatMap(place, {
    label: `${title}, by layer and expert`, rows: layerNames, columns: expertNames, scale, value: within(read), down: "layer", across: "expert",
    mark: () => [chosen.layer, chosen.expert], pick: (l, e) => choose(l, e, true),
    tell: (l, e) => (e >= data.layers[l].n ? [`layer ${layerNames[l]} has ${data.layers[l].n} experts`] : [
      `layer ${layerNames[l]}, expert ${e}${data.layers[l].dead.includes(e) ? " (dead)" : ""}`, `${title}: ${scale === "ratio" ? times(read(l, e)) : percent(read(l, e), 1)}`,
      `${percent(shareOf(l, e), 1)} of the assignments`, topTokens(l, e, 4),
    ].filter(Boolean)),
  });
}
const topTokens = (l, e, most) => (data.layers[l].tokensOf[e] ?? []).slice(0, most).map(([text]) => `“${visible(text)}”`).join(" ");
drawMap();
listeners.push(() => repaintMap());

// --------------------------------------------------------------------- layers × experts × domains
const domainsView = document.getElementById("domains-view");
if (domainsView) {
  const columns = Object.keys(data.by);
  const state = { column: columns.includes("domain") ? "domain" : columns[0], cut: null };
  const sharpest = () => data.by[state.column].explained.reduce((best, value, l, all) => ((value ?? -1) > (all[best] ?? -1) ? l : best), 0);
  const drawDomains = () => {
    const { names, shares, explained, left } = data.by[state.column];
    state.cut ??= `layer ${sharpest()}`;
    const cuts = [...data.layers.map((item, l) => [`layer ${l}`, `layer ${item.layer}: all groups`]).filter((_, l) => shares[l]), ...names.map((name, g) => [`group ${g}`, `${name}: all layers`])];
    const [kind, index] = [state.cut.split(" ")[0], Number(state.cut.split(" ")[1])];
    const all = data.layers.map((item, l) => (shares[l] ? item.load.map((load) => load / (sum(item.load) || 1)) : null));
    const ratio = (l, g, e) => (!shares[l] || e >= data.layers[l].n || !all[l][e] ? null : shares[l][g][e] / 10000 / all[l][e]);
    const [bar, refocus] = controls(
      domainsView,
      columns.length > 1 && select("Groups", columns.map((name) => [name, name]), state.column, (value) => { Object.assign(state, { column: value, cut: null }); drawDomains(); }),
      select("Cut", cuts, state.cut, (value) => { state.cut = value; drawDomains(); }),
      make("output", {}, kind === "layer" ? `${state.column} explains ${percent(explained[index], 1)} of the choice of expert` : `${names[index]}`, left ? `; ${left} smaller groups are left out` : ""),
    );
    const place = make("div", {});
    domainsView.replaceChildren(bar, place);
    refocus();
    const at = (r) => (kind === "layer" ? [index, r] : [r, index]);
    heatMap(place, {
      label: `Preference of ${kind === "layer" ? `groups in layer ${layerNames[index]}` : names[index]} for experts`, rows: kind === "layer" ? names : layerNames,
      columns: kind === "layer" ? expertNames.slice(0, data.layers[index].n) : expertNames, scale: "ratio", down: kind === "layer" ? "" : "layer", across: "expert",
      value: (r, e) => { const [l, g] = at(r); return ratio(l, g, e); }, pick: (r, e) => { const [l] = at(r); if (e < data.layers[l].n) choose(l, e, true); },
      tell: (r, e) => { const [l, g] = at(r); return [`${names[g]} in layer ${layerNames[l]}`, ratio(l, g, e) === null ? "no such expert or no load" : `chooses expert ${e} ${times(ratio(l, g, e))} as often as all text`, ...(ratio(l, g, e) === null ? [] : [`${percent(shares[l][g][e] / 10000, 1)} of its assignments`])]; },
    });
  };
  drawDomains();
}

// ----------------------------------------------------------------------------------- one expert
const cardView = document.getElementById("card-view");
function drawCard() {
  const { layer, expert } = chosen;
  const item = data.layers[layer];
  const [bar, refocus] = controls(
    cardView,
    select("Layer", layerNames.map((name, l) => [l, `layer ${name}`]), layer, (value) => choose(Number(value), expert)),
    select("Expert", item.load.map((_, e) => [e, `expert ${e}${item.dead.includes(e) ? " (dead)" : ""}`]), expert, (value) => choose(layer, Number(value))),
  );
  const fact = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
  const facts = make(
    "dl", { class: "facts" },
    fact("load", `${times(ratioOf(layer, expert))} a fair share, ${percent(shareOf(layer, expert), 1)} of all`),
    fact("rank by load", `${item.load.filter((load) => load > item.load[expert]).length + 1} of ${item.n}`),
    ...(item.first ? [fact("heaviest of", `${percent(item.first[expert] / (item.tokens || 1), 1)} of the tokens`)] : []),
    ...(item.weight ? [fact("weight of its outputs", `${times(item.weight[expert] / 1000)} a fair share`)] : []),
    ...(item.dropped?.some(Boolean) ? [fact("dropped", percent(item.dropped[expert] / (item.load[expert] || 1), 1))] : []),
  );
  const tops = item.tokensOf[expert] ?? [];
  const tokens = tops.length
    ? make("ul", { class: "chips" }, ...tops.map(([text, share, count]) => make("li", {}, make("code", {}, visible(text)), make("small", {}, ` ${percent(share / 1000)} of ${brief(count)}`))))
    : make("p", { class: "missing" }, "No token occurs often enough, or none was counted.");
  const columns = Object.keys(data.by).filter((name) => data.by[name].shares[layer]);
  const groups = columns.flatMap((column) => [
    make("h3", {}, `By ${column}`),
    make("ul", { class: "meters" }, ...groupsOf(column, layer, expert).sort((a, b) => (b[1] ?? 0) - (a[1] ?? 0)).slice(0, 8).map(([name, ratio, share]) => make("li", {}, make("span", {}, name), make("i", { "--share": clamp((ratio ?? 0) / 4, 0, 1) }), make("b", {}, percent(share, 1))))),
  ]);
  const link = (l, e, words) => make("li", {}, make("button", { type: "button", class: "choice", onclick: () => choose(l, e) }, make("i", { class: tint(data.layers[l].groups[e]) }), `${l === layer ? "expert" : `layer ${layerNames[l]}, expert`} ${e}`), make("small", {}, ` ${words.join(", ")}`));
  const relation = (title, list) => (list.length ? [make("h3", {}, title), make("ul", { class: "links" }, ...list)] : []);
  const near = (name) => edgesOf(layer, name).filter((e) => e.from === expert || e.to === expert).slice(0, 4).map((e) => link(layer, e.from === expert ? e.to : e.from, RELATIONS[name][1](e.strength, null)));
  const onwards = edgesOf(layer, "onwards").filter((e) => e.from === expert).map((e) => link(layer + 1, e.to, [`${percent(e.share, 1)} of next choices`]));
  const before = edgesOf(layer - 1, "onwards").filter((e) => e.to === expert).sort((a, b) => b.share - a.share).slice(0, 3).map((e) => link(layer - 1, e.from, [`sends it ${percent(e.share, 1)}`]));
  cardView.replaceChildren(
    bar, facts,
    make("div", { class: "columns" },
      make("div", {}, make("h3", {}, "Tokens that are most its own"), tokens, ...groups),
      make("div", {}, ...relation("Chosen together with", near("together")), ...relation("Alike in weights", near("weights")), ...relation("Alike in outputs", near("outputs")), ...relation("Its tokens come from", before), ...relation("Its tokens go on to", onwards))),
  );
  cardView.dataset.drawn = `${layer}.${expert}`;
  refocus();
}
listeners.push(drawCard);

// ------------------------------------------------------------------------------------ over training
const trainingView = document.getElementById("training-view");
if (trainingView) {
  const { labels, layers, load, left } = data.checkpoints;
  let at = labels.length - 1;
  const bar = make("div", { class: "controls slider" });
  const place = make("div", {});
  const told = make("output", {});
  const slider = make("input", { type: "range", min: 0, max: labels.length - 1, step: 1, value: at, "aria-label": "Checkpoint", oninput: () => { at = Number(slider.value); show(); } });
  bar.append(make("label", {}, "Checkpoint", slider), told);
  trainingView.replaceChildren(make("h3", {}, "Load of each expert, in fair shares"), bar, place);
  const widest = Math.max(...load[0].map((row) => row.length));
  function show() {
    told.textContent = `${labels[at]} (${at + 1} of ${labels.length}${left ? `; ${left} between them are left out` : ""})`;
    slider.setAttribute("aria-valuetext", labels[at]);
    heatMap(place, {
      label: `Load at ${labels[at]}`, rows: layers.map(String), columns: Array.from({ length: widest }, (_, i) => String(i)), scale: "ratio", down: "layer", across: "expert",
      value: (r, e) => (e < load[at][r].length ? load[at][r][e] / 100 : null),
      tell: (r, e) => [`layer ${layers[r]}, expert ${e}`, `${times(load[at][r][e] / 100)} a fair share at ${labels[at]}`, `${times(load[load.length - 1][r][e] / 100)} at the end`],
    });
  }
  show();
}
