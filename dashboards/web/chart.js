// Lines over time with uPlot, in the page's colours; redrawn when the colours or the width change.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { h } from "./dom.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const SERIES = ["--c1", "--c2", "--c3", "--c4", "--c5"];
const HEIGHT = 180;

// `times` in Unix seconds, `series` [{label, values, fill}], `text(value)` for axis and legend.
// While nothing is pointed at, the legend shows the last value, or the sum of what is `summed`.
export function chart(label, times, series, text, { empty, summed, highest } = {}) {
  const resting = summed
    ? (values) => values.reduce((total, value) => total + (value || 0), 0)
    : last;
  if (times.length < 2)
    return h("p", { class: "empty" }, empty || "Not enough points for a curve yet.");
  const plot = h("div", {
    class: "plot",
    role: "img",
    "aria-label": `${label}. ${summary(series, text)}`,
  });
  const legend = h(
    "ul",
    { class: "legend", "aria-hidden": "true" },
    series.map((line, index) =>
      h(
        "li",
        {},
        h("span", { class: `swatch s${index + 1}` }),
        `${line.label} `,
        h("b", {}, text(resting(line.values))),
      ),
    ),
  );
  let drawn = null;
  const draw = () => {
    drawn?.destroy();
    drawn = new uPlot(
      options(plot.clientWidth || 600, series, text, legend, resting, highest),
      [times, ...series.map((line) => line.values)],
      plot,
    );
  };
  const resized = new ResizeObserver(() => {
    if (!plot.isConnected) return;
    if (drawn && drawn.width !== plot.clientWidth)
      drawn.setSize({ width: plot.clientWidth, height: HEIGHT });
    else if (!drawn) draw();
  });
  resized.observe(plot);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const recolour = () =>
    plot.isConnected ? draw() : scheme.removeEventListener("change", recolour);
  scheme.addEventListener("change", recolour);
  return h("figure", { class: "chart" }, h("figcaption", {}, h("span", {}, label), legend), plot);
}

function options(width, series, text, legend, resting, highest) {
  const [ink, grid] = [colour("--muted"), colour("--line")];
  const font = "11px system-ui, sans-serif";
  const axis = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
  return {
    width,
    height: HEIGHT,
    padding: [8, 30, 0, 0],
    legend: { show: false },
    cursor: { points: { size: 6 }, drag: { x: false, y: false } },
    scales: {
      y: { range: (_, low, high) => [Math.min(0, low), highest || (high > 0 ? high * 1.08 : 1)] },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        space: 70,
        size: 28,
        values: (_, ticks, __, ___, step) => ticks.map((at) => tick(at, step)),
      },
      { ...axis, size: 68, space: 36, values: (_, ticks) => ticks.map(text) },
    ],
    series: [
      {},
      ...series.map((line, index) => ({
        stroke: colour(SERIES[index]),
        width: 1.5,
        spanGaps: true,
        points: { show: false },
        fill: line.fill ? `${colour(SERIES[index])}22` : undefined,
      })),
    ],
    hooks: {
      setCursor: [
        (plot) => {
          const at = plot.cursor.idx;
          [...legend.querySelectorAll("b")].forEach((value, index) => {
            const shown =
              at === null || at === undefined
                ? resting(series[index].values)
                : series[index].values[at];
            value.textContent = shown === null || shown === undefined ? "–" : text(shown);
          });
        },
      ],
    },
  };
}

function tick(at, step) {
  const date = new Date(1000 * at);
  if (step >= 86400) return date.toLocaleDateString(undefined, { month: "short", day: "numeric" });
  const fine = step < 60 ? { second: "2-digit" } : {};
  return date.toLocaleTimeString(undefined, {
    hour: "2-digit",
    minute: "2-digit",
    hour12: false,
    ...fine,
  });
}

const last = (values) => values.findLast((value) => value !== null && value !== undefined) ?? 0;

function summary(series, text) {
  return series
    .map((line) => {
      const values = line.values.filter((value) => value !== null && value !== undefined);
      return values.length
        ? `${line.label}: last ${text(last(values))}, highest ${text(Math.max(...values))}`
        : `${line.label}: none`;
    })
    .join("; ");
}
