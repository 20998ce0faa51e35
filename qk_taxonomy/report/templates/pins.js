// Pinned heads: their list, and the charts that compare them.

// Lines are told apart by dashes as well as by colours.
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px,2px", "2px,6px"];

// Of heads that one text may mean, so many are told.
const MOST_NAMED = 4;

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
        markerOf(kind.symbol, kind.colour),
        element("span", {}, headName(row)),
        element(
          "button",
          {
            type: "button",
            "aria-label": `Remove pin ${headName(row)}`,
            click: () => togglePin(row),
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

function drawDensities() {
  const { edges, colours } = heads.meta;
  const traces = state.pins.map((row, i) => {
    const histogram = histogramOf(heads, row);
    return {
      // Steps from edge to edge; the last height is drawn to the last edge.
      type: "scatter",
      mode: "lines",
      x: edges,
      y: [...histogram, histogram.at(-1)],
      line: { shape: "hv", color: colours[i % colours.length], dash: DASHES[i], width: 2 },
      name: `${pinLetter(i)} ${plain(headName(row))}`,
      hoverinfo: "y+name",
      hoverlabel: { namelength: -1 },
    };
  });
  const sentence =
    `Densities of ${counted(state.pins.length, "pinned head")}: ` +
    state.pins.map((row) => `${headName(row)} highest ${digits(heads.peaks[row], 3)}`).join("; ");
  draw(
    "pin-plot",
    traces,
    {
      height: 340,
      showlegend: true,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } },
      margin: { l: 56, r: 12, t: 12, b: 48 },
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
  });
  drawPins();
}
