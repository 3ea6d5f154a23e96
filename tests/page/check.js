// Looks at the page at / with a real browser and a real server; scripts/page-check runs it.
//
// Each check is a sentence. All of them run; `ok` or `BAD` stands before each, and the exit code says whether any failed.

import assert from "node:assert/strict";
import { spawn, execFileSync } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
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
const MAX_BYTES = 400_000;
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
  for (const name of readdirSync("src/http/page").filter((name) => /\.(js|css|svg)$/.test(name))) {
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

/** Opens the settings, calls `change`, and closes them. */
async function withSettings(page, change) {
  await page.locator("#open-settings").click();
  await page.locator("#field-temperature").waitFor({ timeout: PATIENCE });
  await change();
  await page.locator("#close-settings").click();
}

const greedy = (page) => withSettings(page, () => page.locator("#field-temperature").fill("0"));
const view = (page, name) => page.locator(`[role=tab][data-view=${name}]`).click();
const press = (turn, name) => turn.getByRole("button", { name, exact: true }).click();
const lastAnswer = (page) => page.locator(".turn.theirs").last();

/** Answers chat requests instead of the server: `texts` as content, one event each. Gives the bodies that were sent. */
async function answerWith(page, texts, more = {}) {
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

const pieces = (text) => text.match(/[^]{1,7}/gu);

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

/** Whether the page, or a part that scrolls up and down, is wider than its window. */
const isWide = (page) => page.evaluate(() => [document.documentElement, ...document.querySelectorAll("#scroll, .slot-view, .sidebar, .settings-panel")].some((node) => node.scrollWidth > node.clientWidth));

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
    await until("the focus", async () => (await focused()) === "prompt");
    await greedy(page);
    await page.locator(".skip").focus();
    await page.keyboard.press("Enter");
    await until("the prompt", async () => (await focused()) === "prompt");
    const outline = await page.locator("#ask").evaluate((node) => getComputedStyle(node).outlineStyle);
    assert.notEqual(outline, "none");
    await page.keyboard.type("Translate to Hindi: Good morning, friend.");
    await page.keyboard.press("Shift+Enter");
    assert.match(await page.locator("#prompt").inputValue(), /\n$/);
    await page.keyboard.press("Enter");
    await answered(page);
    const reached = new Set();
    for (let n = 0; n < 45; n += 1) {
      await page.keyboard.press("Tab");
      reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.name || document.activeElement.tagName));
    }
    for (const wanted of ["model", "mode", "fresh", "search", "send", "open-settings", "rename", "scroll", "theme"]) assert.ok(reached.has(wanted), `${wanted} of ${[...reached]}`);
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
      await shoot(page, `chat-${colorScheme}`);
      await page.locator("#open-settings").click();
      assert.deepEqual(await findings(page), [], `${colorScheme}, chat and settings`);
      await page.locator("#close-settings").click();
      await view(page, "slot");
      await until("the chart", async () => (await page.locator("#chart .c-peak").count()) >= 24);
      assert.match(await page.locator("#chart-words").innerText(), /rose to .* and left /);
      await shoot(page, `slot-${colorScheme}`);
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
    assert.deepEqual(await smallTargets(page), []);
    await greedy(page);
    await ask(page, URDU);
    await answered(page);
    await shoot(page, "phone-chat");
    await answerWith(page, ["x".repeat(200), "\n\n|a|b|c|d|e|f|\n|-|-|-|-|-|-|\n|", "wide cell|".repeat(6), "\n\n```\n", "y".repeat(300), "\n```"]);
    await ask(page, "x".repeat(200));
    await answered(page);
    assert.equal(await isWide(page), false, "with answers");
    assert.deepEqual(await smallTargets(page), []);
    assert.deepEqual(await findings(page), []);
    for (const [opener, closer, name] of [["#open-sidebar", "#close-sidebar", "conversations"], ["#open-settings", "#close-settings", "settings"]]) {
      await page.locator(opener).click();
      assert.equal(await isWide(page), false, name);
      assert.deepEqual(await smallTargets(page), []);
      assert.deepEqual(await findings(page), []);
      await shoot(page, `phone-${name}`);
      await page.locator(closer).click();
    }
    await view(page, "slot");
    await page.locator("#figures summary").click();
    assert.equal(await isWide(page), false, "slot");
    assert.deepEqual(await findings(page), []);
    await shoot(page, "phone-slot");
    await close();
    await end(server);
  },

  async "a hundred requests wait in sight, one more is refused with a time, and it goes on when it is tried again"(browser) {
    const server = await serve("--faults", "slow=4@decode:1", "--set", "queue.max_jobs=100", "--set", "queue.timeout_ms=600000");
    const crowd = new AbortController();
    const request = { prompt: "Once upon a time ".repeat(9), max_new_tokens: 300, ignore_eos: true };
    const all = Array.from({ length: 101 }, () => post(server, "/generate-lite", request, crowd.signal).catch(() => null));
    const { page, seen, close } = await visit(browser, server);
    await view(page, "slot");
    await until("the queue", async () => (await page.locator("#waiting li").count()) >= 99);
    await shoot(page, "queue");
    await view(page, "chat");
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
    assert.match(await notice.innerText(), /The queue is full.*Try again in about \d+ (s|min)/s);
    assert.match(await notice.innerText(), /Try again in \d+ (s|min)/);
    assert.equal(await page.locator("#prompt").inputValue(), URDU, "the prompt is not lost");
    assert.deepEqual(await findings(page), []);
    await shoot(page, "queue-full");
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
    await shoot(page, "dead-worker");
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
    await shoot(page, "key");
    await page.keyboard.type("wrong-0123456789abcdef");
    await page.keyboard.press("Enter");
    await page.locator("#key-why.bad", { hasText: "Invalid API key" }).waitFor({ timeout: PATIENCE });
    await page.keyboard.type(asha);
    await page.keyboard.press("Enter");
    await isReady(page);
    assert.equal(await page.locator("#key-form").isVisible(), false);
    await greedy(page);
    await ask(page, TAMIL);
    await view(page, "slot");
    await page.locator(".d-who", { hasText: /^You/ }).waitFor({ timeout: PATIENCE });
    await view(page, "chat");
    await answered(page);
    assert.equal(await page.evaluate(() => Object.values(localStorage).length), 0, "the key is in this tab only");
    await page.reload();
    await isReady(page);
    await until("the button", () => page.locator("#forget").isVisible());
    await page.locator("#forget").click();
    await page.locator("#key-form").waitFor({ timeout: PATIENCE });
    await close();
    await end(server);
  },

  async "Markdown, code, mathematics and thinking are shown as they stream, each block in its own direction"(browser) {
    const server = await serve();
    const { page, seen, close } = await visit(browser, server);
    await isReady(page);
    const text = [
      "## Sorting", "A *stable* sort. See [the docs](https://doc.rust-lang.org).", "```rust\nfn main() {\n    v.sort(); // here\n}\n```",
      "| Name | Cost |\n|---|---:|\n| merge | $O(n \\log n)$ |", "1. one\n2. two\n   - nested", "> quoted", "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$", "یہ ایک جملہ ہے۔", "And \\(a^2\\) in English, for $5 or 6.",
    ].join("\n\n");
    await answerWith(page, pieces(text), { reasoning: pieces("I think about **sorting**.") });
    await ask(page, "Explain sorting");
    const { turn } = await answered(page);
    const words = turn.locator(".words");
    for (const [selector, shown] of [["h2", "Sorting"], ["em", "stable"], [".hljs-keyword", "fn"], ["td >> nth=0", "merge"], ["ol > li >> nth=1", "two"], ["blockquote", "quoted"]]) {
      assert.match(await words.locator(selector).first().innerText(), new RegExp(shown), selector);
    }
    assert.equal(await words.locator("math").count(), 3);
    assert.equal(await words.locator("td").nth(1).evaluate((cell) => getComputedStyle(cell).textAlign), "end");
    const directions = await words.locator("p").evaluateAll((all) => all.map((one) => [one.textContent, getComputedStyle(one).direction]));
    assert.equal(directions.find(([shown]) => shown.includes("جملہ"))[1], "rtl");
    assert.equal(directions.find(([shown]) => shown.includes("English"))[1], "ltr");
    assert.match(await turn.locator(".thinking summary").innerText(), /Thought for \d+ ms/);
    await turn.locator(".thinking summary").click();
    assert.equal(await turn.locator(".thoughts strong").innerText(), "sorting");
    await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
    await words.locator(".copy-code").click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "fn main() {\n    v.sort(); // here\n}\n");
    await shoot(page, "markdown");
    assert.deepEqual([await findings(page), seen.errors, seen.foreign], [[], [], []]);
    await close();
    await end(server);
  },

  async "a hostile answer runs nothing, asks no other host, and does not hang the page"(browser) {
    const server = await serve();
    const { page, seen, close } = await visit(browser, server);
    await isReady(page);
    const dialogs = [];
    page.on("dialog", (dialog) => dialogs.push(dialog.message()) && dialog.dismiss());
    for (const text of HOSTILE) {
      await page.locator("#fresh").click();
      await answerWith(page, text.length > 1000 ? [text.slice(0, text.length / 2), text.slice(text.length / 2)] : pieces(text));
      await ask(page, "go");
      await answered(page);
      const found = await page.evaluate(() => {
        const links = [...document.querySelectorAll("#turns a")].map((link) => link.protocol).filter((protocol) => !["http:", "https:", "mailto:", ":"].includes(protocol));
        const elements = [...document.querySelectorAll("#turns :is(script, img, iframe, object, embed, form form, style, link, video, audio)")].map((node) => node.outerHTML);
        const handlers = [...document.querySelectorAll("#turns *")].flatMap((node) => node.getAttributeNames()).filter((name) => name.startsWith("on") || name === "style");
        return [links, elements, handlers];
      });
      assert.deepEqual(found, [[], [], []], text.slice(0, 60));
      const begun = Date.now();
      await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => resolve())));
      assert.ok(Date.now() - begun < 5000, `the page hangs after ${text.slice(0, 60)}`);
    }
    console.log(`    ${HOSTILE.length} hostile answers`);
    assert.deepEqual([dialogs, seen.errors, seen.foreign], [[], [], []]);
    await close();
    await end(server);
  },

  async "prompts are edited and answers regenerated as branches; messages are copied and deleted; a request is a curl line"(browser) {
    const server = await serve();
    const { page, seen, close } = await visit(browser, server);
    await isReady(page);
    const sent = await answerWith(page, ["First."]);
    await ask(page, "One");
    await answered(page);
    await answerWith(page, ["Second."]);
    await press(lastAnswer(page), "Regenerate");
    assert.equal((await answered(page)).text.trim(), "Second.");
    await press(lastAnswer(page), "Previous version");
    assert.equal((await answered(page)).text.trim(), "First.");
    assert.match(await lastAnswer(page).locator(".branches").innerText(), /1 \/ 2/);
    const later = await answerWith(page, ["Third."]);
    await ask(page, "Two");
    await answered(page);
    assert.deepEqual(later[0].messages.map(({ content }) => content), ["One", "First.", "Two"]);
    await press(page.locator(".turn.mine").first(), "Edit");
    await page.locator(".edit").fill("Other");
    await page.keyboard.press("Control+Enter");
    await answered(page);
    assert.deepEqual(later[1].messages.map(({ content }) => content), ["Other"]);
    await press(page.locator(".turn.mine").first(), "Previous version");
    assert.equal(await page.locator(".turn").count(), 4, "the old branch is whole");
    await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
    await press(lastAnswer(page), "Copy");
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "Third.");
    await press(lastAnswer(page), "Request");
    const line = await lastAnswer(page).locator(".request pre").innerText();
    assert.match(line, /^curl http:.*\/v1\/chat\/completions .*"content":"Two"/);
    await press(lastAnswer(page), "Delete");
    await page.locator("dialog[open] button.danger").click();
    await until("the deletion", async () => (await page.locator(".turn").count()) === 3);
    await page.keyboard.press("e");
    assert.ok(sent[0].stream);
    assert.deepEqual(seen.errors, []);
    await close();
    await end(server);
  },

  async "conversations stay in the browser: found, renamed, exported, deleted after a question, and imported again"(browser) {
    const server = await serve();
    const { page, seen, close } = await visit(browser, server);
    await isReady(page);
    for (const [prompt, text] of [["About the monsoon", "It rains."], ["About mangoes", "They are sweet."]]) {
      await page.locator("#fresh").click();
      await answerWith(page, [text]);
      await ask(page, prompt);
      await answered(page);
    }
    await page.reload();
    await isReady(page);
    const entries = page.locator(".entry-title");
    await until("the conversations", async () => (await entries.count()) === 2);
    await page.locator("#search").fill("RAINS");
    assert.deepEqual(await entries.allInnerTexts(), ["About the monsoon"]);
    await entries.first().click();
    assert.match(await page.locator("#turns").innerText(), /It rains\./);
    await page.locator("#search").fill("");
    await page.locator("#rename").click();
    await page.locator("dialog[open] input").fill("Weather");
    await page.keyboard.press("Enter");
    await until("the name", async () => (await entries.allInnerTexts()).includes("Weather"));
    const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#export").click()]);
    const file = join(scratch, "conversations.json");
    await download.saveAs(file);
    await page.locator("#delete").click();
    assert.match(await page.locator("dialog[open]").innerText(), /“Weather” with 2 messages will be deleted/);
    await page.keyboard.press("Escape");
    assert.equal(await entries.count(), 2, "Escape deletes nothing");
    await page.locator("#delete").click();
    await page.locator("dialog[open] button.danger").click();
    await until("the deletion", async () => (await entries.count()) === 1);
    await page.locator("#import-file").setInputFiles(file);
    await until("the import", async () => (await entries.count()) === 3);
    await entries.getByText("Weather").click();
    assert.match(await page.locator("#turns").innerText(), /It rains\./);
    const damaged = join(scratch, "damaged.json");
    writeFileSync(damaged, '{"conversations":[{"title":"x","messages":{"a":{}},"leaf":"a"}]}');
    await page.locator("#import-file").setInputFiles(damaged);
    assert.match(await page.locator("dialog[open]").innerText(), /damaged\.json: a conversation of the file is damaged/);
    await page.locator("dialog[open] button.primary").click();
    assert.equal(await entries.count(), 3);
    assert.deepEqual(seen.errors, []);
    await close();
    await end(server);
  },

  async "every setting has a meaning and a default, is sent as it was set, and is checked while it is written"(browser) {
    const server = await serve();
    const { page, close } = await visit(browser, server);
    await isReady(page);
    const sent = await answerWith(page, ["Yes."]);
    await ask(page, "plain");
    await answered(page);
    assert.deepEqual(Object.keys(sent[0]).sort(), ["messages", "model", "stream", "stream_options"], "nothing is sent that was not set");
    await withSettings(page, async () => {
      for (const field of await page.locator("#fields .field").all()) assert.ok((await field.locator(".about").innerText()).length > 10);
      await page.locator("#system").fill("Be brief.");
      await page.locator("#field-temperature").fill("0.5");
      await page.locator("#field-top_k").fill("40");
      await page.locator("#field-stop").fill("END\nSTOP");
      await page.locator("#field-top_p").fill("7");
      assert.match(await page.locator("#field-top_p-error").innerText(), /a number, 0 to 1/);
      await page.locator("#field-json_schema").fill('{"type": ');
      assert.match(await page.locator("#field-json_schema-error").innerText(), /^Not valid yet: /);
      await page.locator("#field-json_schema").fill('{"type": "object"}');
      assert.equal(await page.locator("#field-json_schema-error").isVisible(), false);
      await shoot(page, "settings");
    });
    await page.locator("#fresh").click();
    await ask(page, "set");
    await answered(page);
    const { messages, model, stream, stream_options, ...fields } = sent[1];
    assert.deepEqual(fields, { temperature: 0.5, top_k: 40, stop: ["END", "STOP"], json_schema: { type: "object" } });
    assert.deepEqual(messages[0], { role: "system", content: "Be brief." });
    await page.reload();
    await isReady(page);
    await withSettings(page, async () => {
      assert.equal(await page.locator("#field-top_k").inputValue(), "40", "settings are kept");
      await page.locator("#save-preset").click();
      await page.locator("dialog[open] input").fill("terse");
      await page.keyboard.press("Enter");
      await until("the preset", async () => (await page.locator("#preset").inputValue()) === "terse");
      await page.locator("#reset").click();
      assert.equal(await page.locator("#field-top_k").inputValue(), "");
      await page.locator("#preset").selectOption("");
      await page.locator("#preset").selectOption("terse");
      assert.equal(await page.locator("#field-top_k").inputValue(), "40");
    });
    await close();
    await end(server);
  },

  async "probabilities of tokens are shown where they were asked for"(browser) {
    const server = await serve();
    const { page, close } = await visit(browser, server);
    await isReady(page);
    await withSettings(page, async () => {
      await page.locator("#field-temperature").fill("0");
      await page.locator("#probabilities").check();
    });
    await ask(page, TAMIL);
    const { turn } = await answered(page);
    await press(turn, "Token probabilities");
    const tokens = turn.locator(".token");
    assert.ok((await tokens.count()) >= 5);
    assert.match(await tokens.first().getAttribute("title"), /^".*" [\d.]+ %\n/);
    await shoot(page, "probabilities");
    await close();
    await end(server);
  },

  async "a server that died is shown as not reachable, nothing runs any more, and the prompt is kept"(browser) {
    const server = await serve(...SLOW);
    const { page, close } = await visit(browser, server);
    await isReady(page);
    await page.waitForTimeout(300);
    await page.locator("#prompt").fill(TAMIL);
    await page.locator("#send").click();
    const words = lastAnswer(page).locator(".words");
    await until("some of the answer", async () => (await words.innerText()).trim());
    await end(server);
    const { facts } = await answered(page);
    assert.match(facts, /connection lost/);
    await page.locator("#notice", { hasText: "Connection lost." }).waitFor({ timeout: PATIENCE });
    await page.locator("#state-text", { hasText: "Not reachable" }).waitFor({ timeout: PATIENCE });
    await view(page, "slot");
    assert.match(await page.locator("#devices").innerText(), /not reachable/);
    await shoot(page, "lost-connection");
    await view(page, "chat");
    await page.locator("#prompt").fill("A second prompt");
    await page.locator("#send").click();
    await page.locator("#notice", { hasText: "cannot be reached" }).waitFor({ timeout: PATIENCE });
    assert.equal(await page.locator("#prompt").inputValue(), "A second prompt");
    await close();
  },

  async "shortcuts do what their list says, and leave typing alone"(browser) {
    const server = await serve();
    const { page, close } = await visit(browser, server);
    await isReady(page);
    const focused = () => page.evaluate(() => document.activeElement.id);
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.press("?");
    assert.ok(await page.locator("#shortcuts").isVisible());
    await page.keyboard.press("Escape");
    await page.keyboard.press("/");
    assert.equal(await focused(), "prompt");
    await page.keyboard.type("n/?m");
    assert.equal(await page.locator("#prompt").inputValue(), "n/?m");
    await page.locator("#prompt").fill("");
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.press("f");
    assert.equal(await focused(), "search");
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.press("m");
    assert.ok(await page.locator("#slot-view").isVisible());
    await page.keyboard.press("m");
    await page.keyboard.press("s");
    assert.ok(await page.locator("#settings").isVisible());
    await page.keyboard.press("Escape");
    assert.equal(await page.locator("#settings").isVisible(), false);
    for (const theme of ["dark", "light"]) {
      await page.locator("#theme").selectOption(theme);
      assert.equal(await page.evaluate(() => getComputedStyle(document.documentElement).colorScheme), theme);
    }
    await page.reload();
    assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "light");
    await close();
    await end(server);
  },

  async "an answer of 10,000 tokens streams without long frames"(browser) {
    const server = await serve();
    const { page, close } = await visit(browser, server);
    await isReady(page);
    const paragraph = "Some *words* of a long answer, with `code` and a [link](https://example.org).\n\n- one\n- two\n\n";
    await page.evaluate((text) => {
      const events = Array.from({ length: 10_000 }, (_, at) => `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: text.slice((at * 5) % text.length, ((at * 5) % text.length) + 5) } }] })}\n\n`);
      const original = globalThis.fetch;
      globalThis.fetch = (path, options) => {
        if (path !== "v1/chat/completions") return original(path, options);
        let at = 0;
        const encoder = new TextEncoder();
        const body = new ReadableStream({
          async pull(controller) {
            await new Promise((resolve) => setTimeout(resolve, 5));
            controller.enqueue(encoder.encode(events.slice(at, at + 10).join("")));
            at += 10;
            if (at < events.length) return;
            controller.enqueue(encoder.encode("data: [DONE]\n\n"));
            controller.close();
          },
        });
        return Promise.resolve(new Response(body, { headers: { "content-type": "text/event-stream" } }));
      };
      globalThis.frames_ = [];
      let last = performance.now();
      const note = (now) => {
        globalThis.frames_.push(now - last);
        last = now;
        requestAnimationFrame(note);
      };
      requestAnimationFrame(note);
    }, paragraph);
    await ask(page, "long");
    await page.locator("#stop").waitFor({ state: "hidden", timeout: 120_000 });
    const frames = (await page.evaluate(() => globalThis.frames_)).sort((a, b) => a - b);
    console.log(`    frames: median ${frames[frames.length >> 1].toFixed(0)} ms, 99 % below ${frames[Math.floor(frames.length * 0.99)].toFixed(0)} ms, longest ${frames.at(-1).toFixed(0)} ms`);
    assert.ok((await lastAnswer(page).locator(".words li").count()) > 100);
    await close();
    await end(server);
  },
};

