// One model by layer: the classes of its heads, and the boxes of a statistic.

// A narrower cell has no room for a number.
const NUMBERED_CELL = 14;
// Room for the number of a layer below an axis.
const LAYER_NUMBER = 26;

/** Rows of the chosen model and stack. */
function viewRows() {
  const { model, stack } = state.view;
  const rows = [];
  for (let row = 0; row < heads.n; row++) {
    if (heads.model[row] === model && heads.stack[row] === stack) rows.push(row);
  }
  return rows;
}

function distinct(values) {
  return [...new Set(values)].sort((a, b) => a - b);
}

/** Row of each cell of the grid, by head and then layer; undefined where there is none. */
let gridRows = [];

/** Marks of layers, as many as have room in a width. */
function layerMarks(layers, width) {
  const step = Math.max(1, Math.ceil((LAYER_NUMBER * layers.length) / width));
  const marked = layers.map((_, j) => j).filter((j) => j % step === 0);
  return { tickvals: marked, ticktext: marked.map((j) => String(layers[j])), tickangle: 0 };
}

function drawGrid(rows) {
  const layers = distinct(rows.map((row) => heads.layer[row]));
  const most = rows.reduce((last, row) => Math.max(last, heads.head[row]), 0) + 1;
  const place = new Map(layers.map((layer, i) => [layer, i]));
  const blank = () => Array.from({ length: most }, () => Array(layers.length).fill(null));
  const [classes, texts] = [blank(), blank()];
  gridRows = blank();
  const counts = heads.meta.classes.map(() => 0);
  for (const row of rows) {
    const [i, j] = [heads.head[row], place.get(heads.layer[row])];
    gridRows[i][j] = row;
    classes[i][j] = heads.class[row];
    texts[i][j] = String(classOf(row).number);
    counts[heads.class[row]]++;
  }
  const room = document.getElementById("grid-plot").parentElement.clientWidth;
  const cell = Math.min(48, Math.max(4, (room - 70) / layers.length));
  const tall = Math.min(28, Math.max(3, 560 / most));
  const k = counts.length;
  const scale = heads.meta.classes.flatMap(({ colour }, i) => [
    [i / k, colour],
    [(i + 1) / k, colour],
  ]);
  const sentence =
    `Classes of ${counted(rows.length, "head")} in ${counted(layers.length, "layer")}: ` +
    counts.map((n, i) => `class ${heads.meta.classes[i].number}: ${n}`).join("; ");
  return draw(
    "grid-plot",
    [
      {
        type: "heatmap",
        z: classes,
        x: layers.map((_, j) => j),
        colorscale: scale,
        zmin: -0.5,
        zmax: k - 0.5,
        showscale: false,
        textfont: { color: "#000000", size: 12 },
        xgap: 1,
        ygap: 1,
        text: texts,
        customdata: gridRows.map((cells) =>
          cells.map((row) =>
            row === null
              ? ""
              : `layer ${heads.layer[row]}, head ${heads.head[row]}: class ${classOf(row).number}`,
          ),
        ),
        texttemplate: cell >= NUMBERED_CELL && tall >= NUMBERED_CELL - 2 ? "%{text}" : "",
        hovertemplate: "%{customdata}<extra></extra>",
      },
    ],
    {
      height: Math.round(tall * most + 64),
      width: Math.round(Math.max(220, cell * layers.length + 70)),
      margin: { l: 56, r: 8, t: 6, b: 48 },
      xaxis: axis("layer", {
        showgrid: false,
        ...layerMarks(layers, cell * layers.length),
      }),
      yaxis: axis("head", { showgrid: false, dtick: Math.max(1, Math.ceil(most / 16)), tick0: 0 }),
    },
    sentence,
  );
}

