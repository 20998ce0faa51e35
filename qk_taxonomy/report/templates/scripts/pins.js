// Pinned heads: their list, and the charts that compare them.

// Lines are told apart by dashes, two shades of ink and their letters; colours are the classes'.
const DASHES = ["none", "none", "7 4", "7 4", "2 3", "2 3", "10 3 2 3", "10 3 2 3"];

// Of heads that one text may mean, so many are told.
const MOST_NAMED = 4;

function pinShade(i) {
  return token(i % 2 ? "pale-ink" : "ink");
}

function pinLetter(i) {
  return String.fromCharCode(65 + i);
}

function pinMessage(text) {
  document.getElementById("pin-message").textContent = text;
}

/** Pins a head, or removes its pin. */
function togglePin(row) {
  const at = state.pins.indexOf(row);
  if (at >= 0) {
    state.pins.splice(at, 1);
    pinMessage(`Removed ${headName(row)}.`);
  } else if (state.pins.length === MOST_PINS) {
    pinMessage(`${MOST_PINS} heads are pinned, and no more can be compared. Remove one first.`);
  } else {
    state.pins.push(row);
    pinMessage(`Pinned ${headName(row)}.`);
  }
  pinsChanged();
}

/** The same of a button in the list of pins, whose place another takes that then has the focus. */
function removePin(i) {
  togglePin(state.pins[i]);
  const left = document.querySelectorAll("#pin-list button");
  (left[Math.min(i, left.length - 1)] ?? document.getElementById("pin-text")).focus();
}

function pinsChanged() {
  drawPins();
  markMap();
  if (shownCard >= 0) showCard(shownCard);
  saveState();
}

function drawPins() {
  document.getElementById("pin-list").replaceChildren(
    ...state.pins.map((row, i) => {
      const kind = classOf(row);
      return element(
        "li",
        {},
        element("b", {}, pinLetter(i)),
        swatchOf(i),
        markerOf(kind.symbol, kind.colour),
        element("span", {}, headName(row)),
        element(
          "button",
          {
            type: "button",
            "aria-label": `Remove pin ${headName(row)}`,
            click: () => removePin(i),
          },
          "×",
        ),
      );
    }),
  );
  const results = document.getElementById("pin-results");
  results.hidden = !state.pins.length;
  document.getElementById("unpin-all").disabled = !state.pins.length;
  if (!state.pins.length) {
    pinMessage(
      document.getElementById("pin-message").textContent ||
        "No head is pinned yet: click heads on the map, or name one here.",
    );
    return;
  }
  drawDensities();
  drawPinTable();
}

/** The line of a pinned head, as a chart has it. */
function swatchOf(i) {
  const line = svgElement("line", { x1: 0, x2: 36, y1: 6, y2: 6, stroke: pinShade(i) });
  line.setAttribute("stroke-dasharray", DASHES[i]);
  return svgElement("svg", { class: "swatch", viewBox: "0 0 36 12", "aria-hidden": "true" }, line);
}

/**
 * The bin at which each line has its letter: where it is farthest from all others, and from the
 * letters before it.
 */
function letterBins(histograms) {
  const taken = new Set();
  return histograms.map((histogram, i) => {
    const apart = histogram.map((height, bin) => {
      const others = histograms.filter((_, j) => j !== i).map((other) => other[bin]);
      return taken.has(bin) ? -1 : Math.min(height, ...others.map((one) => Math.abs(height - one)));
    });
    const bin = apart.indexOf(Math.max(...apart));
    taken.add(bin);
    return bin;
  });
}

