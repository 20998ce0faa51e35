// Where the classes of a model live: layer by head.

// A narrower cell has no room for a number.
const NUMBERED_CELL = 14;
// Pixels of the smallest marker in a cell.
const LEAST_MARK = 3;

/** Row of each cell of the grid, by head and then layer; undefined where there is none. */
let gridRows = [];

/** Markers in the cells of classes that have the colour of another, where numbers have no room. */
function cellMarks(rows, place, size) {
  const apart = rows.filter((row) => classOf(row).apart);
  return {
    type: "scatter",
    mode: "markers",
    x: apart.map((row) => place.get(heads.layer[row])),
    y: apart.map((row) => heads.head[row]),
    hoverinfo: "skip",
    marker: {
      symbol: apart.map((row) => classOf(row).symbol),
      size: Math.max(LEAST_MARK, 0.7 * size),
      color: "#000000",
      line: { width: 0 },
    },
  };
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
  const numbered = cell >= NUMBERED_CELL && tall >= NUMBERED_CELL - 2;
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
        texttemplate: numbered ? "%{text}" : "",
        hovertemplate: "%{customdata}<extra></extra>",
      },
      ...(numbered ? [] : [cellMarks(rows, place, Math.min(cell, tall) - 1)]),
    ],
    {
      height: Math.round(tall * most + 64),
      width: Math.round(Math.max(220, cell * layers.length + 70)),
      margin: { l: 56, r: 8, t: 6, b: 48 },
      xaxis: axis("layer", {
        showgrid: false,
        range: [-0.5, layers.length - 0.5],
        ...layerMarks(layers, cell * layers.length),
      }),
      yaxis: axis("head", {
        showgrid: false,
        range: [-0.5, most - 0.5],
        dtick: Math.max(1, Math.ceil(most / 16)),
        tick0: 0,
      }),
    },
    sentence,
  );
}

/** A click or a tap on a cell pins its head. */
function openGrid() {
  const host = document.getElementById("grid-plot");
  const pin = ({ x, y }) => {
    const row = gridRows[Math.round(y)]?.[Math.round(x)];
    if (row == null) return;
    shownCard = row;
    togglePin(row);
  };
  const touched = openTaps(host, pin);
  host.on("plotly_click", ({ points: [point] }) => touched() || pin(point));
}
