"""instructor: a schema by tools and by JSON schema."""

import sys

import instructor
import openai
from pydantic import BaseModel

URL, MODEL = sys.argv[1:]


class City(BaseModel):
    """A city."""

    city: str


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key="none"), mode=mode)
    question = [{"role": "user", "content": 'What is the capital city of France?'}]
    answer = client.chat.completions.create(model=MODEL, messages=question, response_model=City, max_tokens=120, temperature=0)
    assert answer.city, (mode, answer)
