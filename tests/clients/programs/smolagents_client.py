"""smolagents: its model for servers like OpenAI's, and its agent that calls tools."""

import sys

from smolagents import ChatMessage, OpenAIServerModel, tool

URL, MODEL = sys.argv[1:]


@tool
def capital(country: str) -> str:
    """Looks up a capital.

    Args:
        country: The country's name
    """
    return "Paris"


model = OpenAIServerModel(model_id=MODEL, api_base=f"{URL}/v1", api_key="none", temperature=0, max_tokens=80)
question = [ChatMessage(role="user", content=[{"type": "text", "text": "What is the capital city of France?"}])]
assert "Paris" in model.generate(question).content
assert "Paris" in "".join(delta.content or "" for delta in model.generate_stream(question))
called = model.generate(question, tools_to_call_from=[capital])
assert called.tool_calls[0].function.name == "capital", called
assert model.generate(question, stop_sequences=["Paris"]).content is not None
