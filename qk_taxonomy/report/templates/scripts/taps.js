// Taps of fingers, of which plotly tells nothing where a finger may scroll past a chart.

// Pixels within which a tap is meant for a point, and that a finger may move in one.
const TAP_REACH = 24;

/**
 * Calls `act` for every tap on a chart with where it is, in units of the axes, and with the pixels
 * that a unit of each takes. Returns whether the last touch was a finger's, whose other events are
 * then to be left alone.
 */
function openTaps(host, act) {
  let start;
  host.addEventListener("pointerdown", (event) => {
    start = event.pointerType === "touch" ? event : null;
  });
  host.addEventListener("pointerup", (event) => {
    if (!start) return;
    const moved = Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY);
    if (moved > TAP_REACH) return;
    const room = host.querySelector(".nsewdrag").getBoundingClientRect();
    const [[left, right], [low, high]] = [host.layout.xaxis.range, host.layout.yaxis.range];
    const [across, up] = [room.width / (right - left), room.height / (high - low)];
    act(
      { x: left + (event.clientX - room.left) / across, y: high - (event.clientY - room.top) / up },
      { across, up },
    );
  });
  return () => Boolean(start);
}
