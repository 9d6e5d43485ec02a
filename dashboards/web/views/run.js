// One run as a waterfall: its turns, the pauses between them, and why each turn went where it did.

import { ENDPOINTS } from "../api.js";
import { figures, h, numberWithBar, routingSavings, tag } from "../dom.js";
import { count, dollars, moment, percent, seconds, unitNote, words } from "../format.js";
import { decisionTable, loadRejectReasons } from "./decision.js";
import { bar, layout } from "./timeline.js";

export const title = "Run";

export const newState = () => ({ toScale: false, rejectReasons: null });

export function load({ get, parameters }) {
  const [tenant, run] = parameters;
  return get(ENDPOINTS.turns(run), { tenant });
}

export function draw(body, { run, tenant, turns }, context) {
  const sum = (name) => turns.reduce((total, turn) => total + turn[name], 0);
  const unit = dollars(turns.flatMap((turn) => [turn.usd, turn.all_large_usd]));
  const total = dollars([sum("usd"), sum("all_large_usd"), sum("saved_usd")]);
  const counted = turns.filter((turn) => turn.slo_counted);
  const met = counted.filter((turn) => turn.slo_met).length;
  const scale = h("input", {
    type: "checkbox",
    id: "to-scale",
    checked: context.state.toScale,
    onchange: () => {
      context.state.toScale = scale.checked;
      draw(body, { run, tenant, turns }, context);
      body.querySelector("#to-scale").focus();
    },
  });
  const end = Math.max(...turns.map((turn) => turn.at + turn.total_s));
  const spans = layout(turns, context.state);
  const outside = spans.reduce((pauses_s, span) => pauses_s + span.pause_s, 0);
  body.replaceChildren(
    h(
      "p",
      { class: "crumb" },
      h("a", { href: "#/runs" }, "Runs"),
      " / ",
      h("span", { class: "mono" }, run),
      context.whoami.operator ? h("span", { class: "note" }, ` of ${tenant}`) : null,
    ),
    figures(
      [
        "Cost",
        total.text(sum("usd")),
        `${total.text(sum("usd") / turns.length)} a turn, ${seconds(sum("device_s"))} of a device`,
      ],
      [
        "Saved by cache",
        total.text(sum("saved_usd")),
        `${percent(sum("cached_tokens"), sum("prompt_tokens"))} of prompt tokens`,
      ],
      routingSavings(sum("usd"), sum("all_large_usd"), total),
      ["Turns", count(turns.length), byModel(turns)],
      [
        "Answered in",
        seconds(end - turns[0].at - outside),
        `${seconds(outside)} outside, from ${moment(turns[0].at)}`,
      ],
      [
        "SLO",
        counted.length ? `${met} / ${counted.length}` : "–",
        counted.length ? "met" : "none was counted",
        met < counted.length ? "warn" : null,
      ],
    ),
    h(
      "div",
      { class: "filter" },
      h(
        "ul",
        { class: "legend" },
        [
          ["queue", "waiting"],
          ["prefill", "to the first token"],
          ["decode", "decode"],
          ["pause", "outside: a tool, or the client"],
        ].map(([kind, text]) => h("li", {}, h("span", { class: `swatch w-${kind}` }), text)),
      ),
      h("span", { class: "check" }, scale, h("label", { for: "to-scale" }, "Pauses to scale")),
    ),
    waterfall(turns, spans, unit, context),
    h(
      "p",
      { class: "note" },
      `Large: the same turn on the best tier, equally cached. ${unitNote(unit, total)}`,
    ),
  );
  if (context.firstDraw) {
    const index = turns.findIndex((turn) => turn.request === context.parameters[2]);
    reveal(body.querySelector(`[aria-controls="why-${index}"]`));
  }
}

function reveal(button) {
  button?.click();
  button?.closest("tr").classList.add("wanted");
  button?.scrollIntoView({ block: "center" });
  button?.focus({ preventScroll: true });
}

function byModel(turns) {
  const models = new Map();
  for (const { model } of turns) if (model) models.set(model, (models.get(model) || 0) + 1);
  return (
    [...models].map(([model, number]) => `${count(number)} on ${model}`).join(", ") ||
    "none was answered"
  );
}

