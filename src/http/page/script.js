// The page at /: asks, shows the answer as it comes, and watches the slot. No library, no build step.
"use strict";

const $ = (id) => document.getElementById(id);
const KEY = "eka-api-key";
const state = {
  key: sessionStorage.getItem(KEY) || "",
  models: [],
  /** What was said in chat, as it is sent again. */
  said: [],
  /** The request on its way: { id, controller, turn, begun }. */
  current: null,
  /** The last answer of /v1/slot. */
  slot: null,
  isLocked: false,
};

/* Small things. */

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function show(node, isShown) {
  node.hidden = !isShown;
}

/** Sets a text only when it is another one, so that what reads along is not disturbed. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const plural = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;
const number = (n) => n.toLocaleString("en");

function time(ms) {
  if (ms < 950) return `${Math.max(1, Math.round(ms))} ms`;
  if (ms < 59_500) return `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`;
  const minutes = Math.floor(ms / 60_000);
  return minutes < 60 ? `${minutes} min ${Math.round((ms % 60_000) / 1000)} s` : `${(ms / 3.6e6).toFixed(1)} h`;
}

function bytes(n) {
  if (n === null || n === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; n >= 999.5 && unit < 4; unit += 1) n /= 1024;
  return `${n.toFixed(n < 9.995 && unit ? 2 : n < 99.95 && unit ? 1 : 0)} ${units[unit]}`;
}

/** Nastaliq wants more room between lines. */
function mark(node, text) {
  if (/[\u0600-\u06ff]/.test(text)) node.dataset.script = "arabic";
  else delete node.dataset.script;
}

function headers(more = {}) {
  return state.key ? { ...more, authorization: `Bearer ${state.key}` } : more;
}

/* What goes wrong, in words. */

class Refused extends Error {
  constructor(message, { status = 0, code = "", wait = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, wait });
  }
}

async function refusal(response) {
  const wait = Number(response.headers.get("retry-after")) || 0;
  let error = {};
  try {
    error = (await response.json()).error || {};
  } catch {
    // A proxy's own page, perhaps: the status has to do.
  }
  const message = error.message || `The server answered with status ${response.status}.`;
  return new Refused(message, { status: response.status, code: error.code || "", wait });
}

async function get(path) {
  let response;
  try {
    response = await fetch(path, { headers: headers(), cache: "no-store" });
  } catch {
    throw new Refused("The server cannot be reached.");
  }
  if (!response.ok) throw await refusal(response);
  return response.json();
}

function words(error) {
  switch (error.code) {
    case "queue_full":
      return ["The queue is full.", `All places are taken; come back in about ${time(error.wait * 1000)}.`];
    case "rate_limit_exceeded":
      return ["Too many requests.", sentence(error.message)];
    case "not_ready":
      return ["Not ready yet.", "The model is still loading."];
    case "worker_down":
    case "worker_lost":
      return ["No worker is running.", sentence(error.message)];
    default:
      return [error.status ? "The request was refused." : "The request failed.", sentence(error.message)];
  }
}

function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

let countdown = 0;

function showNotice(error, retry) {
  const notice = $("notice");
  clearInterval(countdown);
  const [head, rest] = words(error);
  const text = element("span", {}, element("strong", {}, head), ` ${rest}`);
  notice.replaceChildren(text);
  if (retry) {
    const again = element("button", { type: "button" }, "Try again");
    again.addEventListener("click", retry);
    notice.append(again);
    let left = Math.ceil(error.wait);
    const tick = () => {
      again.disabled = left > 0;
      say(again, left > 0 ? `Try again in ${time(left * 1000)}` : "Try again");
      if (left <= 0) clearInterval(countdown);
      left -= 1;
    };
    tick();
    countdown = setInterval(tick, 1000);
  }
  show(notice, true);
}

function clearNotice() {
  clearInterval(countdown);
  show($("notice"), false);
}

/* The key. */

