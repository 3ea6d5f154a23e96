"""What OpenAI's Python client sees of eka; run by scripts/openai-client with the server's address."""

import concurrent.futures
import json
import sys

import openai

PROMPT = "Translate to Hindi: Good morning, friend."
ANSWER = "सुप्रभात, दोस्त।"
MESSAGES = [{"role": "user", "content": PROMPT}]
# The chat template, spelled out, for the route that applies none.
RENDERED = f"<s><|user|>{PROMPT}<|end|><|assistant|>"


def check(what: str, found: object, expected: object) -> None:
    """Prints one line, and ends the run at the first difference."""
    if found != expected:
        sys.exit(f"FAILED  {what}: {found!r}, expected {expected!r}")
    print(f"ok      {what}")


def complete(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=RENDERED, temperature=0, max_tokens=48)
    check("completes", answer.choices[0].text, ANSWER)
    check("counts tokens", answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
    chunks = client.completions.create(model="demo", prompt=RENDERED, temperature=0, max_tokens=48, stream=True)
    check("streams a completion", "".join(chunk.choices[0].text for chunk in chunks), ANSWER)


def chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
    check("chats", answer.choices[0].message.content, ANSWER)
    check("says why it ended", answer.choices[0].finish_reason, "stop")
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    check("streams a chat", text, ANSWER)
    check("ends a stream with its usage", chunks[-1].usage.completion_tokens, answer.usage.completion_tokens)


def respond(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="demo", input=PROMPT, temperature=0, store=False)
    check("responds", answer.output_text, ANSWER)
    check("says that it is complete", answer.status, "completed")
    usage = answer.usage
    check("counts a response's tokens", usage.total_tokens, usage.input_tokens + usage.output_tokens)
    with client.responses.stream(model="demo", input=MESSAGES, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        check("streams a response", text, ANSWER)
        check("puts a stream together", stream.get_final_response().output_text, ANSWER)
    word = {"type": "object", "properties": {"word": {"enum": ["नमस्ते"]}}, "required": ["word"], "additionalProperties": False}
    formed = {"format": {"type": "json_schema", "name": "word", "schema": word, "strict": True}}
    answer = client.responses.create(model="demo", input=PROMPT, text=formed)
    check("keeps a schema", json.loads(answer.output_text), {"word": "नमस्ते"})
    try:
        client.responses.create(model="demo", input=PROMPT, previous_response_id="resp_1")
    except openai.BadRequestError as refusal:
        check("keeps no responses", refusal.param, "previous_response_id")


def tools(client: openai.OpenAI) -> None:
    """The demo's model has never seen a tool, and its template has none."""
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    try:
        client.chat.completions.create(model="demo", messages=MESSAGES, tools=[tool])
    except openai.BadRequestError as refusal:
        check("refuses tools that the model has not", refusal.code, "tools_unsupported")
    answer = client.chat.completions.create(
        model="demo", messages=MESSAGES, tools=[tool], tool_choice="none", temperature=0
    )
    check("answers where no tool is wanted", answer.choices[0].message.content, ANSWER)


def refuse(client: openai.OpenAI) -> None:
    """A slot, a queue of one, and eight at once: some are refused, and all are answered."""

    def ask(_: int) -> str:
        try:
            client.completions.create(model="demo", prompt="Once", max_tokens=400, extra_body={"ignore_eos": True})
        except openai.RateLimitError as refusal:
            return f"{refusal.code}, come back: {int(refusal.response.headers['retry-after']) >= 1}"
        return "answered"

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(ask, range(8)))
    check("raises RateLimitError when the queue is full", set(ends), {"answered", "queue_full, come back: True"})
    try:
        client.chat.completions.create(model="another", messages=MESSAGES)
    except openai.NotFoundError as refusal:
        check("raises NotFoundError for another model", refusal.code, "model_not_found")
    try:
        client.chat.completions.create(model="demo", messages=MESSAGES, n=9)
    except openai.BadRequestError as refusal:
        check("raises BadRequestError that names the field", refusal.param, "n")


def main() -> None:
    client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
    print(f"openai {openai.__version__}")
    check("lists the model", [model.id for model in client.models.list()], ["demo"])
    complete(client)
    chat(client)
    respond(client)
    tools(client)
    refuse(client)


if __name__ == "__main__":
    main()
