// The fleet at this moment: every worker with its batch, its pages and its dollars, and the last quarter of an hour.

import { chart } from "../chart.js";
import { figures, h, section, table, tag } from "../dom.js";
import { count, dollars, percent } from "../format.js";

export const title = "Now";
export const refresh_s = 3;

export async function load({ get }) {
  const [now, fleet] = await Promise.all([get("now"), get("workers")]);
  return { ...now, workers: fleet.workers };
}

export function draw(body, data) {
  const { workers, samples } = data;
  const latest = samples.at(-1);
  const priced = workers.filter((worker) => worker.usd_per_s !== undefined);
  const perHour = dollars(priced.map((worker) => 3600 * worker.usd_per_s));
  const all = priced.reduce((sum, worker) => sum + 3600 * worker.usd_per_s, 0);
  const up = workers.filter((worker) => worker.up).length;
  const running = workers.reduce((sum, worker) => sum + (worker.load?.running || 0), 0);
  const total = dollars([all]);
  body.replaceChildren(
    figures(
      ["Workers up", `${up} of ${workers.length}`, null, up < workers.length ? "bad" : null],
      ["Running", count(running), "sequences"],
      ["Queue", count(data.queue), data.queue === 1 ? "request" : "requests", data.queue > 0 ? "warn" : null],
      ["Live runs", count(data.runs)],
      ["Price", total.text(all), "an hour"],
      latest && ["Busy", percent(latest.busy_usd_per_h, latest.busy_usd_per_h + latest.idle_usd_per_h), `${total.text(latest.busy_usd_per_h)} an hour`],
      latest && ["Idle", percent(latest.idle_usd_per_h, latest.busy_usd_per_h + latest.idle_usd_per_h), `${total.text(latest.idle_usd_per_h)} an hour`],
    ),
    section("Workers", table("Workers", columns(latest, perHour), workers, { empty: "The policy names no worker." })),
    h("div", { class: "pair" },
      chart("Running sequences", samples.map((one) => one.at), perWorker(workers, samples), (value) => String(Math.round(value)),
        { whole: true, empty: "Curves begin with the second sample, ten seconds after the start." }),
      chart("Dollars an hour", samples.map((one) => one.at), [
        { label: "busy", values: samples.map((one) => one.busy_usd_per_h), fill: true },
        { label: "idle", values: samples.map((one) => one.idle_usd_per_h) },
      ], total.text, { empty: "Curves begin with the second sample, ten seconds after the start." })),
  );
}

function perWorker(workers, samples) {
  const named = workers.slice(0, 4).map((worker) => ({ label: worker.name, values: samples.map((one) => one.running[worker.name] || 0) }));
  const rest = workers.slice(4);
  if (rest.length) named.push({
    label: `${rest.length} more`,
    values: samples.map((one) => rest.reduce((sum, worker) => sum + (one.running[worker.name] || 0), 0)),
  });
  return named;
}

function columns(latest, perHour) {
  return [
    { title: "Worker", head: true, cell: (worker) => worker.name },
    { title: "State", cell: (worker) => (worker.up ? tag("up", "good") : h("span", {}, tag("down", "bad"), " ", worker.problem)) },
    { title: "Model", cell: (worker) => worker.model },
    { title: "Tier", cell: (worker) => worker.tier },
    { title: "Device", cell: (worker) => worker.device },
    { title: "Batch", num: true, cell: (worker) => (worker.load ? `${worker.load.running} / ${worker.hello.max_sequences}` : "–") },
    { title: "Waiting", num: true, cell: (worker) => (worker.load ? count(worker.load.waiting) : "–") },
    { title: "Pages", wide: true, cell: (worker) => pages(worker.load) },
    { title: "Busy", num: true, cell: (worker) => (latest ? percent(latest.busy_share[worker.name] || 0, 1) : "–") },
    { title: `${perHour.unit} an hour`, num: true, cell: (worker) => perHour.number(3600 * worker.usd_per_s) },
    { title: "Restarts", num: true, optional: true, cell: (worker) => count(worker.restarts) },
  ];
}

function pages(load) {
  if (!load) return "–";
  const used = load.num_pages - load.free_pages - load.cached_pages;
  const part = (kind, number) => {
    const piece = h("span", { class: `page-${kind}` });
    piece.style.width = `${(100 * number) / load.num_pages}%`;
    return piece;
  };
  return h("div", { class: "pages" },
    h("div", { class: "meter", "aria-hidden": "true" }, part("used", used), part("cached", load.cached_pages)),
    h("span", { class: "note" }, `${count(used)} used · ${count(load.cached_pages)} cached · ${count(load.free_pages)} free`));
}
