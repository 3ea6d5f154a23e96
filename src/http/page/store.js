// What the browser keeps: conversations, settings and presets, in IndexedDB. Nothing of it is on the server.

import { openDB } from "./libraries.js";

// Several servers may share an origin, each under its own path.
const opened = openDB(`eka ${new URL(".", location.href).pathname}`, 1, {
  upgrade(database) {
    database.createObjectStore("conversations", { keyPath: "id" });
    database.createObjectStore("values");
  },
});
// A browser that stores nothing (a private window, a full disk) still chats; what is lost is said by `onFailure`.
let onFailure = () => {};

export function onStoreFailure(listener) {
  onFailure = listener;
}

async function use(action, otherwise) {
  try {
    return await action(await opened);
  } catch (error) {
    onFailure(error);
    return otherwise;
  }
}

export const conversations = {
  /** All, the last used first. */
  all: () => use(async (database) => (await database.getAll("conversations")).sort((a, b) => b.updated - a.updated), []),
  put: (conversation) => use((database) => database.put("conversations", structuredClone(conversation))),
  remove: (id) => use((database) => database.delete("conversations", id)),
};

export const values = {
  get: (name) => use((database) => database.get("values", name)),
  put: (name, value) => use((database) => database.put("values", value, name)),
};
