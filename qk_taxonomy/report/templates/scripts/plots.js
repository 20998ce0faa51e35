// What all charts share, and the small things that the other files are made of.

const CONFIG = { displayModeBar: false, displaylogo: false, showTips: false };

/** An element with attributes and children; texts become text, never markup. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function svgElement(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** The marker of a kind of heads, as the page's own markup has it, or hollow as plotly says so. */
function markerOf(symbol, colour) {
  const [name, open] = symbol.split("-open");
  const kinds = open === undefined ? "marker" : "marker open";
  const marker = svgElement("svg", { class: kinds, "aria-hidden": "true", focusable: "false" });
  marker.style.color = colour;
  marker.append(svgElement("use", { href: `#marker-${name}` }));
  return marker;
}

/** A number to some digits, with a true minus; what is missing is a dash. */
function digits(value, n = 4) {
  if (Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text =
    size >= 1e6 || size < 1e-4
      ? value
          .toExponential(n - 1)
          .replace(/\.?0+e/, "e")
          .replace("e+", "e")
      : String(Number(value.toPrecision(n)));
  return text.replaceAll("-", "−");
}

function sumOf(numbers) {
  return numbers.reduce((sum, one) => sum + one, 0);
}

function counted(n, one, many = `${one}s`) {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

/** Said to those who cannot see what changed. */
function say(text) {
  document.getElementById("said").textContent = text;
}

/** Titles of charts may hold no markup, and plotly reads some. */
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

function axis(title, more = {}) {
  return {
    title: { text: title, standoff: 8, font: { size: 14 } },
    gridcolor: token("grid"),
    linecolor: token("axis"),
    tickcolor: token("axis"),
    zeroline: false,
    showline: true,
    ticks: "outside",
    ticklen: 4,
    automargin: true,
    ...more,
  };
}

/** What a drag does; nothing where a finger must be able to scroll past. */
function dragMode() {
  return matchMedia("(pointer: coarse)").matches ? false : "zoom";
}

function layoutOf(more) {
  return {
    dragmode: dragMode(),
    font: { family: token("font"), size: 13, color: token("ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 56, r: 12, t: 12, b: 44 },
    showlegend: false,
    hoverlabel: { font: { family: token("font") } },
    ...more,
  };
}

/** Draws a chart as wide as its element, unless the layout says how wide. */
function plot(id, traces, layout, config = CONFIG) {
  const host = document.getElementById(id);
  // Told, not left to plotly, which would find it out only after a page is printed.
  const sized = { width: host.clientWidth, ...layout };
  return Plotly.react(host, traces, layoutOf(sized), config);
}

/** The same of a chart that is a picture; `sentence` says it to those who cannot see it. */
function draw(id, traces, layout, sentence) {
  document.getElementById(id).setAttribute("aria-label", sentence);
  return plot(id, traces, layout);
}

/** Words in the middle of a chart that has nothing to show. */
function emptiness(text) {
  return {
    xref: "paper",
    yref: "paper",
    x: 0.5,
    y: 0.5,
    text,
    showarrow: false,
    font: { size: 15, color: token("muted") },
  };
}

function statisticOf(name) {
  return heads.meta.statistics.find((statistic) => statistic.name === name);
}

/** Heads that a scale has no place for; "" where there are none. */
function unplaced(n, statistic) {
  if (!n) return "";
  return `${counted(n, "head")} ${statistic?.log ? "at zero or without" : "without"} a finite value`;
}

function download(name, text, type) {
  const link = element("a", {
    href: URL.createObjectURL(new Blob([text], { type })),
    download: name,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
