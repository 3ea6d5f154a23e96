"""What OpenAI's Python client sees of eka; run by scripts/openai-client with the server's address."""

import asyncio
import concurrent.futures
import json
import sys

import openai
from client_calls import ANSWER, FLAT_TOOL, FORMAT, MESSAGES, NAMED, NOW, PROMPT, RENDERED, TOOL, TOOLS_MODEL, WEATHER, WORD
from client_calls import Item, call, refused, run, same, valid
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel, Field

class Words(BaseModel):
    items: list[Item] = Field(min_length=1, max_length=2)
    note: str | None = Field(max_length=5)


def chat(client: OpenAI, **fields) -> object:
    return client.chat.completions.create(**{"model": "demo", "messages": MESSAGES, "temperature": 0, **fields})


def complete(client: OpenAI, **fields) -> object:
    return client.completions.create(**{"model": "demo", "prompt": RENDERED, "temperature": 0, "max_tokens": 48, **fields})


def respond(client: OpenAI, **fields) -> object:
    return client.responses.create(**{"model": "demo", "input": PROMPT, "temperature": 0, "store": False, **fields})


def call_tool(client: OpenAI, **fields) -> object:
    return chat(client, **{"model": TOOLS_MODEL, "tools": [TOOL, NOW], "tool_choice": NAMED, "temperature": 1, "seed": 3, **fields})


def check_calls(calls: list, most: int = 9) -> None:
    same(1 <= len(calls) <= most, True)
    for made in calls:
        same(made.type, "function")
        valid(made.function.arguments, WEATHER if made.function.name == "weather" else NOW["function"]["parameters"])


@call("models: list")
def _(client):
    same([model.id for model in client.models.list()], ["demo", TOOLS_MODEL])


@call("models: retrieve")
def _(client):
    model = client.models.retrieve("demo")
    same((model.id, model.object), ("demo", "model"))


@call("models: retrieve one that is not there")
def _(client):
    refused(NotFoundError, "model_not_found", "model", lambda: client.models.retrieve("other"))


@call("completions: text and usage")
def _(client):
    answer = complete(client, user="someone")
    same((answer.choices[0].text, answer.choices[0].finish_reason), (ANSWER, "stop"))
    same(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)


@call("completions: stream with usage")
def _(client):
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    same("".join(chunk.choices[0].text for chunk in chunks if chunk.choices), ANSWER)
    same(chunks[-1].usage.completion_tokens > 0, True)


@call("completions: n, streamed")
def _(client):
    texts = ["", ""]
    for chunk in complete(client, stream=True, n=2):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    same(texts, [ANSWER, ANSWER])


@call("completions: echo with logprobs")
def _(client):
    answer = complete(client, prompt="Good morning", echo=True, logprobs=3, max_tokens=2).choices[0]
    scores = answer.logprobs
    same(answer.text.startswith("Good morning"), True)
    same((len(scores.tokens), scores.token_logprobs[0]), (len(scores.token_logprobs), None))
    same(all(len(others) >= 3 for others in scores.top_logprobs[1:]), True)
    same(scores.text_offset, sorted(scores.text_offset))


@call("completions: a prompt of token ids")
def _(client):
    same(complete(client, prompt=[1, 300, 301], max_tokens=1).usage.prompt_tokens, 3)


@call("completions: one prompt in a list")
def _(client):
    same(complete(client, prompt=[RENDERED]).choices[0].text, ANSWER)


@call("completions: two prompts have an answer each")
def _(client):
    answers = complete(client, prompt=[RENDERED, RENDERED]).choices
    same([(answer.index, answer.text) for answer in answers], [(0, ANSWER), (1, ANSWER)])


@call("completions: best_of as many as n")
def _(client):
    same(len(complete(client, n=2, best_of=2).choices), 2)


@call("completions: the best of several")
def _(client):
    same(complete(client, prompt=RENDERED, best_of=3).choices[0].text, ANSWER)


@call("completions: suffix is refused by name")
def _(client):
    refused(BadRequestError, "unsupported_field", "suffix", lambda: complete(client, suffix="end"))


@call("chat: whole")
def _(client):
    choice = chat(client).choices[0]
    same((choice.message.content, choice.message.role, choice.finish_reason), (ANSWER, "assistant", "stop"))


@call("chat: stream with usage at its end")
def _(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), ANSWER)
    same((chunks[-1].choices, chunks[-1].usage.completion_tokens), ([], chat(client).usage.completion_tokens))


@call("chat: n")
def _(client):
    choices = chat(client, n=3, temperature=1, max_tokens=4).choices
    same([choice.index for choice in choices], [0, 1, 2])