function lock(why) {
  state.isLocked = true;
  const wasKnown = Boolean(state.key);
  show($("key-form"), true);
  document.querySelector("main").classList.add("locked");
  say($("key-why"), wasKnown ? sentence(why) : "The key is stored in this tab only, until you close it.");
  $("key-why").classList.toggle("bad", wasKnown);
  showState("bad", wasKnown ? "Key refused" : "Locked");
  $("send").disabled = true;
  $("key").focus();
}

function keepKey(key) {
  state.key = key;
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  show($("forget"), Boolean(key));
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!key) return;
  keepKey(key);
  $("key").value = "";
  start();
});

$("forget").addEventListener("click", () => {
  keepKey("");
  state.models = [];
  start();
});

/* Models. */

async function start() {
  try {
    const { data } = await get("v1/models");
    state.isLocked = false;
    show($("key-form"), false);
    document.querySelector("main").classList.remove("locked");
    show($("forget"), Boolean(state.key));
    if (document.activeElement === document.body && state.key) $("prompt").focus();
    listModels(data);
  } catch (error) {
    if (error.status === 401) return lock(error.message);
    showState("bad", "Not reachable");
    setTimeout(start, Math.max(3, error.wait) * 1000);
    return;
  }
  poll();
}

function listModels(models) {
  const chosen = $("model").value;
  state.models = models;
  $("model").replaceChildren(...models.map(modelOption));
  if (models.some(({ id }) => id === chosen)) $("model").value = chosen;
  if (!models.length) $("model").append(element("option", { value: "" }, "none for this key"));
  chooseModel();
}

/** A model whose files cannot be used is shown with the reason, and cannot be chosen. */
function modelOption({ id, eka: { status, error } }) {
  if (status !== "unavailable") return element("option", { value: id }, id);
  return element("option", { value: id, title: error, disabled: "" }, `${id} (unavailable)`);
}

function model() {
  return state.models.find(({ id }) => id === $("model").value);
}

function mode() {
  return document.querySelector("input[name=mode]:checked").value;
}

/** A model without a template for chats continues text, and nothing else. */
function chooseModel() {
  const chosen = model();
  const [chat, text] = document.querySelectorAll("input[name=mode]");
  const hasTemplate = Boolean(chosen && chosen.eka.has_chat_template);
  chat.disabled = !hasTemplate;
  if (!hasTemplate) text.checked = true;
  if (chosen) $("max-tokens").max = chosen.eka.context_length;
  $("send").disabled = !chosen || Boolean(state.current);
  chooseMode();
}

function chooseMode() {
  const isChat = mode() === "chat";
  show($("system-field"), isChat);
  $("prompt").placeholder = isChat ? "Ask in any language" : "Begin a text in any language; the model continues it";
}

$("model").addEventListener("change", () => {
  startAfresh();
  chooseModel();
});
$("modes").addEventListener("change", () => {
  startAfresh();
  chooseMode();
});

/* Asking. */

function startAfresh() {
  if (state.current) stop();
  state.said = [];
  $("turns").replaceChildren();
  show($("turns"), false);
  show($("empty"), true);
  show($("fresh"), false);
  clearNotice();
}

$("fresh").addEventListener("click", () => {
  startAfresh();
  $("prompt").focus();
});

function fieldNumber(id) {
  const { value } = $(id);
  return value === "" ? undefined : Number(value);
}

function request(prompt) {
  const common = {
    model: $("model").value,
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: fieldNumber("max-tokens"),
    temperature: fieldNumber("temperature"),
    seed: fieldNumber("seed"),
  };
  if (mode() === "text") return ["v1/completions", { ...common, prompt }];
  const system = $("system").value.trim();
  const before = system ? [{ role: "system", content: system }] : [];
  return ["v1/chat/completions", { ...common, messages: [...before, ...state.said, { role: "user", content: prompt }] }];
}

function addTurn(kind, who, text) {
  const written = element("p", { class: "words", dir: "auto" }, text);
  mark(written, text);
  const facts = element("p", { class: "facts" });
  const turn = element("li", { class: `turn ${kind}` }, element("p", { class: "who" }, who), written, facts);
  if (kind === "mine") facts.remove();
  $("turns").append(turn);
  show($("turns"), true);
  show($("empty"), false);
  return { turn, written, facts, text };
}

