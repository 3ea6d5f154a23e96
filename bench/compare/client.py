"""The client: OpenAI's completion route, streamed, asked in token ids."""

import http.client
import json
import threading
import time
from dataclasses import dataclass

from .process import Failed


@dataclass
class Answer:
    """What one client saw, in seconds from asking."""
    first: float
    total: float
    tokens: int


def prompt(length, vocabulary, turn):
    """Token ids that repeat nothing soon; two turns part at the first, so that no cache of prefixes helps."""
    ordinary = vocabulary - 300
    return [300 + (place * 7919 + turn * 101 + 13) % ordinary for place in range(length)]


def get(port, path, timeout=5):
    """The status of a GET request, or None without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def complete(port, model, ids, steps, limit):
    """Asks for exactly `steps` tokens."""
    body = json.dumps({
        "model": model, "prompt": ids, "max_tokens": steps, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
        "stream": True, "stream_options": {"include_usage": True},
    })
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
    started = time.monotonic()
    try:
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise Failed(f"status {response.status}: {response.read(300).decode(errors='replace')}")
        return read(response, started, steps, limit)
    except TimeoutError:
        raise Failed(f"no answer after {limit:.0f} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failed(f"the connection broke: {error!r}") from None
    finally:
        connection.close()


def read(response, started, steps, limit):
    first, tokens = None, None
    for line in response:
        now = time.monotonic() - started
        if now > limit:
            raise Failed(f"no whole answer after {limit:.0f} s")
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise Failed(f"an error: {json.dumps(event['error'])[:200]}")
        if first is None and any(choice.get("text") for choice in event.get("choices", [])):
            first = now
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if first is None or tokens != steps:
        raise Failed(f"{tokens} tokens instead of {steps}")
    return Answer(first, time.monotonic() - started, tokens)


def throughput(clients, each, ask):
    """Tokens per second of `clients` that ask at once, each `each` times in turn; `ask` takes the number of a request."""
    answers, failures = [], []

    def work(client):
        try:
            answers.extend(ask(client * each + turn) for turn in range(each))
        except Failed as error:
            failures.append(error)

    started = time.monotonic()
    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise Failed(f"{len(failures)} of {clients} clients failed, the first with {failures[0]}")
    return sum(answer.tokens for answer in answers) / (time.monotonic() - started)
