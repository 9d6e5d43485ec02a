// Where the dollars went, what stood idle, and what it would have cost without cache or routing.

import { ENDPOINTS } from "../api.js";
import { chart } from "../chart.js";
import {
  choice,
  figures,
  h,
  numberWithBar,
  routingSavings,
  runLink,
  section,
  table,
} from "../dom.js";
import { count, dollars, percent, seconds, unitNote } from "../format.js";

export const title = "Costs";
export const refresh_s = 30;
export const windowed = true;

export const newState = () => ({ by: "model" });
const BY = [
  ["model", "Model"],
  ["tenant", "Tenant"],
  ["run", "Run"],
  ["day", "Day"],
];

export function load({ get, hours, state }) {
  return get(ENDPOINTS.costs, { by: state.by, hours: hours() });
}

export function draw(body, data, context) {
  const { lines, idle } = data;
  const series = fillGaps(data.series, data.step_s);
  const sum = (rows, name) => rows.reduce((total, row) => total + row[name], 0);
  const [usd, savedUsd, allLargeUsd, idleUsd] = [
    sum(lines, "usd"),
    sum(lines, "saved_usd"),
    sum(lines, "all_large_usd"),
    sum(idle, "idle_usd"),
  ];
  const total = dollars([usd, allLargeUsd, savedUsd, idleUsd]);
  const pointUnit = dollars(series.flatMap((point) => [point.usd, point.all_large_usd]));
  const lineUnits = ["usd", "saved_usd"].map((name) => dollars(lines.map((line) => line[name])));
  body.replaceChildren(
    figures(
      ["Charged", total.text(usd), `${count(sum(lines, "requests"))} requests`],
      routingSavings(usd, allLargeUsd, total),
      [
        "Saved by cache",
        total.text(savedUsd),
        `${percent(sum(lines, "cached_tokens"), sum(lines, "prompt_tokens"))} of prompt tokens`,
      ],
      context.whoami.operator && [
        "Idle",
        total.text(idleUsd),
        idle.length
          ? `${percent(sum(idle, "idle_s"), sum(idle, "idle_s") + sum(idle, "busy_s"))} of device time`
          : "recorded every 30 s",
      ],
    ),
    chart(
      `Dollars per ${stepText(data.step_s)}`,
      series.map((point) => point.at),
      [
        { label: "charged", values: series.map((point) => point.usd), fill: true },
        { label: "all on large", values: series.map((point) => point.all_large_usd) },
        { label: "saved by cache", values: series.map((point) => point.saved_usd) },
      ],
      pointUnit.text,
      { summed: true },
    ),
    h(
      "section",
      { "aria-label": "Charged" },
      h(
        "div",
        { class: "head" },
        h("h2", {}, "Charged by"),
        choice("Charged by", "by", BY, context.state.by, (by) => {
          context.state.by = by;
          context.refresh().then(() => body.querySelector(`input[name=by][value=${by}]`)?.focus());
        }),
      ),
      table("Charged", columns(lines, data.by, context), lines, {
        empty: "Nothing was charged in this time.",
        total: (column) => column.total?.(),
      }),
    ),
    context.whoami.operator
      ? section(
          "Idle",
          table("Device time by worker", idleColumns(idle), idle, {
            empty: "No worker has reported its device time yet.",
          }),
        )
      : null,
    h(
      "p",
      { class: "note" },
      "Charged and idle are measured: requests + unattributed + idle = price × time. ",
      `Saved is an estimate by ${data.methods.saved} `,
      "(cached tokens at the worker's rate for uncached ones), ",
      `all on large by ${data.methods.all_large} (the same tokens on the best tier, equally cached). `,
      `${unitNote(total, ...lineUnits)} The same table on the command line: `,
      h("code", {}, `headway cost --by ${data.by}`),
      ", with ",
      h("code", {}, "--csv"),
      " in FOCUS columns.",
    ),
  );
}

