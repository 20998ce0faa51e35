// Contrasts: the shift of each statistic, and the heads in order of change.

function chosenContrast() {
  return document.getElementById("contrast").selectedOptions[0].dataset;
}

/** Rows of a table whose columns of words are these. */
function rowsWith(columns, wanted, n) {
  const codes = Object.entries(wanted).map(([name, value]) => [
    columns[name].data,
    columns[name].values.indexOf(value),
  ]);
  const rows = [];
  for (let row = 0; row < n; row++) {
    if (codes.every(([data, code]) => data[row] === code)) rows.push(row);
  }
  return rows;
}

function drawForest({ meta, columns: c }) {
  const { family, model, against, stack, method, twin } = chosenContrast();
  document.getElementById("contrast-twin").hidden = !twin;
  const wanted = { family, model, against, stack, method, hypothesis: heads.meta.shift };
  const rows = rowsWith(c, wanted, meta.n)
    .filter((row) => Number.isNaN(c.layer.data[row]) && Number.isFinite(c.effect.data[row]))
    .reverse();
  const effect = rows.map((row) => c.effect.data[row]);
  const labels = rows.map((row) => statisticLabel(c.statistic.values[c.statistic.data[row]]));
  const narrow = document.getElementById("forest-plot").clientWidth < 560;
  const rejected = rows.map((row) => c.q_value.data[row] <= heads.meta.level);
  const colours = rejected.map((yes) => token(yes ? "rejected" : "kept"));
  const n = rows.reduce((most, row) => Math.max(most, c.n.data[row] || 0), 0);
  document.getElementById("forest-note").textContent =
    `n = ${n}; method: ${method}. Filled diamond: q ≤ ${heads.meta.level}; open circle: not.`;
  const hits = rejected.filter(Boolean).length;
  draw(
    "forest-plot",
    [
      {
        type: "scatter",
        mode: "markers",
        x: effect,
        y: labels.map((_, i) => i),
        customdata: rows.map((row) => [
          plain(statisticLabel(c.statistic.values[c.statistic.data[row]])),
          intervalText(c.low.data[row], c.high.data[row]),
          pText(c.q_value.data[row]),
        ]),
        hovertemplate:
          "%{customdata[0]}: %{x:.3g} %{customdata[1]}<br>q = %{customdata[2]}<extra></extra>",
        error_x: {
          type: "data",
          symmetric: false,
          thickness: 1.6,
          width: 0,
          color: token("muted"),
          array: rows.map((row, i) => c.high.data[row] - effect[i] || 0),
          arrayminus: rows.map((row, i) => effect[i] - c.low.data[row] || 0),
        },
        marker: {
          color: colours,
          size: 10,
          symbol: rejected.map((yes) => (yes ? "diamond" : "circle-open")),
          line: { width: 2, color: colours },
        },
      },
    ],
    {
      height: 80 + 26 * rows.length,
      xaxis: axis(narrow ? "rank-biserial" : "rank-biserial correlation", {
        range: [-1.08, 1.08],
        tickvals: [-1, -0.5, 0, 0.5, 1],
        tickangle: 0,
        zeroline: true,
        zerolinecolor: token("axis"),
      }),
      yaxis: axis("", {
        tickvals: labels.map((_, i) => i),
        ticktext: labels.map((label) => plain(narrow ? label.split(":")[0] : label)),
        tickfont: { size: narrow ? 11 : 13 },
        range: [-0.7, rows.length - 0.3],
        showgrid: true,
      }),
    },
    `Shifts of ${counted(rows.length, "statistic")}, ${hits} of them with q at most ${heads.meta.level}: ` +
      rows
        .map((_, i) => `${labels[i]} ${digits(effect[i], 2)}`)
        .reverse()
        .join("; "),
  );
}

/** Row on the map of a head of a contrast's treatment, or -1. */
function treatedRow(family, model, stack, layer, head) {
  const code = heads.meta.models.findIndex((one) => one.family === family && one.name === model);
  return rowOf(code, heads.stacks.indexOf(stack), layer, head);
}

/** Each head's position in the order of layers and, within a layer, of heads. */
function placeOrder(layer, head) {
  const order = Array.from(layer, (_, i) => i);
  order.sort((a, b) => layer[a] - layer[b] || head[a] - head[b]);
  const position = new Float64Array(order.length);
  order.forEach((i, at) => {
    position[i] = at;
  });
  return position;
}

function drawChanged({ meta, columns: c }) {
  const { family, model, against, stack } = chosenContrast();
  const rows = rowsWith(c, { family, model, against, stack }, meta.n);
  const host = document.getElementById("changed-table");
  host.hidden = !rows.length;
  if (!rows.length) return;
  const of = (name) => Float64Array.from(rows, (row) => c[name].data[row]);
  const [layer, head] = [of("layer"), of("head")];
  const place = (i) => {
    const name = `${layer[i]}.${head[i]}`;
    const row = treatedRow(family, model, stack, layer[i], head[i]);
    if (row < 0) return name;
    return element(
      "button",
      {
        type: "button",
        class: "pin",
        "aria-label": `Pin head ${name}`,
        click: () => {
          shownCard = row;
          togglePin(row);
        },
      },
      name,
    );
  };
  const q = (name) => {
    const values = of(name);
    return { number: values, text: (i) => pText(values[i]) };
  };
  new PagedTable(host, rows.length, [
    {
      title: "head (pin)",
      number: placeOrder(layer, head),
      text: place,
    },
    numberColumn("Wasserstein distance", of("wasserstein"), 3),
    { title: "Wasserstein q, untrained", ...q("q_wasserstein_untrained") },
    { title: "Wasserstein q, control", ...q("q_wasserstein_within") },
    numberColumn("JSD (nats)", of("jensen_shannon"), 3),
    { title: "JSD q, untrained", ...q("q_jensen_shannon_untrained") },
    { title: "JSD q, control", ...q("q_jensen_shannon_within") },
    numberColumn("shift of effective rank of λ", of("effective_rank_shift"), 3),
  ]);
}

let drawContrast = () => {};

async function openContrasts() {
  const select = document.getElementById("contrast");
  if (!select) return;
  const [shifts, changed] = await Promise.all(["packed-contrasts", "packed-changed"].map(unpacked));
  drawContrast = () => drawForest(shifts);
  const show = () => {
    drawForest(shifts);
    drawChanged(changed);
  };
  select.addEventListener("change", show);
  show();
}
