// Looks at the page at / with a real browser and a real server; scripts/page-check runs it.
//
// Each check is a sentence. All of them run; `ok` or `BAD` stands before each, and the exit code says whether any failed.

import assert from "node:assert/strict";
import { spawn, execFileSync } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const { EKA, CHROMIUM } = process.env;
const flags = process.argv.slice(2);
const shots = flags.includes("--shots") ? flags[flags.indexOf("--shots") + 1] : null;
const fromSources = flags.includes("--sources");
const scratch = mkdtempSync(join(tmpdir(), "eka-page-"));
const MAX_BYTES = 150 * 1024;
const PATIENCE = 30_000;

/** Tokens that take long enough to be seen coming. */
const SLOW = ["--faults", "slow=60@decode:1"];
const URDU = "Translate to Urdu: I am reading a book.";
const TAMIL = "Translate to Tamil: How are you?";

const servers = new Set();

/** `eka serve` with the demonstration model on a port of its own. */
async function serve(...more) {
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

async function end(server) {
  servers.delete(server);
  server.child.kill("SIGKILL");
}

/** The child of a server that is its worker. */
function workerOf(server) {
  return Number(execFileSync("pgrep", ["-P", String(server.child.pid), "-f", "worker"]).toString().trim().split("\n")[0]);
}

async function until(what, happens, why = () => "") {
  const begun = Date.now();
  for (;;) {
    const found = await happens();
    if (found) return found;
    if (Date.now() - begun > PATIENCE) throw new Error(`waited in vain for ${what}\n${why()}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

/** A tab, and what its console and network did. */
async function visit(browser, server, options = {}) {
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

async function useSources(page, server) {
  for (const name of ["style.css", "script.js", "icon.svg"]) {
    await page.route(`${server.url}/page/${name}`, (route) => route.fulfill({ path: `src/http/page/${name}` }));
  }
  await page.route(`${server.url}/`, async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, body: readFileSync("src/http/page/index.html", "utf8") });
  });
}

const isReady = (page) => page.locator("#state-text", { hasText: "Ready" }).waitFor({ timeout: PATIENCE });

async function ask(page, prompt) {
  await page.locator("#prompt").fill(prompt);
  await page.locator("#send").click();
}

/** The last answer, when it is complete. */
async function answered(page, turn = page.locator(".turn.theirs").last()) {
  await turn.waitFor({ timeout: PATIENCE });
  await until("the answer", async () => (await turn.getAttribute("aria-busy")) === null);
  return { text: await turn.locator(".words").innerText(), facts: await turn.locator(".facts").innerText(), turn };
}

async function greedy(page) {
  await page.locator("#ask summary").click();
  await page.locator("#temperature").fill("0");
  await page.locator("#ask summary").click();
}

async function shoot(page, name, options = {}) {
  if (!shots) return;
  mkdirSync(shots, { recursive: true });
  await page.screenshot({ path: join(shots, `${name}.png`), ...options });
}

async function findings(page) {
  // By the devtools' protocol, which the page's own policy does not bind.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const grave = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  return grave.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ")}`);
}

const isWide = (page) => page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);

const checks = {
  async "the page loads quietly, small and from here alone; Urdu and Tamil stream, right to left where they should"(browser) {
    const server = await serve(...SLOW);
    const { page, seen, close } = await visit(browser, server);
    await isReady(page);
    assert.ok(seen.bytes > 0 && seen.bytes <= MAX_BYTES, `${seen.bytes} bytes`);
    console.log(`    ${seen.bytes} bytes in all`);
    await greedy(page);
    await ask(page, URDU);
    const words = page.locator(".turn.theirs .words").last();
    const partial = await until("some of the answer", async () => (await words.innerText()).trim());
    const { text, facts, turn } = await answered(page);
    assert.equal(text.trim(), "میں ایک کتاب پڑھ رہا ہوں۔");
    assert.ok(partial.length < text.length, `nothing was streamed: ${partial}`);
    assert.equal(await turn.locator(".words").evaluate((node) => getComputedStyle(node).direction), "rtl");
    assert.match(facts, /first token [\d.]+ m?s/);
    assert.match(facts, /tokens\/s [\d.]+/);
    await ask(page, "தமிழில் சொல்லுங்கள்: How are you?");
    await answered(page);
    await page.locator("#fresh").click();
    await ask(page, TAMIL);
    const tamil = await answered(page);
    assert.equal(tamil.text.trim(), "நீங்கள் எப்படி இருக்கிறீர்கள்?");
    assert.equal(await tamil.turn.locator(".words").evaluate((node) => getComputedStyle(node).direction), "ltr");
    await page.locator("#prompt").fill("میرا سوال یہ ہے");
    assert.equal(await page.locator("#prompt").evaluate((node) => getComputedStyle(node).direction), "rtl");
    assert.deepEqual([seen.errors, seen.foreign], [[], []]);
    await close();
    await end(server);
  },

  async "stop ends an answer at the server as well, by button and by Escape"(browser) {
    const server = await serve("--faults", "slow=400@decode:1");
    const { page, close } = await visit(browser, server);
    await isReady(page);
    for (const how of ["button", "Escape"]) {
      await ask(page, TAMIL);
      const words = page.locator(".turn.theirs .words").last();
      await until("some of the answer", async () => (await words.innerText()).trim());
      if (how === "button") await page.locator("#stop").click();
      else await page.keyboard.press("Escape");
      const { facts } = await answered(page);
      assert.match(facts, /stopped/);
      await until("a free slot", async () => !(await (await fetch(`${server.url}/v1/slot`)).json()).devices[0].running);
    }
    const { requests } = await (await fetch(`${server.url}/v1/slot`)).json();
    assert.deepEqual([requests.done, requests.cancelled], [0, 2]);
    await close();
    await end(server);
  },

  async "everything is done with the keyboard alone, and the focus is seen"(browser) {
    const server = await serve(...SLOW);
    const { page, close } = await visit(browser, server);
    await isReady(page);
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.className);
    await page.keyboard.press("Tab");
    assert.equal(await focused(), "skip");
    await page.keyboard.press("Enter");
    await page.keyboard.press("Tab");
    await until("the prompt", async () => ["prompt", "model"].includes(await focused()));
    if ((await focused()) !== "prompt") await page.keyboard.press("Shift+Tab");
    assert.equal(await focused(), "prompt");
    const outline = await page.locator("#ask").evaluate((node) => getComputedStyle(node).outlineStyle);
    assert.notEqual(outline, "none");
    await page.keyboard.type("Translate to Hindi: Good morning, friend.");
    await page.keyboard.press("Shift+Enter");
    assert.match(await page.locator("#prompt").inputValue(), /\n$/);
    await page.keyboard.press("Enter");
    await answered(page);
    const reached = new Set();
    for (let n = 0; n < 16; n += 1) {
      await page.keyboard.press("Tab");
      reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.name || document.activeElement.tagName));
    }
    for (const wanted of ["model", "mode", "fresh", "send", "SUMMARY", "measure"]) assert.ok(reached.has(wanted), `${wanted} of ${[...reached]}`);
    assert.match(await page.locator("#said").innerText(), /^Answer complete: /);
    await close();
    await end(server);
  },

  async "axe finds nothing serious in light and dark; the trim is drawn and told as a table"(browser) {
    const server = await serve();
    for (let n = 0; n < 24; n += 1) {
      const prompt = "Once upon a time ".repeat(2 + ((n * 7) % 23));
      await post(server, "/generate-lite", { prompt, max_new_tokens: 3 + ((n * 5) % 30), ignore_eos: true });
    }
    for (const colorScheme of ["light", "dark"]) {
      const { page, seen, close } = await visit(browser, server, { colorScheme });
      await isReady(page);
      await greedy(page);
      for (const prompt of ["Translate to Hindi: Good morning, friend.", URDU]) {
        await ask(page, prompt);
        await answered(page);
        await page.waitForTimeout(100);
      }
      await until("the chart", async () => (await page.locator("#chart .c-peak").count()) >= 24);
      assert.match(await page.locator("#chart-words").innerText(), /rose to .* and left /);
      await page.evaluate(() => scrollTo(0, 0));
      await shoot(page, `page-${colorScheme}`, { fullPage: true });
      await page.locator("#ask summary").click();
      await page.locator("#figures summary").click();
      assert.ok((await page.locator("#rows tr").count()) >= 24);
      assert.deepEqual(await findings(page), [], colorScheme);
      assert.deepEqual(seen.errors, []);
      await close();
    }
    const { history } = await (await fetch(`${server.url}/v1/slot`)).json();
    const { before, peak, trimmed } = history.at(-2).memory;
    assert.ok(peak.device.reserved > before.device.reserved && trimmed.device.reserved < peak.device.reserved);
    await end(server);
  },

  async "a window of 320 pixels needs no scrolling sideways"(browser) {
    const server = await serve();
    const { page, close } = await visit(browser, server, { viewport: { width: 320, height: 700 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 });
    await isReady(page);
    assert.equal(await isWide(page), false, "empty");
    await greedy(page);
    await ask(page, URDU);
    await answered(page);
    await ask(page, "x".repeat(200));
    await answered(page);
    await page.locator("#figures summary").click();
    await page.locator("#ask summary").click();
    assert.equal(await isWide(page), false, "with answers, settings and table");
    assert.deepEqual(await findings(page), []);
    await page.locator("#figures summary").click();
    await page.locator("#fresh").click();
    await ask(page, URDU);
    await answered(page);
    await page.locator("#ask summary").click();
    await page.evaluate(() => scrollTo(0, 0));
    await shoot(page, "page-phone", { fullPage: true });
    await close();
    await end(server);
  },

  async "a hundred requests wait in sight, one more is refused with a time, and it goes on when it is tried again"(browser) {
    const server = await serve("--faults", "slow=4@decode:1", "--set", "queue.max_jobs=100", "--set", "queue.timeout_ms=600000");
    const crowd = new AbortController();
    const request = { prompt: "Once upon a time ".repeat(9), max_new_tokens: 300, ignore_eos: true };
    const all = Array.from({ length: 101 }, () => post(server, "/generate-lite", request, crowd.signal).catch(() => null));
    const { page, seen, close } = await visit(browser, server);
    await until("the queue", async () => (await page.locator("#waiting li").count()) >= 99);
    // As many as there is room for.
    await until("a full queue", async () => {
      const { queue } = await (await fetch(`${server.url}/v1/slot`)).json();
      if (queue.length < queue.limit) all.push(post(server, "/generate-lite", request, crowd.signal).catch(() => null));
      return queue.length >= queue.limit;
    });
    await page.locator("#prompt").fill(URDU);
    await page.locator("#send").click();
    const notice = page.locator("#notice");
    await notice.waitFor({ timeout: PATIENCE });
    assert.match(await notice.innerText(), /The queue is full.*come back in about \d+ (s|min)/s);
    assert.match(await notice.innerText(), /Try again in \d+ (s|min)/);
    assert.equal(await page.locator("#prompt").inputValue(), URDU, "the prompt is not lost");
    assert.deepEqual(await findings(page), []);
    await shoot(page, "page-queue", { fullPage: true });
    crowd.abort();
    await Promise.all(all);
    await until("an empty queue", async () => (await page.locator("#waiting li").count()) === 0);
    await page.reload();
    await isReady(page);
    await ask(page, URDU);
    await answered(page);
    // The browser itself reports the refusal; nothing else may be there.
    assert.deepEqual(seen.errors.filter((error) => !error.includes("429")), []);
    await close();
    await end(server);
  },

  async "a dead worker is shown, and the answer it was giving goes on"(browser) {
    // Its successor hangs while it loads, once, as soon as the mark is gone, so that there is time to see it.
    const mark = join(scratch, "fell");
    writeFileSync(mark, "");
    const server = await serve("--faults", `slow=200@decode:1;hang@load,once=${mark}`, "--set", "watchdog.load_ms=6000");
    const { page, seen, close } = await visit(browser, server);
    await isReady(page);
    await greedy(page);
    await ask(page, TAMIL);
    const words = page.locator(".turn.theirs .words").last();
    await until("some of the answer", async () => (await words.innerText()).trim());
    const states = watchState(page);
    rmSync(mark);
    process.kill(workerOf(server), "SIGKILL");
    await page.locator("#state:not([data-state=busy]):not([data-state=ready])").waitFor({ timeout: PATIENCE });
    await shoot(page, "page-dead-worker");
    const { text, facts } = await answered(page);
    assert.equal(text.trim(), "நீங்கள் எப்படி இருக்கிறீர்கள்?");
    assert.match(facts, /resumed 1 time/);
    await isReady(page);
    const shown = await states();
    assert.ok(shown.some((text) => ["The worker is being replaced", "No worker is running"].includes(text)), `${shown}`);
    assert.deepEqual(seen.errors, []);
    await close();
    await end(server);
  },

  async "a server with keys asks for one, says when it is wrong, and names others to admins alone"(browser) {
    const file = join(scratch, "keys.toml");
    const [asha, admin] = ["asha-0123456789abcdef", "admin-0123456789abcdef"];
    writeFileSync(file, `[[key]]\nname = "asha"\nkey = "${asha}"\n[[key]]\nname = "head"\nkey = "${admin}"\nadmin = true\n`);
    const server = await serve(...SLOW, "--set", `auth.keys_file=${file}`);
    const { page, close } = await visit(browser, server);
    await page.locator("#key-form").waitFor({ timeout: PATIENCE });
    assert.equal(await page.evaluate(() => document.activeElement.id), "key");
    assert.deepEqual(await findings(page), []);
    await shoot(page, "page-key");
    await page.keyboard.type("wrong-0123456789abcdef");
    await page.keyboard.press("Enter");
    await page.locator("#key-why.bad", { hasText: "not known" }).waitFor({ timeout: PATIENCE });
    await page.keyboard.type(asha);
    await page.keyboard.press("Enter");
    await isReady(page);
    assert.equal(await page.locator("#key-form").isVisible(), false);
    await ask(page, TAMIL);
    await page.locator(".d-who", { hasText: /^You/ }).waitFor({ timeout: PATIENCE });
    await answered(page);
    assert.equal(await page.evaluate(() => Object.values(localStorage).length), 0);
    await page.reload();
    await isReady(page);
    await page.locator("#forget").click();
    await page.locator("#key-form").waitFor({ timeout: PATIENCE });
    await close();
    await end(server);
  },
};

/** Notes what the page's line of state says; gives what gives the notes. */
function watchState(page) {
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

async function post(server, path, body, signal) {
  const response = await fetch(server.url + path, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
  });
  return response.json();
}

const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const failed = [];
const only = flags.includes("--only") ? flags[flags.indexOf("--only") + 1] : "";
for (const [sentence, check] of Object.entries(checks)) {
  if (!sentence.includes(only)) continue;
  try {
    await check(browser);
    console.log(`ok  ${sentence}`);
  } catch (error) {
    failed.push(sentence);
    console.log(`BAD ${sentence}\n${error.stack}`);
  }
  for (const server of [...servers]) await end(server);
}
await browser.close();
console.log(failed.length ? `${failed.length} failed` : "the page is as it should be");
process.exit(failed.length ? 1 : 0);
