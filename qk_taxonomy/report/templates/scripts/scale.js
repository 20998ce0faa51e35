// The colour scale of layers, depths and statistics.

// One colour a step: points of one colour are drawn far faster than points of many.
const SCALE_STEPS = 24;

// Viridis as far as it stands out from the page: high values have most contrast in either theme.
const SCALES = {
  light: [
    "#bddf26",
    "#7ad151",
    "#35b779",
    "#1f9e89",
    "#26828e",
    "#31688e",
    "#3e4989",
    "#482878",
    "#440154",
  ],
  dark: ["#3e5a9a", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"],
};

/** The colour at a share of the scale, between its given colours. */
function scaleColour(share) {
  const stops = SCALES[currentTheme()];
  const at = share * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  const channel = (colour, k) => Number.parseInt(colour.slice(1 + 2 * k, 3 + 2 * k), 16);
  const mixed = [0, 1, 2].map((k) =>
    Math.round(channel(stops[i], k) + (at - i) * (channel(stops[i + 1], k) - channel(stops[i], k))),
  );
  return `rgb(${mixed.join(", ")})`;
}

/** Ends of the colour scale: 0.005 and 0.995 quantiles, so that one head does not take it all. */
function ends(values) {
  if (!values.length) return [0, 1];
  const sorted = Float64Array.from(values).sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const [low, high] = [at(0.005), at(0.995)];
  return low < high ? [low, high] : [low - 0.5, low + 0.5];
}

/** The scale, where there is one, and the heads that it has no place for. */
function scaleKey(label, scale, unknownText) {
  const item = element("li", { class: "scaled" }, element("span", {}, scale ? scale.label : label));
  if (scale) {
    const bar = element("span", { class: "scale" });
    bar.style.background = `linear-gradient(to right, ${scale.colours.join(", ")})`;
    const marks = [0, 0.5, 1].map((share) => element("span", {}, scale.at(share)));
    item.append(bar, element("span", { class: "marks" }, ...marks));
  }
  if (unknownText)
    item.append(element("span", {}, markerOf(drawnSymbol(UNPLACED), token("muted")), ` ${unknownText}`));
  return item;
}
