"""OpenAI's client for Python: whole, streamed, tools, a schema, completions and responses."""

import sys

import openai
from pydantic import BaseModel

URL, MODEL = sys.argv[1:]
QUESTION = [{"role": "user", "content": "What is the capital city of France?"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}}}


class City(BaseModel):
    """A city."""

    city: str


client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none")
assert MODEL in [model.id for model in client.models.list()]

answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
assert "Paris" in answer.choices[0].message.content, answer

with client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True) as stream:
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
assert "Paris" in text, text

answer = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=[TOOL], tool_choice="required", temperature=0)
call = answer.choices[0].message.tool_calls[0]
assert call.function.name == "weather" and "city" in call.function.arguments, answer

answer = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=City, max_tokens=40, temperature=0)
assert isinstance(answer.choices[0].message.parsed, City), answer

answer = client.completions.create(model=MODEL, prompt="1, 2, 3, 4, 5,", max_tokens=4, temperature=0)
assert "6" in answer.choices[0].text, answer

answer = client.responses.create(model=MODEL, input="What is the capital city of France?", temperature=0)
assert "Paris" in answer.output_text, answer