async function ask(prompt) {
  clearNotice();
  const [path, body] = request(prompt);
  const mine = addTurn("mine", "You", prompt);
  const theirs = addTurn("theirs", body.model, "");
  theirs.turn.setAttribute("aria-busy", "true");
  const random = crypto.getRandomValues(new Uint32Array(2));
  const id = `page-${[...random].map((part) => part.toString(16).padStart(8, "0")).join("")}`;
  const current = { id, controller: new AbortController(), ...theirs, begun: performance.now(), first: 0, pieces: 0, end: null };
  state.current = current;
  setAsking(true);
  say(current.facts, "Sent");
  $("said").textContent = "Sent.";
  theirs.turn.scrollIntoView({ block: "nearest" });
  soon();
  try {
    await stream(path, body, current);
    finish(current, prompt, "");
  } catch (error) {
    if (current.controller.signal.aborted) finish(current, prompt, "stopped");
    else fail(current, mine, prompt, error);
  } finally {
    if (state.current === current) state.current = null;
    setAsking(Boolean(state.current));
    soon();
  }
}

/** Reads an answer event by event. */
async function stream(path, body, current) {
  let response;
  const signal = current.controller.signal;
  try {
    response = await fetch(path, {
      method: "POST",
      headers: headers({ "content-type": "application/json", "x-request-id": current.id }),
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Refused("The server cannot be reached.");
  }
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Refused("The connection was lost before the answer was complete.");
    }
    if (read.done) throw new Refused("The connection ended before the answer was complete.");
    const events = (rest + read.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      if (event === ": loading the model") say(current.facts, "Loading the model");
      if (event.startsWith("data: ")) take(current, JSON.parse(event.slice(6)));
    }
  }
}

function take(current, event) {
  if (event.error) throw new Refused(event.error.message, { status: 1, code: event.error.code });
  if (event.usage) current.tokens = event.usage.completion_tokens;
  const choice = event.choices && event.choices[0];
  if (!choice) return;
  const piece = choice.text ?? (choice.delta && choice.delta.content) ?? "";
  if (piece) hear(current, piece);
  if (choice.finish_reason) current.end = { reason: choice.finish_reason, timings: event.timings };
}

function hear(current, piece) {
  const now = performance.now();
  if (!current.first) {
    current.first = now;
    $("said").textContent = "The answer has started.";
  }
  const isAtEnd = window.innerHeight + window.scrollY >= current.turn.getBoundingClientRect().bottom + window.scrollY - 4;
  current.pieces += 1;
  current.text += piece;
  current.written.append(piece);
  mark(current.written, current.text);
  current.last = now;
  facts(current, "");
  if (isAtEnd) current.turn.scrollIntoView({ block: "nearest" });
}

/** Pieces are tokens, nearly: some tokens are a third of a character and wait for the rest. */
function facts(current, end) {
  const parts = [];
  const timings = current.end && current.end.timings;
  const spent = current.last - current.first;
  const measured = timings ? timings.decode_tokens_per_second : null;
  const rate = measured ?? (spent > 0 ? ((current.pieces - 1) * 1000) / spent : null);
  if (current.first) parts.push(["first token", time(current.first - current.begun)]);
  if (rate) parts.push(["tokens/s", rate.toFixed(rate < 10 ? 1 : 0)]);
  if (current.pieces) parts.push([plural(current.tokens ?? current.pieces, "token"), ""]);
  if (timings && timings.queue_ms >= 50) parts.push(["waited", time(timings.queue_ms)]);
  if (timings && timings.resumed) parts.push([`resumed ${plural(timings.resumed, "time")}`, ""]);
  if (end) parts.push([end, ""]);
  const spans = parts.map(([name, value]) =>
    element("span", {}, value ? `${name} ` : name, value ? element("b", {}, value) : null),
  );
  current.facts.replaceChildren(...spans);
}

