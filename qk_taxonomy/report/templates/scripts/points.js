// The points of the map, a trace a colour, and the key that tells what colours are.

// Categories of a kind that have a marker of their own; the smaller ones share a grey dot.
const MOST_CATEGORIES = 16;
// Points that plotly can draw without WebGL.
const MOST_VECTOR_POINTS = 5000;
// Beyond this number points are too small for shapes and edges, which take most of the drawing.
const MOST_SHAPES = 20000;

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
