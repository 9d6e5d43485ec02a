// Which view is shown: the address after #, one module a view. A view is {title, refresh_s, load(parameters), draw(data)}.

import { get } from "./api.js";
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

const main = document.getElementById("main");
const state = {
  me: null,
  hours: sessionStorage.getItem("headway.hours") || "24",
  timer: 0,
  stop: new AbortController(),
};

function place() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return { name: name in VIEWS ? name : "live", rest: rest.map(decodeURIComponent) };
}

async function show({ moved }) {
  const { name, rest } = place();
  const view = VIEWS[name];
  clearTimeout(state.timer);
  state.stop.abort();
  state.stop = new AbortController();
  const { signal } = state.stop;
  for (const link of document.querySelectorAll("#views a")) {
    const here = link.hash === `#/${name === "run" ? "runs" : name}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${view.title} · Headway`;
  const body = h("div", { class: "view" }, h("p", { class: "empty" }, "Loading…"));
  const stamp = h("span", { class: "stamp" });
  const again = h("button", { type: "button", onclick: () => refresh(true) }, "Refresh");
  const tools = h(
    "div",
    { class: "tools" },
    view.windowed
      ? choice("Time", "hours", HOURS, state.hours, (hours) => {
          state.hours = hours;
          sessionStorage.setItem("headway.hours", hours);
          refresh(true);
        })
      : null,
    stamp,
    again,
  );
  main.replaceChildren(
    h("div", { class: "head" }, h("h1", { tabindex: "-1" }, view.title), tools),
    body,
  );
  if (moved) main.querySelector("h1").focus({ preventScroll: true });
  const context = {
    rest,
    hours: () => state.hours,
    me: null,
    signal,
    get: (path, query) => get(path, query, signal),
    again: () => refresh(true),
  };

  async function refresh(asked) {
    clearTimeout(state.timer);
    try {
      state.me ??= await get("whoami");
      context.me = state.me;
      document.getElementById("who").textContent = state.me.keys
        ? state.me.tenant
        : "no keys: development";
      const data = await view.load(context);
      if (signal.aborted) return;
      view.draw(body, data, context);
      stamp.textContent = new Date().toLocaleTimeString(undefined, { hour12: false });
      if (asked) document.getElementById("status").textContent = `${view.title} is up to date`;
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      if (error.status === undefined) console.error(error);
      body.replaceChildren(
        h(
          "div",
          { class: "fault", role: "alert" },
          h("strong", {}, "This view cannot be shown. "),
          error.message,
        ),
      );
    }
    if (view.refresh_s && !signal.aborted) state.timer = setTimeout(wait, 1000 * view.refresh_s);
  }
  // Nobody looks: nothing is asked.
  const wait = () => (document.hidden ? (state.timer = setTimeout(wait, 1000)) : refresh(false));
  await refresh(false);
}

addEventListener("hashchange", () => show({ moved: true }));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
show({ moved: false });