function finish(current, prompt, end) {
  const ends = { stop: "complete", length: "cut at the most tokens" };
  const how = end || ends[current.end && current.end.reason] || "complete";
  current.turn.removeAttribute("aria-busy");
  facts(current, how);
  if (!current.text && !end) current.written.append("(an empty answer)");
  state.said.push({ role: "user", content: prompt }, { role: "assistant", content: current.text });
  show($("fresh"), true);
  const answer = current.text.length > 600 ? `${current.text.slice(0, 600)} …` : current.text;
  $("said").textContent = end ? "Stopped." : `Answer ${how}: ${answer}`;
}

function fail(current, mine, prompt, error) {
  current.turn.removeAttribute("aria-busy");
  if (current.text) {
    facts(current, "not complete");
  } else {
    current.turn.remove();
    mine.turn.remove();
    const isFirst = !$("turns").children.length;
    show($("turns"), !isFirst);
    show($("empty"), isFirst);
    if (!$("prompt").value) writePrompt(prompt);
  }
  $("said").textContent = "";
  if (error.status === 401) return lock(error.message);
  showNotice(error, () => {
    const again = $("prompt").value.trim() || prompt;
    writePrompt("");
    ask(again);
  });
}

function stop() {
  if (state.current) state.current.controller.abort();
}

function setAsking(isAsking) {
  const hadFocus = [$("send"), $("stop")].includes(document.activeElement);
  show($("stop"), isAsking);
  show($("send"), !isAsking);
  $("send").disabled = isAsking || !model();
  if (hadFocus) (isAsking ? $("stop") : $("prompt")).focus();
}

function writePrompt(text) {
  $("prompt").value = text;
  mark($("prompt"), text);
  grow();
}

/** For browsers that do not size the field by its content. */
function grow() {
  if (CSS.supports("field-sizing", "content")) return;
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function submit() {
  const prompt = $("prompt").value.trim();
  if (!prompt || state.current || $("send").disabled || !$("ask").reportValidity()) return;
  writePrompt("");
  ask(prompt);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("stop").addEventListener("click", stop);
$("prompt").addEventListener("input", grow);
$("prompt").addEventListener("keydown", (event) => {
  // While a word is being composed, as many Indic keyboards do, Enter is theirs.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  if (!matchMedia("(pointer: fine)").matches && !event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.current && !event.isComposing) stop();
});

/* The slot: watched while somebody looks, more often while something happens. */

let timer = 0;
let isPolling = false;

function soon() {
  clearTimeout(timer);
  if (!document.hidden && !state.isLocked) timer = setTimeout(poll, 150);
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || state.isLocked || isPolling) return;
  isPolling = true;
  let pause = 3000;
  try {
    state.slot = await get("v1/slot");
    showSlot(state.slot);
    const isBusy = state.current || state.slot.queue.length || state.slot.devices.some(({ running }) => running);
    const isWell = state.slot.devices.every((device) => device.state === "ready");
    if (isBusy || !isWell) pause = 1000;
  } catch (error) {
    pause = Math.max(5000, error.wait * 1000);
    if (error.status === 401) lock(error.message);
    else if (error.status !== 429) showState("bad", "Not reachable");
  } finally {
    isPolling = false;
  }
  if (!state.isLocked) timer = setTimeout(poll, pause);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else soon();
});

function showState(kind, text) {
  $("state").dataset.state = kind;
  say($("state-text"), text);
}

const STATES = {
  ready: "Ready",
  starting: "Loading the model",
  restarting: "The worker is being replaced",
  down: "No worker is running",
  stopping: "Shutting down",
};

function showSlot(slot) {
  const ill = slot.devices.find((device) => device.state !== "ready");
  const isBusy = slot.devices.some(({ running }) => running);
  if (!slot.accepting) showState("wait", STATES.stopping);
  else if (ill) showState(ill.state === "down" ? "bad" : "wait", STATES[ill.state]);
  else if (isBusy) showState("busy", slot.queue.length ? `Answering, ${number(slot.queue.length)} waiting` : "Answering");
  else showState("ready", "Ready");
  const { done, cancelled, failed } = slot.requests;
  say($("counts"), `${number(done)} answered, ${number(cancelled)} cancelled, ${number(failed)} failed`);
  showDevices(slot);
  showQueue(slot.queue);
  showPlace(slot);
  showMemory(slot);
}

