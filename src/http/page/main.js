// The page at /: the API key, models, the two views, keyboard shortcuts, and watching the slot.

import { get, hasKey, setKey } from "./api.js";
import { editLast, isRunning, listModels, openConversation, showPlace, startChat, stop } from "./chat.js";
import { $, show } from "./dom.js";
import { sentence } from "./format.js";
import { askForRights, onModelsChanged, showModels } from "./models.js";
import { loadFields, startSettings } from "./settings.js";
import { keep, startSidebar } from "./sidebar.js";
import { showSlot, showState, showUnreachable } from "./slot.js";
import { onStoreFailure } from "./store.js";

let isLocked = false;

/* The key. */

function lock(why) {
  const wasKnown = hasKey();
  isLocked = true;
  show($("key-form"), true);
  document.body.classList.add("locked");
  $("key-why").textContent = wasKnown ? sentence(why) : "The key is kept in this tab until you close it.";
  $("key-why").classList.toggle("bad", wasKnown);
  showState("bad", wasKnown ? "Key rejected" : "Locked");
  $("send").disabled = true;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!key) return;
  setKey(key);
  $("key").value = "";
  connect();
});

$("forget").addEventListener("click", () => {
  setKey("");
  listModels([]);
  connect();
});

/** Asks for the models until the server answers; then watches the slot. */
async function connect() {
  try {
    const { data } = await get("v1/models");
    isLocked = false;
    show($("key-form"), false);
    document.body.classList.remove("locked");
    show($("forget"), hasKey());
    if (document.activeElement === document.body && matchMedia("(pointer: fine)").matches) $("prompt").focus();
    listModels(data);
    askForRights();
  } catch (error) {
    if (error.status === 401) return lock(error.message);
    showState("bad", "Not reachable");
    setTimeout(connect, Math.max(3, error.wait) * 1000);
    return;
  }
  poll();
  loadFields().catch(() => setTimeout(() => loadFields().catch(() => {}), 5000));
}

/* The slot: asked for while the page is visible, more often while something runs. */

let timer = 0;
let isPolling = false;

function soon() {
  clearTimeout(timer);
  if (!document.hidden && !isLocked) timer = setTimeout(poll, 150);
}

/** A request of this page began or ended: said at once, and asked soon. */
function showBusy() {
  if (isRunning()) showState("busy", "Answering");
  else if ($("state").dataset.state === "busy") showState("ready", "Ready");
  soon();
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || isLocked || isPolling) return;
  isPolling = true;
  let pause = 3000;
  try {
    const slot = await get("v1/slot");
    showSlot(slot);
    showPlace(slot);
    if (!$("slot-view").hidden) showModels((await get("v1/models")).data);
    const isBusy = isRunning() || slot.queue.length || slot.devices.some(({ running }) => running);
    if (isBusy || slot.devices.some((device) => device.state !== "ready")) pause = 1000;
  } catch (error) {
    pause = Math.max(3000, error.wait * 1000);
    if (error.status === 401) lock(error.message);
    else if (error.status !== 429) showUnreachable();
  } finally {
    isPolling = false;
  }
  if (!isLocked) timer = setTimeout(poll, pause);
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : soon()));

/* Views and panels. */

function view(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) tab.setAttribute("aria-selected", String(tab.dataset.view === name));
  show($("chat-view"), name === "chat");
  show($("slot-view"), name === "slot");
  soon();
}

const tabs = [...document.querySelectorAll("[role=tab]")];
for (const [at, tab] of tabs.entries()) {
  tab.addEventListener("click", () => view(tab.dataset.view));
  tab.addEventListener("keydown", ({ key }) => {
    if (key !== "ArrowRight" && key !== "ArrowLeft") return;
    const next = tabs[(at + 1) % tabs.length];
    next.focus();
    view(next.dataset.view);
  });
}

/** A panel beside the chat, over it in a narrow window. */
function panel(id, opener, isOpen = $(id).dataset.open !== "true") {
  $(id).dataset.open = String(isOpen);
  $(opener).setAttribute("aria-expanded", String(isOpen));
  if (isOpen) $(id).querySelector("input, textarea, button").focus();
  else if ($(id).contains(document.activeElement)) $(opener).focus();
}

const isNarrow = () => matchMedia("(max-width: 60rem)").matches;
$("open-settings").addEventListener("click", () => panel("settings", "open-settings"));
$("close-settings").addEventListener("click", () => panel("settings", "open-settings", false));
$("open-sidebar").addEventListener("click", () => panel("sidebar", "open-sidebar"));
$("close-sidebar").addEventListener("click", () => panel("sidebar", "open-sidebar", false));

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("eka-theme", theme);
}

$("theme").value = document.documentElement.dataset.theme;
$("theme").addEventListener("change", () => setTheme($("theme").value));

/* Keyboard shortcuts; the dialog lists the same ones. */

const SHORTCUTS = {
  "/": () => { view("chat"); $("prompt").focus(); },
  "?": () => $("shortcuts").showModal(),
  n: () => openChosen(null),
  f: () => { if (isNarrow()) panel("sidebar", "open-sidebar", true); $("search").focus(); },
  e: editLast,
  s: () => panel("settings", "open-settings"),
  m: () => view($("slot-view").hidden ? "slot" : "chat"),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) return escape();
  const isTyping = event.target.matches("input, textarea, select, [contenteditable]");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || isLocked || document.querySelector("dialog[open]")) return;
  const act = SHORTCUTS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

/** Stops the answer first: that is what is urgent. A second press leaves the prompt or closes a panel. */
function escape() {
  if (isRunning()) return stop();
  if (document.activeElement === $("prompt")) return $("prompt").blur();
  if (isNarrow() && $("sidebar").dataset.open === "true") panel("sidebar", "open-sidebar", false);
  else if ($("settings").dataset.open === "true") panel("settings", "open-settings", false);
}

/** In a narrow window the panels lie over the chat; a tap beside one closes it. */
document.addEventListener("pointerdown", ({ target }) => {
  if (!isNarrow() || document.querySelector("dialog[open]")) return;
  for (const [id, opener] of [["settings", "open-settings"], ["sidebar", "open-sidebar"]]) {
    if ($(id).dataset.open === "true" && !$(id).contains(target) && !$(opener).contains(target)) panel(id, opener, false);
  }
});

$("open-shortcuts").addEventListener("click", () => $("shortcuts").showModal());

function openChosen(conversation) {
  view("chat");
  openConversation(conversation);
  if (isNarrow()) panel("sidebar", "open-sidebar", false);
  if (!conversation) $("prompt").focus();
}

onModelsChanged(soon);
onStoreFailure(() => show($("store-failure"), true));
startChat({ keep, isBusy: showBusy, isLocked: lock });
startSettings();
startSidebar(openChosen);
show($("forget"), hasKey());
connect();