function drawDensities() {
  const { edges } = heads.meta;
  const histograms = state.pins.map((row) => histogramOf(heads, row));
  const traces = state.pins.map((row, i) => {
    const histogram = histograms[i];
    return {
      // Steps from edge to edge; the last height is drawn to the last edge.
      type: "scatter",
      mode: "lines",
      x: edges,
      y: [...histogram, histogram.at(-1)],
      line: {
        shape: "hv",
        color: pinShade(i),
        dash: DASHES[i] === "none" ? "solid" : DASHES[i].replaceAll(/(\d+)/g, "$1px"),
        width: 2,
      },
      name: `${pinLetter(i)} ${plain(headName(row))}`,
      hoverinfo: "y+name",
      hoverlabel: { namelength: -1 },
    };
  });
  const annotations = letterBins(histograms).map((bin, i) => ({
    x: (edges[bin] + edges[bin + 1]) / 2,
    y: histograms[i][bin],
    text: `<b>${pinLetter(i)}</b>`,
    showarrow: false,
    yshift: 11,
    font: { size: 13, color: token("ink") },
  }));
  const sentence =
    `Densities of ${counted(state.pins.length, "pinned head")}: ` +
    state.pins.map((row) => `${headName(row)} highest ${digits(heads.peaks[row], 3)}`).join("; ");
  draw(
    "pin-plot",
    traces,
    {
      height: 340,
      annotations,
      margin: { l: 56, r: 12, t: 20, b: 48 },
      xaxis: axis("λ / mean λ of the head", { range: [0, edges.at(-1)] }),
      yaxis: axis("density", { rangemode: "tozero" }),
    },
    sentence,
  );
}

function drawPinTable() {
  const table = document.getElementById("pin-table");
  table.tHead.replaceChildren(
    element(
      "tr",
      {},
      element("th", { scope: "col" }, "statistic"),
      ...state.pins.map((row, i) =>
        element(
          "th",
          { scope: "col", class: "number" },
          element("b", {}, pinLetter(i)),
          ` ${headName(row)}`,
        ),
      ),
    ),
  );
  const line = (label, value) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, label),
      ...state.pins.map((row) => element("td", { class: "number" }, value(row))),
    );
  table.tBodies[0].replaceChildren(
    line("class", (row) => String(classOf(row).number)),
    line("share of λ beyond the histogram", beyondText),
    ...heads.meta.statistics.map(({ name, label }) =>
      line(label, (row) => digits(heads.statistics.get(name)[row])),
    ),
  );
}

/** The row that a text such as "pythia-70m 3.4" or "t5 encoder 3 4" names, or what is wrong. */
function namedHead(text) {
  const parts = /^(.*?)[\s,]+(\d+)[\s.,]+(\d+)\s*$/.exec(text.trim());
  if (!parts)
    return { error: "Wanted a model, a layer and a head, such as “" + headName(0) + "”." };
  const [name, layer, head] = [parts[1].trim().toLowerCase(), Number(parts[2]), Number(parts[3])];
  const found = [];
  heads.meta.models.forEach((model, code) => {
    heads.stacks.forEach((stack, stackCode) => {
      const own = `${model.name} ${stack}`.trim().toLowerCase();
      const exact = [own, `${model.family}/${own}`.toLowerCase()].includes(name);
      if (exact || own.includes(name)) found.push({ code, stackCode, exact });
    });
  });
  const exact = found.filter((one) => one.exact);
  const rows = (exact.length ? exact : found)
    .map(({ code, stackCode }) => rowOf(code, stackCode, layer, head))
    .filter((row) => row >= 0);
  if (rows.length === 1) return { row: rows[0] };
  if (rows.length) {
    const some = rows.slice(0, MOST_NAMED).map(headName).join(", ");
    return { error: `${rows.length} heads have that name: ${some} … Name the model in full.` };
  }
  if (found.length) return { error: `No head ${layer}.${head} in ${parts[1].trim()}.` };
  return { error: `No model is called ${parts[1].trim()}.` };
}

function openPins() {
  const text = document.getElementById("pin-text");
  document.getElementById("pin-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const { row, error } = namedHead(text.value);
    if (error) return pinMessage(error);
    if (state.pins.includes(row)) return pinMessage(`${headName(row)} is pinned already.`);
    shownCard = row;
    togglePin(row);
    text.value = "";
  });
  document.getElementById("unpin-all").addEventListener("click", () => {
    state.pins = [];
    pinMessage("All pins are removed.");
    pinsChanged();
    text.focus();
  });
  drawPins();
}