@call("chat: n beyond the limit is refused")
def _(client):
    refused(BadRequestError, "invalid_value", "n", lambda: chat(client, n=9))


@call("chat: several stops")
def _(client):
    choice = chat(client, stop=["never", "दोस्त", "\n\n", "।"]).choices[0]
    same((choice.message.content, choice.finish_reason), ("सुप्रभात, ", "stop"))


@call("chat: sixteen stops, and no more")
def _(client):
    stops = [f"never {i}" for i in range(17)]
    same(chat(client, stop=stops[:16]).choices[0].message.content, ANSWER)
    refused(BadRequestError, "invalid_value", "stop", lambda: chat(client, stop=stops))


@call("chat: logprobs and top_logprobs")
def _(client):
    tokens = chat(client, logprobs=True, top_logprobs=20).choices[0].logprobs.content
    same("".join(token.token for token in tokens), ANSWER)
    same(all(len(token.top_logprobs) == 20 and token.logprob <= 0 for token in tokens), True)


@call("chat: streamed logprobs")
def _(client):
    chunks = [chunk.choices[0] for chunk in chat(client, logprobs=True, stream=True)]
    tokens = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    same("".join(token.token for token in tokens), ANSWER)


@call("chat: top_logprobs beyond the limit is refused")
def _(client):
    refused(BadRequestError, "invalid_value", "top_logprobs", lambda: chat(client, logprobs=True, top_logprobs=21))


@call("chat: logit_bias")
def _(client):
    tokens = client.post("/../tokenize", body={"content": ANSWER, "add_special": False}, cast_to=object)["tokens"]
    banned = chat(client, logit_bias={str(token): -100 for token in tokens}).choices[0].message.content
    same(any(word in (banned or "") for word in ["सुप्रभात", "दोस्त"]), False)
    refused(BadRequestError, "invalid_value", "logit_bias.99999", lambda: chat(client, logit_bias={"99999": 1}))


@call("chat: penalties")
def _(client):
    same(bool(chat(client, presence_penalty=1.5, frequency_penalty=-0.5).choices[0].message.content), True)
    refused(BadRequestError, "invalid_value", "presence_penalty", lambda: chat(client, presence_penalty=2.5))


@call("chat: a seed repeats an answer, and system_fingerprint says that it may")
def _(client):
    one, other = (chat(client, seed=7, temperature=1.5, max_tokens=12) for _ in range(2))
    same(one.choices[0].message.content, other.choices[0].message.content)
    same((one.system_fingerprint, bool(one.system_fingerprint)), (other.system_fingerprint, True))


@call("chat: max_completion_tokens")
def _(client):
    answer = chat(client, max_completion_tokens=3)
    same((answer.usage.completion_tokens, answer.choices[0].finish_reason), (3, "length"))


@call("chat: top_p, and one out of range")
def _(client):
    same(chat(client, temperature=1, top_p=0.01).choices[0].message.content, ANSWER)
    refused(BadRequestError, "invalid_value", "top_p", lambda: chat(client, top_p=1.5))


@call("chat: user, metadata, store and other fields that ask nothing of an answer")
def _(client):
    answer = chat(client, user="someone", metadata={"a": "b"}, store=False, service_tier="auto", safety_identifier="c",
                  prompt_cache_key="d", modalities=["text"])
    same(answer.choices[0].message.content, ANSWER)


@call("chat: developer, system and a named user")
def _(client):
    for role in ["developer", "system"]:
        messages = [{"role": role, "content": "Be kind."}, {"role": "user", "name": "ann", "content": PROMPT}]
        same(bool(chat(client, messages=messages).choices[0].message.content), True)


@call("chat: parts of text")
def _(client):
    parts = [{"type": "text", "text": PROMPT[:9]}, {"type": "text", "text": PROMPT[9:]}]
    same(chat(client, messages=[{"role": "user", "content": parts}]).choices[0].message.content, ANSWER)


@call("chat: images, sounds and files are refused by name")
def _(client):
    for part in [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_data": "AA=="}},
    ]:
        messages = [{"role": "user", "content": [{"type": "text", "text": "See:"}, part]}]
        error = refused(BadRequestError, "invalid_value", "messages[0].content[1].type", lambda: chat(client, messages=messages))
        same(part["type"] in error.message, True)


@call("chat: an answer goes back as the client has it")
def _(client):
    message = chat(client).choices[0].message
    for said in [message, message.model_dump()]:
        again = chat(client, messages=[*MESSAGES, said, *MESSAGES])
        same(again.choices[0].finish_reason, "stop")


