// The map of all heads.

// Categories of a kind that have a marker of their own; the smaller ones share a grey dot.
const MOST_CATEGORIES = 16;
// Points that plotly can draw without WebGL.
const MOST_VECTOR_POINTS = 5000;
// Beyond this number points are too small for shapes and edges, which take most of the drawing.
const MOST_SHAPES = 20000;
// One colour a step: points of one colour are drawn far faster than points of many.
const SCALE_STEPS = 24;

// Viridis as far as it stands out from the page: high values have most contrast in either theme.
const SCALES = {
  light: [
    "#bddf26",
    "#7ad151",
    "#35b779",
    "#1f9e89",
    "#26828e",
    "#31688e",
    "#3e4989",
    "#482878",
    "#440154",
  ],
  dark: ["#3e5a9a", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"],
};

// Share of the map's width that a letter beside a head takes, on a narrow one.
const LETTER_ROOM = 0.08;

const NO_HEAD = "No head passes the filters.";

/** Rows of each trace's points. */
let mapRows = [];
let hasWebGL;

function canDrawWebGL() {
  const canvas = document.createElement("canvas");
  return Boolean(canvas.getContext("webgl"));
}

function pointSize(n) {
  return Math.min(9, Math.max(3, 250 / Math.sqrt(n)));
}

/** Traces of the heads shown, and what the key says of them. */
function mapTraces() {
  const continuous =
    ["layer", "depth"].includes(state.colour) || heads.statistics.has(state.colour);
  return continuous ? scaledTraces() : sortedTraces();
}

function trace(rows, marker) {
  const x = new Float32Array(rows.length);
  const y = new Float32Array(rows.length);
  rows.forEach((row, i) => {
    x[i] = heads.x[row];
    y[i] = heads.y[row];
  });
  // Pale colours need an edge.
  const shape =
    visible.length > MOST_SHAPES
      ? { symbol: "circle", line: { width: 0 } }
      : { line: { width: 0.6, color: token("edge") } };
  return {
    type: hasWebGL ? "scattergl" : "scatter",
    mode: "markers",
    x,
    y,
    hoverinfo: "none",
    marker: { size: pointSize(visible.length), opacity: 0.9, ...marker, ...shape },
  };
}

function categories() {
  if (state.colour === "class") {
    return heads.meta.classes.map(({ number, colour, symbol }) => ({
      name: `class ${number}`,
      colour,
      symbol,
    }));
  }
  const names = state.colour === "family" ? families : heads.meta.models.map(({ name }) => name);
  return names.map((name) => ({ name }));
}

function codeOf(row) {
  if (state.colour === "class") return heads.class[row];
  return state.colour === "family" ? familyOf[heads.model[row]] : heads.model[row];
}

function sortedTraces() {
  const kinds = categories();
  const counts = new Uint32Array(kinds.length);
  for (const row of visible) counts[codeOf(row)]++;
  const groups = kinds.map((kind, code) => ({
    ...kind,
    rows: new Uint32Array(counts[code]),
    n: 0,
  }));
  for (const row of visible) {
    const group = groups[codeOf(row)];
    group.rows[group.n++] = row;
  }
  const shown = groups.filter(({ n }) => n);
  const own = state.colour === "class" ? shown : named(shown);
  mapRows = own.map(({ rows }) => rows);
  return {
    traces: own.map(({ name, rows, colour, symbol }) => ({
      name: plain(name),
      ...trace(rows, { color: colour, symbol }),
    })),
    key: own.map(({ name, colour, symbol, n }) =>
      element(
        "li",
        {},
        markerOf(symbol, colour),
        ` ${name} `,
        element("span", { class: "count" }, n.toLocaleString("en")),
      ),
    ),
    sentence: own.map(({ name, n }) => `${name}: ${n}`).join("; "),
  };
}

/** Colours and markers by size; those beyond the last marker in one group. */
function named(groups) {
  const { colours, symbols } = heads.meta;
  const order = [...groups].sort((a, b) => b.n - a.n);
  const own = order.slice(0, MOST_CATEGORIES).map((group, i) => ({
    ...group,
    colour: colours[i % colours.length],
    symbol: symbols[i % symbols.length],
  }));
  const rest = order.slice(MOST_CATEGORIES);
  if (!rest.length) return own;
  const rows = Uint32Array.from(rest.flatMap((group) => [...group.rows]));
  const name = `${rest.length} others`;
  return [{ name, rows, n: rows.length, colour: token("muted"), symbol: "circle" }, ...own];
}

function scaledTraces() {
  const statistic = statisticOf(state.colour);
  const source = statistic ? heads.statistics.get(state.colour) : heads[state.colour];
  const log = Boolean(statistic?.log);
  const values = Float64Array.from(visible, (row) => (log ? Math.log10(source[row]) : source[row]));
  if (!visible.length) {
    mapRows = [];
    return { traces: [], key: [], sentence: "" };
  }
  const [low, high] = ends(values.filter(Number.isFinite));
  const steps = Array.from({ length: SCALE_STEPS }, () => []);
  const unknown = [];
  values.forEach((value, i) => {
    const step = Math.floor((SCALE_STEPS * (value - low)) / (high - low));
    const group = Number.isFinite(value)
      ? steps[Math.min(Math.max(step, 0), SCALE_STEPS - 1)]
      : unknown;
    group.push(visible[i]);
  });
  const colours = steps.map((_, i) => scaleColour(i / (SCALE_STEPS - 1)));
  const groups = [
    { rows: unknown, color: token("muted"), symbol: "x" },
    ...steps.map((rows, i) => ({ rows, color: colours[i], symbol: "circle" })),
  ].filter(({ rows }) => rows.length);
  mapRows = groups.map(({ rows }) => rows);
  const unknownText = unplaced(unknown.length, statistic);
  const label =
    statistic?.label ??
    (state.colour === "layer" ? "layer" : "depth in the model, 0 first to 1 last layer");
  const at = (share) =>
    digits(log ? 10 ** (low + share * (high - low)) : low + share * (high - low), 3);
  return {
    traces: groups.map(({ rows, ...marker }) => trace(rows, marker)),
    scale: { label: label + (log ? " (logarithmic)" : ""), colours, at },
    key: [scaleKey(label + (log ? " (logarithmic)" : ""), colours, at, unknownText)],
    sentence: `${label} from ${at(0)} to ${at(1)}` + (unknown.length ? `; ${unknownText}` : ""),
  };
}

/** The colour at a share of the scale, between its given colours. */
function scaleColour(share) {
  const stops = SCALES[currentTheme()];
  const at = share * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  const channel = (colour, k) => Number.parseInt(colour.slice(1 + 2 * k, 3 + 2 * k), 16);
  const mixed = [0, 1, 2].map((k) =>
    Math.round(channel(stops[i], k) + (at - i) * (channel(stops[i + 1], k) - channel(stops[i], k))),
  );
  return `rgb(${mixed.join(", ")})`;
}

/** Ends of the colour scale: 0.005 and 0.995 quantiles, so that one head does not take it all. */
function ends(values) {
  if (!values.length) return [0, 1];
  const sorted = Float64Array.from(values).sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const [low, high] = [at(0.005), at(0.995)];
  return low < high ? [low, high] : [low - 0.5, low + 0.5];
}

function scaleKey(label, colours, at, unknownText) {
  const bar = element("span", { class: "scale" });
  bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  const marks = element(
    "span",
    { class: "marks" },
    ...[0, 0.5, 1].map((share) => element("span", {}, at(share))),
  );
  const item = element("li", { class: "scaled" }, element("span", {}, label), bar, marks);
  if (unknownText)
    item.append(element("span", {}, markerOf("x", token("muted")), ` ${unknownText}`));
  return item;
}

let mapLimits;

/** Limits of the whole map, which filters do not move. */
function mapRange(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (!(low <= high)) return [0, 1];
  const margin = 0.04 * (high - low) || 1;
  return [low - margin, high + margin];
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
      margin: { l: 4, r: 4, t: PICTURE_TITLE, b: 4 },
      showlegend: !bar,
      legend: { itemsizing: "constant" },
    },
  };
}

