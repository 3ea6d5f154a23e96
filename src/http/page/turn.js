// One message of a conversation on the page: its text, thinking, tool calls, figures and what can be done with it.

import { alternatives, branch } from "./conversation.js";
import { $, button, copy, element, isFinePointer, say, show } from "./dom.js";
import { curl, markScript, plural, time } from "./format.js";
import { MarkdownView } from "./markdown.js";
import { takes } from "./settings.js";

const ENDS = {
  stop: "complete", tool_calls: "tool calls complete", length: "cut off at the maximum number of tokens", stopped: "stopped", lost: "connection lost",
  error: "failed",
};

/** What a message's end is called. */
export const endInWords = (message) => ENDS[message.end] ?? message.end;

/** A message as list item. `actions` are the functions that its buttons call with the message. */
export class Turn {
  node;
  #words = element("div", { class: "words", dir: "auto" });
  #actions = element("div", { class: "actions" });
  #message;
  #conversation;
  #do;

  constructor(conversation, message, actions) {
    [this.#conversation, this.#message, this.#do] = [conversation, message, actions];
    const isMine = message.role === "user";
    this.node = element("li", { class: `turn ${isMine ? "mine" : "theirs"}` }, element("h3", { class: "who" }, isMine ? "You" : message.model));
    if (isMine) {
      this.#words.textContent = message.content;
      markScript(this.#words, message.content);
      this.node.append(this.#words, this.#actions);
    } else {
      this.#makeAnswer();
    }
    this.update(!message.isRunning);
  }

  #makeAnswer() {
    this.thinking = element("details", { class: "thinking", hidden: true }, element("summary", {}), element("div", { class: "thoughts", dir: "auto" }));
    this.thoughts = new MarkdownView(this.thinking.lastChild);
    this.view = new MarkdownView(this.#words);
    this.tools = element("div", { class: "tools" });
    this.facts = element("p", { class: "facts" });
    const foot = element("div", { class: "turn-foot" }, this.#actions, this.facts);
    this.tokens = element("div", { class: "tokens", hidden: true });
    this.request = element("div", { class: "request", hidden: true });
    this.node.append(this.thinking, this.#words, this.tokens, this.tools, foot, this.request);
  }

  /** Shows the message as it is now. */
  update(isComplete) {
    const message = this.#message;
    if (message.role === "user") return this.#showActions();
    this.node.toggleAttribute("aria-busy", false);
    if (message.isRunning) this.node.setAttribute("aria-busy", "true");
    this.view.update(asShown(message) || (isComplete && !message.reasoning && !message.tools ? "*(an empty answer)*" : ""), isComplete);
    this.#showThinking(isComplete);
    this.#showTools();
    this.#showFacts();
    if (isComplete) this.#showActions();
    show(this.#actions, isComplete);
    if (!isComplete) this.request.hidden = true;
  }

  /** Replaces the figures by a few words while the answer has not begun. */
  note(text) {
    say(this.facts, text);
  }

  #showThinking(isComplete) {
    const { reasoning, thinkingMs, content } = this.#message;
    show(this.thinking, Boolean(reasoning));
    if (!reasoning) return;
    say(this.thinking.firstChild, content || isComplete ? `Thought for ${time(thinkingMs ?? 0)}` : "Thinking");
    this.thoughts.update(reasoning, isComplete);
  }

  #showTools() {
    const calls = this.#message.tools ?? [];
    while (this.tools.children.length < calls.length) this.tools.append(element("details", { class: "tool", open: true }, element("summary", {}), element("pre", { dir: "ltr" })));
    calls.forEach(({ name, arguments: given }, at) => {
      const [summary, text] = this.tools.children[at].children;
      say(summary, `Calls ${name}`);
      say(text, pretty(given));
    });
  }

  #showFacts() {
    const { figures, end, pieces } = this.#message;
    if (!figures) return;
    const parts = [];
    if (figures.firstMs) parts.push(["first token", time(figures.firstMs)]);
    if (figures.rate) parts.push(["tokens/s", figures.rate.toFixed(figures.rate < 10 ? 1 : 0)]);
    const tokens = figures.tokens ?? (figures.tokensBefore ?? 0) + (pieces ?? 0);
    if (tokens) parts.push([plural(tokens, "token"), ""]);
    if (figures.queueMs >= 50) parts.push(["waited", time(figures.queueMs)]);
    if (figures.resumed) parts.push([`resumed ${plural(figures.resumed, "time")}`, ""]);
    if (end) parts.push([endInWords(this.#message), ""]);
    this.facts.replaceChildren(...parts.map(([name, value]) => element("span", {}, value ? `${name} ` : name, value ? element("b", {}, value) : null)));
  }

  #showActions() {
    const message = this.#message;
    const isMine = message.role === "user";
    const made = [
      button("Copy", ({ currentTarget }) => copy(message.content, currentTarget)),
      isMine ? button("Edit", () => this.#edit()) : button("Regenerate", () => this.#do.regenerate(message)),
      !isMine && ["length", "stopped", "lost"].includes(message.end) && message.content && takes("continue_final_message")
        ? button("Continue", () => this.#do.proceed(message)) : null,
      message.tokens && message.tokens.length ? button("Token probabilities", (event) => this.#toggleTokens(event), { "aria-expanded": "false" }) : null,
      message.sent ? button("Request as curl", (event) => this.#toggleRequest(event), { "aria-expanded": "false" }) : null,
      button("Delete", () => this.#do.remove(message)),
      this.#branches(),
    ];
    this.#actions.replaceChildren(...made.filter(Boolean));
  }

  #branches() {
    const all = alternatives(this.#conversation, this.#message);
    if (all.length < 2) return null;
    const at = all.indexOf(this.#message);
    const go = (to) => () => this.#do.showBranch(all[to]);
    return element("span", { class: "branches" },
      button("‹", go(at - 1), { "aria-label": "Previous version", disabled: at === 0 }),
      element("span", {}, `${at + 1} / ${all.length}`),
      button("›", go(at + 1), { "aria-label": "Next version", disabled: at === all.length - 1 }));
  }

  #edit() {
    const field = element("textarea", { class: "edit", dir: "auto", rows: 3, "aria-label": "Edit the prompt" });
    field.value = this.#message.content;
    const close = () => {
      form.remove();
      show(this.#words, true);
      show(this.#actions, true);
    };
    const save = () => {
      const text = field.value.trim();
      if (!text) return;
      close();
      this.#do.edit(this.#message, text);
      $("prompt").focus();
    };
    const form = element("form", { class: "edit-form", submit: (event) => { event.preventDefault(); save(); } }, field,
      element("div", { class: "row" }, element("button", { class: "primary" }, "Send"), button("Cancel", close)));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); close(); }
      const isSend = event.key === "Enter" && !event.isComposing && (event.ctrlKey || event.metaKey || (isFinePointer() && !event.shiftKey));
      if (isSend) { event.preventDefault(); save(); }
    });
    this.#words.after(form);
    show(this.#words, false);
    show(this.#actions, false);
    field.focus();
  }

  #toggleTokens({ currentTarget }) {
    const isShown = this.tokens.hidden;
    if (isShown && !this.tokens.children.length) this.tokens.append(...tokenList(this.#message.tokens));
    show(this.tokens, isShown);
    show(this.#words, !isShown);
    currentTarget.setAttribute("aria-expanded", String(isShown));
  }

  /** The request as a line for a shell, and the fields that were set. */
  #toggleRequest({ currentTarget }) {
    show(this.request, this.request.hidden);
    if (!this.request.hidden) requestAnimationFrame(() => this.request.scrollIntoView({ block: "nearest" }));
    currentTarget.setAttribute("aria-expanded", String(!this.request.hidden));
    const message = this.#message;
    const { messages, ...fields } = requestBody(this.#conversation, message);
    const path = message.mode === "text" ? "v1/completions" : "v1/chat/completions";
    const line = curl({ path, method: "POST", body: JSON.stringify({ ...fields, ...(messages ? { messages } : {}) }) });
    const { stream, stream_options: _, model, prompt, ...shown } = fields;
    const used = Object.entries(shown).map(([name, value]) => `${name} = ${JSON.stringify(value)}`).join(", ") || "all settings at their defaults";
    this.request.replaceChildren(
      element("p", {}, `Model ${model}; ${used}.`),
      element("pre", { tabindex: 0, dir: "ltr" }, line),
      element("div", { class: "actions" }, button("Copy the request", (event) => copy(line, event.currentTarget))));
  }
}

/** The body that asked for a message, without what only this page needs. */
function requestBody(conversation, message) {
  const before = branch(conversation, message.parent);
  const { system, ...sent } = message.sent;
  const body = { model: message.model, ...sent };
  if (message.mode === "text") return { ...body, prompt: before.at(-1).content };
  return { ...body, messages: chatMessages(before, system) };
}

/** Messages as the API takes them. */
export function chatMessages(messages, system) {
  const said = messages.filter(({ mode }) => mode !== "text").map(({ role, content }) => ({ role, content }));
  return system ? [{ role: "system", content: system }, ...said] : said;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return `${share < 1 ? share.toPrecision(1) : share.toFixed(share < 99.5 ? 0 : 1)} %`;
};

/** The tokens of an answer, darker the less probable they were, and a line with the figures of the one that is chosen. */
function tokenList(tokens) {
  const line = element("p", { class: "token-facts", role: "status" }, "Choose a token: darker ones were less probable.");
  const text = element("p", { class: "token-text", dir: "auto" }, ...characters(tokens).map((group) => tokenButton(group, line)));
  return [line, text];
}

/** Tokens that are parts of one character belong together: bytes of it, or marks on the letter before. */
function characters(tokens) {
  const groups = [];
  let isOpen = false;
  for (const token of tokens) {
    const isBytes = token.text.startsWith("bytes:");
    if (groups.length && ((isBytes && isOpen) || /^\p{M}/u.test(token.text))) groups.at(-1).push(token);
    else groups.push([token]);
    isOpen = isBytes && textOf(groups.at(-1)).includes("\ufffd");
  }
  return groups;
}

/** The text of tokens, of which some may be bytes as the API writes them: `bytes:\\xe0\\xa4`. */
function textOf(group) {
  const parts = group.map(({ text }) => (text.startsWith("bytes:") ? [...text.matchAll(/\\x([0-9a-f]{2})/g)].map(([, hex]) => parseInt(hex, 16)) : [...new TextEncoder().encode(text)]));
  return new TextDecoder().decode(new Uint8Array(parts.flat()));
}

function tokenButton(group, line) {
  const text = textOf(group);
  const logprob = group.reduce((sum, token) => sum + token.logprob, 0);
  const doubt = Math.min(4, Math.floor(-logprob * 1.5));
  const others = group.length > 1 ? [] : (group[0].top ?? []).filter((other) => other.text !== text);
  const parts = [`${JSON.stringify(text)} ${percent(logprob)}${group.length > 1 ? ` (${group.length} tokens)` : ""}`, ...others.map((other) => `${JSON.stringify(other.text)} ${percent(other.logprob)}`)];
  const tell = () => say(line, others.length ? `${parts[0]}; instead of it: ${parts.slice(1).join(", ")}` : parts[0]);
  return element("button", { type: "button", class: `token doubt-${doubt}`, title: parts.join("\n"), click: tell, focus: tell, pointerenter: tell }, text);
}

/** An answer in the form of a JSON schema is shown as code. */
function asShown({ content, sent }) {
  return content && sent && sent.json_schema ? `\`\`\`json\n${content}\n\`\`\`` : content;
}
