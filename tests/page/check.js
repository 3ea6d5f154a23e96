// Looks at the page at / with a real browser and a real server; scripts/page-check runs it.
//
// Each check is a sentence. All of them run; `ok` or `BAD` stands before each, and the exit code says whether any failed.

import { chromium } from "playwright-core";
import { checks as access } from "./access.js";
import { checks as chat } from "./chat.js";
import { checks as service } from "./service.js";
import { CHROMIUM, end, flags, servers } from "./support.js";

const checks = { ...service, ...access, ...chat };

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
