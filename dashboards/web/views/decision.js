// One decision: what was chosen, and for every other option the reason why not.

import { h, table, tag } from "../dom.js";
import { count, dollars, percent, seconds, words } from "../format.js";

const WHY = {
  not_allowed: "tenant or route does not offer it",
  context_too_long: "the prompt does not fit",
  not_healthy: "the worker was down",
  below_quality_bar: "answers well enough too rarely",
  costs_more: "costs more, doubt and switch counted",
  too_risky: "cheaper, but not by enough for the doubt",
  slower_same_cost: "same cost, slower",
  locked_elsewhere: "the tool loop is on another model",
  breaks_slo: "waiting there would have missed the SLO",
  placed_elsewhere: "placement by run chose another worker",
};

export function decisionTable(decision, turn) {
  const rows = [
    { option: decision.chosen, chosen: true },
    ...decision.rejected.map((one) => ({ option: one.option, reason: one.reason })),
  ];
  const unit = dollars(
    rows.flatMap(({ option }) => [option.usd, option.risk_usd, option.switch_usd]),
  );
  const total = Object.values(decision.rejected_by_reason).reduce((sum, number) => sum + number, 0);
  const columns = [
    {
      title: "Option",
      cell: ({ option, chosen }) =>
        h("span", { class: "cells" }, option.worker, chosen ? tag("chosen", "good") : null),
    },
    { title: "Model", cell: ({ option }) => option.model },
    { title: "Good enough", num: true, cell: ({ option }) => percent(option.quality, 1) },
    { title: "First token", num: true, cell: ({ option }) => seconds(option.ttft_s) },
    { title: "Finish", num: true, cell: ({ option }) => seconds(option.finish_s) },
    {
      title: "Cached",
      num: true,
      cell: ({ option }) => `${count(option.cached_tokens)} / ${count(option.prompt_tokens)}`,
    },
    { title: `Cost, ${unit.unit}`, num: true, cell: ({ option }) => unit.number(option.usd) },
    { title: "Switch", num: true, cell: ({ option }) => unit.number(option.switch_usd) },
    { title: "Doubt", num: true, cell: ({ option }) => unit.number(option.risk_usd || 0) },
    { title: "Miss", num: true, cell: ({ option }) => percent(option.miss_probability, 1) },
    {
      title: "Why not",
      cell: ({ reason, chosen }) =>
        chosen ? words(decision.reason) : WHY[reason] || words(reason),
    },
  ];
  return h(
    "div",
    { class: "decision" },
    h(
      "p",
      {},
      h("strong", {}, `Why ${decision.chosen.worker}: `),
      words(decision.reason),
      ` · route ${decision.route || "–"} · quality bar ${percent(decision.quality_bar, 1)} · asked for ${turn.asked}`,
    ),
    table("Options of this decision, as they were expected to be", columns, rows),
    total > decision.rejected.length
      ? h(
          "p",
          { class: "note" },
          `${count(total - decision.rejected.length)} more options were rejected: `,
          Object.entries(decision.rejected_by_reason)
            .map(([reason, number]) => `${count(number)} ${words(reason)}`)
            .join(", "),
        )
      : null,
    h(
      "p",
      { class: "note" },
      "Expected when it was decided. What it took: ",
      `${seconds(turn.ttft_s)} to the first token, ${seconds(turn.total_s)} in all, ${dollars([turn.usd]).text(turn.usd)}`,
      turn.num_steps
        ? `, ${count(turn.num_steps)} steps in batches of ${turn.mean_batch.toFixed(1)}`
        : "",
      turn.trace ? h("span", {}, ". Trace ", h("span", { class: "mono" }, turn.trace)) : ".",
      h("br"),
      h("span", { class: "mono" }, decision.id),
    ),
  );
}
