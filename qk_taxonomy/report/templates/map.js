// The map of all heads.

// Categories of a kind that have a marker of their own; the smaller ones share a grey dot.
const MOST_CATEGORIES = 16;
// Points that plotly can draw without WebGL.
const MOST_VECTOR_POINTS = 5000;

// Ends of cividis that stand out from the page in either theme, light to dark and back.
const SCALES = {
  light: ["#d9c55c", "#aca16a", "#848178", "#5f6575", "#3a4a6d", "#10305f", "#00224e"],
  dark: ["#4a5f96", "#6c7590", "#878a86", "#a59c74", "#c3b369", "#e1cc55", "#fee838"],
};

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
  const continuous = ["layer", "depth"].includes(state.colour) || heads.statistics.has(state.colour);
  return continuous ? scaledTraces() : sortedTraces();
}

function trace(rows, marker) {
  const x = new Float32Array(rows.length);
  const y = new Float32Array(rows.length);
  rows.forEach((row, i) => {
    x[i] = heads.x[row];
    y[i] = heads.y[row];
  });
  return {
    type: hasWebGL ? "scattergl" : "scatter", mode: "markers", x, y, hoverinfo: "none",
    marker: { size: pointSize(visible.length), line: outline(), opacity: 0.9, ...marker },
  };
}

/** Pale colours need an edge; where points are many, edges would hide what lies behind. */
function outline() {
  return { width: visible.length > 20000 ? 0 : 0.6, color: token("edge") };
}

function categories() {
  if (state.colour === "class") {
    return heads.meta.classes.map(({ number, colour, symbol }) => ({ name: `class ${number}`, colour, symbol }));
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
  const groups = kinds.map((kind, code) => ({ ...kind, rows: new Uint32Array(counts[code]), n: 0 }));
  for (const row of visible) {
    const group = groups[codeOf(row)];
    group.rows[group.n++] = row;
  }
  const shown = groups.filter(({ n }) => n);
  const own = state.colour === "class" ? shown : named(shown);
  mapRows = own.map(({ rows }) => rows);
  return {
    traces: own.map(({ rows, colour, symbol }) => trace(rows, { color: colour, symbol })),
    key: own.map(({ name, colour, symbol, n }) =>
      element("li", {}, markerOf(symbol, colour), ` ${name} `, element("span", { class: "count" }, n.toLocaleString("en")))),
    sentence: own.map(({ name, n }) => `${name}: ${n}`).join("; "),
  };
}

/** Colours and markers by size; those beyond the last marker in one group. */
function named(groups) {
  const { colours, symbols } = heads.meta;
  const order = [...groups].sort((a, b) => b.n - a.n);
  const own = order.slice(0, MOST_CATEGORIES).map((group, i) => ({
    ...group, colour: colours[i % colours.length], symbol: symbols[i % symbols.length],
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
  const known = visible.filter((_, i) => Number.isFinite(values[i]));
  const unknown = visible.filter((_, i) => !Number.isFinite(values[i]));
  const finite = values.filter(Number.isFinite);
  const [low, high] = ends(finite);
  const colours = SCALES[currentTheme()];
  const traces = [];
  mapRows = [];
  if (unknown.length) {
    traces.push(trace(unknown, { color: token("muted"), symbol: "x" }));
    mapRows.push(unknown);
  }
  traces.push(trace(known, {
    color: finite, cmin: low, cmax: high, symbol: "circle",
    colorscale: colours.map((colour, i) => [i / (colours.length - 1), colour]),
  }));
  mapRows.push(known);
  const label = statistic?.label ?? (state.colour === "layer" ? "layer" : "depth in the model, 0 first to 1 last layer");
  const at = (share) => digits(log ? 10 ** (low + share * (high - low)) : low + share * (high - low), 3);
  return {
    traces,
    key: [scaleKey(label + (log ? " (logarithmic)" : ""), colours, at, unknown.length)],
    sentence: `${label} from ${at(0)} to ${at(1)}` + (unknown.length ? `; ${counted(unknown.length, "head")} without a value` : ""),
  };
}

/** Ends of the colour scale: the 0.005 and 0.995 quantiles, so that one head does not take it all. */
function ends(values) {
  if (!values.length) return [0, 1];
  const sorted = Float64Array.from(values).sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const [low, high] = [at(0.005), at(0.995)];
  return low < high ? [low, high] : [low - 0.5, low + 0.5];
}

function scaleKey(label, colours, at, unknown) {
  const bar = element("span", { class: "scale" });
  bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  const marks = element("span", { class: "marks" }, ...[0, 0.5, 1].map((share) => element("span", {}, at(share))));
  const item = element("li", { class: "scaled" }, element("span", {}, label), bar, marks);
  if (unknown) item.append(element("span", {}, markerOf("x", token("muted")), ` no value ${unknown.toLocaleString("en")}`));
  return item;
}

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
    type: "circle", xref: "x", yref: "y", xsizemode: "pixel", ysizemode: "pixel",
    xanchor: heads.x[row], yanchor: heads.y[row], x0: -8, x1: 8, y0: -8, y1: 8,
    line: { color: token("ink"), width: 2 },
  }));
  const annotations = state.pins.map((row, i) => ({
    x: heads.x[row], y: heads.y[row], text: `<b>${pinLetter(i)}</b>`, showarrow: false, xshift: 14, yshift: 12,
    bgcolor: token("panel"), bordercolor: token("ink"), borderwidth: 1, borderpad: 2,
    font: { size: 11, color: token("ink") },
  }));
  return { shapes, annotations };
}

let mapLimits;

function drawMap() {
  const { traces, key, sentence } = mapTraces();
  mapLimits ??= { x: mapRange(heads.x), y: mapRange(heads.y) };
  const blank = { showgrid: false, zeroline: false, showticklabels: false, ticks: "", showline: false };
  const shown = counted(visible.length, "head");
  document.getElementById("map-alt").textContent = `${shown} on the map. ${sentence}.`;
  document.getElementById("map-key").replaceChildren(element("ul", {}, ...key));
  const host = document.getElementById("map-plot");
  return Plotly.react(host, traces, layoutOf({
    xaxis: { ...blank, range: [...mapLimits.x] },
    yaxis: { ...blank, range: [...mapLimits.y] },
    margin: { l: 4, r: 4, t: 4, b: 4 },
    hovermode: "closest",
    dragmode: "zoom",
    uirevision: "map",
    ...mapMarks(),
  }), CONFIG);
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
  Plotly.relayout("map-plot", { "xaxis.range": about(xaxis.range), "yaxis.range": about(yaxis.range) });
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
    if (heads.layer[other] !== heads.layer[row] && heads.head[other] === heads.head[row]) return other;
  }
  return row;
}

function openMap() {
  hasWebGL = canDrawWebGL();
  const host = document.getElementById("map-plot");
  const drawn = drawMap();
  const point = (row) => {
    showCard(row);
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
  document.getElementById("image").addEventListener("click", () =>
    Plotly.downloadImage(host, { format: "png", scale: 2, filename: "heads" }));
  return drawn;
}

function wholeMap() {
  Plotly.relayout("map-plot", { "xaxis.range": [...mapLimits.x], "yaxis.range": [...mapLimits.y] });
  // Plotly's own answer to a double click would be the limits of the points shown.
  return false;
}
