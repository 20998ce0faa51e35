// What the page carries, as qk_taxonomy/report/packing.py packs it, back in typed arrays.

const ARRAYS = {
  u1: Uint8Array,
  u2: Uint16Array,
  u4: Uint32Array,
  f4: Float32Array,
  f8: Float64Array,
};

/** The bytes of a packed element, which is then emptied: nothing else needs its text. */
async function inflated(id) {
  const host = document.getElementById(id);
  const binary = atob(host.textContent);
  host.textContent = "";
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** `meta`, and by name columns {data, shape, values}; data has positions in values, if any. */
async function unpacked(id) {
  const bytes = await inflated(id);
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const { meta, columns } = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const start = Math.ceil((4 + length) / 8) * 8;
  for (const column of Object.values(columns)) column.data = arrayOf(bytes, start, column);
  return { meta, columns };
}

function arrayOf(bytes, start, { dtype, shape, offset, planes }) {
  const type = ARRAYS[dtype];
  const n = shape.reduce((product, size) => product * size, 1);
  const size = type.BYTES_PER_ELEMENT;
  const stored = bytes.subarray(start + offset, start + offset + n * size);
  const joined = new Uint8Array(n * size);
  if (!planes) joined.set(stored);
  else {
    for (let plane = 0; plane < size; plane++) {
      const from = plane * n;
      for (let i = 0, to = plane; i < n; i++, to += size) joined[to] = stored[from + i];
    }
  }
  return new type(joined.buffer);
}

/** Runs plotly, which is packed too: its text is the one that the page's policy allows. */
async function loadPlotly() {
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await inflated("packed-plotly"));
  performance.mark("atlas-inflated");
  document.head.append(script);
}

/** All heads: numbers by row, the model's names and so on in `meta`. */
async function loadHeads() {
  const { meta, columns } = await unpacked("packed-heads");
  const statistics = new Map(
    meta.statistics.map(({ name }) => [name, columns[`statistic:${name}`].data]),
  );
  return {
    meta,
    n: columns.model.data.length,
    model: columns.model.data,
    stack: columns.stack.data,
    stacks: columns.stack.values,
    layer: columns.layer.data,
    head: columns.head.data,
    class: columns.class.data,
    depth: columns.depth.data,
    x: columns.x.data,
    y: columns.y.data,
    statistics,
    nBins: columns.histograms.shape[1],
    shares: columns.histograms.data,
    peaks: columns.peaks.data,
    beyond: columns.beyond.data,
  };
}

/** Density histogram of a head: of the λ within the bins, area 1. */
function histogramOf(heads, row) {
  const from = row * heads.nBins;
  return Float64Array.from(
    heads.shares.subarray(from, from + heads.nBins),
    (share) => (share / 255) * heads.peaks[row],
  );
}
