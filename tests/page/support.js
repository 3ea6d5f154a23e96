// What the checks of the page share: servers, tabs, and answers in the place of a model.

import { spawn, execFileSync } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";

export const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export const { EKA, CHROMIUM } = process.env;
export const flags = process.argv.slice(2);
export const shots = flags.includes("--shots") ? flags[flags.indexOf("--shots") + 1] : null;
export const fromSources = flags.includes("--sources");
export const scratch = mkdtempSync(join(tmpdir(), "eka-page-"));
export const MAX_BYTES = 400_000;
export const PATIENCE = 30_000;

/** Tokens that take long enough to be seen coming. */
export const SLOW = ["--faults", "slow=60@decode:1"];
export const URDU = "Translate to Urdu: I am reading a book.";
export const TAMIL = "Translate to Tamil: How are you?";

export const servers = new Set();

/** `eka serve` with the demonstration model on a port of its own. */
export async function serve(...more) {
  const args = ["serve", "--model", "models/demo", "--device", "cpu", "--port", "0", "--set", "device.host_pool=true", ...more];
  const child = spawn(EKA, args, { stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  child.stderr.on("data", (text) => (log += text));
  const url = await until("the server to listen", () => /on (http:\/\/[\d.:]+)/.exec(log)?.[1], () => log);
  await until("the model", async () => (await fetch(`${url}/readyz`)).ok, () => log);
  const server = { url, child, log: () => log };
  servers.add(server);
  return server;
}

export async function end(server) {
  servers.delete(server);
  server.child.kill("SIGKILL");
}

/** An address that leads to a server; `cut` closes its connections. */
export async function relay(server) {
  const { port, hostname } = new URL(server.url);
  const open = new Set();
  const listener = createServer((client) => {
    const onward = connect(Number(port), hostname);
    for (const [from, to] of [[client, onward], [onward, client]]) {
      open.add(from);
      from.on("error", () => {}).on("close", () => { open.delete(from); to.destroy(); }).pipe(to);
    }
  });
  await new Promise((ready) => listener.listen(0, "127.0.0.1", ready));
  const cut = () => open.forEach((socket) => socket.destroy());
  return { url: `http://127.0.0.1:${listener.address().port}`, cut, close: () => { cut(); listener.close(); } };
}

/** The child of a server that is its worker. */
export function workerOf(server) {
  return Number(execFileSync("pgrep", ["-P", String(server.child.pid), "-f", "worker"]).toString().trim().split("\n")[0]);
}

export async function until(what, happens, why = () => "") {
  const begun = Date.now();
  for (;;) {
    const found = await happens();
    if (found) return found;
    if (Date.now() - begun > PATIENCE) throw new Error(`waited in vain for ${what}\n${why()}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

/** A tab, and what its console and network did. */
export async function visit(browser, server, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1180, height: 900 }, locale: "en-GB", ...options });
  const page = await context.newPage();
  const seen = { errors: [], foreign: [], bytes: 0 };
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
  page.on("request", (request) => request.url().startsWith(server.url) || seen.foreign.push(request.url()));
  if (fromSources) await useSources(page, server);
  const devtools = await context.newCDPSession(page);
  await devtools.send("Network.enable");
  devtools.on("Network.loadingFinished", ({ encodedDataLength }) => (seen.bytes += encodedDataLength));
  await page.goto(server.url);
  return { page, seen, close: () => context.close() };
}

export async function useSources(page, server) {
  for (const name of readdirSync("src/http/page").filter((name) => /\.(js|css|svg)$/.test(name))) {
    await page.route(`${server.url}/page/${name}`, (route) => route.fulfill({ path: `src/http/page/${name}` }));
  }
  await page.route(`${server.url}/`, async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, body: readFileSync("src/http/page/index.html", "utf8") });
  });
}

export const isReady = (page) => page.locator("#state-text", { hasText: "Ready" }).waitFor({ timeout: PATIENCE });

export async function ask(page, prompt) {
  await page.locator("#prompt").fill(prompt);
  await page.locator("#send").click();
}

/** The last answer, when it is complete. */
export async function answered(page, turn = page.locator(".turn.theirs").last()) {
  await turn.waitFor({ timeout: PATIENCE });
  await until("the answer", async () => (await turn.getAttribute("aria-busy")) === null);
  return { text: await turn.locator(".words").innerText(), facts: await turn.locator(".facts").innerText(), turn };
}

/** Opens the settings, calls `change`, and closes them. */
export async function withSettings(page, change) {
  await page.locator("#open-settings").click();
  await page.locator("#field-temperature").waitFor({ timeout: PATIENCE });
  await change();
  await page.locator("#close-settings").click();
}

export const greedy = (page) => withSettings(page, () => page.locator("#field-temperature").fill("0"));
export const view = (page, name) => page.locator(`[role=tab][data-view=${name}]`).click();
export const press = (turn, name) => turn.getByRole("button", { name, exact: true }).click();
export const lastAnswer = (page) => page.locator(".turn.theirs").last();

/** Answers chat requests instead of the server: `texts` as content, one event each. Gives the bodies that were sent. */
export async function answerWith(page, texts, more = {}) {
  const sent = [];
  await page.unroute("**/v1/chat/completions");
  await page.route("**/v1/chat/completions", (route) => {
    sent.push(JSON.parse(route.request().postData()));
    const deltas = [...(more.reasoning ?? []).map((text) => ({ reasoning_content: text })), ...texts.map((content) => ({ content })), ...(more.deltas ?? [])];
    const events = [...deltas.map((delta) => ({ choices: [{ index: 0, delta }] })), { choices: [{ index: 0, delta: {}, finish_reason: "stop" }] }];
    const body = events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join("");
    return route.fulfill({ headers: { "content-type": "text/event-stream" }, body: `${body}data: [DONE]\n\n` });
  });
  return sent;
}

export const pieces = (text) => text.match(/[^]{1,7}/gu);

export async function shoot(page, name, options = {}) {
  if (!shots) return;
  mkdirSync(shots, { recursive: true });
  await page.screenshot({ path: join(shots, `${name}.png`), ...options });
}

export async function findings(page) {
  // By the devtools' protocol, which the page's own policy does not bind.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const grave = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  return grave.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ")}`);
}

/** Whether the page, or a part that scrolls up and down, is wider than its window. */
export const isWide = (page) => page.evaluate(() => [document.documentElement, ...document.querySelectorAll("#scroll, .slot-view, .sidebar, .settings-panel")].some((node) => node.scrollWidth > node.clientWidth));

/** Buttons, fields and links that are visible and smaller than 44 pixels. */
export function smallTargets(page) {
  return page.evaluate(() => [...document.querySelectorAll("button, select, input:not([type=checkbox]):not([type=radio]), textarea, summary, a.quiet")].filter((node) => node.checkVisibility()).map((node) => [node.id || node.textContent, node.getBoundingClientRect()]).filter(([, { height }]) => height < 43.5).map(([name, { height }]) => `${name}: ${height}`));
}


/** Notes what the page's line of state says; gives what gives the notes. */
export function watchState(page) {
  const installed = page.evaluate(() => {
    const node = document.getElementById("state-text");
    globalThis.seenStates = [node.textContent];
    new MutationObserver(() => globalThis.seenStates.push(node.textContent)).observe(node, { childList: true });
  });
  return async () => {
    await installed;
    return page.evaluate(() => globalThis.seenStates);
  };
}

export async function post(server, path, body, signal) {
  const response = await fetch(server.url + path, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
  });
  return response.json();
}