const isMine = (one) => Boolean(state.current && one.id === state.current.id);

function name(one) {
  if (isMine(one)) return "You";
  if (one.key) return one.key;
  if (!one.id) return "Somebody";
  return one.id.length > 20 ? `${one.id.slice(0, 12)}…` : one.id;
}

/** A few words on the answer that is waited for. */
function showPlace(slot) {
  const { current } = state;
  if (!current || current.first) return;
  const waits = slot.queue.waiting.find(isMine);
  const runs = slot.devices.find(({ running }) => running && isMine(running));
  if (waits) {
    const ahead = waits.position - 1;
    const who = ahead ? `${plural(ahead, "request")} ahead in the queue` : "Next in the queue";
    say(current.facts, `${who}, about ${time(Math.max(1000, waits.estimate_ms))} left`);
  } else if (runs) {
    const { prompt_tokens_read: read, prompt_tokens: all } = runs.running;
    say(current.facts, read < all ? `Reading the prompt, ${number(read)} of ${plural(all, "token")}` : "Reading the prompt");
  }
}

/** The cards stay what they are and change their words, so that nothing jumps. */
function showDevices(slot) {
  const cards = $("devices").children;
  while (cards.length < slot.devices.length) $("devices").append(deviceCard());
  while (cards.length > slot.devices.length) $("devices").lastChild.remove();
  slot.devices.forEach((device, at) => showDevice(cards[at], device, slot.devices.length > 1));
}

function deviceCard() {
  const part = (name, attributes, ...children) => element(name, attributes, ...children);
  return part("article", { class: "card device" },
    part("div", { class: "panel-head" },
      part("h3", { class: "d-name" }),
      part("p", { class: "device-state" }, part("span", { class: "dot", "aria-hidden": "true" }), part("span", { class: "d-state" }))),
    part("p", { class: "big" }, part("span", { class: "d-big" }), part("small", { class: "d-unit" })),
    part("div", { class: "bar", "aria-hidden": "true" }, part("span", {})),
    part("p", { class: "line d-who" }),
    part("p", { class: "line d-memory" }));
}

function showDevice(card, device, isNumbered) {
  const find = (selector) => card.querySelector(selector);
  const { running, memory } = device;
  const isReady = device.state === "ready";
  const label = device.name ? device.name.replace(/^the /, "") : "Device";
  say(find(".d-name"), isNumbered ? `${device.index} · ${label}` : label);
  const kind = !isReady ? (device.state === "down" ? "bad" : "wait") : running ? "busy" : "ready";
  find(".device-state").dataset.state = kind;
  say(find(".d-state"), isReady ? (running ? "running" : "idle") : STATES[device.state] || device.state);
  show(find(".bar"), Boolean(running));
  const share = running ? running.generated_tokens / running.max_tokens : 0;
  find(".bar > span").style.width = `${Math.min(100, share * 100)}%`;
  find(".d-who").classList.toggle("you", Boolean(running && isMine(running)));
  if (running) {
    say(find(".d-big"), number(running.generated_tokens));
    say(find(".d-unit"), `of at most ${plural(running.max_tokens, "token")}`);
    const rate = running.tokens_per_second ? `, ${running.tokens_per_second.toFixed(0)} tokens/s` : "";
    const asked = `${running.model || "another model"}, ${plural(running.prompt_tokens, "prompt token")}`;
    say(find(".d-who"), `${name(running)}: ${asked}, for ${time(running.running_ms)}${rate}`);
  } else {
    say(find(".d-big"), isReady ? "Free" : "–");
    say(find(".d-unit"), "");
    say(find(".d-who"), device.models.length ? `Loaded: ${device.models.join(", ")}` : "No model loaded.");
  }
  const held = memory && memory.device ? `${bytes(memory.device.reserved)} of the device, ` : "";
  say(find(".d-memory"), memory ? `Holds ${held}${bytes(memory.resident)} of host memory.` : "Memory unknown.");
}

