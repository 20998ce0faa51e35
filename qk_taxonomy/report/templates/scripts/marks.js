// What stands on the map beside its points: rings, letters, and that there is nothing to show.

// Share of the map's width that a letter beside a head takes, on a narrow one.
const LETTER_ROOM = 0.08;

const NO_HEAD = "No head passes the filters.";

function mapMarks() {
  const rings = [...state.pins];
  if (shownCard >= 0 && !rings.includes(shownCard)) rings.push(shownCard);
  const shapes = rings.map((row) => ({
    type: "circle",
    xref: "x",
    yref: "y",
    xsizemode: "pixel",
    ysizemode: "pixel",
    xanchor: heads.x[row],
    yanchor: heads.y[row],
    x0: -8,
    x1: 8,
    y0: -8,
    y1: 8,
    line: { color: token("ink"), width: 2 },
  }));
  const letterLimit = mapLimits.x[1] - LETTER_ROOM * (mapLimits.x[1] - mapLimits.x[0]);
  const annotations = state.pins.map((row, i) => ({
    x: heads.x[row],
    y: heads.y[row],
    text: `<b>${pinLetter(i)}</b>`,
    showarrow: false,
    // At the right edge a letter would be cut off.
    xshift: heads.x[row] > letterLimit ? -14 : 14,
    yshift: 12,
    bgcolor: token("panel"),
    bordercolor: token("ink"),
    borderwidth: 1,
    borderpad: 2,
    font: { size: 11, color: token("ink") },
  }));
  if (!visible.length) {
    annotations.push({
      xref: "paper",
      yref: "paper",
      x: 0.5,
      y: 0.5,
      text: NO_HEAD,
      showarrow: false,
      font: { size: 15, color: token("muted") },
    });
  }
  return { shapes, annotations };
}
