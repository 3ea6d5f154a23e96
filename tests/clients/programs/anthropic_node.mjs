// Anthropic's client for Node: whole and streamed.
import assert from 'node:assert';
import Anthropic from '@anthropic-ai/sdk';

const [url, model] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: 'none' });
const request = { model, max_tokens: 40, temperature: 0, messages: [{ role: 'user', content: 'What is the capital city of France?' }] };

const answer = await client.messages.create(request);
assert.match(answer.content[0].text, /Paris/);

const final = await client.messages.stream(request).finalMessage();
assert.match(final.content[0].text, /Paris/);
