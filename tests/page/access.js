// Who uses the page and how: keyboard, screen readers, themes, narrow windows.

import assert from "node:assert/strict";
import {
  SLOW, URDU, answerWith, answered, ask, end, findings, greedy, isReady, isWide, post, press, serve, shoot, smallTargets, until, view, visit,
} from "./support.js";

export const checks = {
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
};
