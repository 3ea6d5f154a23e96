"""What LangChain's chat model for OpenAI sees of eka; run by scripts/openai-client with the server's address."""

import asyncio
import importlib.metadata
import sys
from typing import Literal

import openai
from client_calls import ANSWER, PROMPT, TOOLS_MODEL, WORD, Item, call, refused, run, same, valid
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import BadRequestError, NotFoundError

URL = sys.argv[1]


@tool
def weather(city: Literal["पुणे", "சென்னை"], days: int) -> str:
    """Whether it rains."""
    return f"{city}: {days}"


@tool
def now() -> str:
    """The time."""
    return "noon"


def model(**fields) -> ChatOpenAI:
    fields = {"model": "demo", "temperature": 0, "max_retries": 0, **fields}
    return ChatOpenAI(base_url=URL, api_key="none", **fields)


def caller(**fields) -> ChatOpenAI:
    return model(**{"model": TOOLS_MODEL, "temperature": 1, "seed": 3, "max_tokens": 200, **fields})


def text(message: AIMessage) -> str:
    return message.text if isinstance(message.text, str) else message.text()


def check_calls(message: AIMessage) -> None:
    same((bool(message.tool_calls), message.invalid_tool_calls), (True, []))
    for made in message.tool_calls:
        same(made["name"] in {"weather", "now"}, True)
        if made["name"] == "weather":
            same((made["args"]["city"] in {"पुणे", "சென்னை"}, type(made["args"]["days"])), (True, int))


@call("invoke")
def _(_client):
    answer = model().invoke(PROMPT)
    same((answer.content, answer.response_metadata["finish_reason"]), (ANSWER, "stop"))


@call("invoke: usage and what the model is")
def _(_client):
    answer = model().invoke(PROMPT)
    usage = answer.usage_metadata
    same(usage["total_tokens"], usage["input_tokens"] + usage["output_tokens"])
    same((answer.response_metadata["model_name"], bool(answer.response_metadata["system_fingerprint"])), ("demo", True))


@call("invoke: messages of every role")
def _(_client):
    messages = [SystemMessage("Be kind."), HumanMessage("Hello."), AIMessage("Yes?"), HumanMessage(PROMPT)]
    same(bool(model().invoke(messages).content), True)


@call("invoke: a developer's message")
def _(_client):
    same(bool(model().invoke([("developer", "Be kind."), ("user", PROMPT)]).content), True)


@call("invoke: names of those who speak")
def _(_client):
    same(bool(model().invoke([HumanMessage("Hello.", name="ann"), AIMessage("Yes?", name="bot"), HumanMessage(PROMPT)]).content), True)


@call("invoke: parts of text")
def _(_client):
    parts = [{"type": "text", "text": PROMPT[:9]}, {"type": "text", "text": PROMPT[9:]}]
    same(model().invoke([HumanMessage(parts)]).content, ANSWER)


@call("invoke: images are refused by name")
def _(_client):
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    refused(BadRequestError, "invalid_value", "messages[0].content[0].type", lambda: model().invoke([HumanMessage(parts)]))


@call("invoke: an answer goes back")
def _(_client):
    same(bool(model().invoke([HumanMessage(PROMPT), model().invoke(PROMPT), HumanMessage(PROMPT)]).content), True)


@call("max_tokens")
def _(_client):
    answer = model(max_tokens=3).invoke(PROMPT)
    same((answer.usage_metadata["output_tokens"], answer.response_metadata["finish_reason"]), (3, "length"))


@call("max_completion_tokens")
def _(_client):
    same(model(max_completion_tokens=3).invoke(PROMPT).usage_metadata["output_tokens"], 3)


@call("stop, of the model and of the call")
def _(_client):
    same(model(stop=["never", "दोस्त"]).invoke(PROMPT).content, "सुप्रभात, ")
    same(model().invoke(PROMPT, stop=["never", "।"]).content, ANSWER[:-1])


@call("n")
def _(_client):
    answers = model(n=3, temperature=1).generate([[HumanMessage(PROMPT)]]).generations[0]
    same(len(answers), 3)


@call("n beyond the limit is refused")
def _(_client):
    refused(BadRequestError, "invalid_value", "n", lambda: model(n=9, temperature=1).invoke(PROMPT))


@call("logprobs and top_logprobs")
def _(_client):
    tokens = model(logprobs=True, top_logprobs=20).invoke(PROMPT).response_metadata["logprobs"]["content"]
    same("".join(token["token"] for token in tokens), ANSWER)
    same({len(token["top_logprobs"]) for token in tokens}, {20})


@call("top_logprobs beyond the limit is refused")
def _(_client):
    refused(BadRequestError, "invalid_value", "top_logprobs", lambda: model(logprobs=True, top_logprobs=21).invoke(PROMPT))


