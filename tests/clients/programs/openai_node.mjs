// OpenAI's client for Node: whole, streamed, tools and responses.
import assert from 'node:assert';
import OpenAI from 'openai';

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none' });
const messages = [{ role: 'user', content: 'What is the capital city of France?' }];

const answer = await client.chat.completions.create({ model, messages, temperature: 0 });
assert.match(answer.choices[0].message.content, /Paris/);

let text = '';
for await (const chunk of await client.chat.completions.create({ model, messages, temperature: 0, stream: true })) {
  text += chunk.choices[0].delta.content ?? '';
}
assert.match(text, /Paris/);

const parameters = { type: 'object', properties: { city: { enum: ['Paris', 'Rome'] } }, required: ['city'] };
const tools = [{ type: 'function', function: { name: 'weather', parameters } }];
const called = await client.chat.completions.create({ model, messages, tools, tool_choice: 'required', temperature: 0 });
assert.equal(called.choices[0].message.tool_calls[0].function.name, 'weather');

const response = await client.responses.create({ model, input: 'What is the capital city of France?', temperature: 0 });
assert.match(response.output_text, /Paris/);
