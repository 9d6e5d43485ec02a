// Shows the view that the address names after #. A view is a module with
//   title      heading and title of the page
//   refresh_s  how often it is loaded anew, if at all
//   windowed   whether it is of the chosen hours
//   newState() what it remembers between visits, such as a filter
//   load(context) -> data, and draw(body, data, context)

import { ENDPOINTS, GatewayClient } from "./api.js";
import { choice, h } from "./dom.js";
import * as costs from "./views/costs.js";
import * as live from "./views/live.js";
import * as policy from "./views/policy.js";
import * as run from "./views/run.js";
import * as runs from "./views/runs.js";
import * as slo from "./views/slo.js";

const VIEWS = { live, runs, run, costs, slo, policy };
const HOURS = [
  ["1", "1 h"],
  ["24", "24 h"],
  ["168", "7 d"],
  ["720", "30 d"],
];
const HOURS_KEY = "headway.hours";

// The name of the view in the address, and what follows it: #/run/TENANT/RUN/REQUEST.
function parseAddress(hash) {
  const [name, ...parameters] = hash.replace(/^#\/?/, "").split("/");
  return { name: name in VIEWS ? name : "live", parameters: parameters.map(decodeURIComponent) };
}

class Dashboard {
  #main = document.getElementById("main");
  #client = new GatewayClient();
  #hours = sessionStorage.getItem(HOURS_KEY) || "24";
  #states = new Map(Object.values(VIEWS).map((view) => [view, view.newState?.() ?? {}]));
  #whoami = null;
  #timer = 0;
  #shown = new AbortController();

  async show({ moved }) {
    const { name, parameters } = parseAddress(location.hash);
    const view = VIEWS[name];
    clearTimeout(this.#timer);
    this.#shown.abort();
    this.#shown = new AbortController();
    const { signal } = this.#shown;
    markCurrentLink(name === "run" ? "runs" : name);
    document.title = `${view.title} · Headway`;

    const refresh = ({ announce }) => this.#refresh(view, page, context, { announce });
    const page = this.#openPage(view, () => refresh({ announce: true }));
    if (moved) page.heading.focus({ preventScroll: true });
    const context = {
      parameters,
      hours: () => this.#hours,
      state: this.#states.get(view),
      whoami: null,
      signal,
      firstDraw: true,
      get: (path, query) => this.#client.get(path, query, signal),
      refresh: () => refresh({ announce: true }),
    };
    await refresh({ announce: false });
  }

  #openPage(view, refresh) {
    const heading = h("h1", { tabindex: "-1" }, view.title);
    const body = h("div", { class: "view" }, h("p", { class: "empty" }, "Loading…"));
    const stamp = h("span", { class: "stamp" });
    const hours = view.windowed
      ? choice("Time", "hours", HOURS, this.#hours, (value) => {
          this.#hours = value;
          sessionStorage.setItem(HOURS_KEY, value);
          refresh();
        })
      : null;
    const button = h("button", { type: "button", onclick: refresh }, "Refresh");
    const tools = h("div", { class: "tools" }, hours, stamp, button);
    this.#main.replaceChildren(h("div", { class: "head" }, heading, tools), body);
    return { heading, body, stamp };
  }

  async #refresh(view, page, context, { announce }) {
    const { signal } = context;
    clearTimeout(this.#timer);
    try {
      this.#whoami ??= await this.#client.get(ENDPOINTS.whoami);
      context.whoami = this.#whoami;
      document.getElementById("who").textContent = this.#whoami.keys
        ? this.#whoami.tenant
        : "no keys: development";
      const data = await view.load(context);
      if (signal.aborted) return;
      view.draw(page.body, data, context);
      context.firstDraw = false;
      page.stamp.textContent = new Date().toLocaleTimeString(undefined, { hour12: false });
      if (announce) document.getElementById("status").textContent = `${view.title} is up to date`;
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      if (error.status === undefined) console.error(error);
      page.body.replaceChildren(fault(error.message));
    }
    if (view.refresh_s && !signal.aborted)
      this.#refreshIn(view.refresh_s, () =>
        this.#refresh(view, page, context, { announce: false }),
      );
  }

  // A page that nobody sees asks for nothing: it looks every second whether it is seen again.
  #refreshIn(delay_s, refresh) {
    this.#timer = setTimeout(
      () => (document.hidden ? this.#refreshIn(1, refresh) : refresh()),
      1000 * delay_s,
    );
  }
}

function markCurrentLink(name) {
  for (const link of document.querySelectorAll("#views a")) {
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function fault(message) {
  const title = h("strong", {}, "This view cannot be shown. ");
  return h("div", { class: "fault", role: "alert" }, title, message);
}

const dashboard = new Dashboard();
addEventListener("hashchange", () => dashboard.show({ moved: true }));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
dashboard.show({ moved: false });