function showQueue(queue) {
  $("queue-size").replaceChildren(element("b", {}, number(queue.length)), ` of ${number(queue.limit)}`);
  $("queue-bar").firstChild.style.width = `${Math.min(100, (queue.length / queue.limit) * 100)}%`;
  show($("queue-empty"), !queue.length);
  show($("queue-scroll"), queue.length > 0);
  const list = $("waiting");
  while (list.children.length < queue.waiting.length) {
    list.append(element("li", {}, element("span", { class: "place" }), element("span", { class: "name" }), element("span", { class: "eta" }), element("span", { class: "sub" })));
  }
  while (list.children.length > queue.waiting.length) list.lastChild.remove();
  queue.waiting.forEach((one, at) => {
    const row = list.children[at];
    row.classList.toggle("you", isMine(one));
    const [place, who, eta, sub] = row.children;
    say(place, String(one.position));
    say(who, name(one));
    who.title = one.id || "";
    say(eta, one.estimate_ms < 1000 ? "soon" : `≈ ${time(one.estimate_ms)}`);
    const asked = `${one.model || "another model"}, ${plural(one.prompt_tokens, "token")}`;
    say(sub, `${asked}, waiting for ${time(one.waiting_ms)}`);
  });
}

/* Memory over the last requests. */

const SHOWN = 32;
const POINTS = ["before", "peak", "after", "trimmed"];

/** What can be shown: host and device memory of each worker. */
function measures(slot) {
  const found = [];
  for (const { index, name: label } of slot.devices) {
    const where = slot.devices.length > 1 ? ` ${index}` : "";
    const past = slot.history.filter((one) => one.device === index && one.memory);
    if (past.some(({ memory }) => memory.before.device)) {
      found.push({ id: `${index}-device`, text: `Device${where}: held by the pool`, index, of: (m) => m && m.device && m.device.reserved });
    }
    found.push({ id: `${index}-host`, text: `Host: resident in worker${where}`, index, of: (m) => m && m.resident, label });
  }
  return found;
}

function showMemory(slot) {
  const found = measures(slot);
  const select = $("measure");
  const ids = found.map(({ id }) => id).join();
  if (select.dataset.ids !== ids) {
    const chosen = select.value;
    select.replaceChildren(...found.map(({ id, text }) => element("option", { value: id }, text)));
    select.dataset.ids = ids;
    // What was chosen by a person stays; what we chose gives way to a device that has appeared.
    select.value = select.dataset.chosen && found.some(({ id }) => id === chosen) ? chosen : found[0].id;
  }
  const measure = found.find(({ id }) => id === select.value) || found[0];
  const past = slot.history.filter((one) => one.device === measure.index && one.memory).slice(-SHOWN);
  const points = past.map((one) => ({ one, values: POINTS.map((when) => measure.of(one.memory[when]) ?? null) }));
  drawMemory(points.filter(({ values }) => values[0] !== null && values[1] !== null), measure);
}

$("measure").addEventListener("change", () => {
  $("measure").dataset.chosen = "yes";
  if (state.slot) showMemory(state.slot);
});

let drawn = "";

function drawMemory(points, measure) {
  const width = Math.max(280, Math.round($("chart").clientWidth));
  const signature = JSON.stringify([measure.id, width, points.map(({ one, values }) => [one.ended, values])]);
  if (signature === drawn) return;
  drawn = signature;
  const isEmpty = !points.length;
  show($("legend"), !isEmpty);
  show($("figures"), !isEmpty);
  $("chart").replaceChildren();
  if (isEmpty) return;
  const summary = summarize(points, measure);
  say($("chart-words"), summary);
  $("chart").append(chart(points, width, summary));
  say($("table-caption"), `${measure.text}. ${summary}`);
  $("rows").replaceChildren(...points.toReversed().map(row));
}

function summarize(points, measure) {
  const peaks = points.map(({ values }) => values[1]);
  const last = points.at(-1).values;
  const now = last[3] ?? last[2];
  const what = measure.text.startsWith("Device") ? "The pool held" : "The worker held";
  const few = `The last ${plural(points.length, "request")}.`;
  return `${few} ${what} at most ${bytes(Math.max(...peaks))}; the latest request began at ${bytes(last[0])}, rose to ${bytes(last[1])} and left ${bytes(now)}.`;
}

