// The last hour (cost, SLO burn, notable requests) and the fleet now.

import { ENDPOINTS } from "../api.js";
import { chart } from "../chart.js";
import { figures, h, routingSavings, runLink, section, table, tag } from "../dom.js";
import { count, dollars, moment, percent, seconds, unitNote, words } from "../format.js";

export const title = "Live";
export const refresh_s = 3;

const SUMMARY_EVERY_MS = 15000;
const EMPTY = "Curves begin with the second sample, ten seconds after the start.";
export const newState = () => ({ summary: null, summaryAt: 0 });

export async function load({ get, state }) {
  const [live, fleet] = await Promise.all([get(ENDPOINTS.live), get(ENDPOINTS.workers)]);
  if (!state.summary || Date.now() - state.summaryAt > SUMMARY_EVERY_MS) {
    state.summary = await get(ENDPOINTS.summary, { hours: 1 });
    state.summaryAt = Date.now();
  }
  return { ...live, workers: fleet.workers, ...state.summary };
}

export function draw(body, data, { whoami }) {
  const { workers, samples, totals } = data;
  const latest = samples.at(-1);
  const priced = workers.filter((worker) => worker.usd_per_s !== undefined);
  const perHour = dollars(priced.map((worker) => 3600 * worker.usd_per_s));
  const usdPerHour = priced.reduce((sum, worker) => sum + 3600 * worker.usd_per_s, 0);
  const up = workers.filter((worker) => worker.up).length;
  const running = workers.reduce((sum, worker) => sum + (worker.load?.running || 0), 0);
  const unit = dollars([totals.usd, totals.saved_usd, totals.all_large_usd]);
  const hourlyUnit = dollars([usdPerHour]);
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
      routingSavings(totals.usd, totals.all_large_usd, unit),
      worstSlo(data.classes),
      [
        "Waiting",
        count(data.queue),
        `${count(running)} running, ${count(data.runs)} live runs`,
        data.queue > 0 ? "warn" : null,
      ],
      [
        "Workers up",
        `${up} of ${workers.length}`,
        `${hourlyUnit.text(usdPerHour)} an hour${busyNote(latest)}`,
        up < workers.length ? "bad" : null,
      ],
    ),
    section(
      "Notable requests",
      table("Notable requests", notableColumns(data, whoami), data.notable, {
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
        samples.map((sample) => sample.at),
        perWorker(workers, samples),
        (value) => percent(value, 1),
        { empty: EMPTY, highest: 1.04 },
      ),
      chart(
        "Dollars an hour",
        samples.map((sample) => sample.at),
        [
          { label: "busy", values: samples.map((sample) => sample.busy_usd_per_h), fill: true },
          { label: "idle", values: samples.map((sample) => sample.idle_usd_per_h) },
        ],
        hourlyUnit.text,
        { empty: EMPTY },
      ),
    ),
    h("p", { class: "note" }, unitNote(unit, perHour)),
  );
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function busyNote(sample) {
  if (!sample) return "";
  const { busy_usd_per_h: busy, idle_usd_per_h: idle } = sample;
  return `, ${percent(busy, busy + idle)} busy`;
}

// The class that uses up its allowance fastest; 1 is just in time.
function worstSlo(classes) {
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

function notableColumns({ notable }, whoami) {
  const unit = dollars(notable.map((request) => request.usd));
  return [
    { title: "Why", cell: (request) => tag(...WHY[request.why]) },
    {
      title: "Request of run",
      cell: (request) =>
        h(
          "a",
          {
            id: `open-${request.why}-${request.request}`,
            class: "mono clip",
            title: request.request,
            href: runLink(request.tenant, request.run, request.request),
          },
          request.run,
        ),
    },
    whoami.operator &&
      new Set(notable.map((request) => request.tenant)).size > 1 && {
        title: "Tenant",
        cell: (request) => request.tenant,
        optional: true,
      },
    { title: `Cost, ${unit.unit}`, num: true, cell: (request) => unit.number(request.usd) },
    {
      title: "First token",
      num: true,
      cell: (request) => (request.why === "failed" ? "–" : seconds(request.ttft_s)),
    },
    { title: "Total", num: true, cell: (request) => seconds(request.total_s) },
    { title: "Model", cell: (request) => request.model || "–", optional: true },
    { title: "SLO", cell: (request) => request.slo || "–", optional: true },
    { title: "Ended with", cell: (request) => words(request.status), optional: true },
    { title: "When", num: true, cell: (request) => moment(request.at) },
  ].filter(Boolean);
}

function perWorker(workers, samples) {
  const share = (sample, worker) => sample.busy_share[worker.name] || 0;
  const named = workers.slice(0, 4).map((worker) => ({
    label: worker.name,
    values: samples.map((sample) => share(sample, worker)),
  }));
  const rest = workers.slice(4);
  if (rest.length)
    named.push({
      label: `${rest.length} more, mean`,
      values: samples.map(
        (sample) => rest.reduce((sum, worker) => sum + share(sample, worker), 0) / rest.length,
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
