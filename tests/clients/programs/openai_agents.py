"""OpenAI's Agents SDK: by chat completions and by responses, with a tool."""

import sys
from typing import Literal

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

URL, MODEL = sys.argv[1:]
set_tracing_disabled(True)


@function_tool
def capital(country: Literal["France", "Italy"]) -> str:
    """Looks up a capital."""
    return "Paris"


for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
    model = kind(model=MODEL, openai_client=AsyncOpenAI(base_url=f"{URL}/v1", api_key="none"))
    settings = ModelSettings(temperature=0, max_tokens=80)
    agent = Agent(name="guide", instructions="Answer briefly.", model=model, model_settings=settings)
    assert "Paris" in Runner.run_sync(agent, "Tell me the capital of France.").final_output
    forced = ModelSettings(temperature=0, max_tokens=80, tool_choice="required", parallel_tool_calls=False)
    agent = Agent(name="guide", model=model, model_settings=forced, tools=[capital], tool_use_behavior="stop_on_first_tool")
    assert Runner.run_sync(agent, "Tell me the capital of France.").final_output == "Paris"
