// Where the dollars went, what stood idle, and what it would have cost without cache or without routing.

import { chart } from "../chart.js";
import { choice, figures, h, routed, runLink, section, table, weighed } from "../dom.js";
import { count, dollars, percent, seconds, unitNote } from "../format.js";

export const title = "Costs";
export const refresh_s = 30;
export const windowed = true;

const view = { by: "model" };
const BY = [
  ["model", "Model"],
  ["tenant", "Tenant"],
  ["run", "Run"],
  ["day", "Day"],
];

export function load({ get, hours }) {
  return get("costs", { by: view.by, hours: hours() });
}

export function draw(body, data, context) {
  const { lines, idle } = data;
  const series = filled(data.series, data.step_s);
  const sum = (rows, name) => rows.reduce((total, row) => total + row[name], 0);
  const [usd, saved, large, stood] = [
    sum(lines, "usd"),
    sum(lines, "saved_usd"),
    sum(lines, "all_large_usd"),
    sum(idle, "idle_usd"),
  ];
  const total = dollars([usd, large, saved, stood]);
  const points = dollars(series.flatMap((one) => [one.usd, one.all_large_usd]));
  body.replaceChildren(
    figures(
      ["Charged", total.text(usd), `${count(sum(lines, "requests"))} requests`],
      routed(usd, large, total, percent),
      [
        "Saved by cache",
        total.text(saved),
        `${percent(sum(lines, "cached_tokens"), sum(lines, "prompt_tokens"))} of prompt tokens`,
      ],
      context.me.operator && [
        "Idle",
        total.text(stood),
        idle.length
          ? `${percent(sum(idle, "idle_s"), sum(idle, "idle_s") + sum(idle, "busy_s"))} of device time`
          : "recorded every 30 s",
      ],
    ),
    chart(
      `Dollars per ${step(data.step_s)}`,
      series.map((one) => one.at),
      [
        { label: "charged", values: series.map((one) => one.usd), fill: true },
        { label: "all on large", values: series.map((one) => one.all_large_usd) },
        { label: "saved by cache", values: series.map((one) => one.saved_usd) },
      ],
      points.text,
      { summed: true },
    ),
    h(
      "section",
      { "aria-label": "Charged" },
      h(
        "div",
        { class: "head" },
        h("h2", {}, "Charged by"),
        choice("Charged by", "by", BY, view.by, (by) => {
          view.by = by;
          context.again().then(() => body.querySelector(`input[name=by][value=${by}]`)?.focus());
        }),
      ),
      table("Charged", columns(lines, data.by, context), lines, {
        empty: "Nothing was charged in this time.",
        total: (column) => column.total?.(),
      }),
    ),
    context.me.operator
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
      `Charged and idle are measured: requests + unattributed + idle = price × time. Saved is an estimate by ${data.methods.saved}`,
      ` (cached tokens at the worker's rate for uncached ones), all on large by ${data.methods.all_large} (the same tokens on the best tier, equally cached).`,
      ` ${unitNote(total, ...["usd", "saved_usd"].map((name) => dollars(lines.map((line) => line[name]))))} The same table on the command line: `,
      h("code", {}, `headway cost --by ${data.by}`),
      ", with ",
      h("code", {}, "--csv"),
      " in FOCUS columns.",
    ),
  );
}

const step = (s) =>
  s < 60 ? `${s} s` : s < 3600 ? `${s / 60} min` : s < 86400 ? `${s / 3600} h` : `${s / 86400} d`;

// Steps in which nothing happened cost nothing.
function filled(series, step_s) {
  const known = new Map(series.map((point) => [point.at, point]));
  const found = [];
  for (let at = series[0]?.at; at <= series.at(-1)?.at; at += step_s)
    found.push(known.get(at) || { at, usd: 0, saved_usd: 0, all_large_usd: 0, idle_usd: 0 });
  return found;
}

function columns(lines, by, { me }) {
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
    by === "run" && me.operator && { title: "Tenant", cell: (line) => line.tenant, optional: true },
    {
      title: `Charged, ${unit.unit}`,
      num: true,
      cell: (line) => weighed(unit.number(line.usd), line.usd, largest),
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
  const unit = dollars(idle.flatMap((one) => [one.idle_usd, one.charged_usd]));
  return [
    { title: "Worker", head: true, cell: (one) => one.worker },
    { title: "Model", cell: (one) => one.model },
    { title: "Busy", num: true, cell: (one) => seconds(one.busy_s) },
    { title: "Idle", num: true, cell: (one) => seconds(one.idle_s) },
    {
      title: "Utilization",
      num: true,
      cell: (one) => percent(one.busy_s, one.busy_s + one.idle_s, 1),
    },
    { title: `Charged, ${unit.unit}`, num: true, cell: (one) => unit.number(one.charged_usd) },
    {
      title: `Unattributed, ${unit.unit}`,
      num: true,
      optional: true,
      cell: (one) => unit.number(Math.max(0, one.unattributed_usd)),
    },
    { title: `Idle, ${unit.unit}`, num: true, cell: (one) => unit.number(one.idle_usd) },
  ];
}
