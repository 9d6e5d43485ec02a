// The gateway's JSON. A key is asked for when one is needed, and kept in this tab alone.

export const ENDPOINTS = {
  whoami: "/v1/headway/whoami",
  live: "/v1/headway/live",
  summary: "/v1/headway/summary",
  workers: "/v1/headway/workers",
  history: "/v1/headway/history",
  turns: (run) => `/v1/headway/runs/${run.split("/").map(encodeURIComponent).join("/")}/turns`,
  decision: (id) => `/v1/headway/decisions/${encodeURIComponent(id)}`,
  costs: "/v1/headway/costs",
  slo: "/v1/headway/slo",
  policy: "/v1/headway/policy",
  openapi: "/openapi.json",
};

const KEY = "headway.key";

// `status` is that of HTTP, or 0 where there was no answer.
export class GatewayError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class GatewayClient {
  #keyDialog = null;

  async get(path, parameters = {}, signal) {
    const query = new URLSearchParams(parameters).toString();
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      const response = await request(query ? `${path}?${query}` : path, key, signal);
      if (response.ok) return response.json();
      const body = await response.json().catch(() => ({}));
      const message = body.error?.message || `the gateway answered ${response.status}`;
      if (response.status !== 401) throw new GatewayError(response.status, message);
      await this.#askForKey(key ? message : "");
    }
  }

  // One dialog however many requests wait for it.
  #askForKey(problem) {
    this.#keyDialog ??= openKeyDialog(problem).then((key) => {
      sessionStorage.setItem(KEY, key);
      this.#keyDialog = null;
    });
    return this.#keyDialog;
  }
}

async function request(url, key, signal) {
  try {
    return await fetch(url, { signal, headers: key ? { authorization: `Bearer ${key}` } : {} });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new GatewayError(0, "The gateway does not answer.");
  }
}

function openKeyDialog(problem) {
  return new Promise((resolve) => {
    const dialog = document.getElementById("key");
    const input = document.getElementById("key-input");
    document.getElementById("key-problem").textContent = problem;
    input.value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document
      .getElementById("key-form")
      .addEventListener("submit", () => resolve(input.value.trim()), { once: true });
    dialog.showModal();
    input.focus();
  });
}
