// The served models: which are loaded, and loading and unloading them where the key may.

import { get, post } from "./api.js";
import { $, askInDialog, button, element, say, show } from "./dom.js";
import { bytes, number, plural, sentence, time } from "./format.js";

/** Whether the administration's routes answer with this key; unknown before they were asked. */
let isAdmin = null;

let changed = () => {};

/** `listener` is called when a model was loaded or unloaded here. */
export function onModelsChanged(listener) {
  changed = listener;
}

/** Called with every key: another key may have other rights. */
export async function askForRights() {
  try {
    await get("admin/cache");
    isAdmin = true;
  } catch (error) {
    // Only a refusal says that the key may not.
    if ([401, 403, 404].includes(error.status)) isAdmin = false;
  }
}

/** Shows the models of /v1/models. */
export function showModels(models) {
  const loaded = models.filter(({ eka }) => eka?.loaded).length;
  say($("models-count"), `${plural(models.length, "model")}, ${number(loaded)} loaded`);
  const list = $("models");
  while (list.children.length < models.length) list.append(row());
  while (list.children.length > models.length) list.lastChild.remove();
  models.forEach((model, at) => showModel(list.children[at], model));
}

function row() {
  const load = button("Load", () => change(item, "load"), { class: "m-load" });
  const unload = button("Unload", () => change(item, "unload"), { class: "m-unload" });
  const item = element("li", { class: "card model" },
    element("div", {}, element("h3", { class: "m-name" }), element("p", { class: "line m-state" }), element("p", { class: "line m-facts" })),
    element("div", { class: "actions" }, load, unload));
  return item;
}

function showModel(item, { id, eka = {} }) {
  const find = (selector) => item.querySelector(selector);
  const isAvailable = eka.status === "available";
  item.dataset.model = id;
  say(find(".m-name"), id);
  say(find(".m-state"), !isAvailable ? sentence(eka.error || `The model is ${eka.status}`) : stateOf(eka));
  const facts = [
    eka.context_length && `context of ${plural(eka.context_length, "token")}`,
    eka.vocabulary && `vocabulary of ${number(eka.vocabulary)}`,
    eka.loaded && `${eka.loaded.decode_threads} threads`,
    !eka.has_chat_template && "without a chat template",
  ];
  say(find(".m-facts"), facts.filter(Boolean).join(", "));
  show(find(".m-load"), isAdmin === true && isAvailable && !eka.loaded);
  show(find(".m-unload"), isAdmin === true && Boolean(eka.loaded));
}

function stateOf({ loaded }) {
  if (!loaded) return "Not loaded; the next request for it loads it.";
  return `Loaded in ${time(loaded.load_ms)}; the worker holds ${bytes(loaded.memory.resident)} with it.`;
}

async function change(item, what) {
  const id = item.dataset.model;
  if (what === "unload") {
    const isMeant = await askInDialog({ title: `Unload ${id}?`, text: "The next request for it loads it again.", confirm: "Unload" });
    if (!isMeant) return;
  }
  const buttons = [...item.querySelectorAll("button")];
  for (const one of buttons) one.disabled = true;
  say($("models-notice"), what === "load" ? `Loading ${id}.` : `Unloading ${id}.`);
  try {
    const { took_ms: took, memory } = await post(`admin/models/${encodeURIComponent(id)}/${what}`, {});
    const held = memory?.after ? ` The worker holds ${bytes(memory.after.resident)} now.` : "";
    say($("models-notice"), `${id} was ${what}ed in ${time(took)}.${held}`);
    showModels((await get("v1/models")).data);
    changed();
  } catch (error) {
    say($("models-notice"), sentence(error.message));
  } finally {
    for (const one of buttons) one.disabled = false;
  }
}
