// SLO attainment by class, burn rate of the error budget, and rejections.

import { ENDPOINTS } from "../api.js";
import { chart } from "../chart.js";
import { choice, figures, h, section, table, tag } from "../dom.js";
import { count, moment, percent, seconds, words } from "../format.js";

export const title = "SLO";
export const refresh_s = 15;
export const windowed = true;

export const newState = () => ({ slo: "" });

export function load({ get, hours }) {
  return get(ENDPOINTS.slo, { hours: hours() });
}

export function draw(body, data, context) {
  const { classes, rejections } = data;
  const [counted, met] = ["counted", "met"].map((name) =>
    classes.reduce((sum, row) => sum + row[name], 0),
  );
  const numRejected = rejections.reduce((sum, rejection) => sum + rejection.requests, 0);
  const highestBurn = Math.max(0, ...classes.map((row) => row.burn));
  if (!classes.some((row) => row.slo === context.state.slo))
    context.state.slo = classes[0]?.slo || "";
  const series = data.series.filter((point) => point.slo === context.state.slo);
  const times = series.map((point) => point.at);
  body.replaceChildren(
    figures(
      [
        "Met",
        percent(met, counted, 1),
        `objective ${percent(data.objective, 1)}`,
        counted && met / counted < data.objective ? "bad" : null,
      ],
      ["Counted", count(counted), "requests"],
      [
        "Highest burn",
        classes.length ? `${highestBurn.toFixed(1)}×` : "–",
        "1× uses up the allowance in time",
        highestBurn > 1 ? "warn" : null,
      ],
      ["Rejected or failed", count(numRejected), null, null],
    ),
    section(
      "Classes",
      table("SLO by class", columns(data), classes, {
        empty: "No request had an SLO in this time.",
      }),
    ),
    classes.length
      ? h(
          "section",
          { "aria-label": "Over time" },
          h(
            "div",
            { class: "head" },
            h("h2", {}, "Over time"),
            classes.length > 1
              ? choice(
                  "Class",
                  "slo",
                  classes.map((row) => [row.slo, row.slo]),
                  context.state.slo,
                  (slo) => {
                    context.state.slo = slo;
                    draw(body, data, context);
                    body.querySelector(`input[name=slo][value=${CSS.escape(slo)}]`)?.focus();
                  },
                )
              : h("span", { class: "note" }, context.state.slo),
          ),
          h(
            "div",
            { class: "pair" },
            chart(
              "Time to first token",
              times,
              ["p99", "p95", "p50"].map((name) => ({
                label: name,
                values: series.map((point) => point[`${name}_ttft_s`]),
              })),
              seconds,
            ),
            chart(
              "SLO met",
              times,
              [
                {
                  label: context.state.slo,
                  values: series.map((point) => (point.counted ? point.met / point.counted : null)),
                  fill: true,
                },
              ],
              (value) => percent(value, 1),
            ),
          ),
        )
      : null,
    section(
      "Rejected, failed and aborted",
      table(
        "Rejections by reason",
        [
          { title: "Reason", head: true, cell: (row) => words(row.status) },
          {
            title: "Outcome",
            cell: (row) =>
              tag(
                row.outcome,
                row.outcome === "failed" ? "bad" : row.outcome === "rejected" ? "warn" : null,
              ),
          },
          { title: "Status", num: true, cell: (row) => String(row.http_status) },
          { title: "Requests", num: true, cell: (row) => count(row.requests) },
          { title: "Last", num: true, cell: (row) => moment(row.last_at) },
        ],
        rejections,
        { empty: "Every request was answered." },
      ),
    ),
  );
}

function columns({ slo, objective }) {
  const objectives = (row) => {
    const limits = slo[row.slo];
    if (!limits) return "–";
    return (
      [
        limits.ttft_s !== null && `first token in ${seconds(limits.ttft_s)}`,
        limits.deadline_s !== null && `done in ${seconds(limits.deadline_s)}`,
      ]
        .filter(Boolean)
        .join(", ") || "–"
    );
  };
  return [
    { title: "Class", head: true, cell: (row) => row.slo },
    { title: "Objective", cell: objectives },
    { title: "Counted", num: true, cell: (row) => count(row.counted) },
    { title: "Missed", num: true, cell: (row) => count(row.counted - row.met) },
    {
      title: "Met",
      num: true,
      cell: (row) =>
        row.attainment < objective
          ? tag(percent(row.attainment, 1, 1), "bad")
          : percent(row.attainment, 1, 1),
    },
    { title: "Burn", num: true, cell: (row) => `${row.burn.toFixed(1)}×` },
    { title: "p50", num: true, cell: (row) => seconds(row.p50_ttft_s) },
    { title: "p95", num: true, cell: (row) => seconds(row.p95_ttft_s) },
    { title: "p99", num: true, cell: (row) => seconds(row.p99_ttft_s) },
  ];
}
