// The map as a file.

// Room above the map for the title of its picture.
const PICTURE_TITLE = 44;

/** The map as a picture that is understood alone: with paper, a title and its key. */
function mapPicture() {
  const { layout } = document.getElementById("map-plot");
  const { traces, scale } = mapTraces();
  const { title, circuit, convention } = heads.meta;
  const shown = `${counted(visible.length, "head")}, ${circuit.toUpperCase()} circuit, ${convention}`;
  const bar = scale && {
    type: "scatter",
    mode: "markers",
    x: [null],
    y: [null],
    marker: {
      color: [0],
      cmin: 0,
      cmax: 1,
      colorscale: scale.colours.map((colour, i) => [i / (scale.colours.length - 1), colour]),
      colorbar: {
        title: { text: plain(scale.label), side: "right" },
        tickvals: [0, 0.5, 1],
        ticktext: [0, 0.5, 1].map(scale.at),
        thickness: 14,
      },
    },
  };
  return {
    data: bar ? [...traces, bar] : traces,
    layout: {
      ...layout,
      paper_bgcolor: token("panel"),
      plot_bgcolor: token("panel"),
      title: {
        text: `${plain(title)} (${shown})`,
        x: 0.01,
        xanchor: "left",
        font: { size: 15 },
      },
      margin: { ...layout.margin, t: PICTURE_TITLE },
      showlegend: !bar,
      legend: { itemsizing: "constant" },
    },
  };
}
