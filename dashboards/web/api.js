// The gateway's JSON. A key is asked for when one is needed, and kept in this tab alone.

const KEY = "headway.key";

export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function get(path, parameters = {}, signal) {
  const query = new URLSearchParams(parameters).toString();
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    let answer;
    try {
      answer = await fetch(`/v1/headway/${path}${query ? `?${query}` : ""}`, {
        signal,
        headers: key ? { authorization: `Bearer ${key}` } : {},
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, "The gateway does not answer.");
    }
    if (answer.ok) return answer.json();
    const body = await answer.json().catch(() => ({}));
    const message = body.error?.message || `the gateway answered ${answer.status}`;
    if (answer.status !== 401) throw new Problem(answer.status, message);
    await askForKey(key ? message : "");
  }
}

let asking = null;

// One dialog however many requests wait for it.
function askForKey(problem) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    const input = document.getElementById("key-input");
    document.getElementById("key-problem").textContent = problem;
    input.value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.getElementById("key-form").addEventListener(
      "submit",
      () => {
        sessionStorage.setItem(KEY, input.value.trim());
        asking = null;
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
    input.focus();
  });
  return asking;
}
