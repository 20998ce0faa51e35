// The card of one head: what it is, its statistics and its histogram.

function modelName(row) {
  return heads.meta.models[heads.model[row]].name;
}

/** Short name of a head: model, stack where there is one, layer.head. */
function headName(row) {
  const stack = heads.stacks[heads.stack[row]];
  return `${modelName(row)} ${stack ? `${stack} ` : ""}${heads.layer[row]}.${heads.head[row]}`;
}

function classOf(row) {
  return heads.meta.classes[heads.class[row]];
}

/** Share of a head's λ, by number, that its histogram leaves out. */
function beyondText(row) {
  return `${digits(100 * heads.beyond[row], 3)} %`;
}

function smallHistogram(row) {
  const [width, height, foot] = [240, 90, 16];
  const histogram = histogramOf(heads, row);
  const tallest = Math.max(...histogram) || 1;
  const step = width / histogram.length;
  const picture = svgElement("svg", {
    viewBox: `0 0 ${width} ${height + foot}`,
    role: "img",
    class: "small",
    "aria-label": `Histogram of λ over its mean; highest density ${digits(tallest, 3)}`,
  });
  const bars = svgElement("g", { fill: classOf(row).colour });
  histogram.forEach((density, bin) => {
    const tall = (density / tallest) * (height - 2);
    bars.append(
      svgElement("rect", {
        x: (bin * step + 0.5).toFixed(2),
        y: (height - tall).toFixed(2),
        width: (step - 1).toFixed(2),
        height: tall.toFixed(2),
      }),
    );
  });
  const last = heads.meta.edges.at(-1);
  picture.append(
    bars,
    svgElement("line", { x1: 0, x2: width, y1: height, y2: height, class: "base" }),
    svgElement("text", { x: 0, y: height + 12 }, "0"),
    svgElement("text", { x: width / 2, y: height + 12, "text-anchor": "middle" }, "λ / mean λ"),
    svgElement("text", { x: width, y: height + 12, "text-anchor": "end" }, digits(last, 3)),
  );
  return picture;
}

function showCard(row) {
  const model = heads.meta.models[heads.model[row]];
  const stack = heads.stacks[heads.stack[row]];
  const kind = classOf(row);
  const rows = heads.meta.statistics.map(({ name, label }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, label),
      element("td", { class: "number" }, digits(heads.statistics.get(name)[row])),
    ),
  );
  const pinned = state.pins.includes(row);
  const card = document.getElementById("card");
  const hadFocus = card.contains(document.activeElement);
  card.replaceChildren(
      element("p", { class: "family" }, model.family),
      element("h3", {}, model.name),
      element(
        "p",
        { class: "place" },
        `${stack ? `${stack}, ` : ""}layer ${heads.layer[row]}, head ${heads.head[row]}`,
      ),
      element("p", {}, markerOf(kind.symbol, kind.colour), ` class ${kind.number}`),
      smallHistogram(row),
      element("p", { class: "hint" }, `Of the λ shown, area 1; ${beyondText(row)} of the λ lie beyond.`),
      element(
        "table",
        {},
        element("caption", { class: "unseen" }, "Statistics"),
        element("tbody", {}, ...rows),
      ),
      element(
        "button",
        { type: "button", click: () => togglePin(row) },
        pinned ? "Remove pin" : "Pin",
      ),
    );
  if (hadFocus) card.querySelector("button").focus();
  shownCard = row;
}

/** Row of the head that the card shows, or -1. */
let shownCard = -1;
