// Conversations: Markdown, branches, what the browser keeps, settings, hostile answers.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  TAMIL, answerWith, answered, ask, end, findings, isReady, lastAnswer, pieces, press, scratch, serve, shoot, until, visit, withSettings,
} from "./support.js";

export const checks = {
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
    await press(lastAnswer(page), "Request as curl");
    const line = await lastAnswer(page).locator(".request pre").innerText();
    assert.match(line, /^curl 'http:.*\/v1\/chat\/completions' .*"content":"Two"/);
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
    assert.match(await page.locator("dialog[open]").innerText(), /Imported 1 conversation\s+1 conversation of the file is here already/);
    await page.locator("dialog[open] button.primary").click();
    assert.equal(await entries.count(), 2, "a conversation is imported once");
    await entries.getByText("Weather").click();
    assert.match(await page.locator("#turns").innerText(), /It rains\./);
    const damaged = join(scratch, "damaged.json");
    writeFileSync(damaged, '{"conversations":[{"title":"x","messages":{"a":{}},"leaf":"a"}]}');
    await page.locator("#import-file").setInputFiles(damaged);
    assert.match(await page.locator("dialog[open]").innerText(), /damaged\.json: a conversation of the file is damaged/);
    await page.locator("dialog[open] button.primary").click();
    assert.equal(await entries.count(), 2);
    await page.reload();
    await isReady(page);
    assert.match(await page.locator("#turns").innerText(), /It rains\./, "a reload shows the same conversation");
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
    assert.match(await page.locator("#notice").innerText(), /A setting is not valid.*Top p: Enter a number, 0 to 1/s);
    assert.equal(sent.length, 1, "nothing is sent with a setting that is not valid");
    await withSettings(page, () => page.getByRole("button", { name: "Top p: use the default" }).click());
    await page.locator("#send").click();
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
    assert.equal(await page.locator("#state-text").innerText(), "Ready", "nothing is said to run after its end");
    await press(turn, "Token probabilities");
    const tokens = turn.locator(".token");
    assert.ok((await tokens.count()) >= 5);
    assert.match(await tokens.first().getAttribute("title"), /^".*" [\d.]+ %\n/);
    await tokens.first().click();
    assert.match(await turn.locator(".token-facts").innerText(), /^".*" [\d.]+ %; instead of it: ".*" [\d.]+ %/);
    assert.doesNotMatch(await turn.locator(".tokens").innerText(), /bytes:/, "characters in parts are shown whole");
    await shoot(page, "probabilities");
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
