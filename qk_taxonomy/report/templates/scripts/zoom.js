// Which part of the map is seen.

let mapLimits;

/** Limits of the whole map, which filters do not move. */
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

function zoomMap(factor) {
  const { xaxis, yaxis } = document.getElementById("map-plot").layout;
  const about = ([low, high]) => {
    const [middle, half] = [(low + high) / 2, ((high - low) / 2) * factor];
    return [middle - half, middle + half];
  };
  Plotly.relayout("map-plot", {
    "xaxis.range": about(xaxis.range),
    "yaxis.range": about(yaxis.range),
  });
}

function wholeMap() {
  Plotly.relayout("map-plot", { "xaxis.range": [...mapLimits.x], "yaxis.range": [...mapLimits.y] });
  // Plotly's own answer to a double click would be the limits of the points shown.
  return false;
}