function row({ one, values }) {
  const ended = new Date(one.ended * 1000).toLocaleTimeString();
  const cells = [one.model || "–", number(one.generated_tokens), one.outcome, ...values.map(bytes)];
  return element("tr", {}, element("th", { scope: "row" }, ended), ...cells.map((cell) => element("td", {}, cell)));
}

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Round steps of bytes, so many that four or so lines are drawn. */
function scale(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const least = Math.max(high - low, high * 0.02, 1024);
  // From nothing, unless what happens could then not be seen.
  const from = least > high / 4 ? 0 : Math.max(0, low - least * 0.25);
  const rough = (high + least * 0.12 - from) / 4;
  const unit = 1024 ** Math.floor(Math.log2(rough) / 10);
  const power = 10 ** Math.floor(Math.log10(rough / unit));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power * unit).find((n) => n >= rough);
  const first = Math.floor(from / step) * step;
  const ticks = [];
  for (let tick = first; ticks.length < 8; tick += step) {
    ticks.push(tick);
    if (tick >= high) break;
  }
  return ticks;
}

function chart(points, width, summary) {
  const [height, left, top, bottom] = [240, 66, 10, 26];
  const ticks = scale(points.flatMap(({ values }) => values.filter((value) => value !== null)));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const band = (width - left - 8) / Math.max(points.length, 6);
  const y = (value) => top + (height - top - bottom) * (1 - (value - low) / (high - low));
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary });
  for (const tick of ticks) {
    drawing.append(
      svg("line", { class: "c-grid", x1: left, x2: width, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 10, y: y(tick) + 4, "text-anchor": "end" }, bytes(tick)),
    );
  }
  const at = [0.14, 0.42, 0.66, 0.9];
  const corners = points.flatMap(({ values }, n) =>
    values.map((value, when) => (value === null ? null : [left + band * (n + at[when]), y(value)])).filter(Boolean),
  );
  const path = corners.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
  const base = height - bottom;
  drawing.append(
    svg("path", { class: "c-area", d: `M${corners[0][0]} ${base}L${path}L${corners.at(-1)[0]} ${base}Z` }),
    svg("path", { class: "c-path", d: `M${path}` }),
  );
  const size = Math.max(1.6, Math.min(4, band / 9));
  points.forEach((point, n) => drawing.append(...marks(point, left + band * n, band, y, at, size, base, top)));
  const caption = (x, text, anchor) => svg("text", { x, y: height - 6, "text-anchor": anchor }, text);
  drawing.append(caption(left, points.length > 1 ? "older" : "", "start"), caption(left + band * points.length, "latest", "end"));
  return drawing;
}

function marks({ one, values }, x, band, y, at, size, base, top) {
  const title = `${one.model || "a model"}, ${plural(one.generated_tokens, "token")}\n${POINTS.map((when, n) => `${when} ${bytes(values[n])}`).join("\n")}`;
  const shapes = values.map((value, when) => {
    if (value === null) return null;
    const [px, py] = [x + band * at[when], y(value)];
    if (when === 1) {
      const s = size * 1.35;
      return svg("path", { class: "c-peak", d: `M${px} ${py - s}L${px + s} ${py}L${px} ${py + s}L${px - s} ${py}Z` });
    }
    if (when === 3) return svg("rect", { class: "c-trim", x: px - size, y: py - size, width: 2 * size, height: 2 * size, rx: 1 });
    return svg("circle", { class: when ? "c-after" : "c-before", cx: px, cy: py, r: when ? size * 0.9 : size });
  });
  const hit = svg("rect", { class: "c-hit", x, y: top, width: band, height: base - top }, svg("title", {}, title));
  return [...shapes.filter(Boolean), hit];
}

let resizing = 0;
new ResizeObserver(() => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => state.slot && showMemory(state.slot));
}).observe($("chart"));

chooseMode();
show($("forget"), Boolean(state.key));
start();
