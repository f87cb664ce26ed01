// ------------------------------------------------------------------------------------------ heat maps
// One canvas for any number of cells.  spec: label, rows, columns, value(r, c), scale, tell(r, c) -> lines,
// pick(r, c) on Enter or click, mark() -> [r, c] or null, down and across: names of the sides.
function heatMap(host, spec) {
  const canvas = make("canvas", { tabindex: 0, role: "application", "aria-roledescription": "heat map", "aria-label": `${spec.label}; arrow keys move between cells` });
  const scroll = make("div", { class: "scroll map" }, canvas);
  const rows = spec.rows.length;
  const columns = spec.columns.length;
  const values = spec.rows.map((_, r) => spec.columns.map((_, c) => spec.value(r, c)));
  const ends = values.flat().filter((value) => value !== null).reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, 0]);
  let at = null;
  let size = null;

  function layout() {
    const context = canvas.getContext("2d");
    context.font = "12px system-ui, sans-serif";
    const widest = Math.max(...spec.rows.map((name) => context.measureText(name).width), context.measureText(spec.down ?? "").width);
    const left = Math.ceil(Math.min(widest, 150)) + 10;
    const room = Math.max(120, scroll.clientWidth - 17);
    const height = rows <= 12 ? 30 : rows <= 26 ? 20 : rows <= 70 ? 11 : 7;
    return { left, top: 34, width: clamp((room - left) / columns, columns <= 32 ? 16 : 5, 56), height };
  }
  function paintMap() {
    if (!scroll.isConnected) return;
    size = layout();
    const [width, height] = [size.left + size.width * columns + 1, size.top + size.height * rows + 1];
    const dots = devicePixelRatio || 1;
    Object.assign(canvas, { width: Math.round(width * dots), height: Math.round(height * dots) });
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    const context = canvas.getContext("2d");
    context.scale(dots, dots);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    const colour = colouring(spec.scale, ends);
    const [ink, muted] = [paint("--ink"), paint("--muted")];
    const gap = size.width > 12 && size.height > 12 ? 1 : 0;
    values.forEach((row, r) => row.forEach((value, c) => {
      const [fillStyle, depth] = colour(value);
      const [x, y] = [size.left + c * size.width, size.top + r * size.height];
      context.fillStyle = fillStyle;
      // Whole pixels, or the seams between cells shine through.
      context.fillRect(Math.floor(x), y, Math.floor(x + size.width) - Math.floor(x) - gap, size.height - gap);
      if (size.width < 34 || size.height < 18 || value === null) return;
      context.textAlign = "center";
      context.fillStyle = depth > 0.62 ? "#ffffff" : ink;
      context.fillText(spec.scale === "share" && ends[1] <= 1 ? percent(value) : brief(+value.toFixed(2)), x + size.width / 2, y + size.height / 2);
    }));
    context.fillStyle = muted;
    context.textAlign = "right";
    const everyRow = Math.ceil(14 / size.height);
    spec.rows.forEach((name, r) => { if (r % everyRow === 0) context.fillText(name, size.left - 6, size.top + (r + 0.5) * size.height, size.left - 8); });
    context.fillText(spec.down ?? "", size.left - 6, 24, size.left - 8);
    context.textAlign = "center";
    const label = Math.max(...spec.columns.map((name) => context.measureText(name).width)) + 8;
    const everyColumn = [1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100].find((n) => n * size.width >= label) ?? 128;
    spec.columns.forEach((name, c) => { if (c % everyColumn === 0) context.fillText(name, size.left + (c + 0.5) * size.width, 24); });
    context.textAlign = "left";
    context.fillText(spec.across ?? "", size.left, 8);
    for (const [cell, style] of [[spec.mark?.(), muted], [at, ink]]) {
      if (!cell) continue;
      context.strokeStyle = style;
      context.lineWidth = 2;
      context.strokeRect(size.left + cell[1] * size.width, size.top + cell[0] * size.height, Math.max(size.width - gap, 3), Math.max(size.height - gap, 3));
    }
    canvas.dataset.drawn = `${rows}x${columns}`;
  }
  function tell(x, y) {
    const box = canvas.getBoundingClientRect();
    const [r, c] = at;
    showTip(spec.tell(r, c), x ?? box.left + size.left + (c + 0.5) * size.width, y ?? box.top + size.top + (r + 1) * size.height - 10);
  }
  function cell(event) {
    const box = canvas.getBoundingClientRect();
    const [r, c] = [Math.floor((event.clientY - box.top - size.top) / size.height), Math.floor((event.clientX - box.left - size.left) / size.width)];
    return r >= 0 && c >= 0 && r < rows && c < columns ? [r, c] : null;
  }
  function leave() { at = null; hideTip(); paintMap(); }
  canvas.addEventListener("pointermove", (event) => {
    const found = cell(event);
    if (!found) { if (at) leave(); return; }
    if (!at || found[0] !== at[0] || found[1] !== at[1]) { at = found; paintMap(); }
    tell(event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("click", (event) => { const found = cell(event); if (found) spec.pick?.(...found); });
  canvas.addEventListener("keydown", (event) => {
    const [r, c] = at ?? spec.mark?.() ?? [0, 0];
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -columns], End: [0, columns], PageUp: [-rows, 0], PageDown: [rows, 0] };
    if (event.key === "Enter" && at) { spec.pick?.(...at); return; }
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    at = at ? [clamp(r + move[0], 0, rows - 1), clamp(c + move[1], 0, columns - 1)] : [r, c];
    paintMap();
    scroll.scrollLeft = clamp(scroll.scrollLeft, size.left + (at[1] + 1) * size.width - scroll.clientWidth + 10, at[1] * size.width);
    tell();
  });
  host.replaceChildren(scroll, scaleKey(spec.scale, ends));
  onLayout(scroll, paintMap);
  return paintMap;
}
