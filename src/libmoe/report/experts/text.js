// ------------------------------------------------------------------------- text, coloured by expert
const textView = document.getElementById("text-view");
if (textView) {
  const layers = Object.keys(data.samples[0].experts);
  const state = { layer: layers[Math.floor(layers.length / 2)], text: "all", only: null };
  const drawText = (change) => {
    Object.assign(state, change);
    const { layer } = state;
    const [bar, refocus] = controls(
      textView,
      select("Layer", layers.map((name) => [name, `layer ${name}`]), layer, (value) => drawText({ layer: value, only: null })),
      select("Text", [["all", "all, beginnings"], ...data.samples.map((s, i) => [i, s.domain || `text ${i + 1}`])], state.text, (value) => drawText({ text: value, only: null })),
    );
    colouredText(textView, state.text === "all" ? data.samples.map((s) => ({ ...s, tokens: s.tokens.slice(0, GLANCE) })) : [data.samples[state.text]], {
      bar, only: state.only, choose: (only) => drawText({ only }),
      rows: (s) => (s.experts[layer] ?? []).map((experts, i) => experts.map((expert, k) => [expert, s.weights[layer]?.[i] ? s.weights[layer][i][k] / 100 : null])),
      tell: () => "",
      pick: (expert) => choose(layerNames.indexOf(layer), expert, true),
    });
    refocus();
  };
  drawText({});
}

// Begin with the busiest expert of the layer in the middle.
const middle = Math.floor(data.layers.length / 2);
choose(middle, data.layers[middle].load.indexOf(Math.max(...data.layers[middle].load)));
