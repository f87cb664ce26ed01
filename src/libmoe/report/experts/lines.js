// ---------------------------------------------------------------------------------- lines and bars
function roundTicks(low, high, target) {
  if (!(high > low)) return [low];
  const rough = (high - low) / target;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).sort((a, b) => Math.abs(Math.log(a / rough)) - Math.abs(Math.log(b / rough)))[0];
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, i) => (first + i) * step);
}

function chart(host, figure) {
  const series = figure.series;
  const bars = figure.kind === "bars";
  const stops = [...new Set(series.flatMap((s) => s.x))];
  const numeric = !bars && stops.every((x) => typeof x === "number");
  if (numeric) stops.sort((a, b) => a - b);
  const known = series.flatMap((s) => [s.y, s.low ?? [], s.high ?? []].flat()).filter((y) => y !== null);
  let [low, high] = [Math.min(0, ...known), Math.max(0, ...known)];
  const least = Math.min(...known);
  // A line far from zero is cut out; bars always stand on it.
  if (!bars && known.length && least > 0.6 * high) low = least - 0.3 * (high - least || high);
  if (low === high) high = low + 1;
  high += 0.04 * (high - low);
  const look = (i) => `c${i % 8}`;
  const dashes = [null, "7 3", "2 3", "9 3 2 3"];
  let at = null;

  onLayout(host, () => {
    const width = Math.max(280, host.clientWidth);
    const height = width < 560 ? 230 : 300;
    const box = { left: 50, right: width - 12, top: 22, bottom: height - 40 };
    const reach = numeric ? [stops[0], stops[stops.length - 1]] : [-0.5, stops.length - 0.5];
    const across = (x) => box.left + ((numeric ? x : stops.indexOf(x)) - reach[0]) / (reach[1] - reach[0] || 1) * (box.right - box.left);
    const up = (y) => box.bottom - (y - low) / (high - low) * (box.bottom - box.top);
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "application", tabindex: 0, "aria-roledescription": "chart", "aria-label": `${figure.title}; left and right arrows read the values`, class: "plot", "data-drawn": series.length });
    for (const y of roundTicks(low, high, 5)) {
      svg.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: up(y), y2: up(y) }), draw("text", { class: "tick", x: box.left - 7, y: up(y) + 4, "text-anchor": "end" }, brief(+y.toPrecision(6))));
    }
    const whole = stops.every(Number.isInteger);
    const marks = numeric ? roundTicks(reach[0], reach[1], width < 560 ? 4 : 8).filter((x) => !whole || Number.isInteger(x)) : stops;
    const room = (box.right - box.left) / Math.max(1, marks.length);
    marks.forEach((x, i) => {
      if (i % Math.ceil(26 / room)) return;
      const text = numeric ? brief(x) : String(x);
      const most = Math.max(3, Math.floor(room / 7));
      svg.append(draw("text", { class: "tick", x: across(x), y: box.bottom + 18, "text-anchor": "middle" }, text.length > most ? `${text.slice(0, most - 1)}…` : text));
    });
    svg.append(draw("text", { class: "axis", x: box.right, y: height - 5, "text-anchor": "end" }, figure.x), draw("text", { class: "axis", x: 4, y: 12 }, figure.y));
    series.forEach((s, i) => {
      const group = draw("g", { class: look(i) });
      const points = s.x.map((x, j) => [across(x), s.y[j], s.low?.[j], s.high?.[j]]);
      if (bars) {
        const part = Math.min(90, 0.8 * (box.right - box.left) / stops.length / series.length);
        points.forEach(([x, y, from, to]) => {
          if (y === null) return;
          const left = x + part * (i - series.length / 2);
          group.append(draw("rect", { class: "block", x: left, y: Math.min(up(y), up(0)), width: Math.max(1, part - 2), height: Math.max(1, Math.abs(up(y) - up(0))) }));
          if (from !== undefined && from !== null) group.append(draw("line", { class: "cross", x1: left + part / 2, x2: left + part / 2, y1: up(from), y2: up(to) }));
        });
      } else {
        const band = points.filter(([, , from]) => from !== undefined && from !== null);
        if (band.length) group.append(draw("path", { class: "band", d: `M${band.map(([x, , from]) => `${x} ${up(from)}`).join("L")}L${band.reverse().map(([x, , , to]) => `${x} ${up(to)}`).join("L")}Z` }));
        let pen = "M";
        const d = points.map(([x, y]) => { if (y === null) { pen = "M"; return ""; } const step = `${pen}${x.toFixed(1)} ${up(y).toFixed(1)}`; pen = "L"; return step; }).join("");
        group.append(draw("path", { class: "curve", d, "stroke-dasharray": dashes[Math.floor(i / 8) % 4] }));
        if (points.length <= 40) points.forEach(([x, y]) => { if (y !== null) group.append(draw("circle", { class: "seed", cx: x, cy: up(y), r: 2.5 })); });
      }
      svg.append(group);
    });
    const cursor = draw("line", { class: "cross", y1: box.top, y2: box.bottom, visibility: "hidden" });
    svg.append(cursor);
    const show = (x, y) => {
      const stop = stops[at];
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, across(stop));
      cursor.setAttribute("visibility", "visible");
      const place = svg.getBoundingClientRect();
      const read = series.map((s, i) => [i, s.label, s.y[s.x.indexOf(stop)], s.low?.[s.x.indexOf(stop)], s.high?.[s.x.indexOf(stop)]]).filter(([, , value]) => value !== undefined && value !== null);
      const lines = read.map(([i, label, value, from, to]) => [make("i", { class: look(i) }), `${brief(value)}${from === undefined || from === null ? "" : ` [${brief(from)}, ${brief(to)}]`}  ${label}`]);
      showTip([`${figure.x} ${brief(stop)}`.trim(), ...lines], x ?? place.left + across(stop), y ?? place.top + 30);
    };
    const leave = () => { hideTip(); cursor.setAttribute("visibility", "hidden"); };
    svg.addEventListener("pointermove", (event) => {
      const x = event.clientX - svg.getBoundingClientRect().left;
      at = stops.reduce((best, stop, i) => (Math.abs(across(stop) - x) < Math.abs(across(stops[best]) - x) ? i : best), 0);
      show(event.clientX, event.clientY);
    });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -stops.length, End: stops.length }[event.key];
      if (!step) return;
      event.preventDefault();
      at = at === null ? 0 : clamp(at + step, 0, stops.length - 1);
      show();
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    const legend = make("ul", { class: "keys series" }, ...(series.length > 1 ? series : []).map((s, i) => make("li", {}, draw("svg", { width: 26, height: 12, class: look(i), "aria-hidden": "true" }, draw("line", { class: "curve", x1: 1, x2: 25, y1: 6, y2: 6, "stroke-dasharray": bars ? null : dashes[Math.floor(i / 8) % 4] })), s.label)));
    host.replaceChildren(legend, svg);
  });
}

// A figure that Python described: a heat map, lines or bars.
for (const host of document.querySelectorAll("[data-figure]")) {
  const figure = data.figures[host.dataset.figure];
  host.before(make("h3", {}, figure.title));
  host.nextElementSibling.textContent = figure.note ?? "";
  if (figure.kind !== "heat") { chart(host, figure); continue; }
  heatMap(host, {
    label: figure.title, rows: figure.rows.map(String), columns: figure.columns.map(String), scale: figure.scale ?? "share",
    value: (r, c) => figure.values[r][c], down: figure.y, across: figure.x,
    tell: (r, c) => [`${figure.y} ${figure.rows[r]}, ${figure.x} ${figure.columns[c]}`, brief(figure.values[r][c] ?? "no value")],
  });
}