@call("form: text")
def _(client):
    same(chat(client, response_format={"type": "text"}).choices[0].message.content, ANSWER)


@call("form: json_object")
def _(client):
    # The model has never seen JSON: some of its objects end before its tokens do.
    fields = {"response_format": {"type": "json_object"}, "max_tokens": 60, "temperature": 1}
    choices = [chat(client, seed=seed, **fields).choices[0] for seed in range(20)]
    complete = [choice.message.content for choice in choices if choice.finish_reason == "stop"]
    same({type(json.loads(text)) for text in complete}, {dict})


@call("form: json_schema")
def _(client):
    valid(chat(client, response_format=FORMAT).choices[0].message.content, WORD)


@call("form: json_schema, streamed")
def _(client):
    chunks = chat(client, response_format=FORMAT, stream=True, temperature=1)
    valid("".join(chunk.choices[0].delta.content or "" for chunk in chunks), WORD)


@call("form: a keyword that cannot be kept is named")
def _(client):
    schema = {"type": "object", "properties": {"a": {"not": {"type": "null"}}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    param = "response_format"
    error = refused(BadRequestError, "invalid_constraint", param, lambda: chat(client, response_format=form))
    same('"not"' in error.message, True)


@call("form: chat.completions.parse with pydantic")
def _(client):
    answer = client.chat.completions.parse(model="demo", messages=MESSAGES, response_format=Words, temperature=1)
    same(isinstance(answer.choices[0].message.parsed, Words), True)


@call("form: the helper's stream with pydantic")
def _(client):
    with client.chat.completions.stream(model="demo", messages=MESSAGES, response_format=Item) as stream:
        kinds = {event.type for event in stream}
        same(isinstance(stream.get_final_completion().choices[0].message.parsed, Item), True)
    same({"content.delta", "content.done", "chunk"} <= kinds, True)


@call("form: a parsed answer that was cut raises LengthFinishReasonError")
def _(client):
    try:
        client.chat.completions.parse(model="demo", messages=MESSAGES, response_format=Words, max_tokens=3)
    except openai.LengthFinishReasonError:
        return
    raise AssertionError("nothing was raised")


@call("tools: a model whose template has none answers")
def _(client):
    same(len(chat(client, tools=[TOOL], max_tokens=4).choices), 1)


@call("tools: a function by its name")
def _(client):
    choice = call_tool(client).choices[0]
    check_calls(choice.message.tool_calls)
    same((choice.message.tool_calls[0].function.name, choice.finish_reason), ("weather", "tool_calls"))


@call("tools: required, one call at most")
def _(client):
    check_calls(call_tool(client, tool_choice="required", parallel_tool_calls=False).choices[0].message.tool_calls, 1)


@call("tools: required, several calls with ids of their own")
def _(client):
    # The model is random about it, so some seed makes several.
    for seed in range(40):
        calls = call_tool(client, tool_choice="required", seed=seed, temperature=2, max_tokens=400).choices[0].message.tool_calls
        check_calls(calls[:-1] or calls)
        if len(calls) > 1:
            same(len({made.id for made in calls}), len(calls))
            return
    raise AssertionError("never several")


@call("tools: auto, strict")
def _(client):
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    choice = call_tool(client, tools=[strict], tool_choice="auto", max_tokens=40).choices[0]
    if choice.message.tool_calls and choice.finish_reason != "length":
        check_calls(choice.message.tool_calls)


@call("tools: none")
def _(client):
    same(chat(client, tools=[TOOL], tool_choice="none").choices[0].message.content, ANSWER)


@call("tools: streamed")
def _(client):
    name = arguments = ""
    reasons = set()
    for chunk in call_tool(client, stream=True):
        reasons.add(chunk.choices[0].finish_reason)
        for piece in chunk.choices[0].delta.tool_calls or []:
            if piece.index == 0:
                name, arguments = name + (piece.function.name or ""), arguments + (piece.function.arguments or "")
    same((name, reasons), ("weather", {None, "tool_calls"}))
    valid(arguments, WEATHER)


@call("tools: the helper's stream")
def _(client):
    fields = {"model": TOOLS_MODEL, "messages": MESSAGES, "tool_choice": "required", "parallel_tool_calls": False}
    tool = openai.pydantic_function_tool(Item, name="say")
    with client.chat.completions.stream(tools=[tool], **fields) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0].message.tool_calls
    same((len(done), type(final[0].function.parsed_arguments)), (1, Item))


@call("tools: chat.completions.parse with a pydantic tool")
def _(client):
    tool = openai.pydantic_function_tool(Words)
    fields = {"model": TOOLS_MODEL, "messages": MESSAGES, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    message = client.chat.completions.parse(**fields).choices[0].message
    same(isinstance(message.tool_calls[0].function.parsed_arguments, Words), True)


@call("tools: calls and their results go back")
def _(client):
    message = call_tool(client).choices[0].message
    results = [{"role": "tool", "tool_call_id": made.id, "content": "It rains."} for made in message.tool_calls]
    for said in [message, message.model_dump(exclude_none=True)]:
        answer = call_tool(client, messages=[*MESSAGES, said, *results], tool_choice="auto", max_tokens=8)
        same(answer.usage.completion_tokens > 0, True)


@call("tools: mistakes are named")
def _(client):
    for fields, param in [
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice.function.name"),
        ({"response_format": FORMAT}, "response_format"),
    ]:
        refused(BadRequestError, "invalid_value", param, lambda fields=fields: call_tool(client, **fields))


@call("tools: a stop string inside a call does not end it")
def _(client):
    [made] = call_tool(client, stop="name").choices[0].message.tool_calls
    same(isinstance(json.loads(made.function.arguments), dict), True)


@call("responses: whole")
def _(client):
    answer = respond(client)
    same((answer.output_text, answer.status), (ANSWER, "completed"))
    same(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens)


@call("responses: streamed, and put together by the client")
def _(client):
    with client.responses.stream(model="demo", input=MESSAGES, temperature=0) as stream:
        same("".join(event.delta for event in stream if event.type == "response.output_text.delta"), ANSWER)
        same(stream.get_final_response().output_text, ANSWER)


@call("responses: cut, with instructions")
def _(client):
    answer = respond(client, instructions="Be kind.", max_output_tokens=2)
    same((answer.status, answer.incomplete_details.reason), ("incomplete", "max_output_tokens"))


@call("responses: json_schema")
def _(client):
    valid(respond(client, text={"format": {"type": "json_schema", "name": "word", "schema": WORD, "strict": True}}).output_text, WORD)


@call("responses: parse with pydantic")
def _(client):
    answer = client.responses.parse(model="demo", input=PROMPT, text_format=Words, temperature=1)
    same(isinstance(answer.output_parsed, Words), True)


@call("responses: a call, streamed")
def _(client):
    fields = {"model": TOOLS_MODEL, "input": PROMPT, "tools": [FLAT_TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    with client.responses.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        item = stream.get_final_response().output[0]
    same(kinds.count("response.function_call_arguments.done"), 1)
    valid(item.arguments, WEATHER)


@call("responses: a call, and its result goes back")
def _(client):
    fields = {"model": TOOLS_MODEL, "tools": [FLAT_TOOL], "parallel_tool_calls": False}
    first = respond(client, **fields, tool_choice={"type": "function", "name": "weather"})
    item = first.output[0]
    same((item.type, item.name), ("function_call", "weather"))
    valid(item.arguments, WEATHER)
    result = {"type": "function_call_output", "call_id": item.call_id, "output": "It rains."}
    input = [{"role": "user", "content": PROMPT}, *first.output, result]
    same(respond(client, **fields, input=input, tool_choice="none", max_output_tokens=8).usage.output_tokens > 0, True)


@call("responses: nothing is kept, and images are refused by name")
def _(client):
    refused(BadRequestError, "unsupported_field", "previous_response_id", lambda: respond(client, previous_response_id="resp_1"))
    refused(BadRequestError, "unsupported_field", "store", lambda: respond(client, store=True))
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}]
    refused(BadRequestError, "invalid_value", "input[0].content[0].type", lambda: respond(client, input=image))


@call("extras: min_p, top_k, typical_p, repetition_penalty, dry")
def _(client):
    body = {"min_p": 0.9, "top_k": 1, "typical_p": 0.9, "repetition_penalty": 1.01, "dry_multiplier": 0.1,
            "dry_base": 1.5, "dry_allowed_length": 4, "dry_sequence_breakers": ["\n"]}
    same(chat(client, temperature=1, extra_body=body).choices[0].message.content, ANSWER)


@call("extras: out of range is refused by name")
def _(client):
    for name, wrong in [("min_p", 2), ("top_k", -2), ("typical_p", "a"), ("dry_base", 0), ("timeout_ms", 0), ("keep_alive", "soon")]:
        code = "invalid_type" if wrong == "a" else "invalid_value"
        refused(BadRequestError, code, name, lambda name=name, wrong=wrong: chat(client, extra_body={name: wrong}))


@call("extras: regex")
def _(client):
    text = chat(client, extra_body={"regex": "(yes|no), [0-9]{3}"}).choices[0].message.content
    same((text.split(", ")[0] in {"yes", "no"}, len(text.split(", ")[1])), (True, 3))


@call("extras: grammar, streamed")
def _(client):
    grammar = 'start: N ("+" N){1,3}\nN: /[1-9][0-9]?/'
    chunks = complete(client, stream=True, extra_body={"grammar": grammar})
    text = "".join(chunk.choices[0].text for chunk in chunks)
    same(all(part.isdigit() for part in text.split("+")), True)


@call("extras: stop_token_ids, ignore_eos, keep_alive, queue_timeout_ms")
def _(client):
    body = {"ignore_eos": True, "stop_token_ids": [2], "keep_alive": "10m", "queue_timeout_ms": 9000}
    answer = complete(client, max_tokens=20, extra_body=body)
    same(answer.choices[0].finish_reason in {"stop", "length"}, True)


@call("extras: timings")
def _(client):
    timings = chat(client).timings
    same(timings["prefill_ms"] > 0 and timings["decode_tokens_per_second"] > 0, True)


@call("extras: return_progress")
def _(client):
    chunks = list(chat(client, stream=True, extra_body={"return_progress": True}))
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), ANSWER)


