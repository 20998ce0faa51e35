// One model by layer: which one, and what its two charts share.

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

/** Marks of layers, as many as have room in a width. */
function layerMarks(layers, width) {
  const step = Math.max(1, Math.ceil((LAYER_NUMBER * layers.length) / width));
  const marked = layers.map((_, j) => j).filter((j) => j % step === 0);
  return { tickvals: marked, ticktext: marked.map((j) => String(layers[j])), tickangle: 0 };
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
  openGrid();
}
