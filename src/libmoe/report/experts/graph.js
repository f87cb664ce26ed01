// ------------------------------------------------------------------------------- graph of experts
const RELATIONS = {
  together: ["chosen together", (s, share) => [`meet ${times(s)} as often as by chance`, ...(share === null ? [] : [`${percent(share, 1)} of the first one's tokens`])]],
  onwards: ["on to the next layer", (s, share) => [`${percent(share, 1)} of its tokens' next choices, ${times(s)} as usual`]],
  weights: ["alike in weights", (s) => [`similarity ${fixed(s, 2)}`]],
  outputs: ["alike in outputs", (s) => [`similarity ${fixed(s, 2)}`]],
};
function edgesOf(layer, relation) {
  const flat = data.layers[layer]?.edges[relation] ?? [];
  return Array.from({ length: flat.length / 4 }, (_, i) => {
    const [from, to, strength, share] = flat.slice(4 * i, 4 * i + 4);
    return { from, to, strength: strength / 100, share: share < 0 ? null : share / 1000 };
  });
}

const graphView = document.getElementById("graph-view");
// Begin where the strongest relation is.
const strongestIn = (relation) => data.layers.reduce((best, _, l) => { const top = Math.max(0, ...edgesOf(l, relation).map((e) => e.strength)); return top > best[1] ? [l, top] : best; }, [0, 0])[0];
const graphState = { relation: Object.keys(RELATIONS).find((name) => data.layers.some((_, l) => edgesOf(l, name).length)), layer: 0 };
function drawGraph() {
  if (!graphState.relation) { graphView.replaceChildren(make("p", { class: "missing" }, "No relation between experts was measured: tokens take one expert, or the pairs were not counted.")); return; }
  const usable = Object.keys(RELATIONS).filter((name) => data.layers.some((_, l) => edgesOf(l, name).length));
  if (!edgesOf(graphState.layer, graphState.relation).length) graphState.layer = strongestIn(graphState.relation);
  const { layer, relation } = graphState;
  const layers = data.layers.map((item, l) => [l, item]).filter(([l]) => edgesOf(l, relation).length);
  const edges = edgesOf(layer, relation);
  const [bar, refocus] = controls(
    graphView,
    select("Relation", usable.map((name) => [name, RELATIONS[name][0]]), relation, (value) => { graphState.relation = value; drawGraph(); }),
    select("Layer", layers.map(([l, item]) => [l, `layer ${item.layer}`]), layer, (value) => { graphState.layer = Number(value); drawGraph(); }),
    make("output", {}, `${edges.length} relations`),
  );
  const place = make("div", { class: "drawn scroll" });
  graphView.replaceChildren(bar, place);
  refocus();
  onLayout(place, () => place.replaceChildren(network(place, layer, edges, (relation === "onwards" ? rowsOf : ringOf)(layer))));
}

// Where the nodes stand in a given width: by the side and expert that edges name, place and place of the label.
function ringOf(layer) {
  const { n, groups } = data.layers[layer];
  const order = Array.from({ length: n }, (_, i) => i).sort((a, b) => groups[a] - groups[b] || a - b);
  return (width) => {
    const side = clamp(width, 300, 640);
    const radius = side / 2 - 34;
    const nodes = new Map();
    order.forEach((expert, i) => {
      const angle = 2 * Math.PI * i / n - Math.PI / 2;
      const [x, y] = [Math.cos(angle), Math.sin(angle)];
      nodes.set(`from ${expert}`, { layer, expert, x: side / 2 + radius * x, y: side / 2 + radius * y, tx: side / 2 + (radius + 15) * x, ty: side / 2 + (radius + 15) * y + 4, angle: i });
    });
    return { width: side, height: side, nodes, target: "from", bend: [side / 2, side / 2], spacing: 2 * Math.PI * (radius + 15) / n };
  };
}
function rowsOf(layer) {
  return (width) => {
    const nodes = new Map();
    const widest = Math.max(data.layers[layer].n, data.layers[layer + 1].n);
    const full = Math.max(width, 7 * widest);
    [["from", layer, 40], ["to", layer + 1, 260]].forEach(([side, l, y]) => {
      const n = data.layers[l].n;
      for (let i = 0; i < n; i += 1) nodes.set(`${side} ${i}`, { layer: l, expert: i, x: (i + 0.5) * full / n, y, tx: (i + 0.5) * full / n, ty: side === "from" ? 22 : 286, angle: i });
    });
    return { width: full, height: 300, nodes, target: "to", bend: null, spacing: full / widest };
  };
}

