// The last hour (cost, SLO burn, notable requests) and the fleet now.

import { chart } from "../chart.js";
import { figures, h, routed, runLink, section, table, tag } from "../dom.js";
import { count, dollars, moment, percent, seconds, unitNote, words } from "../format.js";

export const title = "Live";
export const refresh_s = 3;

const SUMMARY_EVERY_MS = 15000;
const EMPTY = "Curves begin with the second sample, ten seconds after the start.";
const view = { summary: null, summary_at: 0 };

export async function load({ get }) {
  const [live, fleet] = await Promise.all([get("live"), get("workers")]);
  if (!view.summary || Date.now() - view.summary_at > SUMMARY_EVERY_MS) {
    view.summary = await get("summary", { hours: 1 });
    view.summary_at = Date.now();
  }
  return { ...live, workers: fleet.workers, ...view.summary };
}

export function draw(body, data, { me }) {
  const { workers, samples, totals } = data;
  const latest = samples.at(-1);
  const priced = workers.filter((worker) => worker.usd_per_s !== undefined);
  const perHour = dollars(priced.map((worker) => 3600 * worker.usd_per_s));
  const all = priced.reduce((sum, worker) => sum + 3600 * worker.usd_per_s, 0);
  const up = workers.filter((worker) => worker.up).length;
  const running = workers.reduce((sum, worker) => sum + (worker.load?.running || 0), 0);
  const unit = dollars([totals.usd, totals.saved_usd, totals.all_large_usd]);
  const price = dollars([all]);
  const focused = document.activeElement?.id;
  body.replaceChildren(
    figures(
      [
        "Spent in the last hour",
        unit.text(totals.usd),
        totals.runs
          ? `${count(totals.runs)} runs, ${unit.text(totals.usd / totals.runs)} each`
          : "no run",
      ],
      [
        "Saved by cache",
        unit.text(totals.saved_usd),
        `${percent(totals.cached_tokens, totals.prompt_tokens)} of prompt tokens`,
      ],
      routed(totals.usd, totals.all_large_usd, unit, percent),
      burning(data.classes),
      [
        "Waiting",
        count(data.queue),
        `${count(running)} running, ${count(data.runs)} live runs`,
        data.queue > 0 ? "warn" : null,
      ],
      [
        "Workers up",
        `${up} of ${workers.length}`,
        `${price.text(all)} an hour${latest ? `, ${percent(latest.busy_usd_per_h, latest.busy_usd_per_h + latest.idle_usd_per_h)} busy` : ""}`,
        up < workers.length ? "bad" : null,
      ],
    ),
    section(
      "Notable requests",
      table("Notable requests", notableColumns(data, me), data.notable, {
        empty: "Nothing was asked in the last hour.",
      }),
    ),
    section(
      "Workers",
      table("Workers", columns(latest, perHour), workers, { empty: "The policy names no worker." }),
    ),
    h(
      "div",
      { class: "pair" },
      chart(
        "Busy, by worker",
        samples.map((one) => one.at),
        perWorker(workers, samples),
        (value) => percent(value, 1),
        { empty: EMPTY, highest: 1.04 },
      ),
      chart(
        "Dollars an hour",
        samples.map((one) => one.at),
        [
          { label: "busy", values: samples.map((one) => one.busy_usd_per_h), fill: true },
          { label: "idle", values: samples.map((one) => one.idle_usd_per_h) },
        ],
        price.text,
        { empty: EMPTY },
      ),
    ),
    h("p", { class: "note" }, unitNote(unit, perHour)),
  );
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

// The class that uses up its allowance fastest; 1 is just in time.
function burning(classes) {
  const [worst] = classes;
  if (!worst) return ["SLO", "–", "no request with an SLO"];
  const [state, tone] =
    worst.burn > 1 ? ["missed", "bad"] : worst.burn > 0.5 ? ["at risk", "warn"] : ["met", null];
  return [
    `SLO ${state}`,
    percent(worst.met, worst.counted, worst.met === worst.counted ? 0 : 1),
    `${worst.slo}, burns ${worst.burn.toFixed(1)}×`,
    tone,
  ];
}

const WHY = {
  failed: ["failed", "bad"],
  slo_missed: ["SLO missed", "warn"],
  costliest: ["costliest", null],
};

function notableColumns({ notable }, me) {
  const unit = dollars(notable.map((one) => one.usd));
  return [
    { title: "Why", cell: (one) => tag(...WHY[one.why]) },
    {
      title: "Request of run",
      cell: (one) =>
        h(
          "a",
          {
            id: `open-${one.why}-${one.request}`,
            class: "mono clip",
            title: one.request,
            href: runLink(one.tenant, one.run, one.request),
          },
          one.run,
        ),
    },
    me.operator &&
      new Set(notable.map((one) => one.tenant)).size > 1 && {
        title: "Tenant",
        cell: (one) => one.tenant,
        optional: true,
      },
    { title: `Cost, ${unit.unit}`, num: true, cell: (one) => unit.number(one.usd) },
    {
      title: "First token",
      num: true,
      cell: (one) => (one.why === "failed" ? "–" : seconds(one.ttft_s)),
    },
    { title: "Total", num: true, cell: (one) => seconds(one.total_s) },
    { title: "Model", cell: (one) => one.model || "–", optional: true },
    { title: "SLO", cell: (one) => one.slo || "–", optional: true },
    { title: "Ended with", cell: (one) => words(one.status), optional: true },
    { title: "When", num: true, cell: (one) => moment(one.at) },
  ].filter(Boolean);
}

function perWorker(workers, samples) {
  const share = (sample, worker) => sample.busy_share[worker.name] || 0;
  const named = workers
    .slice(0, 4)
    .map((worker) => ({ label: worker.name, values: samples.map((one) => share(one, worker)) }));
  const rest = workers.slice(4);
  if (rest.length)
    named.push({
      label: `${rest.length} more, mean`,
      values: samples.map(
        (one) => rest.reduce((sum, worker) => sum + share(one, worker), 0) / rest.length,
      ),
    });
  return named;
}

function columns(latest, perHour) {
  return [
    { title: "Worker", head: true, cell: (worker) => worker.name },
    {
      title: "State",
      cell: (worker) =>
        worker.up ? tag("up", "good") : h("span", {}, tag("down", "bad"), " ", worker.problem),
    },
    { title: "Model", cell: (worker) => worker.model },
    { title: "Step", optional: true, cell: (worker) => worker.hello?.kernels?.step || "–" },
    {
      title: "Batch",
      num: true,
      cell: (worker) =>
        worker.load ? `${worker.load.running} / ${worker.hello.max_sequences}` : "–",
    },
    {
      title: "Busy",
      num: true,
      cell: (worker) => (latest ? percent(latest.busy_share[worker.name] || 0, 1) : "–"),
    },
    { title: "Pages", wide: true, cell: (worker) => pages(worker.load) },
    {
      title: "Waiting",
      num: true,
      cell: (worker) => (worker.load ? count(worker.load.waiting) : "–"),
    },
    { title: "Tier", cell: (worker) => worker.tier },
    { title: "Device", cell: (worker) => worker.device },
    {
      title: `${perHour.unit} an hour`,
      num: true,
      cell: (worker) => perHour.number(3600 * worker.usd_per_s),
    },
    { title: "Restarts", num: true, optional: true, cell: (worker) => count(worker.restarts) },
  ];
}

function pages(cache) {
  if (!cache) return "–";
  const used = cache.num_pages - cache.free_pages - cache.cached_pages;
  const part = (kind, number) => {
    const piece = h("span", { class: `page-${kind}` });
    piece.style.width = `${(100 * number) / cache.num_pages}%`;
    return piece;
  };
  return h(
    "div",
    { class: "pages" },
    h(
      "div",
      { class: "meter", "aria-hidden": "true" },
      part("used", used),
      part("cached", cache.cached_pages),
    ),
    h(
      "span",
      { class: "note" },
      `${count(used)} used · ${count(cache.cached_pages)} cached · ${count(cache.free_pages)} free`,
    ),
  );
}
