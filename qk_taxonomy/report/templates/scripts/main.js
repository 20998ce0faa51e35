// Opens the page: data first, then the map, then all that is further down.

function showChoices() {
  for (const details of document.querySelectorAll("[data-choices]")) {
    const chosen = state.chosen[details.dataset.choices];
    const n = sumOf(chosen);
    details.querySelector(".chosen").textContent =
      n === chosen.length ? `all ${n}` : `${n} of ${chosen.length}`;
    details.querySelectorAll("input").forEach((input, code) => {
      input.checked = Boolean(chosen[code]);
    });
  }
  document.getElementById("layer-low").value = String(state.layers[0]);
  document.getElementById("layer-high").value = String(state.layers[1]);
  document.getElementById("colour").value = state.colour;
}

function showCount() {
  const limit =
    hasWebGL || visible.length <= MOST_VECTOR_POINTS
      ? ""
      : " This browser has no WebGL, so drawing them takes long.";
  document.getElementById("shown").textContent =
    `${visible.length.toLocaleString("en")} of ${counted(heads.n, "head")} shown.${limit}`;
}

/** After a change of filters or colour. */
function viewChanged() {
  performance.mark("atlas-change");
  applyFilters();
  showChoices();
  drawMap();
  showCount();
  saveState();
  performance.measure("atlas-changed", "atlas-change");
}

/** Opens the view of the address, and tells what of it is not on this page. */
function readAddress() {
  const lost = readState(location.hash);
  const note = document.getElementById("not-here");
  note.hidden = !lost.length;
  note.textContent = lost.length
    ? `The address of this view names what is not on this page, and is left out: ${lost.join(", ")}.`
    : "";
}

function openFilters() {
  for (const details of document.querySelectorAll("[data-choices]")) {
    const kind = details.dataset.choices;
    details.addEventListener("change", (event) => {
      state.chosen[kind][Number(event.target.value)] = Number(event.target.checked);
      viewChanged();
    });
    const fill = (value) => () => {
      state.chosen[kind].fill(value);
      viewChanged();
    };
    details.querySelector("[data-all]").addEventListener("click", fill(1));
    details.querySelector("[data-none]").addEventListener("click", fill(0));
  }
  ["layer-low", "layer-high"].forEach((id, end) => {
    document.getElementById(id).addEventListener("change", (event) => {
      const value = event.target.valueAsNumber;
      const ends = [...state.layers];
      ends[end] = Number.isNaN(value) ? [0, lastLayer()][end] : Math.round(value);
      chooseLayers(...ends);
      viewChanged();
    });
  });
  document.getElementById("colour").addEventListener("change", (event) => {
    state.colour = event.target.value;
    viewChanged();
  });
  document.getElementById("everything").addEventListener("click", () => {
    resetFilters();
    viewChanged();
    wholeMap();
  });
  document
    .getElementById("export")
    .addEventListener("click", () =>
      download(`${pageStem()}.heads.csv`, headsAsText(), "text/csv;charset=utf-8"),
    );
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("[data-only-class]")) {
    button.addEventListener("click", () => {
      state.chosen.class.fill(0);
      state.chosen.class[Number(button.dataset.onlyClass)] = 1;
      viewChanged();
      goTo("map");
    });
  }
}

/** What this page's file is called, so that what is saved of two pages is told apart. */
function pageStem() {
  const name = location.pathname.split("/").pop().replace(/\.html?$/, "");
  try {
    return decodeURIComponent(name) || "report";
  } catch {
    return "report";
  }
}

/** The heads shown as CSV, with a column that tells the pinned ones. */
function headsAsText() {
  const { circuit, convention } = heads.meta;
  const field = (value) => {
    // Spreadsheets run what begins like a formula.
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const names = [...heads.statistics.keys()];
  const lines = [
    [
      ...["family", "model", "stack", "circuit", "convention", "layer", "head", "class"],
      ...["umap_x", "umap_y", ...names, "pin"],
    ]
      .map(field)
      .join(","),
  ];
  const number = (value) => (Number.isNaN(value) ? "" : String(Number(value.toPrecision(4))));
  for (const row of visible) {
    const { family, name } = heads.meta.models[heads.model[row]];
    const at = state.pins.indexOf(row);
    lines.push(
      [
        field(family),
        field(name),
        field(heads.stacks[heads.stack[row]]),
        circuit,
        convention,
        heads.layer[row],
        heads.head[row],
        classOf(row).number,
        number(heads.x[row]),
        number(heads.y[row]),
        ...names.map((statistic) => number(heads.statistics.get(statistic)[row])),
        at < 0 ? "" : pinLetter(at),
      ].join(","),
    );
  }
  return lines.join("\n") + "\n";
}

/** Moves to a section without touching the address, which holds the view. */
function goTo(id) {
  const title = document.getElementById(`${id}-title`);
  title.setAttribute("tabindex", "-1");
  title.focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  document.getElementById(id).scrollIntoView({ behavior: calm ? "auto" : "smooth" });
}

function openLinks() {
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      goTo(link.getAttribute("href").slice(1));
    });
  }
  addEventListener("hashchange", () => {
    // A link of another page to a section of this one holds no view; an empty one holds the first.
    if (location.hash && !location.hash.includes("=")) return;
    readAddress();
    viewChanged();
    drawPins();
    markMap();
    showView();
  });
}

function redrawAll() {
  drawMap();
  drawPins();
  drawLayers();
  drawContrast();
}

/** Charts are as wide as the page was when they were drawn. */
function openResizing() {
  let width = innerWidth;
  let waiting;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redrawAll, 200);
  });
}

const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

async function open() {
  openTheme(redrawAll);
  openState(await loadHeads());
  performance.mark("atlas-decoded");
  await loadPlotly();
  performance.mark("atlas-plotly");
  readAddress();
  applyFilters();
  showChoices();
  await openMap();
  showCount();
  openFilters();
  openLinks();
  performance.mark("atlas-plotted");
  openPins();
  await painted();
  openLayers();
  await painted();
  await openContrasts();
  await openTests();
  openResizing();
  performance.mark("atlas-whole");
  document.documentElement.dataset.ready = "whole";
}

open().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.textContent = `The page could not be drawn: ${error.message}. It needs a browser of 2023 or later.`;
  trouble.hidden = false;
  throw error;
});
