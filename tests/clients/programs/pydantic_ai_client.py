"""pydantic-ai: text, a stream, and a typed answer by a native schema and by a tool."""

import asyncio
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL = sys.argv[1:]
QUESTION = "What is the capital city of France?"
SETTINGS = {"temperature": 0, "max_tokens": 80}


class City(BaseModel):
    """A city."""

    city: str


provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
for kind in (OpenAIChatModel, OpenAIResponsesModel):
    model = kind(MODEL, provider=provider)
    assert "Paris" in Agent(model).run_sync(QUESTION, model_settings=SETTINGS).output
    assert Agent(model, output_type=NativeOutput(City)).run_sync(QUESTION, model_settings=SETTINGS).output.city
    assert Agent(model, output_type=City).run_sync(QUESTION, model_settings=SETTINGS).output.city


async def streamed() -> str:
    """The streamed answer."""
    async with Agent(OpenAIChatModel(MODEL, provider=provider)).run_stream(QUESTION, model_settings=SETTINGS) as result:
        return await result.get_output()


assert "Paris" in asyncio.run(streamed())
