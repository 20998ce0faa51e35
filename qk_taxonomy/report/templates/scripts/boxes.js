// A statistic of a model by layer.

const NO_VALUE = "No head here has a value of this statistic.";
// Below it, what plotly has letters for is read more easily as a power of ten.
const SMALL = 1e-3;

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
  const mean = sumOf(sorted) / sorted.length;
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
  const left = rows.length - sumOf(found.map(({ length }) => length));
  const sizes = distinct(kept.map((j) => found[j].length));
  document.getElementById("box-note").textContent =
    (kept.length
      ? `Each box: ${sizes.join(" or ")} ${sizes.length === 1 && sizes[0] === 1 ? "head" : "heads"}.`
      : "") + (left ? ` ${unplaced(left, statistic)}.` : "");
  const medians = boxes.map(({ median }) => median);
  const [least, most] = [Math.min(...medians), Math.max(...medians)].map((one) => digits(one, 3));
  const room = document.getElementById("box-plot").clientWidth - 70;
  const sentence = kept.length
    ? `${statistic.label} over ${counted(boxes.length, "layer")}: medians from ${least} to ${most}`
    : NO_VALUE;
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
          size: Math.min(7, Math.max(3, (0.8 * room) / layers.length)),
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
        ...layerMarks(layers, room),
      }),
      yaxis: axis(statistic.label, boxAxis(boxes, statistic.log)),
      annotations: kept.length ? [] : [emptiness(NO_VALUE)],
    },
    sentence,
  );
}

/** An axis for boxes; a logarithmic one has a mark a decade where there are several. */
function boxAxis(boxes, log) {
  if (!boxes.length) return { showticklabels: false, showgrid: false, ticks: "" };
  const low = Math.min(...boxes.map((box) => box.low));
  const high = Math.max(...boxes.map((box) => box.high));
  if (log) {
    const decades = Math.log10(high / low);
    const marks =
      decades > 2
        ? { dtick: Math.ceil(decades / 8), exponentformat: "power" }
        : { dtick: "D2", exponentformat: "e" };
    return { type: "log", ...marks };
  }
  const largest = Math.max(Math.abs(low), Math.abs(high));
  const exponentformat = largest < SMALL ? "power" : "B";
  if (low !== high || !low) return { exponentformat };
  // Plotly's own range about one value is a whole unit either way.
  return { exponentformat, range: [low - largest / 2, low + largest / 2] };
}