@call("extras: a deadline of the request's own")
def _(client):
    body = {"timeout_ms": 1, "ignore_eos": True}
    try:
        complete(client, prompt="Once", max_tokens=400, extra_body=body)
    except openai.InternalServerError as error:
        same((error.status_code, error.code), (504, "deadline_exceeded"))
        return
    raise AssertionError("it was answered")


@call("errors: another model")
def _(client):
    refused(NotFoundError, "model_not_found", "model", lambda: chat(client, model="other"))


@call("errors: an unknown field")
def _(client):
    refused(BadRequestError, "unknown_field", "temprature", lambda: chat(client, extra_body={"temprature": 1}))


@call("errors: no messages, and a prompt that is too long")
def _(client):
    refused(BadRequestError, "invalid_value", "messages", lambda: chat(client, messages=[]))
    long = [{"role": "user", "content": "Good morning. " * 600}]
    refused(BadRequestError, "context_length_exceeded", None, lambda: chat(client, messages=long))


@call("errors: routes that eka has not")
def _(client):
    refused(NotFoundError, "not_found", None, lambda: client.embeddings.create(model="demo", input="a", encoding_format="float"))
    refused(NotFoundError, "not_found", None, lambda: client.moderations.create(input="a"))


@call("errors: RateLimitError when the queue is full")
def _(client):
    def ask(_: int) -> str:
        try:
            complete(client, prompt="Once", max_tokens=300, extra_body={"ignore_eos": True})
        except openai.RateLimitError as refusal:
            return f"{refusal.code}, come back: {int(refusal.response.headers['retry-after']) >= 1}"
        return "answered"

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        same(set(pool.map(ask, range(12))), {"answered", "queue_full, come back: True"})


