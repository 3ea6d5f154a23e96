// The list of conversations: search, rename, delete, export and import.

import { $, askInDialog, download, element, show } from "./dom.js";
import { matches, parseExport } from "./conversation.js";
import { moment, plural } from "./format.js";
import { conversations } from "./store.js";

/** The conversation that this tab shows, to be shown again after a reload. */
const OPEN = "eka-open";

let all = [];
let open = () => {};
let shown = null;

/** `onOpen` is called with a conversation, or with null for a new one. */
export async function startSidebar(onOpen) {
  open = onOpen;
  all = await conversations.all();
  const last = all.find(({ id }) => id === sessionStorage.getItem(OPEN));
  if (last) open(last);
  $("search").addEventListener("input", list);
  $("fresh").addEventListener("click", () => open(null));
  $("export").addEventListener("click", () => exportAll(all));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", importFile);
  $("rename").addEventListener("click", rename);
  $("export-one").addEventListener("click", () => shown && exportAll([shown]));
  $("delete").addEventListener("click", remove);
  list();
}

/** Notes which conversation is shown, and stores it if it has messages. */
export function keep(conversation) {
  shown = conversation.leaf || all.some(({ id }) => id === conversation.id) ? conversation : null;
  if (shown) sessionStorage.setItem(OPEN, shown.id);
  else sessionStorage.removeItem(OPEN);
  if (shown) {
    all = [shown, ...all.filter(({ id }) => id !== shown.id)].sort((a, b) => b.updated - a.updated);
    conversations.put(shown);
  }
  list();
}

function list() {
  const query = $("search").value.trim();
  const found = query ? all.filter((one) => matches(one, query)) : all;
  $("conversations").replaceChildren(...found.map(entry));
  $("conversations-empty").textContent = query ? "No conversation has these words." : "Conversations are kept in this browser.";
  show($("conversations-empty"), !found.length);
  show($("conversation-actions"), Boolean(shown));
  $("conversation-title").textContent = shown ? shown.title || "Untitled" : "New conversation";
}

function entry(conversation) {
  const attributes = { type: "button", class: "entry", click: () => open(conversation), "aria-current": shown && conversation.id === shown.id ? "true" : null };
  return element("li", {}, element("button", attributes,
    element("span", { class: "entry-title", dir: "auto" }, conversation.title || "Untitled"),
    element("span", { class: "entry-time" }, moment(conversation.updated))));
}

async function rename() {
  const title = await askInDialog({ title: "Name of the conversation", value: shown.title, confirm: "Rename" });
  if (!title) return;
  shown.title = title;
  keep(shown);
}

async function remove() {
  const doomed = shown;
  const text = `“${doomed.title || "Untitled"}” with ${plural(Object.keys(doomed.messages).length, "message")} will be deleted from this browser.`;
  if (!(await askInDialog({ title: "Delete the conversation?", text, confirm: "Delete", isDanger: true }))) return;
  all = all.filter(({ id }) => id !== doomed.id);
  conversations.remove(doomed.id);
  shown = null;
  open(null);
  $("prompt").focus();
}

function exportAll(chosen) {
  const day = new Date().toISOString().slice(0, 10);
  download(`eka-conversations-${day}.json`, JSON.stringify({ format: "eka-conversations", version: 1, conversations: chosen }, null, 1));
}

async function importFile() {
  const [file] = $("import-file").files;
  $("import-file").value = "";
  if (!file) return;
  try {
    const found = parseExport(await file.text());
    // The same conversation is replaced by a newer state of it only.
    const isNew = (one) => !all.some(({ id, updated }) => id === one.id && updated >= one.updated);
    const added = found.filter(isNew);
    await Promise.all(added.map(conversations.put));
    all = [...added, ...all.filter(({ id }) => !added.some((one) => one.id === id))].sort((a, b) => b.updated - a.updated);
    list();
    const known = found.length - added.length;
    await askInDialog({ title: `Imported ${plural(added.length, "conversation")}`, text: known ? `${plural(known, "conversation")} of the file ${known === 1 ? "is" : "are"} here already.` : "", confirm: "Close" });
  } catch (error) {
    await askInDialog({ title: "The file cannot be imported", text: `${file.name}: ${error.message}. Choose a file that this page exported.`, confirm: "Close" });
  }
}
