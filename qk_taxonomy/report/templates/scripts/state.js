// What is shown, and its text in the address, so that a colleague opens the same view.

const MOST_PINS = 8;
const KINDS = ["class", "family", "model", "stack"];

let heads;
// Families, by the order in which models name them, and each model's.
let families, familyOf;

const state = {
  colour: "class",
  chosen: {}, // by kind, a 0 or 1 for each of its members
  layers: [0, 0],
  pins: [], // rows of heads
  view: { model: 0, stack: 0, statistic: "" },
};

/** Rows of the heads that pass all filters. */
let visible = new Uint32Array(0);

function openState(loaded) {
  heads = loaded;
  const { models } = heads.meta;
  families = [...new Set(models.map(({ family }) => family))];
  familyOf = Uint32Array.from(models, ({ family }) => families.indexOf(family));
  resetFilters();
  state.view.statistic = heads.meta.statistics[0]?.name ?? "";
}

function membersOf(kind) {
  if (kind === "class") return heads.meta.classes.map(({ number }) => String(number));
  if (kind === "family") return families;
  if (kind === "model") return heads.meta.models.map(modelKey);
  return heads.stacks;
}

function modelKey({ family, name }) {
  return `${encodeURIComponent(family)}/${encodeURIComponent(name)}`;
}

function lastLayer() {
  let last = 0;
  for (const layer of heads.layer) if (layer > last) last = layer;
  return last;
}

function resetFilters() {
  for (const kind of KINDS) state.chosen[kind] = new Uint8Array(membersOf(kind).length).fill(1);
  state.layers = [0, lastLayer()];
}

function applyFilters() {
  const { class: classes, family, model, stack } = state.chosen;
  const [low, high] = state.layers;
  const models = Uint8Array.from(model, (chosen, code) => chosen & family[familyOf[code]]);
  const rows = new Uint32Array(heads.n);
  let n = 0;
  for (let row = 0; row < heads.n; row++) {
    const layer = heads.layer[row];
    if (
      models[heads.model[row]] &&
      classes[heads.class[row]] &&
      stack[heads.stack[row]] &&
      layer >= low &&
      layer <= high
    )
      rows[n++] = row;
  }
  visible = rows.slice(0, n);
}

/** Row of a head, or -1. */
function rowOf(model, stack, layer, head) {
  for (let row = 0; row < heads.n; row++) {
    if (
      heads.head[row] === head &&
      heads.layer[row] === layer &&
      heads.model[row] === model &&
      heads.stack[row] === stack
    )
      return row;
  }
  return -1;
}

function pinKey(row) {
  const stack = encodeURIComponent(heads.stacks[heads.stack[row]]);
  const model = modelKey(heads.meta.models[heads.model[row]]);
  return `${model}/${stack}/${heads.layer[row]}.${heads.head[row]}`;
}

function rowOfKey(key) {
  const [family, name, stack, place] = key.split("/");
  const model = membersOf("model").indexOf(`${family}/${name}`);
  const [layer, head] = (place ?? "").split(".").map(Number);
  return rowOf(model, heads.stacks.map(encodeURIComponent).indexOf(stack), layer, head);
}

/** Only what differs from the page as it opens. */
function stateText() {
  const text = new URLSearchParams();
  if (state.colour !== "class") text.set("colour", state.colour);
  for (const kind of KINDS) {
    const chosen = state.chosen[kind];
    if (chosen.every(Boolean)) continue;
    const names = membersOf(kind).filter((_, code) => chosen[code]);
    if (!names.length) text.append(kind, "none");
    for (const name of names) text.append(kind, `=${name}`);
  }
  const [low, high] = state.layers;
  if (low !== 0 || high !== lastLayer()) text.set("layers", `${low}-${high}`);
  const { model, stack, statistic } = state.view;
  if (model) text.set("view", modelKey(heads.meta.models[model]));
  if (stack) text.set("view-stack", heads.stacks[stack]);
  if (statistic && statistic !== heads.meta.statistics[0].name) text.set("statistic", statistic);
  for (const row of state.pins) text.append("pin", pinKey(row));
  return text.toString();
}

/** Both ends of the layers shown: in order, and none beyond the last. */
function chooseLayers(...ends) {
  const last = lastLayer();
  state.layers = ends.map((end) => Math.min(Math.max(end, 0), last)).sort((a, b) => a - b);
}

/** What an address asks for; names of what is not here, which is left out. */
function readState(hash) {
  const text = new URLSearchParams(hash.replace(/^#/, ""));
  resetFilters();
  const colours = ["class", "family", "model", "layer", "depth", ...heads.statistics.keys()];
  const colour = text.get("colour");
  state.colour = colours.includes(colour) ? colour : "class";
  const lost = [];
  if (colour && state.colour !== colour) lost.push(`colour ${colour}`);
  for (const kind of KINDS) {
    if (!text.has(kind)) continue;
    const asked = new Set(text.getAll(kind));
    const members = membersOf(kind);
    const chosen = members.map((name) => Number(asked.has(`=${name}`)));
    for (const name of asked) {
      if (name !== "none" && !members.includes(name.slice(1)))
        lost.push(`${kind} ${decoded(kind, name.slice(1))}`);
    }
    if (asked.has("none") || chosen.some(Boolean)) state.chosen[kind] = Uint8Array.from(chosen);
  }
  const layers = /^(\d+)-(\d+)$/.exec(text.get("layers") ?? "");
  if (layers) chooseLayers(Number(layers[1]), Number(layers[2]));
  if (text.has("view") && !membersOf("model").includes(text.get("view")))
    lost.push(`model ${decoded("model", text.get("view"))}`);
  state.view.model = Math.max(0, membersOf("model").indexOf(text.get("view")));
  state.view.stack = Math.max(0, heads.stacks.indexOf(text.get("view-stack")));
  const statistic = text.get("statistic");
  state.view.statistic = heads.statistics.has(statistic)
    ? statistic
    : (heads.meta.statistics[0]?.name ?? "");
  if (statistic && state.view.statistic !== statistic) lost.push(`statistic ${statistic}`);
  const keys = text.getAll("pin");
  const rows = keys.map(rowOfKey);
  keys.forEach((key, i) => {
    if (rows[i] < 0) lost.push(`head ${decoded("model", key)}`);
  });
  state.pins = [...new Set(rows.filter((row) => row >= 0))].slice(0, MOST_PINS);
  return lost;
}

/** A name of an address as a reader writes it; models are encoded in parts. */
function decoded(kind, name) {
  if (kind !== "model") return name;
  try {
    return decodeURIComponent(name).replace("//", "/");
  } catch {
    return name;
  }
}

function saveState() {
  const text = stateText();
  const place = location.href.split("#")[0];
  history.replaceState(null, "", text ? `${place}#${text}` : place);
}
