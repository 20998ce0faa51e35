// The points of the map, a trace a colour, and the key that tells what colours are.

// Categories of a kind that have a marker of their own; the smaller ones share a grey dot.
const MOST_CATEGORIES = 16;
// Points that plotly can draw without WebGL.
const MOST_VECTOR_POINTS = 5000;
// Where more are seen, points are too small for shapes and edges, which take most of the drawing.
const MOST_SHAPES = 20000;
// Pixels of the smallest point.
const SMALLEST = 3;
// Pixels by which a ring is larger than a dot: of shapes so small no others are told apart.
const RING = 2;

/** The look of heads that a scale has no place for. */
const UNPLACED = { symbol: "x", apart: true };

/** Rows of each trace's points. */
let mapRows = [];
/** How a point is drawn: its size in pixels, and whether it has a shape and an edge. */
let pointLook;
let hasWebGL;

function canDrawWebGL() {
  const canvas = document.createElement("canvas");
  return Boolean(canvas.getContext("webgl"));
}

/** The look of points of which `n` are seen. */
function lookOf(n) {
  return { size: Math.min(9, Math.max(SMALLEST, 250 / Math.sqrt(n))), shaped: n <= MOST_SHAPES };
}

/** The marker that is drawn: a dot, or a ring where another kind has its colour. */
function drawnSymbol({ symbol, apart }) {
  if (pointLook.shaped) return symbol;
  return apart ? "circle-open" : "circle";
}

/** Whether colours are steps of a scale. */
function isScaled() {
  return ["layer", "depth"].includes(state.colour) || heads.statistics.has(state.colour);
}

/** Traces of the heads shown, and what the key says of them. */
function mapTraces() {
  return isScaled() ? scaledTraces() : sortedTraces();
}

/** `kind`: colour and symbol; apart: whether the symbol alone tells it from another. */
function trace(rows, kind) {
  const x = new Float32Array(rows.length);
  const y = new Float32Array(rows.length);
  rows.forEach((row, i) => {
    x[i] = heads.x[row];
    y[i] = heads.y[row];
  });
  const symbol = drawnSymbol(kind);
  const ring = symbol.endsWith("-open");
  return {
    type: hasWebGL ? "scattergl" : "scatter",
    mode: "markers",
    x,
    y,
    hoverinfo: "none",
    marker: {
      size: pointLook.size + (ring ? RING : 0),
      opacity: 0.9,
      color: kind.colour,
      symbol,
      line: ring ? { width: 1.2, color: kind.colour } : { width: edge(), color: token("edge") },
    },
  };
}

/** Pale colours need an edge, of which small points would be darkened as a whole. */
function edge() {
  return pointLook.shaped ? Math.min(0.6, 0.3 * (pointLook.size - SMALLEST)) : 0;
}

function categories() {
  if (state.colour === "class") {
    return heads.meta.classes.map(({ number, ...look }) => ({ name: `class ${number}`, ...look }));
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
    codes: [code],
    rows: new Uint32Array(counts[code]),
    n: 0,
  }));
  for (const row of visible) {
    const group = groups[codeOf(row)];
    group.rows[group.n++] = row;
  }
  const shown = groups.filter(({ n }) => n);
  const own = state.colour === "class" ? shown : named(shown);
  // What has no marker of its own lies below the others, and comes last in the key.
  const drawn = [...own].sort((a, b) => Number(Boolean(b.rest)) - Number(Boolean(a.rest)));
  mapRows = drawn.map(({ rows }) => rows);
  return {
    traces: drawn.map((kind) => ({ name: plain(kind.name), ...trace(kind.rows, kind) })),
    key: own.map(keyOf),
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
    apart: i >= colours.length,
  }));
  const others = order.slice(MOST_CATEGORIES);
  if (!others.length) return own;
  const rest = {
    name: counted(others.length, "other"),
    codes: others.flatMap(({ codes }) => codes),
    rows: Uint32Array.from(others.flatMap(({ rows }) => [...rows])),
    n: others.reduce((sum, { n }) => sum + n, 0),
    colour: token("muted"),
    symbol: "circle",
    rest: true,
  };
  return [...own, rest];
}

/** A kind in the key, as a button that shows it alone and, pressed again, all of its sort. */
function keyOf(kind) {
  const chosen = state.chosen[state.colour];
  const alone = kind.codes.every((code) => chosen[code]) && sumOf(chosen) === kind.codes.length;
  const pressed = alone && chosen.length > kind.codes.length;
  const button = element(
    "button",
    {
      type: "button",
      "aria-pressed": String(pressed),
      title: pressed ? "Show the others too" : "Show these alone",
      click: () => {
        chosen.fill(Number(pressed));
        for (const code of kind.codes) chosen[code] = 1;
        viewChanged();
        // The key is made anew, and what is left of it begins with this kind or has it.
        const again = [...document.querySelectorAll("#map-key button")];
        (again.find((one) => one.dataset.kind === kind.name) ?? again[0])?.focus();
      },
    },
    markerOf(drawnSymbol(kind), kind.colour),
    ` ${kind.name} `,
    element("span", { class: "count" }, kind.n.toLocaleString("en")),
  );
  button.dataset.kind = kind.name;
  return element("li", {}, button);
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
  const finite = values.filter(Number.isFinite);
  const [low, high] = ends(finite);
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
    { rows: unknown, colour: token("muted"), ...UNPLACED },
    ...steps.map((rows, i) => ({ rows, colour: colours[i], symbol: "circle" })),
  ].filter(({ rows }) => rows.length);
  mapRows = groups.map(({ rows }) => rows);
  const unknownText = unplaced(unknown.length, statistic);
  const label =
    statistic?.label ??
    (state.colour === "layer" ? "layer" : "depth in the model, 0 first to 1 last layer");
  const at = (share) =>
    digits(log ? 10 ** (low + share * (high - low)) : low + share * (high - low), 3);
  const scale = finite.length > 0 && { label: label + (log ? " (logarithmic)" : ""), colours, at };
  const told = finite.length ? `${label} from ${at(0)} to ${at(1)}` : label;
  return {
    traces: groups.map(({ rows, ...kind }) => trace(rows, kind)),
    scale,
    key: [scaleKey(label, scale, unknownText)],
    sentence: [told, unknownText].filter(Boolean).join("; "),
  };
}