function network(host, layer, edges, placed) {
  const { width, height, nodes, target, bend, spacing } = placed(host.clientWidth - 20);
  const strongest = Math.max(...edges.map((e) => e.strength), 1e-9);
  const least = Math.min(...edges.map((e) => e.strength));
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${RELATIONS[graphState.relation][0]}, layer ${data.layers[layer].layer}: ${nodes.size} experts, ${edges.length} relations`, class: "network", "data-drawn": edges.length });
  const lines = edges.map((e) => {
    const [a, b] = [nodes.get(`from ${e.from}`), nodes.get(`${target} ${e.to}`)];
    const strong = (e.strength - least) / (strongest - least || 1);
    const curve = bend ? `M${a.x.toFixed(1)} ${a.y.toFixed(1)}Q${((a.x + b.x) / 4 + bend[0] / 2).toFixed(1)} ${((a.y + b.y) / 4 + bend[1] / 2).toFixed(1)} ${b.x.toFixed(1)} ${b.y.toFixed(1)}` : `M${a.x.toFixed(1)} ${a.y}C${a.x.toFixed(1)} 150 ${b.x.toFixed(1)} 150 ${b.x.toFixed(1)} ${b.y}`;
    const line = draw("path", { class: "edge", d: curve, "stroke-width": (0.8 + 3.2 * strong).toFixed(2), "--strength": (0.4 + 0.5 * strong).toFixed(2) });
    svg.append(line);
    return { line, a, b, edge: e };
  });
  const every = Math.max(1, Math.ceil(20 / spacing));
  const list = [...nodes.values()];
  const marks = list.map((node, i) => {
    const group = data.layers[node.layer].groups[node.expert];
    const dead = data.layers[node.layer].dead.includes(node.expert);
    const mark = draw("g", { class: `node e${group % TINTS}${dead ? " idle" : ""}`, tabindex: i ? -1 : 0, role: "button", "aria-label": `layer ${data.layers[node.layer].layer}, expert ${node.expert}` }, draw("circle", { cx: node.x, cy: node.y, r: clamp(spacing / 2.4, 2.5, 10) }), draw("text", { x: node.tx, y: node.ty, "text-anchor": "middle", class: node.angle % every ? "rare" : null }, String(node.expert)));
    mark.addEventListener("pointerenter", (event) => light(i, event.clientX, event.clientY));
    mark.addEventListener("focus", () => light(i));
    for (const end of ["pointerleave", "blur"]) mark.addEventListener(end, dark);
    mark.addEventListener("click", () => choose(node.layer, node.expert, true));
    svg.append(mark);
    return mark;
  });
  function light(i, x, y) {
    const node = list[i];
    const mine = lines.filter(({ a, b }) => a === node || b === node);
    svg.classList.add("lit");
    lines.forEach((item) => item.line.classList.toggle("on", mine.includes(item)));
    const near = new Set(mine.flatMap(({ a, b }) => [a, b]).concat(node));
    marks.forEach((mark, j) => mark.classList.toggle("on", near.has(list[j])));
    const box = marks[i].getBoundingClientRect();
    const told = mine.slice(0, 6).map(({ a, b, edge }) => { const other = a === node ? b : a; return `expert ${other.expert}${other.layer === node.layer ? "" : ` of layer ${data.layers[other.layer].layer}`}: ${RELATIONS[graphState.relation][1](edge.strength, edge.share)[0]}`; });
    showTip([`layer ${data.layers[node.layer].layer}, expert ${node.expert}`, ...(told.length ? told : ["no strong relation"])], x ?? box.right, y ?? box.bottom);
  }
  function dark() { svg.classList.remove("lit"); hideTip(); }
  svg.addEventListener("keydown", (event) => {
    const i = marks.indexOf(document.activeElement);
    if (i < 0) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(list[i].layer, list[i].expert, true); return; }
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = (i + step + marks.length) % marks.length;
    marks[i].setAttribute("tabindex", -1);
    marks[next].setAttribute("tabindex", 0);
    marks[next].focus();
  });
  return svg;
}
if (graphState.relation) graphState.layer = strongestIn(graphState.relation);
drawGraph();
