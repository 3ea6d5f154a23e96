"""LiteLLM's proxy in front of eka."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import openai

URL, MODEL = sys.argv[1:]
PORT = 18911
folder = pathlib.Path(tempfile.mkdtemp())
config = folder / "config.yaml"
config.write_text(
    f"model_list:\n- model_name: small\n  litellm_params:\n    model: hosted_vllm/{MODEL}\n    api_base: {URL}/v1\n    api_key: none\n"
)
# It has no key of its own: only this program can reach it.
os.environ["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
program = pathlib.Path(sys.executable).with_name("litellm")
proxy = subprocess.Popen([program, "--config", config, "--port", str(PORT), "--host", "127.0.0.1"])
try:
    for _ in range(120):
        time.sleep(1)
        assert proxy.poll() is None, "the proxy ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health/liveliness", timeout=5)
            break
        except (urllib.error.URLError, TimeoutError):
            continue
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none")
    messages = [{"role": "user", "content": "What is the capital city of France?"}]
    answer = client.chat.completions.create(model="small", messages=messages, temperature=0)
    assert "Paris" in answer.choices[0].message.content, answer
    stream = client.chat.completions.create(model="small", messages=messages, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert "Paris" in text, text
finally:
    proxy.terminate()
    proxy.wait(20)
