"""LangChain for Python: its models for OpenAI, Anthropic and Ollama, and an agent of LangGraph with a tool."""

import sys

from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

URL, MODEL = sys.argv[1:]
QUESTION = "What is the capital city of France?"


class City(BaseModel):
    """A city."""

    city: str


@tool
def capital(country: str) -> str:
    """Looks up a capital."""
    return "Paris"


openai = ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key="none", temperature=0, max_tokens=60)
for model in (
    openai,
    ChatAnthropic(model=MODEL, base_url=URL, api_key="none", temperature=0, max_tokens=60),
    ChatOllama(model=MODEL, base_url=URL, temperature=0, num_predict=60),
):
    assert "Paris" in model.invoke(QUESTION).text, model
    text = "".join(chunk.text for chunk in model.stream(QUESTION))
    assert "Paris" in text, (model, text)

assert isinstance(openai.with_structured_output(City).invoke(QUESTION), City)
called = openai.bind_tools([capital], tool_choice="capital").invoke(QUESTION)
assert called.tool_calls[0]["name"] == "capital", called
