// The API reference at /docs: each route has a form that sends a request and shows the answer as it arrives.

import { hasKey, respond, setKey } from "./api.js";
import { $, askInDialog, button, copy, element, say, show } from "./dom.js";
import { curl, time } from "./format.js";

/** Most characters of an answer that are shown. */
const MAX_SHOWN = 200_000;

/* The key, which is kept in this tab only. */

function showKey() {
  show($("key-form"), true);
  say($("key-state"), hasKey() ? "A key is in use." : "");
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value.trim());
  $("key").value = "";
  showKey();
});
showKey();

/* The forms. They are made when they are opened: there are dozens. */

for (const route of document.querySelectorAll("article[data-path]")) {
  const details = element("details", { class: "try" }, element("summary", {}, "Send a request"));
  details.addEventListener("toggle", () => details.querySelector("form") || details.append(...formOf(route)));
  route.append(details);
}

function formOf(route) {
  const { method, path } = route.dataset;
  const label = `${method} ${path}`;
  const examples = [...route.querySelectorAll(".example-body")];
  const parameters = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => {
    const id = `${route.id}-${name}`;
    return { name, input: element("input", { id, required: true, "data-name": name }), label: element("label", { for: id }, name) };
  });
  const body = method === "POST" ? element("textarea", { id: `${route.id}-body`, spellcheck: "false", dir: "ltr" }) : null;
  const fill = (at) => {
    if (!body) return;
    body.value = examples[at]?.querySelector("code").textContent ?? "";
    body.rows = Math.min(24, body.value.split("\n").length + 1);
  };
  fill(0);
  const choice = examples.length > 1 ? element("select", { id: `${route.id}-example`, change: () => fill(choice.value) },
    ...examples.map((figure, at) => element("option", { value: at }, figure.querySelector("figcaption").textContent))) : null;
  const state = element("p", { role: "status", class: "quiet-text" });
  const received = element("pre", { class: "received", tabindex: 0, role: "region", "aria-label": `Answer of ${label}` });
  const stop = button("Stop", () => running?.abort(), { hidden: true });
  let running = null;
  const request = () => {
    const filled = parameters.reduce((filled, { name, input }) => filled.replace(`{${name}}`, encodeURIComponent(input.value)), path);
    return { path: filled.slice(1), method, body: body?.value.trim() || null };
  };
  const form = element("form", { "aria-label": `Request to ${label}` },
    ...parameters.flatMap(({ label, input }) => [label, input]),
    choice && element("label", { for: choice.id }, "Example"), choice,
    body && element("label", { for: body.id }, "Body, as JSON"), body,
    element("div", { class: "send-row" },
      element("button", { class: "primary" }, "Send"), stop,
      button("Copy as curl", (event) => copy(curl(request()), event.currentTarget))));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running || !(await isMeant(label))) return;
    running = new AbortController();
    show(stop, true);
    await send(request(), running.signal, state, received);
    running = null;
    show(stop, false);
  });
  return [form, state, received];
}

/** What changes the server for everybody is confirmed first. */
async function isMeant(label) {
  if (!label.startsWith("POST /admin/")) return true;
  return askInDialog({ title: label, text: "This changes the running server for all of its clients.", confirm: "Send", isDanger: true });
}

async function send({ path, method, body }, signal, state, received) {
  received.textContent = "";
  if (body !== null) {
    try {
      JSON.parse(body);
    } catch (error) {
      return say(state, `The body is not JSON: ${error.message}.`);
    }
  }
  say(state, "Sent; waiting for the answer.");
  const began = performance.now();
  const took = () => time(performance.now() - began);
  try {
    const options = body === null ? { method } : { method, body, headers: { "content-type": "application/json" } };
    const response = await respond(path, { ...options, signal });
    const kind = response.headers.get("content-type") || "no content";
    say(state, `${response.status} ${response.statusText}, ${kind}, after ${took()}.`);
    const isComplete = await read(response, received);
    if (kind.startsWith("application/json")) prettify(received);
    say(state, `${response.status} ${response.statusText}, ${kind}, complete after ${took()}${isComplete ? "" : `; the first ${MAX_SHOWN} characters are shown`}.`);
  } catch (error) {
    say(state, signal.aborted ? `Stopped after ${took()}.` : `The request failed: ${error.message}`);
  }
}

/** Shows the answer while it arrives; false if it was too long to show whole. */
async function read(response, received) {
  if (!response.body) return true;
  let shown = 0;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return shown <= MAX_SHOWN;
    if (shown < MAX_SHOWN) received.append(value.slice(0, MAX_SHOWN - shown));
    shown += value.length;
  }
}

function prettify(received) {
  try {
    received.textContent = JSON.stringify(JSON.parse(received.textContent), null, 2);
  } catch {
    // Cut at the most that is shown: it stays as it came.
  }
}