@call("logit_bias")
def _(_client):
    scores = {"logprobs": True, "max_tokens": 3}
    tokens = model(logit_bias={300: 100}, **scores).invoke(PROMPT).response_metadata["logprobs"]["content"]
    same((len(tokens), len({token["token"] for token in tokens})), (3, 1))


@call("penalties")
def _(_client):
    same(bool(model(presence_penalty=1.5, frequency_penalty=-0.5).invoke(PROMPT).content), True)


@call("a penalty out of range is refused")
def _(_client):
    refused(BadRequestError, "invalid_value", "presence_penalty", lambda: model(presence_penalty=3).invoke(PROMPT))


@call("a seed repeats an answer")
def _(_client):
    drawn = model(seed=7, temperature=1.5, max_tokens=12)
    same(drawn.invoke(PROMPT).content, drawn.invoke(PROMPT).content)


@call("top_p")
def _(_client):
    same(model(temperature=1, top_p=0.01).invoke(PROMPT).content, ANSWER)


@call("user, metadata, store and service_tier")
def _(_client):
    same(model(metadata={"a": "b"}, store=False, service_tier="auto", model_kwargs={"user": "someone"}).invoke(PROMPT).content, ANSWER)


@call("reasoning_effort")
def _(_client):
    same(model(reasoning_effort="high").invoke(PROMPT).content, ANSWER)


@call("extra_body: min_p, top_k, typical_p, dry, keep_alive")
def _(_client):
    extras = {"min_p": 0.9, "top_k": 1, "typical_p": 0.9, "dry_multiplier": 0.1, "repetition_penalty": 1.01, "keep_alive": "10m"}
    same(model(temperature=1, extra_body=extras).invoke(PROMPT).content, ANSWER)


@call("extra_body: regex")
def _(_client):
    same(model(extra_body={"regex": "(yes|no)!"}).invoke(PROMPT).content in {"yes!", "no!"}, True)


@call("extra_body: grammar, streamed")
def _(_client):
    chunks = model(extra_body={"grammar": 'start: "a" N\nN: /[1-9][0-9]?/'}).stream(PROMPT)
    same("".join(text(chunk) for chunk in chunks)[1:].isdigit(), True)


@call("extra_body: return_progress, streamed")
def _(_client):
    same("".join(text(chunk) for chunk in model(extra_body={"return_progress": True}).stream(PROMPT)), ANSWER)


@call("extra_body: an unknown field is refused")
def _(_client):
    refused(BadRequestError, "unknown_field", "temprature", lambda: model(extra_body={"temprature": 1}).invoke(PROMPT))


@call("stream")
def _(_client):
    same("".join(text(chunk) for chunk in model().stream(PROMPT)), ANSWER)


@call("stream with usage")
def _(_client):
    whole = None
    for chunk in model(stream_usage=True).stream(PROMPT):
        whole = chunk if whole is None else whole + chunk
    same((text(whole), whole.usage_metadata["output_tokens"] > 0), (ANSWER, True))


@call("batch")
def _(_client):
    answers = model().batch([PROMPT] * 3, config={"max_concurrency": 3})
    same([answer.content for answer in answers], [ANSWER] * 3)


@call("a chain of prompt, model and parser")
def _(_client):
    prompt = ChatPromptTemplate.from_messages([("user", "Translate to {language}: {text}")])
    chain = prompt | model() | StrOutputParser()
    same(chain.invoke({"language": "Hindi", "text": "Good morning, friend."}), ANSWER)


@call("with_structured_output: json_schema with pydantic")
def _(_client):
    same(isinstance(model(temperature=1).with_structured_output(Item, method="json_schema").invoke(PROMPT), Item), True)


@call("with_structured_output: json_schema, strict, from a dictionary")
def _(_client):
    schema = {"title": "word", "description": "A word.", **WORD}
    valid(model().with_structured_output(schema, method="json_schema", strict=True).invoke(PROMPT), WORD)


@call("with_structured_output: json_schema with the raw answer")
def _(_client):
    answer = model().with_structured_output(Item, method="json_schema", include_raw=True).invoke(PROMPT)
    same((answer["parsing_error"], isinstance(answer["parsed"], Item)), (None, True))


@call("with_structured_output: function_calling")
def _(_client):
    same(isinstance(caller().with_structured_output(Item, method="function_calling", strict=True).invoke(PROMPT), Item), True)


@call("with_structured_output: json_mode")
def _(_client):
    # The model has never seen JSON: some of its objects end before its tokens do.
    complete = []
    for seed in range(20):
        try:
            keeper = model(max_tokens=60, temperature=1, seed=seed).with_structured_output(WORD, method="json_mode")
            complete.append(keeper.invoke(PROMPT))
        except openai.LengthFinishReasonError:
            pass
    same({type(found) for found in complete}, {dict})


@call("with_structured_output: a stream of what there is of it")
def _(_client):
    pieces = list(model().with_structured_output({"title": "word", **WORD}, method="json_schema").stream(PROMPT))
    valid(pieces[-1], WORD)