@call("client: its own timeout, after which the server answers others")
def _(client):
    try:
        complete(client.with_options(timeout=0.1), prompt="Once", max_tokens=450, extra_body={"ignore_eos": True})
    except openai.APITimeoutError:
        same(chat(client).choices[0].message.content, ANSWER)
        return
    raise AssertionError("it was answered")


@call("client: a stream that is left ends")
def _(client):
    with complete(client, prompt="Once", max_tokens=450, stream=True, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
    same(chat(client).choices[0].message.content, ANSWER)


@call("client: raw and streamed responses, with the request's id")
def _(client):
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=MESSAGES, extra_headers={"X-Request-Id": "mine"})
    same((raw.headers["x-request-id"], raw.parse()._request_id), ("mine", "mine"))
    with client.chat.completions.with_streaming_response.create(model="demo", messages=MESSAGES) as streamed:
        same(streamed.parse().object, "chat.completion")


@call("async: three at once, and a stream")
async def _(client):
    async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(*(chat(client) for _ in range(3)))
        same([answer.choices[0].message.content for answer in answers], [ANSWER] * 3)
        text = ""
        async for chunk in await chat(client, stream=True):
            text += chunk.choices[0].delta.content or ""
        same(text, ANSWER)
        same((await respond(client)).output_text, ANSWER)
        parsed = await client.chat.completions.parse(model="demo", messages=MESSAGES, response_format=Item)
        same(isinstance(parsed.choices[0].message.parsed, Item), True)


if __name__ == "__main__":
    run(f"openai {openai.__version__} for Python", OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0))