const stepText = (s) =>
  s < 60 ? `${s} s` : s < 3600 ? `${s / 60} min` : s < 86400 ? `${s / 3600} h` : `${s / 86400} d`;

// Steps in which nothing happened cost nothing.
function fillGaps(series, step_s) {
  const pointAt = new Map(series.map((point) => [point.at, point]));
  const filled = [];
  for (let at = series[0]?.at; at <= series.at(-1)?.at; at += step_s)
    filled.push(pointAt.get(at) || { at, usd: 0, saved_usd: 0, all_large_usd: 0, idle_usd: 0 });
  return filled;
}

function columns(lines, by, { whoami }) {
  const unit = dollars(lines.flatMap((line) => [line.usd, line.all_large_usd]));
  const small = dollars(lines.map((line) => line.saved_usd));
  const sum = (name) => lines.reduce((total, line) => total + line[name], 0);
  const largest = Math.max(...lines.map((line) => line.usd));
  const name = (line) =>
    by === "run" && line.key
      ? h(
          "a",
          { class: "mono clip", title: line.key, href: runLink(line.tenant, line.key) },
          line.key,
        )
      : line.key || h("span", { class: "note" }, "(rejected)");
  return [
    { title: by[0].toUpperCase() + by.slice(1), head: true, cell: name, total: () => "Sum" },
    by === "run" &&
      whoami.operator && { title: "Tenant", cell: (line) => line.tenant, optional: true },
    {
      title: `Charged, ${unit.unit}`,
      num: true,
      cell: (line) => numberWithBar(unit.number(line.usd), line.usd, largest),
      total: () => unit.number(sum("usd")),
    },
    { title: "Share", num: true, cell: (line) => percent(line.usd, sum("usd")) },
    {
      title: `On large, ${unit.unit}`,
      num: true,
      cell: (line) => unit.number(line.all_large_usd),
      total: () => unit.number(sum("all_large_usd")),
    },
    {
      title: `Saved by cache, ${small.unit}`,
      num: true,
      cell: (line) => small.number(line.saved_usd),
      total: () => small.number(sum("saved_usd")),
    },
    {
      title: "Requests",
      num: true,
      cell: (line) => count(line.requests),
      total: () => count(sum("requests")),
    },
    {
      title: "Prompt",
      num: true,
      cell: (line) => count(line.prompt_tokens),
      total: () => count(sum("prompt_tokens")),
    },
    {
      title: "Cached",
      num: true,
      cell: (line) => percent(line.cached_tokens, line.prompt_tokens),
      total: () => percent(sum("cached_tokens"), sum("prompt_tokens")),
    },
    {
      title: "Out",
      num: true,
      cell: (line) => count(line.output_tokens),
      total: () => count(sum("output_tokens")),
    },
    {
      title: "Device time",
      num: true,
      cell: (line) => seconds(line.device_s),
      total: () => seconds(sum("device_s")),
      optional: true,
    },
  ].filter(Boolean);
}

function idleColumns(idle) {
  const unit = dollars(idle.flatMap((worker) => [worker.idle_usd, worker.charged_usd]));
  return [
    { title: "Worker", head: true, cell: (worker) => worker.worker },
    { title: "Model", cell: (worker) => worker.model },
    { title: "Busy", num: true, cell: (worker) => seconds(worker.busy_s) },
    { title: "Idle", num: true, cell: (worker) => seconds(worker.idle_s) },
    {
      title: "Utilization",
      num: true,
      cell: (worker) => percent(worker.busy_s, worker.busy_s + worker.idle_s, 1),
    },
    {
      title: `Charged, ${unit.unit}`,
      num: true,
      cell: (worker) => unit.number(worker.charged_usd),
    },
    {
      title: `Unattributed, ${unit.unit}`,
      num: true,
      optional: true,
      cell: (worker) => unit.number(Math.max(0, worker.unattributed_usd)),
    },
    { title: `Idle, ${unit.unit}`, num: true, cell: (worker) => unit.number(worker.idle_usd) },
  ];
}
