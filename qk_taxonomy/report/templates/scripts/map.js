// The map of all heads: drawn, pointed at, and walked through by keyboard.

// Plotly's own answer to a double click would be the limits of the points shown.
const MAP_CONFIG = { ...CONFIG, doubleClick: false };

function drawMap() {
  pointLook = lookOf(seenHeads());
  const { traces, key, sentence } = mapTraces();
  const blank = {
    showgrid: false,
    zeroline: false,
    showticklabels: false,
    ticks: "",
    showline: false,
  };
  const shown = counted(visible.length, "head");
  document.getElementById("map-alt").textContent = visible.length
    ? `${shown} on the map. ${sentence}.`
    : NO_HEAD;
  document.getElementById("map-key").replaceChildren(element("ul", {}, ...key));
  const layout = {
    height: document.getElementById("map-plot").clientHeight,
    xaxis: { ...blank, range: [...mapView.x] },
    yaxis: { ...blank, range: [...mapView.y] },
    margin: { l: 4, r: 4, t: 4, b: 4 },
    hovermode: "closest",
    // A finger must be able to scroll past the map, and to move what is too large to be seen whole.
    dragmode: dragMode() || (isZoomed() && "pan"),
    ...mapMarks(),
  };
  return plot("map-plot", traces, layout, MAP_CONFIG);
}

/** Rings and letters alone: points stay as they are drawn. */
function markMap() {
  return Plotly.relayout("map-plot", mapMarks());
}

function pointAt(event) {
  const { curveNumber, pointNumber } = event.points[0];
  return mapRows[curveNumber][pointNumber];
}

/** The head shown that is nearest to a place on the map, or -1 where none is near. */
function nearestHead({ x, y }, { across, up }) {
  let [nearest, least] = [-1, TAP_REACH];
  for (const row of visible) {
    const distance = Math.hypot((heads.x[row] - x) * across, (heads.y[row] - y) * up);
    if (distance < least) [nearest, least] = [row, distance];
  }
  return nearest;
}

/** The visible head that comes next by row, or in the next layer. */
function neighbour(row, key) {
  const at = visible.indexOf(row);
  if (at < 0) return visible[0];
  if (key === "ArrowRight") return visible[Math.min(at + 1, visible.length - 1)];
  if (key === "ArrowLeft") return visible[Math.max(at - 1, 0)];
  const step = key === "ArrowUp" ? 1 : -1;
  for (let i = at + step; i >= 0 && i < visible.length; i += step) {
    const other = visible[i];
    if (heads.model[other] !== heads.model[row] || heads.stack[other] !== heads.stack[row]) break;
    if (heads.layer[other] !== heads.layer[row] && heads.head[other] === heads.head[row])
      return other;
  }
  return row;
}

function openMap() {
  hasWebGL = canDrawWebGL();
  openZoom();
  const host = document.getElementById("map-plot");
  const drawn = drawMap();
  const point = (row) => {
    showCard(row);
    say(`${headName(row)}, class ${classOf(row).number}`);
    markMap();
  };
  const touched = openTaps(host, (place, scale) => {
    const row = nearestHead(place, scale);
    if (row < 0) return;
    if (row === shownCard) togglePin(row);
    else point(row);
  });
  host.on("plotly_hover", (event) => touched() || point(pointAt(event)));
  host.on("plotly_click", (event) => touched() || togglePin(pointAt(event)));
  host.on("plotly_relayout", dragged);
  host.on("plotly_doubleclick", wholeMap);
  host.addEventListener("keydown", (event) => {
    if (!visible.length) return;
    if (event.key.startsWith("Arrow")) point(neighbour(shownCard, event.key));
    else if (event.key === "Enter" && shownCard >= 0) togglePin(shownCard);
    else return;
    event.preventDefault();
  });
  document.getElementById("zoom-in").addEventListener("click", () => zoomMap(1 / 1.5));
  document.getElementById("zoom-out").addEventListener("click", () => zoomMap(1.5));
  document.getElementById("zoom-all").addEventListener("click", wholeMap);
  document
    .getElementById("image")
    .addEventListener("click", () =>
      Plotly.downloadImage(mapPicture(), {
        format: "png",
        scale: 2,
        width: host.clientWidth,
        height: host.clientHeight + PICTURE_TITLE,
        filename: `${pageStem()}.map`,
      }),
    );
  return drawn;
}
