"""What the Python clients' calls share: each is one function that raises where the answer is not the expected one."""

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Literal

import jsonschema
import openai
from pydantic import BaseModel, Field

PROMPT = "Translate to Hindi: Good morning, friend."
ANSWER = "सुप्रभात, दोस्त।"
MESSAGES = [{"role": "user", "content": PROMPT}]
# The chat template, spelled out, for the route that applies none.
RENDERED = f"<s><|user|>{PROMPT}<|end|><|assistant|>"
# The demo's model with the template of a model that calls tools.
TOOLS_MODEL = "tools"
MIN_CALLS = 40

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["पुणे", "சென்னை"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WORD = {
    "type": "object",
    "properties": {"word": {"enum": ["नमस्ते", "வணக்கம்"]}, "times": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["word", "times"],
    "additionalProperties": False,
}

TOOL = {"type": "function", "function": {"name": "weather", "description": "It rains?", "parameters": WEATHER}}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}
FLAT_TOOL = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
NAMED = {"type": "function", "function": {"name": "weather"}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "word", "schema": WORD, "strict": True}}


class Item(BaseModel):
    """A word, and how often."""

    word: Literal["नमस्ते", "வணக்கம்"]
    times: int = Field(ge=1, le=5)


calls: list[tuple[str, Callable]] = []


def call(what: str) -> Callable:
    """Adds a call to those that `run` makes, in their order."""

    def add(function: Callable) -> Callable:
        calls.append((what, function))
        return function

    return add


def same(found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"{found!r}, expected {expected!r}")


def valid(text: str | dict, schema: dict) -> None:
    """Checks JSON, or its text, by a validator that shares no code with eka."""
    found = json.loads(text) if isinstance(text, str) else text
    jsonschema.Draft202012Validator(schema).validate(found)


def refused(kind: type[openai.APIStatusError], code: str, param: str | None, ask: Callable) -> openai.APIStatusError:
    """The error that `ask` raises, which must have this type and contain this text."""
    try:
        ask()
    except kind as error:
        same((error.code, error.param), (code, param))
        same(bool(error.type) and bool(error.message), True)
        return error
    raise AssertionError(f"nothing was raised, expected {code} of {param}")


def run(name: str, client: object) -> None:
    """Makes all calls; a failed one does not keep the others from being made, but fails the run."""
    failed = 0
    for what, function in calls:
        try:
            made = function(client)
            if inspect.iscoroutine(made):
                asyncio.run(made)
            print(f"ok      {what}")
        except Exception:
            failed += 1
            print(f"FAILED  {what}: {traceback.format_exc(limit=-4)}")
    print(f"{name}: {len(calls)} calls, {failed} failed")
    if failed or len(calls) < MIN_CALLS:
        sys.exit(1)
