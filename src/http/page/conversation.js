// A conversation as a tree of messages: editing or regenerating adds a branch beside the old one.
//
// `leaf` is the last message of the branch that is shown. Plain objects without methods, as they are stored and exported.

/** An identifier. `crypto.randomUUID` needs HTTPS or a loopback address, random values do not. */
export function newId(bytes = 8) {
  return [...crypto.getRandomValues(new Uint8Array(bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, messages: {}, leaf: null };
}

/** Adds a message after `parent` (null: the first one) and shows it. */
export function addMessage(conversation, parent, fields) {
  const message = { id: newId(), parent, created: Date.now(), content: "", ...fields };
  conversation.messages[message.id] = message;
  conversation.leaf = message.id;
  conversation.updated = message.created;
  if (!conversation.title && message.role === "user") conversation.title = titleOf(message.content);
  return message;
}

function titleOf(text) {
  const [line] = text.trim().split("\n");
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

/** The messages from the first to `id`. */
export function branch(conversation, id = conversation.leaf) {
  const messages = [];
  for (let at = conversation.messages[id]; at; at = conversation.messages[at.parent]) messages.unshift(at);
  return messages;
}

function childrenOf(conversation, parent) {
  return Object.values(conversation.messages).filter((message) => message.parent === parent).sort((a, b) => a.created - b.created);
}

/** The message and its alternatives, oldest first. */
export function alternatives(conversation, message) {
  return childrenOf(conversation, message.parent);
}

/** Shows the branch through a message that was written last. */
export function showBranch(conversation, message) {
  const following = [message];
  for (const one of following) following.push(...childrenOf(conversation, one.id));
  conversation.leaf = following.reduce((latest, one) => (one.created >= latest.created ? one : latest)).id;
}

/** Deletes a message with everything that follows it, and shows an alternative or what came before. */
export function removeMessage(conversation, message) {
  const others = alternatives(conversation, message).filter(({ id }) => id !== message.id);
  const doomed = [message.id];
  for (const id of doomed) doomed.push(...childrenOf(conversation, id).map((child) => child.id));
  for (const id of doomed) delete conversation.messages[id];
  if (others.length) showBranch(conversation, others.at(-1));
  else conversation.leaf = message.parent;
}

/** Whether all words of a query are in the title or in a message. */
export function matches(conversation, query) {
  const words = query.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  const texts = [conversation.title, ...Object.values(conversation.messages).map(({ content }) => content)].map((text) => text.toLocaleLowerCase());
  return words.every((word) => texts.some((text) => text.includes(word)));
}

/** Conversations of an exported file; throws with the reason if it is not one. */
export function parseExport(text) {
  const { conversations } = JSON.parse(text);
  if (!Array.isArray(conversations)) throw new Error("the file has no list of conversations");
  return conversations.map((one) => {
    const messages = Object.entries(one.messages ?? {});
    const isSound = messages.every(([id, message]) =>
      message.id === id && ["user", "assistant"].includes(message.role) && typeof message.content === "string" && (message.parent === null || message.parent in one.messages));
    if (!isSound || typeof one.title !== "string" || !messages.some(([id]) => id === one.leaf)) throw new Error("a conversation of the file is damaged");
    const known = typeof one.id === "string" && /^[0-9a-f]{16}$/.test(one.id) ? { id: one.id } : {};
    return { ...newConversation(), ...known, title: one.title, created: Number(one.created) || Date.now(), updated: Number(one.updated) || Date.now(), messages: one.messages, leaf: one.leaf };
  });
}
