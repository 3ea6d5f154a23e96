// Numbers, times and sizes as text.

export const number = (n) => n.toLocaleString("en");
export const plural = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;

/** A duration in milliseconds. */
export function time(ms) {
  if (ms < 950) return `${Math.max(1, Math.round(ms))} ms`;
  if (ms < 59_500) return `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`;
  const minutes = Math.floor(ms / 60_000);
  return minutes < 60 ? `${minutes} min ${Math.round((ms % 60_000) / 1000)} s` : `${(ms / 3.6e6).toFixed(1)} h`;
}

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; n >= 999.5 && unit < 4; unit += 1) n /= 1024;
  return `${n.toFixed(n < 9.995 && unit ? 2 : n < 99.95 && unit ? 1 : 0)} ${units[unit]}`;
}

/** The time of today, "Yesterday", or a date in the browser's language. */
export function moment(at) {
  const date = new Date(at);
  const now = new Date();
  if (date.toDateString() === now.toDateString()) return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const yesterday = new Date(now.getFullYear(), now.getMonth(), now.getDate() - 1);
  return date.toDateString() === yesterday.toDateString() ? "Yesterday" : date.toLocaleDateString();
}

export function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

/** A request as a command line. `path` is relative to the page; the body is JSON or null. */
export function curl({ path, method, body }) {
  const url = `'${new URL(path, location.href).href}'`;
  const quoted = body === null ? "" : ` -H 'content-type: application/json' -d '${body.replaceAll("'", "'\\''")}'`;
  return `curl${method === "POST" && body === null ? " -X POST" : ""} ${url}${quoted}`;
}

/** Sets what style sheets need to know about the script of a text: Nastaliq needs more space between lines. */
export function markScript(node, text) {
  if (/[\u0600-\u06ff]/.test(text)) node.dataset.script = "arabic";
  else delete node.dataset.script;
}
