// The page and its server: streaming, stopping, the queue, lost workers, keys.

import assert from "node:assert/strict";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  MAX_BYTES, PATIENCE, SLOW, TAMIL, URDU, answered, ask, end, findings, greedy, isReady, lastAnswer, post, press, relay, scratch, serve, shoot, smallTargets, until, view, visit, watchState, workerOf,
} from "./support.js";

export const checks = {
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
    assert.equal(await turn.locator(".words p").evaluate((node) => getComputedStyle(node).direction), "rtl");
    assert.match(facts, /first token [\d.]+ m?s/);
    assert.match(facts, /tokens\/s [\d.]+/);
    await page.locator("#fresh").click();
    await ask(page, TAMIL);
    const tamil = await answered(page);
    assert.equal(tamil.text.trim(), "நீங்கள் எப்படி இருக்கிறீர்கள்?");
    assert.equal(await tamil.turn.locator(".words p").evaluate((node) => getComputedStyle(node).direction), "ltr");
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

  async "the API reference scrolls, sends what is written into a form, and shows the answer or what is wrong"(browser) {
    const server = await serve();
    const { page, seen, close } = await visit(browser, server);
    await page.goto(`${server.url}/docs`);
    await page.mouse.move(700, 500);
    await page.mouse.wheel(0, 3000);
    await until("the page to scroll", () => page.evaluate(() => globalThis.scrollY > 500));
    const form = async (path) => {
      const route = page.locator(`article[data-path="${path}"]`);
      await route.locator("summary", { hasText: "Send a request" }).click();
      const received = route.locator(".received");
      const state = route.locator(".try > [role=status]");
      const sent = async (expected) => {
        await press(route, "Send");
        await state.filter({ hasText: expected }).waitFor({ timeout: PATIENCE });
        return received.innerText();
      };
      return { route, body: route.locator("textarea"), sent };
    };
    const chat = await form("/v1/chat/completions");
    const messages = [{ role: "user", content: TAMIL }];
    await chat.body.fill(JSON.stringify({ messages, temperature: 0 }));
    assert.equal(JSON.parse(await chat.sent(/^200 OK.*complete/)).choices[0].message.content, "நீங்கள் எப்படி இருக்கிறீர்கள்?");
    await chat.body.fill(JSON.stringify({ messages, temperature: 0, stream: true }));
    assert.match(await chat.sent(/^200 OK, text\/event-stream.*complete/), /data: \[DONE\]/);
    await chat.body.fill("{");
    await chat.sent(/^The body is not JSON/);
    await chat.body.fill('{"messages": 1}');
    assert.match(await chat.sent(/^400/), /messages/);
    const one = await form("/v1/models/{id}");
    await one.route.getByRole("textbox", { name: "id" }).fill("demo");
    assert.equal(JSON.parse(await one.sent(/^200/)).id, "demo");
    assert.deepEqual(await findings(page), []);
    assert.deepEqual(await smallTargets(page), []);
    await shoot(page, "reference");
    // The browser itself reports the refused request.
    assert.deepEqual([seen.errors.filter((error) => !error.includes("400")), seen.foreign], [[], []]);
    await page.setViewportSize({ width: 390, height: 844 });
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth), false);
    await close();
    await end(server);
  },

  async "models are unloaded and loaded from the page by those who may, and by nobody else"(browser) {
    const file = join(scratch, "rights.toml");
    const [asha, admin] = ["asha-0123456789abcdef", "admin-0123456789abcdef"];
    writeFileSync(file, `[[key]]\nname = "asha"\nkey = "${asha}"\n[[key]]\nname = "head"\nkey = "${admin}"\nadmin = true\n`);
    const server = await serve("--set", `auth.keys_file=${file}`);
    for (const key of [asha, admin]) {
      const { page, close } = await visit(browser, server);
      await page.locator("#key-form").waitFor({ timeout: PATIENCE });
      await page.locator("#key").fill(key);
      await page.keyboard.press("Enter");
      await isReady(page);
      await view(page, "slot");
      await page.locator(".m-state", { hasText: "Loaded in" }).waitFor({ timeout: PATIENCE });
      if (key === asha) {
        assert.equal(await page.locator(".m-unload").isVisible(), false);
      } else {
        await page.locator(".m-unload").click();
        await page.locator("dialog").getByRole("button", { name: "Unload" }).click();
        await page.locator("#models-notice", { hasText: "demo was unloaded" }).waitFor({ timeout: PATIENCE });
        await page.locator(".m-load").click();
        await page.locator("#models-notice", { hasText: "demo was loaded" }).waitFor({ timeout: PATIENCE });
        await shoot(page, "models");
      }
      await close();
    }
    await end(server);
  },

  async "the slots of a fleet have the names of their nodes, and a node that is away does not hide the others"(browser) {
    const server = await serve();
    const { page, seen, close } = await visit(browser, server);
    // What a gateway answers: the single slot four times, as nodes.
    await page.route(`${server.url}/v1/slot`, async (route) => {
      const response = await route.fetch();
      const slot = await response.json();
      const node = (index) => ({ ...slot.devices[0], index, label: `node-${index + 1}` });
      const away = { ...node(3), state: "down", name: null, models: [], memory: null };
      await route.fulfill({ response, json: { ...slot, devices: [node(0), node(1), node(2), away] } });
    });
    await view(page, "slot");
    await page.locator(".device", { hasText: "node-4" }).waitFor({ timeout: PATIENCE });
    assert.deepEqual(await page.locator("#slot-title").innerText(), "4 slots");
    assert.deepEqual(await page.locator(".d-name").allInnerTexts(), ["node-1 · CPU", "node-2 · CPU", "node-3 · CPU", "node-4"]);
    assert.match(await page.locator(".device").last().innerText(), /No worker is running/);
    await isReady(page);
    await shoot(page, "fleet");
    assert.deepEqual(seen.errors, []);
    await close();
    await end(server);
  },

  async "an answer whose connection was lost goes on where it stopped, and stop ends it at the server"(browser) {
    const server = await serve(...SLOW, "--set", "server.resume_ms=60000");
    const line = await relay(server);
    const { page, close } = await visit(browser, line);
    await isReady(page);
    await greedy(page);
    await ask(page, URDU);
    const words = lastAnswer(page).locator(".words");
    await until("some of the answer", async () => (await words.innerText()).trim());
    line.cut();
    const { text, facts } = await answered(page);
    assert.equal(text.trim(), "میں ایک کتاب پڑھ رہا ہوں۔");
    assert.doesNotMatch(facts, /connection lost/);
    const { requests } = await (await fetch(`${server.url}/v1/slot`)).json();
    assert.deepEqual([requests.done, requests.cancelled], [1, 0]);
    await ask(page, TAMIL);
    await until("some of the answer", async () => (await lastAnswer(page).locator(".words").innerText()).trim());
    await page.locator("#stop").click();
    await until("a free slot", async () => !(await (await fetch(`${server.url}/v1/slot`)).json()).devices[0].running);
    await close();
    line.close();
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
};
