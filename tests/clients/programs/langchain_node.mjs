// LangChain for Node: its model for OpenAI, whole, streamed and with a tool.
import assert from 'node:assert';
import { ChatOpenAI } from '@langchain/openai';

const [url, model] = process.argv.slice(2);
const chat = new ChatOpenAI({ model, apiKey: 'none', temperature: 0, maxTokens: 60, configuration: { baseURL: `${url}/v1` } });

assert.match((await chat.invoke('What is the capital city of France?')).content, /Paris/);
let text = '';
for await (const chunk of await chat.stream('What is the capital city of France?')) text += chunk.content;
assert.match(text, /Paris/);
const parameters = { type: 'object', properties: { country: { type: 'string' } }, required: ['country'] };
const tools = [{ type: 'function', function: { name: 'capital', description: 'Looks up a capital', parameters } }];
const called = await chat.bindTools(tools, { tool_choice: 'capital' }).invoke('What is the capital city of France?');
assert.equal(called.tool_calls[0].name, 'capital');
