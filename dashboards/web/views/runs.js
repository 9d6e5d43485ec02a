// Every run of the chosen time: what it cost, how well the cache did, whether its SLOs were met.

import { figures, h, routed, runLink, sortRows, table, tag, weighed } from "../dom.js";
import { count, dollars, moment, percent, seconds, unitNote, words } from "../format.js";

export const title = "Runs";
export const refresh_s = 10;
export const windowed = true;

const view = { sorted: { index: 0, down: true }, filter: "" };

export function load({ get, hours }) {
  return get("history", { hours: hours() });
}

export function draw(body, { runs, limit }, { me }) {
  if (body.dataset.view !== "runs" || !body.querySelector("#runs-list")) {
    body.dataset.view = "runs";
    const input = h("input", {
      type: "search",
      id: "runs-filter",
      value: view.filter,
      placeholder: "run, tenant or model",
      autocomplete: "off",
    });
    body.replaceChildren(
      h("div", { id: "runs-figures" }),
      h(
        "div",
        { class: "filter" },
        h("label", { for: "runs-filter" }, "Filter"),
        input,
        h("span", { class: "note", id: "runs-count", role: "status" }),
      ),
      h("div", { id: "runs-list" }),
      h("p", { class: "note", id: "runs-note" }),
    );
  }
  const list = () => {
    const wanted = view.filter.toLowerCase();
    const shown = runs.filter((run) =>
      `${run.run} ${run.tenant} ${run.models}`.toLowerCase().includes(wanted),
    );
    const all = columns(shown, me);
    const onSort = (index) => {
      view.sorted = { index, down: view.sorted.index === index ? !view.sorted.down : true };
      list();
      body.querySelector(`#runs-list th:nth-child(${index + 1}) button`)?.focus();
    };
    const sorted = sortRows(shown, all[view.sorted.index], view.sorted.down);
    body.querySelector("#runs-count").textContent =
      `${count(shown.length)} of ${count(runs.length)}${runs.length === limit ? ", the last ones" : ""}`;
    body.querySelector("#runs-list").replaceChildren(
      table("Runs", all, sorted, {
        empty: runs.length
          ? "No run matches the filter."
          : "No run in this time. A run appears with its first answer.",
        sorted: view.sorted,
        onSort,
      }),
    );
  };
  body.querySelector("#runs-filter").oninput = (event) => {
    view.filter = event.target.value;
    list();
  };
  body.querySelector("#runs-figures").replaceChildren(sums(runs));
  body.querySelector("#runs-note").textContent = unitNote(
    dollars(runs.flatMap((run) => [run.usd, run.all_large_usd])),
  );
  list();
}

function sums(runs) {
  const sum = (name) => runs.reduce((total, run) => total + run[name], 0);
  const [usd, large] = [sum("usd"), sum("all_large_usd")];
  const unit = dollars([usd, large, sum("saved_usd")]);
  return figures(
    [
      "Runs",
      count(runs.length),
      `${count(runs.filter((run) => run.live).length)} live, ${count(sum("turns"))} turns`,
    ],
    ["Cost", unit.text(usd), runs.length ? `${unit.text(usd / runs.length)} a run` : null],
    [
      "Saved by cache",
      unit.text(sum("saved_usd")),
      `${percent(sum("cached_tokens"), sum("prompt_tokens"))} of prompt tokens`,
    ],
    routed(usd, large, unit, percent),
    [
      "SLO met",
      percent(sum("slo_met"), sum("slo_counted"), 1),
      `${count(sum("slo_counted"))} counted`,
    ],
  );
}

function columns(runs, me) {
  const unit = dollars(runs.flatMap((run) => [run.usd, run.all_large_usd]));
  const largest = Math.max(...runs.map((run) => run.usd));
  const listed = (text) => text.split(",").filter(Boolean).map(words).join(", ");
  return [
    { title: "Last seen", cell: (run) => moment(run.last_at), sort: (run) => run.last_at },
    {
      title: "Run",
      sort: (run) => run.run,
      cell: (run) =>
        h(
          "span",
          { class: "cells" },
          h(
            "span",
            { class: run.live ? "dot live" : "dot" },
            run.live ? h("span", { class: "visually-hidden" }, "live") : null,
          ),
          h(
            "a",
            { class: "mono clip", title: run.run, href: runLink(run.tenant, run.run) },
            run.run,
          ),
        ),
    },
    me.operator &&
      new Set(runs.map((run) => run.tenant)).size > 1 && {
        title: "Tenant",
        sort: (run) => run.tenant,
        cell: (run) => run.tenant,
        optional: true,
      },
    {
      title: `Cost, ${unit.unit}`,
      num: true,
      sort: (run) => run.usd,
      cell: (run) => weighed(unit.number(run.usd), run.usd, largest),
    },
    {
      title: "On large",
      num: true,
      sort: (run) => run.all_large_usd,
      cell: (run) => unit.number(run.all_large_usd),
      optional: true,
    },
    {
      title: "Cache saved",
      num: true,
      sort: (run) => run.saved_usd,
      cell: (run) => unit.number(run.saved_usd),
      optional: true,
    },
    {
      title: "Cached",
      num: true,
      sort: (run) => run.cached_tokens / (run.prompt_tokens || 1),
      cell: (run) => percent(run.cached_tokens, run.prompt_tokens),
    },
    { title: "Turns", num: true, sort: (run) => run.turns, cell: (run) => count(run.turns) },
    {
      title: "SLO",
      num: true,
      sort: (run) => (run.slo_counted ? run.slo_met / run.slo_counted : 1),
      cell: (run) => sloCell(run),
    },
    {
      title: "Failed",
      num: true,
      sort: (run) => run.failed,
      cell: (run) => (run.failed ? tag(count(run.failed), "bad") : "0"),
    },
    { title: "Models", optional: true, cell: (run) => listed(run.models) || "–" },
    {
      title: "Why",
      optional: true,
      cell: (run) =>
        h(
          "span",
          { class: "clip narrow note", title: listed(run.reasons) },
          listed(run.reasons) || "rejected",
        ),
    },
    {
      title: "Length",
      num: true,
      sort: (run) => run.last_at - run.first_at,
      cell: (run) => seconds(run.last_at - run.first_at),
      optional: true,
    },
  ].filter(Boolean);
}

function sloCell(run) {
  if (!run.slo_counted) return "–";
  const text = `${count(run.slo_met)} / ${count(run.slo_counted)}`;
  return run.slo_met < run.slo_counted ? tag(text, "warn") : text;
}
