// SLO attainment by class, burn rate of the error budget, and rejections.

import { chart } from "../chart.js";
import { choice, figures, h, section, table, tag } from "../dom.js";
import { count, moment, percent, seconds, words } from "../format.js";

export const title = "SLO";
export const refresh_s = 15;
export const windowed = true;

const view = { slo: "" };

export function load({ get, hours }) {
  return get("slo", { hours: hours() });
}

export function draw(body, data, context) {
  const { classes, rejections } = data;
  const [counted, met] = ["counted", "met"].map((name) =>
    classes.reduce((sum, one) => sum + one[name], 0),
  );
  const numRejected = rejections.reduce((sum, one) => sum + one.requests, 0);
  const worst = classes.reduce((most, one) => Math.max(most, one.burn), 0);
  if (!classes.some((one) => one.slo === view.slo)) view.slo = classes[0]?.slo || "";
  const series = data.series.filter((one) => one.slo === view.slo);
  const at = series.map((one) => one.at);
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
        classes.length ? `${worst.toFixed(1)}×` : "–",
        "1× uses up the allowance in time",
        worst > 1 ? "warn" : null,
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
                  classes.map((one) => [one.slo, one.slo]),
                  view.slo,
                  (slo) => {
                    view.slo = slo;
                    draw(body, data, context);
                    body.querySelector(`input[name=slo][value=${CSS.escape(slo)}]`)?.focus();
                  },
                )
              : h("span", { class: "note" }, view.slo),
          ),
          h(
            "div",
            { class: "pair" },
            chart(
              "Time to first token",
              at,
              ["p99", "p95", "p50"].map((name) => ({
                label: name,
                values: series.map((one) => one[`${name}_ttft_s`]),
              })),
              seconds,
            ),
            chart(
              "SLO met",
              at,
              [
                {
                  label: view.slo,
                  values: series.map((one) => (one.counted ? one.met / one.counted : null)),
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
          { title: "Reason", head: true, cell: (one) => words(one.status) },
          {
            title: "Outcome",
            cell: (one) =>
              tag(
                one.outcome,
                one.outcome === "failed" ? "bad" : one.outcome === "rejected" ? "warn" : null,
              ),
          },
          { title: "Status", num: true, cell: (one) => String(one.http_status) },
          { title: "Requests", num: true, cell: (one) => count(one.requests) },
          { title: "Last", num: true, cell: (one) => moment(one.last_at) },
        ],
        rejections,
        { empty: "Every request was answered." },
      ),
    ),
  );
}

function columns({ slo, objective }) {
  const objectives = (one) => {
    const limits = slo[one.slo];
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
    { title: "Class", head: true, cell: (one) => one.slo },
    { title: "Objective", cell: objectives },
    { title: "Counted", num: true, cell: (one) => count(one.counted) },
    { title: "Missed", num: true, cell: (one) => count(one.counted - one.met) },
    {
      title: "Met",
      num: true,
      cell: (one) =>
        one.attainment < objective
          ? tag(percent(one.attainment, 1, 1), "bad")
          : percent(one.attainment, 1, 1),
    },
    { title: "Burn", num: true, cell: (one) => `${one.burn.toFixed(1)}×` },
    { title: "p50", num: true, cell: (one) => seconds(one.p50_ttft_s) },
    { title: "p95", num: true, cell: (one) => seconds(one.p95_ttft_s) },
    { title: "p99", num: true, cell: (one) => seconds(one.p99_ttft_s) },
  ];
}
