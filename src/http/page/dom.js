// Small helpers for the document.

export const $ = (id) => document.getElementById(id);

/** Makes an element. A function as an attribute's value is a listener; children that are null are left out. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(key, value);
    else if (key === "class") made.className = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function show(node, isShown) {
  node.hidden = !isShown;
}

/** A mouse or a touchpad, and so most likely a keyboard with an Enter key. */
export const isFinePointer = () => matchMedia("(pointer: fine)").matches;

/** Sets a text only if it differs, so that screen readers are not interrupted. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function button(text, onClick, attributes = {}) {
  return element("button", { type: "button", ...attributes, click: onClick }, text);
}

/** Copies a text. The clipboard's own interface needs HTTPS or a loopback address; the old command does not. */
export async function copy(text, from) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = element("textarea", { class: "hidden", readonly: true });
    field.value = text;
    from.after(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    from.focus();
  }
  const before = from.textContent;
  from.textContent = "Copied";
  setTimeout(() => (from.textContent = before), 1500);
}

/** Asks in a dialog; resolves with the text (or true) when it is confirmed, and with null when it is closed. */
export function askInDialog({ title, text, value, confirm, isDanger = false }) {
  return new Promise((resolve) => {
    const input = value === undefined ? null : element("input", { "aria-label": title, dir: "auto" });
    if (input) input.value = value;
    const form = element("form", { method: "dialog", class: "dialog-body" },
      element("h2", {}, title),
      text ? element("p", {}, text) : null,
      input,
      element("div", { class: "dialog-buttons" },
        button("Cancel", () => dialog.close()),
        element("button", { value: "confirmed", class: isDanger ? "danger" : "primary" }, confirm)));
    const dialog = element("dialog", { class: "dialog", "aria-label": title }, form);
    dialog.addEventListener("close", () => {
      const isConfirmed = dialog.returnValue === "confirmed";
      dialog.remove();
      resolve(isConfirmed ? (input ? input.value.trim() : true) : null);
    });
    document.body.append(dialog);
    dialog.showModal();
    if (input) input.select();
  });
}

export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
