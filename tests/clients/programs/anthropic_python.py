"""Anthropic's client for Python: whole, streamed, a tool with its result, and counted tokens."""

import sys

import anthropic

URL, MODEL = sys.argv[1:]
QUESTION = {"role": "user", "content": "What is the capital city of France?"}
TOOL = {"name": "capital", "description": "Looks up a capital", "input_schema": {
    "type": "object", "properties": {"country": {"enum": ["France", "Italy"]}}, "required": ["country"]}}
client = anthropic.Anthropic(base_url=URL, api_key="none")

answer = client.messages.create(model=MODEL, max_tokens=40, messages=[QUESTION], extra_body={"temperature": 0})
assert "Paris" in answer.content[0].text and answer.stop_reason == "end_turn", answer

with client.messages.stream(model=MODEL, max_tokens=40, messages=[QUESTION], extra_body={"temperature": 0}) as stream:
    text = "".join(stream.text_stream)
assert "Paris" in text, text

answer = client.messages.create(
    model=MODEL, max_tokens=80, messages=[QUESTION], tools=[TOOL], tool_choice={"type": "any"}, extra_body={"temperature": 0}
)
call = next(block for block in answer.content if block.type == "tool_use")
assert call.name == "capital" and call.input["country"] in ("France", "Italy"), answer

result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Paris"}]}
history = [QUESTION, {"role": "assistant", "content": answer.content}, result]
answer = client.messages.create(
    model=MODEL, max_tokens=40, messages=history, tools=[TOOL], system=[{"type": "text", "text": "Be brief."}], extra_body={"temperature": 0}
)
assert answer.content, answer

assert client.messages.count_tokens(model=MODEL, messages=[QUESTION]).input_tokens > 5
