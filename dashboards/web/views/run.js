// One run as a waterfall: its turns and the pauses between them, and why each turn went where it went.

import { figures, h, routed, tag, weighed } from "../dom.js";
import { count, dollars, moment, percent, seconds, unitNote, words } from "../format.js";
import { decisionTable } from "./decision.js";

export const title = "Run";

const view = { toScale: false };
const LONGEST_PAUSE = 0.12;

export async function load({ get, rest }) {
  const [tenant, run] = rest;
  return get(`runs/${run.split("/").map(encodeURIComponent).join("/")}/turns`, { tenant });
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
    checked: view.toScale,
    onchange: () => {
      view.toScale = scale.checked;
      draw(body, { run, tenant, turns }, context);
      body.querySelector("#to-scale").focus();
    },
  });
  const end = Math.max(...turns.map((turn) => turn.at + turn.total_s));
  const spans = layout(turns);
  const outside = spans.reduce((all, one) => all + one.pause_s, 0);
  body.replaceChildren(
    h(
      "p",
      { class: "crumb" },
      h("a", { href: "#/runs" }, "Runs"),
      " / ",
      h("span", { class: "mono" }, run),
      context.me.operator ? h("span", { class: "note" }, ` of ${tenant}`) : null,
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
      routed(sum("usd"), sum("all_large_usd"), total, percent),
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
  const wanted = context.opened ? -1 : turns.findIndex((turn) => turn.request === context.rest[2]);
  context.opened = true;
  if (wanted >= 0) reveal(body.querySelector(`[aria-controls="why-${wanted}"]`));
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
  const before = chains.length > 1 ? 3 : 2;
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
            onclick: () => open(button, detail, turn, context),
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
              h("td", { colspan: before }),
              h("td", {}, bar([spans[index].pause], seconds(spans[index].pause_s))),
              h("td", { colspan: titles.length - before - 1 }),
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
      h("td", { class: "num" }, weighed(unit.number(turn.usd), turn.usd, largest)),
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

async function open(button, detail, turn, { get }) {
  const opened = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!opened));
  detail.hidden = opened;
  const cell = detail.firstElementChild;
  if (opened || cell.childElementCount) return;
  try {
    cell.replaceChildren(decisionTable(await get(`decisions/${turn.decision}`), turn));
  } catch (error) {
    cell.replaceChildren(h("p", { class: "empty" }, error.message));
  }
}

// Where every bar begins and how wide it is, in percent. A pause counts for little unless it is drawn to scale:
// agents wait a hundred times longer for tools than for tokens.
function layout(turns) {
  const ends = turns.map((turn) => turn.at + turn.total_s);
  let latest = turns[0].at;
  const pauses = turns.map((turn, index) => {
    const pause = Math.max(0, turn.at - latest);
    latest = Math.max(latest, ends[index]);
    return pause;
  });
  const busy = ends.reduce((sum, end, index) => sum + end - turns[index].at, 0) || 1;
  const drawn = pauses.map((pause) =>
    view.toScale
      ? pause
      : Math.min(pause, (LONGEST_PAUSE * busy) / Math.max(1, Math.sqrt(turns.length))),
  );
  let removed = 0;
  const moved = turns.map(
    (turn, index) => ((removed += pauses[index] - drawn[index]), turn.at - removed),
  );
  const start = moved[0];
  const whole = Math.max(...moved.map((at, index) => at + turns[index].total_s)) - start || 1;
  const percentOf = (seconds_) => (100 * seconds_) / whole;
  return turns.map((turn, index) => {
    const at = percentOf(moved[index] - start);
    const queue = Math.min(turn.queue_s, turn.total_s);
    const first = Math.min(Math.max(turn.ttft_s, queue), turn.total_s);
    return {
      pause_s: pauses[index],
      pause: ["pause", percentOf(moved[index] - start - drawn[index]), percentOf(drawn[index])],
      bars: [
        ["queue", at, percentOf(queue)],
        ["prefill", at + percentOf(queue), percentOf(first - queue)],
        ["decode", at + percentOf(first), percentOf(turn.total_s - first)],
      ],
    };
  });
}

// Pieces of one row of the timeline; a label stands behind the last one, or before it where there is no room.
function bar(pieces, label) {
  const shown = pieces
    .filter(([, , width]) => width > 0)
    .map(([kind, left, width]) => {
      const piece = h("span", { class: `w-${kind}` });
      piece.style.left = `${left}%`;
      piece.style.width = `max(${width}%, 2px)`;
      return piece;
    });
  if (label) {
    const [, left, width] = pieces.at(-1);
    const text = h("span", { class: "label" }, label);
    if (left + width > 75) text.style.right = `calc(${100 - left}% + 0.4rem)`;
    else text.style.left = `calc(max(${left + width}%, ${left}% + 2px) + 0.4rem)`;
    shown.push(text);
  }
  return h("div", { class: "track", "aria-hidden": label ? undefined : "true" }, shown);
}