function waterfall(turns, spans, unit, context) {
  const chains = [...new Set(turns.map((turn) => turn.chain))];
  const largest = Math.max(...turns.map((turn) => turn.usd));
  const titles = [
    "#",
    chains.length > 1 && "Chain",
    "Model",
    "Timeline",
    `Cost, ${unit.unit}`,
    `Large, ${unit.unit}`,
    "Cached",
    "Decision",
    "First",
    "Total",
    "Prompt",
    "Out",
  ].filter(Boolean);
  const plain = new Set(["#", "Chain", "Model", "Timeline", "Decision"]);
  const numBefore = chains.length > 1 ? 3 : 2;
  const rows = turns.flatMap((turn, index) => {
    const detail = h(
      "tr",
      { class: "detail", id: `why-${index}`, hidden: true },
      h("td", { colspan: titles.length }),
    );
    const button = turn.decision
      ? h(
          "button",
          {
            type: "button",
            class: "why",
            "aria-expanded": "false",
            "aria-controls": `why-${index}`,
            onclick: () => toggleDecision(button, detail, turn, context),
          },
          words(turn.reason),
        )
      : null;
    const answered = turn.outcome === "ok" || turn.output_tokens > 0;
    const pause =
      spans[index].pause_s > 0.0005
        ? [
            h(
              "tr",
              { class: "pause" },
              h("td", { colspan: numBefore }),
              h("td", {}, bar([spans[index].pause], seconds(spans[index].pause_s))),
              h("td", { colspan: titles.length - numBefore - 1 }),
            ),
          ]
        : [];
    const cells = [
      h("td", { class: "num" }, String(index + 1)),
      chains.length > 1 && h("td", {}, String.fromCharCode(65 + (chains.indexOf(turn.chain) % 26))),
      h(
        "td",
        {},
        turn.model
          ? h(
              "span",
              { class: "cells" },
              turn.model,
              h("span", { class: "note optional" }, turn.worker),
            )
          : "–",
      ),
      h("td", { class: "stretch" }, bar(spans[index].bars)),
      h("td", { class: "num" }, numberWithBar(unit.number(turn.usd), turn.usd, largest)),
      h("td", { class: "num" }, unit.number(turn.all_large_usd)),
      h("td", { class: "num" }, percent(turn.cached_tokens, turn.prompt_tokens)),
      h(
        "td",
        {},
        h(
          "span",
          { class: "cells" },
          button,
          turn.outcome !== "ok"
            ? tag(words(turn.status), turn.outcome === "failed" ? "bad" : "warn")
            : null,
          turn.slo_counted && !turn.slo_met ? tag(`${turn.slo} missed`, "warn") : null,
          turn.num_attempts > 1 ? tag(`${turn.num_attempts} attempts`, "warn") : null,
        ),
      ),
      h("td", { class: "num" }, answered ? seconds(turn.ttft_s) : "–"),
      h("td", { class: "num" }, seconds(turn.total_s)),
      h("td", { class: "num" }, count(turn.prompt_tokens)),
      h("td", { class: "num" }, count(turn.output_tokens)),
    ].filter(Boolean);
    return [...pause, h("tr", {}, cells), detail];
  });
  return h(
    "div",
    { class: "scroll", role: "region", "aria-label": "Turns of this run", tabindex: "0" },
    h(
      "table",
      { class: "waterfall" },
      h("caption", { class: "visually-hidden" }, "Turns of this run, with the pauses between them"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          titles.map((name) =>
            h("th", { scope: "col", class: plain.has(name) ? undefined : "num" }, name),
          ),
        ),
      ),
      h("tbody", {}, rows),
    ),
  );
}

async function toggleDecision(button, detail, turn, { get, state }) {
  const opened = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!opened));
  detail.hidden = opened;
  const cell = detail.firstElementChild;
  if (opened || cell.childElementCount) return;
  try {
    const decision = await get(ENDPOINTS.decision(turn.decision));
    state.rejectReasons ??= await loadRejectReasons(get);
    cell.replaceChildren(decisionTable(decision, turn, state.rejectReasons));
  } catch (error) {
    cell.replaceChildren(h("p", { class: "empty" }, error.message));
  }
}
