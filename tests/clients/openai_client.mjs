// What OpenAI's client for Node sees of eka; run by scripts/openai-client with the server's address.

import assert from "node:assert/strict";
import { Ajv2020 } from "ajv/dist/2020.js";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { VERSION } from "openai/version";
import { z } from "zod";

const MIN_CALLS = 40;
const PROMPT = "Translate to Hindi: Good morning, friend.";
const ANSWER = "सुप्रभात, दोस्त।";
const MESSAGES = [{ role: "user", content: PROMPT }];
const RENDERED = `<s><|user|>${PROMPT}<|end|><|assistant|>`;
const TOOLS = "tools";
const WEATHER = {
  type: "object",
  properties: { city: { enum: ["पुणे", "சென்னை"] }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const TOOL = { type: "function", function: { name: "weather", description: "It rains?", parameters: WEATHER } };
const FLAT = { type: "function", name: "weather", parameters: WEATHER, strict: true };
const NAMED = { type: "function", function: { name: "weather" } };
const FORMAT = { type: "json_schema", json_schema: { name: "weather", schema: WEATHER, strict: true } };
const Item = z.object({ word: z.enum(["नमस्ते", "வணக்கம்"]), times: z.number().int().min(1).max(5) });
const Words = z.object({ items: z.array(Item).min(1).max(2), note: z.string().max(5).nullable() });

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const isValid = new Ajv2020({ strict: false }).compile(WEATHER);

const chat = (fields) => client.chat.completions.create({ model: "demo", messages: MESSAGES, temperature: 0, ...fields });
const complete = (fields) =>
  client.completions.create({ model: "demo", prompt: RENDERED, temperature: 0, max_tokens: 48, ...fields });
const respond = (fields) => client.responses.create({ model: "demo", input: PROMPT, temperature: 0, ...fields });
const callTool = (fields) =>
  chat({ model: TOOLS, tools: [TOOL], tool_choice: NAMED, parallel_tool_calls: false, temperature: 1, seed: 3, ...fields });
const keepsSchema = (text) => assert.ok(isValid(JSON.parse(text)), text);

/** Checks that what is asked for is refused by an error of this kind that says this. */
async function refused(kind, code, param, ask) {
  await assert.rejects(ask, (error) => {
    assert.ok(error instanceof kind, `${error}`);
    assert.deepEqual([error.code, error.param], [code, param]);
    assert.ok(error.type && error.message);
    return true;
  });
}
const { BadRequestError, NotFoundError, RateLimitError } = OpenAI;

async function collect(stream, piece) {
  let text = "";
  for await (const chunk of await stream) text += piece(chunk) ?? "";
  return text;
}
const content = (chunk) => chunk.choices[0]?.delta.content;

const CALLS = {
  "models: list": async () => {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.deepEqual(ids, ["demo", TOOLS]);
  },
  "models: retrieve": async () => assert.equal((await client.models.retrieve("demo")).object, "model"),
  "models: retrieve one that is not there": () =>
    refused(NotFoundError, "model_not_found", "model", () => client.models.retrieve("other")),
  "completions: whole": async () => {
    const { choices, usage } = await complete({ user: "someone" });
    assert.deepEqual([choices[0].text, choices[0].finish_reason], [ANSWER, "stop"]);
    assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  },
  "completions: stream": async () =>
    assert.equal(await collect(complete({ stream: true }), (chunk) => chunk.choices[0].text), ANSWER),
  "completions: echo with logprobs": async () => {
    const [{ text, logprobs }] = (await complete({ prompt: "Good morning", echo: true, logprobs: 2, max_tokens: 2 })).choices;
    assert.ok(text.startsWith("Good morning"));
    // The first token is the one that every prompt begins with.
    assert.deepEqual([logprobs.token_logprobs[0], logprobs.tokens.slice(1).join("")], [null, text]);
  },
  "completions: the best of several": async () =>
    assert.equal((await complete({ prompt: RENDERED, best_of: 3 })).choices[0].text, ANSWER),
  "completions: suffix is refused by name": () =>
    refused(BadRequestError, "unsupported_field", "suffix", () => complete({ suffix: "end" })),
  "chat: whole": async () => {
    const [choice] = (await chat({})).choices;
    assert.deepEqual([choice.message.content, choice.finish_reason], [ANSWER, "stop"]);
  },
  "chat: stream with usage": async () => {
    let last;
    const stream = chat({ stream: true, stream_options: { include_usage: true } });
    assert.equal(await collect(stream, (chunk) => content((last = chunk))), ANSWER);
    assert.ok(last.usage.completion_tokens > 0);
  },
  "chat: n": async () => assert.equal((await chat({ n: 3, temperature: 1, max_tokens: 4 })).choices.length, 3),
  "chat: n beyond the limit is refused": () => refused(BadRequestError, "invalid_value", "n", () => chat({ n: 9 })),
  "chat: several stops": async () =>
    assert.equal((await chat({ stop: ["never", "दोस्त", "।"] })).choices[0].message.content, "सुप्रभात, "),
  "chat: logprobs and top_logprobs": async () => {
    const tokens = (await chat({ logprobs: true, top_logprobs: 20 })).choices[0].logprobs.content;
    assert.equal(tokens.map((token) => token.token).join(""), ANSWER);
    assert.ok(tokens.every((token) => token.top_logprobs.length === 20));
  },
  "chat: top_logprobs beyond the limit is refused": () =>
    refused(BadRequestError, "invalid_value", "top_logprobs", () => chat({ logprobs: true, top_logprobs: 21 })),
  "chat: logit_bias": async () => {
    const { tokens } = await client.post("/../tokenize", { body: { content: ANSWER, add_special: false } });
    const bias = Object.fromEntries(tokens.map((token) => [token, -100]));
    assert.ok(!(await chat({ logit_bias: bias })).choices[0].message.content.includes("सुप्रभात"));
  },
  "chat: penalties": async () => assert.ok((await chat({ presence_penalty: 1.5, frequency_penalty: -0.5 })).choices.length),
  "chat: a penalty out of range is refused": () =>
    refused(BadRequestError, "invalid_value", "frequency_penalty", () => chat({ frequency_penalty: -3 })),
  "chat: a seed repeats an answer": async () => {
    const ask = () => chat({ seed: 7, temperature: 1.5, max_tokens: 12 });
    const [one, other] = [await ask(), await ask()];
    assert.equal(one.choices[0].message.content, other.choices[0].message.content);
    assert.equal(one.system_fingerprint, other.system_fingerprint);
  },
  "chat: max_completion_tokens": async () => {
    const { usage, choices } = await chat({ max_completion_tokens: 3 });
    assert.deepEqual([usage.completion_tokens, choices[0].finish_reason], [3, "length"]);
  },
  "chat: developer and system": async () => {
    for (const role of ["developer", "system"])
      assert.ok((await chat({ messages: [{ role, content: "Be kind." }, ...MESSAGES] })).choices[0].message.content);
  },
  "chat: parts of text": async () => {
    const parts = [PROMPT.slice(0, 9), PROMPT.slice(9)].map((text) => ({ type: "text", text }));
    assert.equal((await chat({ messages: [{ role: "user", content: parts }] })).choices[0].message.content, ANSWER);
  },
  "chat: images are refused by name": () => {
    const image = { type: "image_url", image_url: { url: "data:image/png;base64,AA==" } };
    const messages = [{ role: "user", content: [image] }];
    return refused(BadRequestError, "invalid_value", "messages[0].content[0].type", () => chat({ messages }));
  },
  "chat: an answer goes back as it came": async () => {
    const { message } = (await chat({})).choices[0];
    assert.ok((await chat({ messages: [...MESSAGES, message, ...MESSAGES] })).choices.length);
  },
  "chat: the helper's stream": async () => {
    const stream = client.chat.completions.stream({ model: "demo", messages: MESSAGES, temperature: 0 });
    let text = "";
    stream.on("content", (delta) => (text += delta));
    assert.deepEqual([await stream.finalContent(), text], [ANSWER, ANSWER]);
  },
  "form: text": async () =>
    assert.equal((await chat({ response_format: { type: "text" } })).choices[0].message.content, ANSWER),
  "form: json_object, complete or the beginning of one": async () => {
    const [choice] = (await chat({ response_format: { type: "json_object" }, temperature: 1, seed: 5 })).choices;
    assert.ok(choice.message.content.startsWith("{"));
    if (choice.finish_reason === "stop") JSON.parse(choice.message.content);
  },
  "form: json_schema": async () => keepsSchema((await chat({ response_format: FORMAT })).choices[0].message.content),
  "form: json_schema, streamed": async () =>
    keepsSchema(await collect(chat({ response_format: FORMAT, stream: true, temperature: 1 }), content)),
  "form: a keyword that cannot be kept is refused": () => {
    const json_schema = { name: "n", schema: { type: "array", uniqueItems: true } };
    const response_format = { type: "json_schema", json_schema };
    return refused(BadRequestError, "invalid_constraint", "response_format", () => chat({ response_format }));
  },
  "form: chat.completions.parse with zod": async () => {
    const fields = { model: "demo", messages: MESSAGES, response_format: zodResponseFormat(Words, "words") };
    Words.parse((await client.chat.completions.parse(fields)).choices[0].message.parsed);
  },
  "form: the helper's stream with zod": async () => {
    const fields = { model: "demo", messages: MESSAGES, response_format: zodResponseFormat(Item, "item") };
    Item.parse((await client.chat.completions.stream(fields).finalChatCompletion()).choices[0].message.parsed);
  },
  "tools: a model whose template has none answers": async () => {
    assert.equal((await chat({ tools: [TOOL], max_tokens: 4 })).choices.length, 1);
  },
  "tools: a function by its name": async () => {
    const [{ message, finish_reason }] = (await callTool({})).choices;
    assert.deepEqual([message.tool_calls[0].function.name, finish_reason], ["weather", "tool_calls"]);
    keepsSchema(message.tool_calls[0].function.arguments);
  },
  "tools: required, and auto with strict": async () => {
    const [{ message }] = (await callTool({ tool_choice: "required" })).choices;
    message.tool_calls.forEach((made) => keepsSchema(made.function.arguments));
    const strict = { type: "function", function: { ...TOOL.function, strict: true } };
    assert.ok((await callTool({ tools: [strict], tool_choice: "auto", max_tokens: 20 })).choices.length);
  },
  "tools: streamed": async () => {
    const piece = (chunk) => chunk.choices[0]?.delta.tool_calls?.[0].function.arguments;
    keepsSchema(await collect(callTool({ stream: true }), piece));
  },
  "tools: the helper's stream with zod": async () => {
    const tools = [zodFunction({ name: "say", parameters: Item })];
    const fields = { model: TOOLS, messages: MESSAGES, tools, tool_choice: "required", parallel_tool_calls: false };
    const [made] = (await client.chat.completions.stream(fields).finalMessage()).tool_calls;
    Item.parse(made.function.parsed_arguments);
  },
  "tools: runTools calls the function and goes on": async () => {
    const said = [];
    const run = (word) => said.push(word) && "It is said.";
    const tools = [zodFunction({ name: "say", parameters: Item, function: run })];
    const tool_choice = { type: "function", function: { name: "say" } };
    const fields = { model: TOOLS, messages: MESSAGES, tools, tool_choice, parallel_tool_calls: false };
    await client.chat.completions.runTools(fields, { maxChatCompletions: 2 }).done();
    said.forEach((word) => Item.parse(word));
    assert.ok(said.length > 0);
  },
  "tools: none": async () =>
    assert.equal((await chat({ tools: [TOOL], tool_choice: "none" })).choices[0].message.content, ANSWER),
  "tools: calls and their results go back": async () => {
    const { message } = (await callTool({})).choices[0];
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "It rains." };
    const again = { messages: [...MESSAGES, message, result], tool_choice: "auto", max_tokens: 8 };
    assert.ok((await callTool(again)).usage.completion_tokens > 0);
  },
  "responses: whole": async () => {
    const { output_text, status } = await respond({ store: false });
    assert.deepEqual([output_text, status], [ANSWER, "completed"]);
  },
  "responses: streamed": async () =>
    assert.equal(await collect(respond({ stream: true }), (event) => event.type.endsWith("text.delta") && event.delta || ""), ANSWER),
  "responses: parse with zod": async () => {
    const fields = { model: "demo", input: PROMPT, text: { format: zodTextFormat(Words, "words") } };
    Words.parse((await client.responses.parse(fields)).output_parsed);
  },
  "responses: the helper's stream": async () => {
    const final = await client.responses.stream({ model: "demo", input: PROMPT, temperature: 0 }).finalResponse();
    assert.equal(final.output_text, ANSWER);
  },
  "responses: a call, and its result goes back": async () => {
    const fields = { model: TOOLS, tools: [FLAT], parallel_tool_calls: false };
    const first = await respond({ ...fields, tool_choice: "required" });
    keepsSchema(first.output[0].arguments);
    const result = { type: "function_call_output", call_id: first.output[0].call_id, output: "It rains." };
    const input = [...MESSAGES, ...first.output, result];
    assert.ok((await respond({ ...fields, input, tool_choice: "none", max_output_tokens: 8 })).usage.output_tokens > 0);
  },
  "responses: nothing is kept": () =>
    refused(BadRequestError, "unsupported_field", "previous_response_id", () => respond({ previous_response_id: "resp_1" })),
  "extras: sampling": async () => {
    const extras = { min_p: 0.9, top_k: 1, typical_p: 0.9, repetition_penalty: 1.01, dry_multiplier: 0.1, keep_alive: "10m" };
    assert.equal((await chat({ temperature: 1, ...extras })).choices[0].message.content, ANSWER);
  },
  "extras: regex": async () =>
    assert.match((await chat({ regex: "(yes|no), [0-9]{3}" })).choices[0].message.content, /^(yes|no), [0-9]{3}$/),
  "extras: grammar": async () =>
    assert.match((await complete({ grammar: 'start: "a" N\nN: /[1-9][0-9]?/' })).choices[0].text, /^a[1-9][0-9]?$/),
  "extras: return_progress and timings": async () => {
    let timings;
    const stream = chat({ stream: true, return_progress: true });
    assert.equal(await collect(stream, (chunk) => ((timings = chunk.timings), content(chunk))), ANSWER);
    assert.ok(timings.prefill_ms > 0);
  },
  "errors: another model": () => refused(NotFoundError, "model_not_found", "model", () => chat({ model: "other" })),
  "errors: an unknown field": () => refused(BadRequestError, "unknown_field", "temprature", () => chat({ temprature: 1 })),
  "errors: RateLimitError when the queue is full": async () => {
    const ask = () => complete({ prompt: "Once", max_tokens: 300, ignore_eos: true });
    const ends = await Promise.allSettled(Array.from({ length: 12 }, ask));
    const refusals = ends.filter((end) => end.status === "rejected").map((end) => end.reason);
    assert.ok(refusals.length > 0 && refusals.length < 12);
    for (const error of refusals) assert.ok(error instanceof RateLimitError && error.code === "queue_full", `${error}`);
  },
  "client: its own timeout, after which the server answers others": async () => {
    const fields = { model: "demo", prompt: "Once", max_tokens: 450, ignore_eos: true };
    await assert.rejects(client.completions.create(fields, { timeout: 100 }), OpenAI.APIConnectionTimeoutError);
    assert.equal((await chat({})).choices[0].message.content, ANSWER);
  },
  "client: a stream that is aborted ends": async () => {
    const stream = await complete({ prompt: "Once", max_tokens: 450, stream: true, ignore_eos: true });
    for await (const _ of stream) break;
    assert.equal((await chat({})).choices[0].message.content, ANSWER);
  },
  "client: the request's id": async () => {
    const fields = { model: "demo", messages: MESSAGES };
    const { request_id } = await client.chat.completions.create(fields, { headers: { "X-Request-Id": "mine" } }).withResponse();
    assert.equal(request_id, "mine");
  },
  "client: three at once": async () => {
    const answers = await Promise.all([chat({}), chat({}), chat({})]);
    assert.deepEqual(answers.map((answer) => answer.choices[0].message.content), [ANSWER, ANSWER, ANSWER]);
  },
};

let failed = 0;
for (const [what, make] of Object.entries(CALLS)) {
  try {
    await make();
    console.log(`ok      ${what}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${what}: ${error.stack ?? error}`);
  }
}
const made = Object.keys(CALLS).length;
console.log(`openai ${VERSION} for Node: ${made} calls, ${failed} failed`);
process.exit(failed || made < MIN_CALLS ? 1 : 0);
