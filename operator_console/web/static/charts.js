// The two charts, drawn by uPlot on a canvas; the words beside them say the same.

import { figure, known, metricName } from "./words.js";
import { counted } from "./views/staleness.js";

const HEIGHTS = { "metric-chart": 330, "staleness-chart": 300 };
const drawn = new Map();

/** A colour of the style sheet, as the canvas wants it. */
function colour(name) {
  const probe = document.getElementById("colour-probe");
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function axes(names) {
  const look = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 }, font: "12px system-ui" };
  return names.map((label) => ({ ...look, label, labelSize: 22, labelFont: "12px system-ui", size: label === names[0] ? 36 : 54 }));
}

/** Draws or brings up to date; `signature` says when a chart must be made anew. */
function show(id, signature, options, data) {
  const place = document.getElementById(id);
  if (!place) return;
  const before = drawn.get(id);
  if (before?.place === place && before.signature === signature) {
    before.plot.setData(data);
    return;
  }
  before?.plot.destroy();
  before?.observer.disconnect();
  place.replaceChildren();
  const plot = new uPlot({ width: Math.max(200, place.clientWidth), height: HEIGHTS[id], legend: { show: false }, ...options() }, data, place);
  place.querySelector("canvas").setAttribute("aria-hidden", "true");
  const observer = new ResizeObserver(() => plot.setSize({ width: Math.max(200, place.clientWidth), height: HEIGHTS[id] }));
  observer.observe(place);
  drawn.set(id, { place, signature, plot, observer });
}

const whole = (_plot, splits) => splits.map((value) => (Number.isInteger(value) ? String(value) : ""));

export function drawMetric({ metrics, run }, name, theme, onVersion) {
  const points = metrics.points.filter((point) => known(point.values[name]));
  if (!points.length) return;
  const best = run.best?.metric === name ? run.best.version : null;
  const data = [points.map((point) => point.version), points.map((point) => point.values[name]), points.map((point) => (point.version === best ? point.values[name] : null))];
  const options = () => {
    const [x, y] = axes(["version", metricName(name)]);
    return {
      scales: { x: { time: false } },
      axes: [{ ...x, values: whole }, y],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 9 } },
      series: [
        {},
        { stroke: colour("accent"), width: 2, fill: colour("accent-veil"), points: { show: points.length < 40, size: 5, fill: colour("accent") } },
        { stroke: colour("warn"), paths: () => null, points: { show: true, size: 13, width: 3, fill: colour("surface") } },
      ],
      hooks: { setCursor: [(plot) => tell(plot, name)], ready: [(plot) => plot.over.addEventListener("click", () => known(plot.cursor.idx) && onVersion(plot.data[0][plot.cursor.idx]))] },
    };
  };
  show("metric-chart", `${name} ${theme} ${points.length < 40} ${best === null}`, options, data);
}

/** Says the point under the pointer. */
function tell(plot, name) {
  const at = plot.cursor.idx;
  const place = plot.root.parentElement;
  if (!place) return;
  place.dataset.told = known(at) && plot.cursor.left >= 0 ? `version ${plot.data[0][at]}: ${metricName(name)} ${figure(plot.data[1][at], 4)}` : "";
}

export function drawStaleness(state, theme) {
  const bins = counted(state);
  if (!bins.length) return;
  const counts = new Map(bins);
  const greatest = bins.at(-1)[0];
  const values = Array.from({ length: greatest + 1 }, (_, versions) => versions);
  const data = [values, values.map((versions) => counts.get(versions) ?? 0)];
  const options = () => {
    const [x, y] = axes(["staleness, in versions", "updates"]);
    return {
      scales: { x: { time: false, range: (_plot, low, high) => [low - 0.6, high + 0.6] }, y: { range: (_plot, _low, high) => [0, Math.max(1, high * 1.08)] } },
      axes: [{ ...x, values: whole, grid: { show: false } }, { ...y, values: whole }],
      cursor: { show: false },
      series: [{}, { stroke: colour("accent"), fill: colour("accent"), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.72, 64] }) }],
    };
  };
  show("staleness-chart", theme, options, data);
}
