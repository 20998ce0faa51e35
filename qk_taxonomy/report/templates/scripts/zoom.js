// Which part of the map is seen.

/** Ranges of both axes: of the whole map, which filters do not move, and of what is seen. */
let mapLimits, mapView;

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

function openZoom() {
  mapLimits = { x: mapRange(heads.x), y: mapRange(heads.y) };
  mapView = mapLimits;
}

/** How many of the heads shown lie within what is seen of the map. */
function seenHeads() {
  const [[left, right], [low, high]] = [mapView.x, mapView.y];
  let n = 0;
  for (const row of visible) {
    const [x, y] = [heads.x[row], heads.y[row]];
    if (x >= left && x <= right && y >= low && y <= high) n++;
  }
  return n;
}

/** Where a head stands across what is seen, 0 at its left and 1 at its right. */
function acrossMap(row) {
  const [left, right] = mapView.x;
  return (heads.x[row] - left) / (right - left);
}

function isZoomed() {
  return [..."xy"].some((axis) => mapView[axis].some((end, i) => end !== mapLimits[axis][i]));
}

/** After a drag on the map: fewer points that are seen are larger, and have their shapes. */
function dragged(changes) {
  if (!Object.keys(changes).some((key) => /^[xy]axis\./.test(key))) return;
  const { xaxis, yaxis } = document.getElementById("map-plot").layout;
  seeMap({ x: [...xaxis.range], y: [...yaxis.range] });
}

function zoomMap(factor) {
  const about = ([low, high]) => {
    const [middle, half] = [(low + high) / 2, ((high - low) / 2) * factor];
    return [middle - half, middle + half];
  };
  seeMap({ x: about(mapView.x), y: about(mapView.y) });
}

function wholeMap() {
  seeMap(mapLimits);
}

function seeMap(ranges) {
  mapView = ranges;
  drawMap();
}