function drawMap() {
  const { traces, key, sentence } = mapTraces();
  mapLimits ??= { x: mapRange(heads.x), y: mapRange(heads.y) };
  const blank = {
    showgrid: false,
    zeroline: false,
    showticklabels: false,
    ticks: "",
    showline: false,
  };
  const shown = counted(visible.length, "head");
  document.getElementById("map-alt").textContent = visible.length
    ? `${shown} on the map. ${sentence}.`
    : NO_HEAD;
  document.getElementById("map-key").replaceChildren(element("ul", {}, ...key));
  return plot("map-plot", traces, {
    height: document.getElementById("map-plot").clientHeight,
    xaxis: { ...blank, range: [...mapLimits.x] },
    yaxis: { ...blank, range: [...mapLimits.y] },
    margin: { l: 4, r: 4, t: 4, b: 4 },
    hovermode: "closest",
    // A finger must be able to scroll past the map.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    uirevision: "map",
    ...mapMarks(),
  });
}

/** Rings and letters alone: points stay as they are drawn. */
function markMap() {
  return Plotly.relayout("map-plot", mapMarks());
}

function pointAt(event) {
  const { curveNumber, pointNumber } = event.points[0];
  return mapRows[curveNumber][pointNumber];
}

function zoomMap(factor) {
  const { xaxis, yaxis } = document.getElementById("map-plot").layout;
  const about = ([low, high]) => {
    const [middle, half] = [(low + high) / 2, ((high - low) / 2) * factor];
    return [middle - half, middle + half];
  };
  Plotly.relayout("map-plot", {
    "xaxis.range": about(xaxis.range),
    "yaxis.range": about(yaxis.range),
  });
}

