"""Ollama's client for Python: chat, generate, list, show, ps, a schema and tools."""

import sys

import ollama

URL, MODEL = sys.argv[1:]
client = ollama.Client(host=URL)
QUESTION = [{"role": "user", "content": "What is the capital city of France?"}]
GREEDY = {"temperature": 0, "num_predict": 40}


def capital(country: str) -> str:
    """Looks up a capital.

    Args:
        country: The country's name
    """
    return {"France": "Paris"}.get(country, "unknown")


assert any(model.model.startswith(MODEL) for model in client.list().models)
assert client.show(MODEL).capabilities
answer = client.chat(MODEL, QUESTION, options=GREEDY)
assert "Paris" in answer.message.content, answer
text = "".join(part.message.content for part in client.chat(MODEL, QUESTION, options=GREEDY, stream=True))
assert "Paris" in text, text
answer = client.generate(MODEL, "What is the capital city of France?", options=GREEDY)
assert "Paris" in answer.response, answer
schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
answer = client.chat(MODEL, QUESTION, options=GREEDY, format=schema)
assert '"city"' in answer.message.content, answer
client.chat(MODEL, QUESTION, options=GREEDY, tools=[capital])
assert client.ps().models
