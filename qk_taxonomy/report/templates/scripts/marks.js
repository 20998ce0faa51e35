// What stands on the map beside its points: rings, letters, and that there is nothing to show.

// Share of the map's width that a letter beside a head takes, on a narrow one.
const LETTER_ROOM = 0.08;

// Of a name beside a head.
const MOST_LETTERS = 24;

const NO_HEAD = "No head passes the filters.";

/** What the colour of a head's point says. */
function colourText(row) {
  if (isScaled()) {
    const statistic = statisticOf(state.colour);
    if (!statistic) return `${state.colour} ${digits(heads[state.colour][row], 3)}`;
    return `${statistic.name} ${digits(heads.statistics.get(statistic.name)[row])}`;
  }
  const name = categories()[codeOf(row)].name;
  if (name.length <= MOST_LETTERS) return name;
  // Long names often differ at their end.
  return `${name.slice(0, MOST_LETTERS / 2)}…${name.slice(1 - MOST_LETTERS / 2)}`;
}

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
  const label = {
    showarrow: false,
    bgcolor: token("panel"),
    bordercolor: token("ink"),
    borderwidth: 1,
    borderpad: 2,
    font: { size: 11, color: token("ink") },
  };
  const annotations = state.pins.map((row, i) => ({
    ...label,
    x: heads.x[row],
    y: heads.y[row],
    text: `<b>${pinLetter(i)}</b>`,
    // At the right edge a letter would be cut off.
    xshift: acrossMap(row) > 1 - LETTER_ROOM ? -14 : 14,
    yshift: 12,
  }));
  if (shownCard >= 0) {
    const across = acrossMap(shownCard);
    annotations.push({
      ...label,
      x: heads.x[shownCard],
      y: heads.y[shownCard],
      text: plain(`${heads.layer[shownCard]}.${heads.head[shownCard]}: ${colourText(shownCard)}`),
      xanchor: across < 1 / 3 ? "left" : across > 2 / 3 ? "right" : "center",
      yshift: -20,
    });
  }
  if (!visible.length) annotations.push(emptiness(NO_HEAD));
  return { shapes, annotations };
}