/** The visible head that comes next by row, or in the next layer. */
function neighbour(row, key) {
  const at = visible.indexOf(row);
  if (at < 0) return visible[0];
  if (key === "ArrowRight") return visible[Math.min(at + 1, visible.length - 1)];
  if (key === "ArrowLeft") return visible[Math.max(at - 1, 0)];
  const step = key === "ArrowUp" ? 1 : -1;
  for (let i = at + step; i >= 0 && i < visible.length; i += step) {
    const other = visible[i];
    if (heads.model[other] !== heads.model[row] || heads.stack[other] !== heads.stack[row]) break;
    if (heads.layer[other] !== heads.layer[row] && heads.head[other] === heads.head[row])
      return other;
  }
  return row;
}

function openMap() {
  hasWebGL = canDrawWebGL();
  const host = document.getElementById("map-plot");
  const drawn = drawMap();
  const point = (row) => {
    showCard(row);
    say(`${headName(row)}, class ${classOf(row).number}`);
    markMap();
  };
  host.on("plotly_hover", (event) => point(pointAt(event)));
  host.on("plotly_click", (event) => togglePin(pointAt(event)));
  host.on("plotly_doubleclick", () => wholeMap());
  host.addEventListener("keydown", (event) => {
    if (!visible.length) return;
    if (event.key.startsWith("Arrow")) point(neighbour(shownCard, event.key));
    else if (event.key === "Enter" && shownCard >= 0) togglePin(shownCard);
    else return;
    event.preventDefault();
  });
  document.getElementById("zoom-in").addEventListener("click", () => zoomMap(1 / 1.5));
  document.getElementById("zoom-out").addEventListener("click", () => zoomMap(1.5));
  document.getElementById("zoom-all").addEventListener("click", wholeMap);
  document
    .getElementById("image")
    .addEventListener("click", () =>
      Plotly.downloadImage(mapPicture(), {
        format: "png",
        scale: 2,
        width: host.clientWidth,
        height: host.clientHeight + PICTURE_TITLE,
        filename: `${pageStem()}.map`,
      }),
    );
  return drawn;
}

function wholeMap() {
  Plotly.relayout("map-plot", { "xaxis.range": [...mapLimits.x], "yaxis.range": [...mapLimits.y] });
  // Plotly's own answer to a double click would be the limits of the points shown.
  return false;
}