/** Answers that attack the page: scripts, links, and what makes parsers slow. */
const HOSTILE = [
  "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "<iframe src='javascript:alert(1)'></iframe>", "<style>body{display:none}</style>",
  "<a href='javascript:alert(1)'>x</a>", "<div style='position:fixed;inset:0'>x</div>", "<form action='https://evil.example'><button>x</button></form>", "<base href='https://evil.example/'>",
  "<meta http-equiv=refresh content='0;url=https://evil.example'>", "<link rel=stylesheet href=https://evil.example/x.css>", "<object data=x></object>", "<!-- <script>alert(1)</script> -->",
  "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))", "[x](&#106;avascript:alert(1))", "[x](data:text/html,<script>alert(1)</script>)", "[x](vbscript:x)", "[x](file:///etc/passwd)",
  "![x](https://evil.example/x.png)", "![x](javascript:alert(1))", "![x](data:image/svg+xml,<svg onload=alert(1)>)", "<javascript:alert(1)>", "[x]: javascript:alert(1)\n\n[x]",
  "[a](https://example.org \"onmouseover=alert(1)\")", "`<script>alert(1)</script>`", "```html\n<script>alert(1)</script>\n```", "```\"><script>alert(1)</script>\nx\n```", "```\nnever closed",
  "~~~js onload=alert(1)\nx", "$\\href{javascript:alert(1)}{x}$", "$\\url{javascript:alert(1)}$", "$$\\htmlStyle{color:red}{x}$$", "$\\def\\x{\\x\\x}\\x$", "$\\includegraphics{https://evil.example/x.png}$",
  "$\\color{red}{x}\\rule{9999em}{9999em}$", `$$${"\\frac{1}{".repeat(200)}`, "$".repeat(3001), "[".repeat(50_000), "*".repeat(50_000), "`".repeat(20_000), "> ".repeat(5000), "- ".repeat(3000), "_a".repeat(20_000),
  `http://${"a.".repeat(20_000)}`, "x".repeat(1_000_000), `|a|b|\n|-|-|\n${"|1|2|\n".repeat(3000)}`, `|${"a|".repeat(2000)}\n|${"-|".repeat(2000)}\n|${"b|".repeat(2000)}`, "\u202e\u2066".repeat(2000), "A\u0301\u0302\u0303".repeat(5000), `\`\`\`js\n${"let x = 1; /* ".repeat(5000)}`,
];

/** Buttons, fields and links that are visible and smaller than 44 pixels. */
function smallTargets(page) {
  return page.evaluate(() => [...document.querySelectorAll("button, select, input:not([type=checkbox]):not([type=radio]), textarea, summary, a.quiet")].filter((node) => node.checkVisibility()).map((node) => [node.id || node.textContent, node.getBoundingClientRect()]).filter(([, { height }]) => height < 43.5).map(([name, { height }]) => `${name}: ${height}`));
}

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
