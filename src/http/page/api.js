// Requests to the server, the API key, and errors in words.

import { sentence, time } from "./format.js";

const KEY = "eka-api-key";
let key = sessionStorage.getItem(KEY) || "";

export const hasKey = () => Boolean(key);

/** Stores the key in this tab only. */
export function setKey(value) {
  key = value;
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

function headers(more = {}) {
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

/** An error answer of the server, or a connection that failed (status 0). `wait` is in seconds. */
export class RequestError extends Error {
  constructor(message, { status = 0, code = "", wait = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, wait });
  }
}

async function errorOf(response) {
  const wait = Number(response.headers.get("retry-after")) || 0;
  let error = {};
  try {
    error = (await response.json()).error || {};
  } catch {
    // A proxy's page: only the status is known.
  }
  const message = error.message || `The server answered with status ${response.status}.`;
  return new RequestError(message, { status: response.status, code: error.code || "", wait });
}

/** Any answer of the server, whatever its status. */
export function respond(path, options) {
  return fetch(path, { cache: "no-store", ...options, headers: headers(options.headers) });
}

async function send(path, options) {
  try {
    const response = await respond(path, options);
    if (!response.ok) throw await errorOf(response);
    return response;
  } catch (error) {
    if (error instanceof RequestError || (options.signal && options.signal.aborted)) throw error;
    throw new RequestError("The server cannot be reached.");
  }
}

export async function get(path) {
  return (await send(path, {})).json();
}

export async function post(path, body) {
  return (await send(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();
}

/** Waits before each attempt to resume a stream, in milliseconds. */
const RETRIES = [0, 500, 1000, 2000, 4000, 8000];

const lost = (message) => new RequestError(message, { code: "connection_lost" });

/**
 * Posts a body and calls `onEvent` with each event of the answer's stream, and `onComment` with each comment. If the server keeps
 * streams (`server.resume_ms`), a stream whose connection is lost is resumed.
 */
export async function stream(path, body, { signal, id, onEvent, onComment }) {
  let response = await send(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-request-id": id },
    body: JSON.stringify(body),
    signal,
  });
  const position = { stream: response.headers.get("x-eka-stream-id"), event: "" };
  // Closing the connection would not end an answer that can be resumed.
  const end = () => respond(`v1/streams/${position.stream}`, { method: "DELETE" }).catch(() => {});
  if (position.stream) signal.addEventListener("abort", end, { once: true });
  try {
    for (;;) {
      try {
        return await listen(response, position, { signal, onEvent, onComment });
      } catch (error) {
        if (error.code !== "connection_lost" || !position.stream) throw error;
        onComment("resuming");
        response = await resume(position, signal, error);
      }
    }
  } finally {
    signal.removeEventListener("abort", end);
  }
}

/** Reads a stream until its end, and notes its last event. */
async function listen(response, position, { signal, onEvent, onComment }) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw lost("The connection was lost before the answer was complete.");
    }
    if (read.done) throw lost("The connection ended before the answer was complete.");
    const events = (rest + read.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const line = (name) => event.split("\n").find((one) => one.startsWith(`${name}: `))?.slice(name.length + 2);
      position.event = line("id") ?? position.event;
      const data = line("data");
      if (data === "[DONE]") return;
      if (event.startsWith(": ")) onComment(event.slice(2));
      if (data) onEvent(JSON.parse(data));
    }
  }
}

/** The rest of a stream. Throws `error` if the server cannot be reached or no longer has the stream. */
async function resume(position, signal, error) {
  const after = position.event ? `?resume=${encodeURIComponent(position.event)}` : "";
  for (const wait of RETRIES) {
    await new Promise((done) => setTimeout(done, wait));
    signal.throwIfAborted();
    try {
      return await send(`v1/streams/${position.stream}${after}`, { signal });
    } catch (refused) {
      if (signal.aborted) throw refused;
      if (refused.status && refused.status !== 502 && refused.status !== 503) throw error;
    }
  }
  throw error;
}

/** An error as a headline and a sentence. */
export function inWords(error) {
  switch (error.code) {
    case "queue_full":
      return ["The queue is full.", `Try again in about ${time(error.wait * 1000)}.`];
    case "rate_limit_exceeded":
      return ["Too many requests.", sentence(error.message)];
    case "not_ready":
      return ["Not ready yet.", "The model is still loading."];
    case "worker_down":
    case "worker_lost":
      return ["The worker process is not running.", sentence(error.message)];
    case "invalid_setting":
      return ["A setting is not valid.", `${sentence(error.message)} Correct it in the settings.`];
    case "context_length_exceeded":
      return ["The conversation is longer than the model's context.", sentence(error.message)];
    case "connection_lost":
      return ["Connection lost.", sentence(error.message)];
    default:
      return [error.status ? "The server rejected the request." : "The request failed.", sentence(error.message)];
  }
}
