// Vercel's AI SDK: its providers for OpenAI's API, servers like it, and Anthropic's; text, stream, object and tool.
import assert from 'node:assert';
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { Output, generateText, streamText, tool } from 'ai';
import { z } from 'zod';

const [url, name] = process.argv.slice(2);
const prompt = 'What is the capital city of France?';
const settings = { prompt, temperature: 0, maxOutputTokens: 60, maxRetries: 0 };
const compatible = createOpenAICompatible({ name: 'eka', baseURL: `${url}/v1`, supportsStructuredOutputs: true })(name);
const models = [
  compatible,
  createOpenAI({ baseURL: `${url}/v1`, apiKey: 'none' }).chat(name),
  createOpenAI({ baseURL: `${url}/v1`, apiKey: 'none' })(name),
  createAnthropic({ baseURL: `${url}/v1`, apiKey: 'none' })(name),
];
for (const model of models) {
  assert.match((await generateText({ model, ...settings })).text, /Paris/);
  let text = '';
  for await (const part of streamText({ model, ...settings, onError: ({ error }) => { throw error; } }).textStream) text += part;
  assert.match(text, /Paris/);
}

const schema = z.object({ city: z.enum(['Paris', 'Rome']) });
const { output } = await generateText({ model: compatible, ...settings, output: Output.object({ schema }) });
assert.ok(output.city);

const capital = tool({ description: 'Looks up a capital', inputSchema: z.object({ country: z.string() }) });
const called = await generateText({ model: compatible, ...settings, tools: { capital }, toolChoice: 'required' });
assert.equal(called.toolCalls[0].toolName, 'capital');
