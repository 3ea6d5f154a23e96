"""LiteLLM's library, by three of its providers."""

import sys

import litellm

URL, MODEL = sys.argv[1:]
messages = [{"role": "user", "content": "What is the capital city of France?"}]
for provider, base in (("hosted_vllm", f"{URL}/v1"), ("openai", f"{URL}/v1"), ("anthropic", URL), ("ollama_chat", URL)):
    request = {"model": f"{provider}/{MODEL}", "api_base": base, "api_key": "none", "messages": messages, "temperature": 0, "max_tokens": 40}
    answer = litellm.completion(**request)
    assert "Paris" in answer.choices[0].message.content, (provider, answer)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**request, stream=True))
    assert "Paris" in text, (provider, text)
