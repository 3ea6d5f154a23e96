// The slot, the queue and memory: what runs and waits, and what the trim between requests gave back.

import { hasEnded, isMine, isRunning } from "./chat.js";
import { $, element, say, show } from "./dom.js";
import { bytes, number, plural, time } from "./format.js";

export function showState(kind, text) {
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

/** The last answer of /v1/slot. */
let shown = null;

export function showSlot(slot) {
  shown = slot;
  // Others answer while one device or node is away.
  const ill = slot.devices.every((device) => device.state !== "ready") && slot.devices[0];
  const running = slot.devices.map(({ running }) => running).filter((one) => one && !hasEnded(one));
  const slots = slot.devices.length;
  const others = slots > 1 ? `${number(running.length)} of ${plural(slots, "slot")} busy` : "Busy with another request";
  const doing = running.some(isMine) || isRunning() ? "Answering" : others;
  say($("slot-title"), slots > 1 ? plural(slots, "slot") : "Slot");
  if (!slot.accepting) showState("wait", STATES.stopping);
  else if (ill) showState(ill.state === "down" ? "bad" : "wait", STATES[ill.state]);
  else if (running.length) showState("busy", slot.queue.length ? `${doing}, ${number(slot.queue.length)} waiting` : doing);
  else showState("ready", "Ready");
  const { done, cancelled, failed } = slot.requests;
  say($("counts"), `${number(done)} answered, ${number(cancelled)} cancelled, ${number(failed)} failed`);
  showDevices(slot);
  showQueue(slot.queue);
  showMemory(slot);
}

function name(one) {
  if (isMine(one)) return "You";
  if (one.key) return one.key;
  if (!one.id) return "another client";
  return one.id.length > 20 ? `${one.id.slice(0, 12)}…` : one.id;
}

/** The cards stay what they are and change their words, so that nothing jumps. */
function showDevices(slot) {
  const cards = $("devices").children;
  while (cards.length < slot.devices.length) $("devices").append(deviceCard());
  while (cards.length > slot.devices.length) $("devices").lastChild.remove();
  $("devices").parentElement.classList.toggle("fleet", slot.devices.length > 2);
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
  // Nodes of a cluster have names; devices of one machine have numbers.
  const own = device.label || device.index;
  say(find(".d-name"), !isNumbered ? label : device.name ? `${own} · ${label}` : `${own}`);
  find(".d-name").title = device.label || "";
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
  for (const { index, name: label, label: device } of slot.devices) {
    const where = slot.devices.length > 1 ? ` ${device || index}` : "";
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
  if (shown) showMemory(shown);
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

/** Round steps of bytes for about four lines. */
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

/** After the server died: what was running is not known any more. */
export function showUnreachable() {
  showState("bad", "Not reachable");
  for (const card of $("devices").children) {
    card.querySelector(".device-state").dataset.state = "bad";
    say(card.querySelector(".d-state"), "not reachable");
    say(card.querySelector(".d-big"), "–");
    say(card.querySelector(".d-unit"), "");
    say(card.querySelector(".d-who"), "The server does not answer.");
    show(card.querySelector(".bar"), false);
  }
}

let resizing = 0;
new ResizeObserver(() => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => shown && showMemory(shown));
}).observe($("chart"));