/** Linear quantile of sorted values. */
function quantile(sorted, share) {
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

/** Five numbers and mean of a box, whiskers to 1.5 times the interquartile range. */
function boxOf(values) {
  const sorted = Float64Array.from(values).sort();
  const [q1, median, q3] = [0.25, 0.5, 0.75].map((share) => quantile(sorted, share));
  const reach = 1.5 * (q3 - q1);
  const within = sorted.filter((value) => value >= q1 - reach && value <= q3 + reach);
  const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
  return { q1, median, q3, low: Math.min(within[0], q1), high: Math.max(within.at(-1), q3), mean };
}

function drawBoxes(rows) {
  const statistic = statisticOf(state.view.statistic);
  if (!statistic) return null;
  const values = heads.statistics.get(statistic.name);
  const layers = distinct(rows.map((row) => heads.layer[row]));
  const found = layers.map((layer) =>
    rows
      .filter((row) => heads.layer[row] === layer)
      .map((row) => values[row])
      .filter((value) => Number.isFinite(statistic.log ? Math.log(value) : value)),
  );
  const kept = layers.map((_, j) => j).filter((j) => found[j].length);
  const boxes = kept.map((j) => boxOf(found[j]));
  const left = rows.length - found.reduce((sum, some) => sum + some.length, 0);
  const sizes = distinct(found.map((some) => some.length));
  document.getElementById("box-note").textContent =
    `Each box: ${sizes.join(" or ")} ${sizes.length === 1 && sizes[0] === 1 ? "head" : "heads"}.` +
    (left ? ` ${unplaced(left, statistic)}.` : "");
  const medians = boxes.map(({ median }) => median);
  const [least, most] = [Math.min(...medians), Math.max(...medians)].map((one) => digits(one, 3));
  const sentence = boxes.length
    ? `${statistic.label} over ${counted(boxes.length, "layer")}: medians from ${least} to ${most}`
    : `${statistic.label}: no values`;
  return draw(
    "box-plot",
    [
      {
        type: "box",
        x: kept,
        q1: boxes.map((b) => b.q1),
        median: medians,
        q3: boxes.map((b) => b.q3),
        lowerfence: boxes.map((b) => b.low),
        upperfence: boxes.map((b) => b.high),
        line: { color: token("ink"), width: 1.2 },
        fillcolor: token("box"),
        hoverinfo: "y",
        name: "",
      },
      {
        type: "scatter",
        mode: "markers",
        x: kept,
        y: boxes.map((b) => b.mean),
        hoverinfo: "skip",
        marker: {
          symbol: "diamond",
          size: 7,
          color: token("accent"),
          line: { color: token("panel"), width: 1 },
        },
      },
    ],
    {
      height: 380,
      xaxis: axis("layer", {
        showgrid: false,
        range: [-0.7, layers.length - 0.3],
        ...layerMarks(layers, document.getElementById("box-plot").clientWidth - 70),
      }),
      yaxis: axis(statistic.label, statistic.log ? logAxis(boxes) : {}),
    },
    sentence,
  );
}

/** A logarithmic axis: a mark a decade where there are several, else plotly's choice. */
function logAxis(boxes) {
  const low = Math.min(...boxes.map((box) => box.low));
  const high = Math.max(...boxes.map((box) => box.high));
  const decades = Math.log10(high / low);
  const marks =
    decades > 2
      ? { dtick: Math.ceil(decades / 8), exponentformat: "power" }
      : { dtick: "D2", exponentformat: "e" };
  return { type: "log", ...marks };
}

function drawLayers() {
  const rows = viewRows();
  drawGrid(rows);
  drawBoxes(rows);
}

/** The stacks that the chosen model has. */
function fillStacks() {
  const select = document.getElementById("view-stack");
  const own = new Set();
  for (let row = 0; row < heads.n; row++) {
    if (heads.model[row] === state.view.model) own.add(heads.stack[row]);
  }
  if (!own.has(state.view.stack)) state.view.stack = Math.min(...own);
  if (!select) return;
  select.replaceChildren(
    ...distinct(own).map((code) =>
      element("option", { value: code }, heads.stacks[code] || "(only stack)"),
    ),
  );
  select.value = String(state.view.stack);
}

function showView() {
  fillStacks();
  document.getElementById("view-model").value = String(state.view.model);
  document.getElementById("view-statistic").value = state.view.statistic;
  drawLayers();
}

function openLayers() {
  const changed = () => {
    showView();
    saveState();
  };
  const choose = (id, set) =>
    document.getElementById(id)?.addEventListener("change", (event) => {
      set(event.target.value);
      changed();
    });
  choose("view-model", (value) => {
    state.view.model = Number(value);
  });
  choose("view-stack", (value) => {
    state.view.stack = Number(value);
  });
  choose("view-statistic", (value) => {
    state.view.statistic = value;
  });
  showView();
  document.getElementById("grid-plot").on("plotly_click", ({ points: [point] }) => {
    const row = gridRows[point.y]?.[point.x];
    if (row != null) {
      shownCard = row;
      togglePin(row);
    }
  });
}