@call("with_structured_output: a keyword that cannot be kept is refused")
def _(_client):
    schema = {"title": "n", "type": "object", "properties": {"a": {"not": {"type": "null"}}}}
    refused(BadRequestError, "invalid_constraint", "response_format",
            lambda: model().with_structured_output(schema, method="json_schema").invoke(PROMPT))


@call("bind_tools: any")
def _(_client):
    check_calls(caller().bind_tools([weather, now], tool_choice="any", strict=True, parallel_tool_calls=False).invoke(PROMPT))


@call("bind_tools: one by its name")
def _(_client):
    message = caller().bind_tools([weather, now], tool_choice="weather", strict=True).invoke(PROMPT)
    check_calls(message)
    same({made["name"] for made in message.tool_calls}, {"weather"})


@call("bind_tools: strict and auto")
def _(_client):
    message = caller(max_tokens=30).bind_tools([weather], strict=True, tool_choice="auto").invoke(PROMPT)
    if message.response_metadata["finish_reason"] == "tool_calls":
        check_calls(message)


@call("bind_tools: none")
def _(_client):
    same(model().bind_tools([weather], tool_choice="none").invoke(PROMPT).content, ANSWER)


@call("bind_tools: streamed")
def _(_client):
    whole = None
    for chunk in caller().bind_tools([weather], tool_choice="weather", strict=True, parallel_tool_calls=False).stream(PROMPT):
        whole = chunk if whole is None else whole + chunk
    check_calls(whole)


@call("bind_tools: calls and their results go back")
def _(_client):
    message = caller().bind_tools([weather, now], tool_choice="any", strict=True, parallel_tool_calls=False).invoke(PROMPT)
    functions = {"weather": weather, "now": now}
    results = [functions[made["name"]].invoke(made) for made in message.tool_calls]
    same(isinstance(results[0], ToolMessage), True)
    again = caller(max_tokens=8).bind_tools([weather, now]).invoke([HumanMessage(PROMPT), message, *results])
    same(again.usage_metadata["output_tokens"] > 0, True)


@call("bind_tools: a model whose template has no tools answers")
def _(_client):
    model(max_tokens=4).bind_tools([weather]).invoke(PROMPT)


@call("responses: invoke")
def _(_client):
    answer = model(use_responses_api=True, store=False).invoke(PROMPT)
    same((text(answer), answer.usage_metadata["output_tokens"] > 0), (ANSWER, True))


@call("responses: stream")
def _(_client):
    same("".join(text(chunk) for chunk in model(use_responses_api=True).stream(PROMPT)), ANSWER)


@call("responses: with_structured_output")
def _(_client):
    keeper = model(use_responses_api=True, temperature=1).with_structured_output(Item, method="json_schema")
    same(isinstance(keeper.invoke(PROMPT), Item), True)


@call("responses: bind_tools, and the result goes back")
def _(_client):
    bound = caller(use_responses_api=True, seed=None).bind_tools([weather], tool_choice="weather", strict=True, parallel_tool_calls=False)
    message = bound.invoke(PROMPT)
    check_calls(message)
    again = caller(use_responses_api=True, seed=None, max_tokens=8)
    result = weather.invoke(message.tool_calls[0])
    same(again.bind_tools([weather]).invoke([HumanMessage(PROMPT), message, result]).usage_metadata["output_tokens"] > 0, True)


@call("errors: another model")
def _(_client):
    refused(NotFoundError, "model_not_found", "model", lambda: model(model="other").invoke(PROMPT))


@call("errors: RateLimitError when the queue is full")
def _(_client):
    long = model(max_tokens=300, extra_body={"ignore_eos": True}, temperature=1)
    ends = long.batch([PROMPT] * 12, config={"max_concurrency": 12}, return_exceptions=True)
    refusals = [end for end in ends if isinstance(end, Exception)]
    same({(isinstance(end, openai.RateLimitError), end.code) for end in refusals}, {(True, "queue_full")})
    same(len(refusals) < 12, True)


@call("errors: its own timeout")
def _(_client):
    try:
        model(timeout=0.1, max_tokens=400, extra_body={"ignore_eos": True}).invoke(PROMPT)
    except openai.APITimeoutError:
        same(model().invoke(PROMPT).content, ANSWER)
        return
    raise AssertionError("it was answered")


@call("async: three at once, a stream and a schema")
async def _(_client):
    asked = model()
    answers = await asyncio.gather(*(asked.ainvoke(PROMPT) for _ in range(3)))
    same([answer.content for answer in answers], [ANSWER] * 3)
    same("".join([text(chunk) async for chunk in asked.astream(PROMPT)]), ANSWER)
    same(isinstance(await asked.with_structured_output(Item, method="json_schema").ainvoke(PROMPT), Item), True)


if __name__ == "__main__":
    run(f"langchain-openai {importlib.metadata.version('langchain-openai')}", None)
