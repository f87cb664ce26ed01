// -------------------------------------------------------------------------------- what the views share
const SVG = "http://www.w3.org/2000/svg";
const draw = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const times = (value) => (value === null || value === undefined ? "–" : `${value >= 9.95 ? value.toFixed(0) : value >= 0.095 ? value.toFixed(1) : value.toFixed(2)} ×`);
const brief = (value) => (typeof value !== "number" ? String(value) : Math.abs(value) >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M` : Math.abs(value) >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : String(+value.toPrecision(3)).replace("-", "−"));
const sum = (values) => values.reduce((a, b) => a + b, 0);

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
