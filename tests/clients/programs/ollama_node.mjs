// Ollama's client for Node: chat whole and streamed, list.
import assert from 'node:assert';
import { Ollama } from 'ollama';

const [url, model] = process.argv.slice(2);
const client = new Ollama({ host: url });
const messages = [{ role: 'user', content: 'What is the capital city of France?' }];
const options = { temperature: 0, num_predict: 40 };

const answer = await client.chat({ model, messages, options });
assert.match(answer.message.content, /Paris/);
let text = '';
for await (const part of await client.chat({ model, messages, options, stream: true })) text += part.message.content;
assert.match(text, /Paris/);
assert.ok((await client.list()).models.length);
