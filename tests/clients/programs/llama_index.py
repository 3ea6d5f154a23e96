"""LlamaIndex's model for servers like OpenAI's: chat, stream, complete and a schema."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

URL, MODEL = sys.argv[1:]


class City(BaseModel):
    """A city."""

    city: str


llm = OpenAILike(
    model=MODEL, api_base=f"{URL}/v1", api_key="none", is_chat_model=True, is_function_calling_model=True, temperature=0, max_tokens=60
)
question = [ChatMessage(role="user", content="What is the capital city of France?")]
assert "Paris" in llm.chat(question).message.content
assert "Paris" in [part.message.content for part in llm.stream_chat(question)][-1]
assert "Paris" in llm.complete("What is the capital city of France?").text
assert isinstance(llm.as_structured_llm(City).chat(question).raw, City)
