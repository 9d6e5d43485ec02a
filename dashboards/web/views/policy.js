// The policy in force, and what the last changes of it were.

import { figures, h, section, table } from "../dom.js";
import { count, dollars, moment, percent, seconds } from "../format.js";

export const title = "Policy";
export const refresh_s = 30;

export function load({ get }) {
  return get("policy");
}

export function draw(body, { policies }) {
  if (body.dataset.digest === policies[0]?.digest + policies.length) return;
  body.dataset.digest = policies[0]?.digest + policies.length;
  if (!policies.length) {
    body.replaceChildren(h("p", { class: "empty" }, "The ledger holds no policy yet."));
    return;
  }
  const [{ at, digest, body: policy }] = policies;
  const listed = (part) =>
    Object.entries(policy[part]).map(([name, value]) => ({ name, ...value }));
  const price = dollars(listed("devices").map((device) => device.usd_per_hour));
  const miss = dollars(listed("slo").map((slo) => slo.miss_penalty_usd));
  const name = { title: "Name", head: true, cell: (one) => one.name };
  body.replaceChildren(
    figures(
      ["In force since", moment(at), h("span", { class: "mono" }, digest)],
      ["Routes", count(policy.routes.length)],
      ["Tiers", policy.tiers.join(" < ")],
      ["Router", policy.router || "none", policy.router ? null : "the best tier answers all"],
    ),
    section(
      "Routes",
      table(
        "Routes, first match wins",
        [
          name,
          { title: "Matches", cell: (route) => matches(route.match) },
          { title: "Candidates", cell: (route) => route.candidates.join(", ") },
          { title: "Quality bar", num: true, cell: (route) => percent(route.quality_bar, 1) },
          {
            title: "A mistake costs",
            num: true,
            cell: (route) => `${route.mistake_cost} requests`,
          },
          { title: "SLO", cell: (route) => route.slo },
          {
            title: "Tool loop",
            cell: (route) => (route.lock_tool_loop ? "keeps its model" : "may change"),
          },
        ],
        policy.routes,
      ),
    ),
    h(
      "div",
      { class: "pair" },
      section(
        "Workers",
        table(
          "Workers",
          [
            name,
            { title: "Model", cell: (worker) => worker.model },
            { title: "Tier", cell: (worker) => policy.models[worker.model]?.tier || "–" },
            { title: "Device", cell: (worker) => worker.device },
            { title: "Where", cell: (worker) => worker.url || "local" },
            { title: "Sequences", num: true, cell: (worker) => count(worker.max_sequences) },
          ],
          listed("workers"),
        ),
      ),
      section(
        "SLO classes",
        table(
          "SLO classes",
          [
            name,
            { title: "First token", num: true, cell: (slo) => seconds(slo.ttft_s) },
            { title: "Deadline", num: true, cell: (slo) => seconds(slo.deadline_s) },
            {
              title: "A miss costs",
              num: true,
              cell: (slo) => (slo.miss_penalty_usd ? miss.text(slo.miss_penalty_usd) : "nothing"),
            },
          ],
          listed("slo"),
        ),
      ),
      section(
        "Devices",
        table(
          "Devices",
          [
            name,
            {
              title: `${price.unit} an hour`,
              num: true,
              cell: (device) => price.number(device.usd_per_hour),
            },
          ],
          listed("devices"),
        ),
      ),
      section(
        "Tenants",
        table(
          "Tenants",
          [
            name,
            { title: "Weight", num: true, cell: (tenant) => String(tenant.weight) },
            { title: "May use", cell: (tenant) => tenant.models.join(", ") || "all" },
            { title: "Sees", cell: (tenant) => (tenant.operator ? "everybody" : "its own") },
          ],
          listed("tenants"),
          {
            empty: "No tenants: no key is asked for, and the gateway only listens on this machine.",
          },
        ),
      ),
    ),
    section(
      "Last changes",
      table(
        "Changes",
        [
          { title: "When", head: true, cell: (change) => moment(change.at) },
          { title: "Policy", cell: (change) => h("span", { class: "mono" }, change.digest) },
          { title: "What changed", wide: true, cell: (change) => change.said },
        ],
        changes(policies),
      ),
    ),
    h(
      "details",
      {},
      h("summary", {}, "The whole policy as JSON"),
      h("pre", { tabindex: "0", "aria-label": "Policy as JSON" }, JSON.stringify(policy, null, 1)),
    ),
  );
}

function matches(match) {
  const said = Object.entries(match)
    .map(([key, value]) => [key, listing(value)])
    .filter(([, text]) => text);
  return said.length
    ? said.map(([key, text]) => `${key.replaceAll("_", " ")}: ${text}`).join("; ")
    : "everything";
}

function listing(value) {
  if (value === null || typeof value !== "object") return value === null ? "" : String(value);
  return (
    Array.isArray(value) ? value : Object.entries(value).map(([key, one]) => `${key} = ${one}`)
  ).join(", ");
}

function changes(policies) {
  return policies.map((policy, index) => {
    const before = policies[index + 1];
    return {
      ...policy,
      said: before ? difference(before.body, policy.body) : "the first that the ledger knows",
    };
  });
}

function difference(before, after) {
  const [old, now] = [flat(before), flat(after)];
  const paths = [...new Set([...Object.keys(old), ...Object.keys(now)])].filter(
    (path) => old[path] !== now[path],
  );
  if (!paths.length) return h("span", { class: "note" }, "started again, unchanged");
  return h(
    "ul",
    { class: "changes" },
    paths
      .slice(0, 20)
      .map((path) =>
        h(
          "li",
          {},
          h("span", { class: "mono" }, path),
          `: ${old[path] ?? "nothing"} → ${now[path] ?? "nothing"}`,
        ),
      ),
    paths.length > 20 ? h("li", {}, `${paths.length - 20} more`) : null,
  );
}

function flat(value, path = "", found = {}) {
  if (value === null || typeof value !== "object") found[path] = String(value);
  else
    for (const [key, inner] of Object.entries(value))
      flat(inner, path ? `${path}.${key}` : key, found);
  return found;
}
