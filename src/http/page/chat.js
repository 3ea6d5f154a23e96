// The conversation: asks, shows the answer as it comes, and changes branches.

import { RequestError, inWords, stream } from "./api.js";
import { addMessage, branch, newConversation, newId, removeMessage, showBranch } from "./conversation.js";
import { $, askInDialog, button, element, isFinePointer, say, show } from "./dom.js";
import { markScript, plural, time } from "./format.js";
import { invalidSetting, requestFields, settings } from "./settings.js";
import { Turn, chatMessages, endInWords } from "./turn.js";

let conversation = newConversation();
let models = [];
/** The request on its way: { id, controller, message, turn, begun, first, last }. */
let current = null;
/** Turns on the page by message. */
const turns = new Map();
let lastId = "";
let hooks = { keep() {}, isBusy() {}, isLocked() {} };
let countdown = 0;

/** `keep` is called with a conversation that changed, `isBusy` when a request begins or ends, `isLocked` when a key is needed. */
export function startChat(listeners) {
  hooks = listeners;
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("stop").addEventListener("click", stop);
  $("prompt").addEventListener("input", grow);
  $("prompt").addEventListener("keydown", (event) => {
    // While a word is being composed, as many Indic keyboards do, Enter belongs to the keyboard.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    // On a screen keyboard Enter starts a new line.
    if (!isFinePointer() && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    submit();
  });
  $("model").addEventListener("change", chooseModel);
  $("modes").addEventListener("change", chooseMode);
  $("latest").addEventListener("click", () => scrollToEnd());
  $("scroll").addEventListener("scroll", () => show($("latest"), !isAtEnd()), { passive: true });
  for (const example of document.querySelectorAll(".example")) example.addEventListener("click", () => ask(example.textContent, conversation.leaf, "chat", { temperature: 0 }));
  say($("hint"), isFinePointer() ? "Enter sends, Shift + Enter starts a new line, Esc stops the answer or leaves the prompt." : "Ctrl + Enter or the button sends.");
  chooseMode();
}

export const isRunning = () => Boolean(current);
export const isMine = (one) => Boolean(current && one.id === current.id);
/** Whether a request is the last one of this page, which has ended here and may still hold the slot for a moment. */
export const hasEnded = (one) => !current && one.id === lastId;

/** Shows a conversation; null begins a new one. */
export function openConversation(chosen) {
  if (current) stop();
  conversation = chosen ?? newConversation();
  for (const message of Object.values(conversation.messages).filter(({ isRunning }) => isRunning)) {
    // The page was closed while the answer came.
    Object.assign(message, { isRunning: undefined, end: "lost" });
  }
  clearNotice();
  render();
  scrollToEnd();
  hooks.keep(conversation);
}

/* Models and modes. */

export function listModels(found) {
  const chosen = $("model").value;
  models = found;
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

const model = () => models.find(({ id }) => id === $("model").value);
const mode = () => document.querySelector("input[name=mode]:checked").value;

/** A model without a chat template only continues text. */
function chooseModel() {
  const chosen = model();
  const [chat, text] = document.querySelectorAll("input[name=mode]");
  const hasTemplate = Boolean(chosen && chosen.eka.has_chat_template);
  chat.disabled = !hasTemplate;
  if (!hasTemplate) text.checked = true;
  $("send").disabled = !chosen || Boolean(current);
  show($("examples"), Boolean(chosen && chosen.id === "demo"));
  chooseMode();
}

function chooseMode() {
  $("prompt").placeholder = mode() === "chat" ? "Ask in any language" : "Begin a text in any language; the model continues it";
}

/* The list of messages. */

const actions = {
  regenerate: (message) => answer(conversation.messages[message.parent]),
  proceed: (message) => answer(conversation.messages[message.parent], message),
  edit: (message, text) => ask(text, message.parent, message.mode),
  showBranch: (message) => {
    if (current) return;
    showBranch(conversation, message);
    render();
    hooks.keep(conversation);
  },
  remove: async (message) => {
    const count = Object.values(conversation.messages).filter((each) => branch(conversation, each.id).includes(message)).length;
    const text = count > 1 ? `The ${plural(count - 1, "message")} after it will be deleted too.` : "It will be deleted from this browser.";
    if (!(await askInDialog({ title: "Delete the message?", text, confirm: "Delete", isDanger: true }))) return;
    if (current) stop();
    removeMessage(conversation, message);
    render();
    hooks.keep(conversation);
    $("prompt").focus();
  },
};

/** Shows the branch: turns that are on the page already stay. */
function render() {
  const messages = branch(conversation);
  const ids = new Set(messages.map(({ id }) => id));
  for (const [id, turn] of turns) {
    if (ids.has(id) && $("turns").contains(turn.node)) continue;
    turn.node.remove();
    turns.delete(id);
  }
  for (const message of messages) {
    if (!turns.has(message.id)) turns.set(message.id, new Turn(conversation, message, actions));
    else turns.get(message.id).update(!message.isRunning);
    $("turns").append(turns.get(message.id).node);
  }
  show($("turns"), messages.length > 0);
  show($("empty"), !messages.length);
}

const isAtEnd = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 48;

function scrollToEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

/* Asking. */

function submit() {
  const prompt = $("prompt").value.trim();
  if (!prompt || current || $("send").disabled) return;
  const problem = invalidSetting();
  if (problem) return showNotice(new RequestError(problem, { code: "invalid_setting" }), submit);
  writePrompt("");
  ask(prompt);
}

/** `fields` are fields of the request that this prompt needs, whatever the settings are. */
function ask(prompt, parent = conversation.leaf, as = mode(), fields = {}) {
  if (current || $("send").disabled) return;
  answer(addMessage(conversation, parent, { role: "user", content: prompt, mode: as, fields }));
}

/** Asks for an answer to a prompt; with `partial`, for the rest of an answer. */
async function answer(prompt, partial = null) {
  if (current) return;
  clearNotice();
  const message = partial ?? addMessage(conversation, prompt.id, { role: "assistant", model: $("model").value, mode: prompt.mode });
  const body = requestFor(prompt, message, partial);
  const tokensBefore = partial ? (partial.figures?.tokens ?? partial.pieces ?? 0) : 0;
  Object.assign(message, { isRunning: true, end: null, figures: { tokensBefore }, pieces: 0 });
  render();
  current = { id: `page-${newId()}`, controller: new AbortController(), conversation, message, turn: turns.get(message.id), begun: performance.now(), first: 0, last: 0 };
  const mine = current;
  lastId = mine.id;
  setAsking(true);
  hooks.keep(conversation);
  mine.turn.note("Sent");
  $("said").textContent = "Sent.";
  scrollToEnd();
  try {
    const path = message.mode === "text" ? "v1/completions" : "v1/chat/completions";
    await stream(path, body, {
      signal: mine.controller.signal,
      id: mine.id,
      onEvent: (event) => take(mine, event),
      onComment: (comment) => {
        if (comment === "loading the model") mine.turn.note("Loading the model");
        if (comment === "resuming") mine.turn.note("The connection was lost; reconnecting");
      },
    });
    finish(mine);
  } catch (error) {
    if (mine.controller.signal.aborted) finish(mine, "stopped");
    else fail(mine, prompt, error);
  } finally {
    if (current === mine) current = null;
    setAsking(Boolean(current));
  }
}

function requestFor(prompt, message, partial) {
  const isChat = message.mode !== "text";
  const { system, probabilities } = settings();
  const sent = { stream: true, stream_options: { include_usage: true }, ...requestFields(isChat), ...prompt.fields };
  if (probabilities) Object.assign(sent, isChat ? { logprobs: true, top_logprobs: 5 } : { logprobs: 5 });
  if (partial) Object.assign(sent, { continue_final_message: true, add_generation_prompt: false });
  message.sent = isChat && system.trim() ? { ...sent, system: system.trim() } : sent;
  const body = { model: message.model, ...sent };
  if (!isChat) return { ...body, prompt: prompt.content };
  const messages = chatMessages(branch(conversation, (partial ?? prompt).id), system.trim());
  return { ...body, messages };
}

function take(mine, event) {
  if (event.error) throw new RequestError(event.error.message, { status: 1, code: event.error.code });
  const { message } = mine;
  if (event.usage) message.figures.tokens = message.figures.tokensBefore + event.usage.completion_tokens;
  const [choice] = event.choices ?? [];
  if (!choice) return;
  const delta = choice.delta ?? {};
  const piece = choice.text ?? delta.content ?? "";
  const thought = delta.reasoning_content ?? delta.reasoning ?? "";
  if (piece || thought || delta.tool_calls) hear(mine, piece, thought, delta.tool_calls ?? []);
  if (choice.logprobs) message.tokens = [...(message.tokens ?? []), ...tokensOf(choice.logprobs)];
  if (choice.finish_reason) message.end = choice.finish_reason;
  if (event.timings) readTimings(message.figures, event.timings);
}

function readTimings(figures, { queue_ms, resumed, decode_tokens_per_second }) {
  Object.assign(figures, { queueMs: queue_ms, resumed, rate: decode_tokens_per_second ?? figures.rate });
}

/** Log-probabilities of the chat route or the completions route. */
function tokensOf(logprobs) {
  if (logprobs.content) {
    return logprobs.content.map(({ token, logprob, top_logprobs }) => ({
      text: token, logprob, top: top_logprobs.map((other) => ({ text: other.token, logprob: other.logprob })),
    }));
  }
  const { tokens = [], token_logprobs, top_logprobs } = logprobs;
  return tokens.map((text, at) => ({
    text, logprob: token_logprobs[at], top: Object.entries((top_logprobs && top_logprobs[at]) ?? {}).map(([other, logprob]) => ({ text: other, logprob })),
  }));
}

function hear(mine, piece, thought, calls) {
  const { message } = mine;
  const now = performance.now();
  if (!mine.first) {
    mine.first = now;
    message.figures.firstMs = now - mine.begun;
    $("said").textContent = "The answer has started.";
  }
  message.pieces += 1;
  message.content += piece;
  if (thought) message.reasoning = (message.reasoning ?? "") + thought;
  if (thought || (message.reasoning && !message.content)) message.thinkingMs = now - mine.first;
  for (const { index, function: called } of calls) {
    message.tools ??= [];
    message.tools[index] ??= { name: "", arguments: "" };
    if (called.name) message.tools[index].name = called.name;
    message.tools[index].arguments += called.arguments ?? "";
  }
  mine.last = now;
  // Pieces are nearly tokens: some tokens are a third of a character and wait for the rest.
  if (now > mine.first) message.figures.rate = ((message.pieces - 1) * 1000) / (now - mine.first);
  // Tokens come faster than frames: the page is changed once a frame.
  mine.frame ||= requestAnimationFrame(() => {
    mine.frame = 0;
    if (!message.isRunning) return;
    const wasAtEnd = isAtEnd();
    mine.turn.update(false);
    if (wasAtEnd) scrollToEnd();
  });
}

function finish(mine, end) {
  const { message } = mine;
  const wasAtEnd = isAtEnd();
  message.end = end ?? message.end ?? "stop";
  settle(mine);
  if (wasAtEnd) scrollToEnd();
  const text = message.content.length > 600 ? `${message.content.slice(0, 600)} …` : message.content;
  $("said").textContent = end ? "Stopped." : `Answer ${endInWords(message)}: ${text}`;
}

function settle(mine) {
  delete mine.message.isRunning;
  current = current === mine ? null : current;
  mine.turn.update(true);
  if (mine.conversation === conversation) render();
  hooks.keep(mine.conversation === conversation ? conversation : mine.conversation);
  if (mine.conversation !== conversation) hooks.keep(conversation);
}

/** What has come of an answer stays; a prompt without one goes back to where it was written. */
function fail(mine, prompt, error) {
  const { message } = mine;
  $("said").textContent = "";
  if (message.content || message.reasoning) {
    message.end = error.code === "connection_lost" ? "lost" : "error";
    settle(mine);
  } else {
    removeMessage(mine.conversation, message);
    const hasOthers = Object.values(mine.conversation.messages).some(({ parent }) => parent === prompt.id);
    if (!hasOthers) removeMessage(mine.conversation, prompt);
    current = null;
    render();
    hooks.keep(mine.conversation);
    if (!hasOthers && !$("prompt").value) writePrompt(prompt.content);
  }
  if (error.status === 401) return hooks.isLocked(error.message);
  showNotice(error, () => retry(prompt));
}

function retry(prompt) {
  clearNotice();
  if (conversation.messages[prompt.id]) return answer(conversation.messages[prompt.id]);
  const text = $("prompt").value.trim() || prompt.content;
  writePrompt("");
  ask(text, conversation.messages[prompt.parent] ? prompt.parent : conversation.leaf, prompt.mode);
}

export function stop() {
  if (current) current.controller.abort();
}

function setAsking(isAsking) {
  const hadFocus = [$("send"), $("stop")].includes(document.activeElement);
  show($("stop"), isAsking);
  show($("send"), !isAsking);
  $("send").disabled = isAsking || !model();
  if (hadFocus) (isAsking ? $("stop") : $("prompt")).focus();
  hooks.isBusy();
}

export function writePrompt(text) {
  $("prompt").value = text;
  markScript($("prompt"), text);
  grow();
}

/** For browsers that do not size the field by its content. */
function grow() {
  if (CSS.supports("field-sizing", "content")) return;
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight}px`;
}

/** Puts the last prompt into the editor of its turn. */
export function editLast() {
  const last = [...document.querySelectorAll(".turn.mine")].at(-1);
  const edit = last && [...last.querySelectorAll("button")].find(({ textContent }) => textContent === "Edit");
  if (edit) edit.click();
}

/** A few words on the answer that is waited for. */
export function showPlace(slot) {
  if (!current || current.first) return;
  const waits = slot.queue.waiting.find(isMine);
  const runs = slot.devices.find(({ running }) => running && isMine(running));
  if (waits) {
    const ahead = waits.position - 1;
    const place = ahead ? `${plural(ahead, "request")} ahead in the queue` : "Next in the queue";
    current.turn.note(`${place}, about ${time(Math.max(1000, waits.estimate_ms))} left`);
  } else if (runs) {
    const { prompt_tokens_read: read, prompt_tokens: all } = runs.running;
    current.turn.note(read < all ? `Reading the prompt, ${read} of ${plural(all, "token")}` : "Reading the prompt");
  }
}

/* Notices. */

function showNotice(error, onRetry) {
  clearInterval(countdown);
  const [head, rest] = inWords(error);
  const isFull = error.code === "context_length_exceeded";
  const again = isFull ? button("New conversation", () => $("fresh").click()) : button("Try again", onRetry);
  $("notice").replaceChildren(element("span", {}, element("strong", {}, head), ` ${rest}`), again);
  let left = Math.ceil(error.wait);
  const tick = () => {
    if (isFull) return;
    again.disabled = left > 0;
    say(again, left > 0 ? `Try again in ${time(left * 1000)}` : "Try again");
    if (left <= 0) clearInterval(countdown);
    left -= 1;
  };
  countdown = setInterval(tick, 1000);
  tick();
  show($("notice"), true);
}

function clearNotice() {
  clearInterval(countdown);
  show($("notice"), false);
}
