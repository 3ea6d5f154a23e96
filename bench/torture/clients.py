"""Section A: what one client can do to everybody. Each case attacks a running server as a client would."""

import concurrent.futures
import gzip
import json
import os
import signal
import string
import subprocess
import time

from .server import Failure, Server, eventually

MIB = 1 << 20
GENERATE = "/generate-lite"
SMALL_SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"], "additionalProperties": False}


def together(count, work):
    """Runs `work(0)` to `work(count - 1)` at the same time, and gives what they return."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def expect(answers, statuses, what):
    """Checks that every answer has one of these statuses; gives them as text for the table."""
    seen = sorted({answer.status for answer in answers})
    if not set(seen) <= set(statuses):
        wrong = next(answer for answer in answers if answer.status not in statuses)
        raise Failure(f"{what}: {wrong.status} {wrong.text[:300]}")
    return " ".join(map(str, seen))


def letters(count):
    """A schema of a few hundred bytes whose automaton has 2^count states."""
    return {"type": "string", "allOf": [{"pattern": f".*{letter}.*"} for letter in (string.ascii_letters)[:count]]}


def one_exponential_schema(torture):
    answer = torture.server.post(GENERATE, {"prompt": "a", "json_schema": letters(40)})
    return expect([answer], {400}, "an exponential schema")


def eight_exponential_schemas(torture):
    """Meanwhile the forms of another client are answered."""
    forms = []

    def attack(number):
        if number < 8:
            return torture.server.post(GENERATE, {"prompt": "a", "json_schema": letters(40 - number)})
        for _ in range(5):
            forms.append(torture.server.post(GENERATE, {"prompt": "a", "json_schema": SMALL_SCHEMA, "max_new_tokens": 40}))
        return forms[-1]

    answers = together(9, attack)
    seen = expect(answers[:8], {400, 429, 503}, "an exponential schema")
    expect(forms, {200}, "a small schema meanwhile")
    return f"{seen}; 5 forms 200"


def exponential_forms_of_other_kinds(torture):
    bodies = [
        {"regex": "(a|b)*a(a|b){400}"},
        {"regex": "(((((a{90}){90}){90}){90}){90})"},
        {"grammar": "start: " + " ".join(["(a|b)?"] * 400) + '\na: "x"+\nb: "x"*'},
        {"json_schema": {"type": "string", "pattern": "^(.*a){30}$", "minLength": 1000, "maxLength": 100000}},
        {"json_schema": {"allOf": [{"anyOf": [{"required": [f"{a}{b}"]} for b in "abcdefgh"]} for a in "abcdefghijkl"]}},
        {"json_schema": {"type": "array", "minItems": 10**7, "items": {"type": "string", "pattern": "a{1000}"}}},
        {"json_schema": {"type": "object", "patternProperties": {f".*{letter}.*": {"type": "integer"} for letter in string.ascii_letters}}},
        {"json_schema": {"$ref": "#"}},
        {"json_schema": {"type": "integer", "minimum": -(2**63), "maximum": 2**70}},
    ]
    answers = [torture.server.post(GENERATE, {"prompt": "a", "max_new_tokens": 4} | body) for body in bodies]
    return expect(answers, {200, 400, 429}, "a form")


def logit_biases(torture):
    padded = {("0" * (place // 4000)) + str(place % 4000): 1 for place in range(40960)}
    answers = [
        torture.server.post(GENERATE, {"prompt": "a", "logit_bias": padded}),
        torture.server.post(GENERATE, {"prompt": "a", "logit_bias": {"1": 1, "01": 2}}),
        torture.server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"} | {f"f{place}": 1 for place in range(100_000)}]}),
    ]
    seen = expect(answers, {400, 413}, "too many fields")
    # A field that is null is absent, whatever its name.
    nulls = {f"field{place}": None for place in range(100_000)}
    return seen + " " + expect([torture.server.post(GENERATE, {"prompt": "a", "max_new_tokens": 2} | nulls)], {200, 400, 413}, "fields that are null")


def stop_strings(torture):
    long = [letter * 249_999 + "b" for letter in "acdefghijklmnopq"]
    allowed = {"prompt": "a", "max_new_tokens": 200, "ignore_eos": True, "stop": ["ab" * 100, "e" * 200]}
    answers = [torture.server.post(GENERATE, {"prompt": "a", "max_new_tokens": 200, "stop": long})]
    answers.append(torture.server.post(GENERATE, {"prompt": "a", "stop": ["x"] * 10_000}))
    answers.append(torture.server.post(GENERATE, {"prompt": "a", "dry_multiplier": 1, "dry_sequence_breakers": long}))
    seen = expect(answers, {400, 413}, "long stop strings")
    expect([torture.server.post(GENERATE, allowed)], {200}, "short stop strings")
    return seen


def prompts_that_cannot_fit(torture):
    text = "The river is long. " * 210_000
    bodies = [
        (GENERATE, {"prompt": text}),
        (GENERATE, {"prompt": list(range(1, 4000)) * 200}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}] * 60_000}),
        ("/v1/responses", {"input": text}),
    ]
    answers = together(len(bodies), lambda place: torture.server.post(*bodies[place]))
    return expect(answers, {400, 413, 429}, "a prompt that cannot fit")


def big_bodies_of_other_routes(torture):
    text = "The river is long. " * 210_000
    bodies = [
        ("/tokenize", {"content": text}),
        ("/detokenize", {"tokens": list(range(1, 4000)) * 200}),
        ("/apply-template", {"messages": [{"role": "user", "content": text}]}),
        ("/apply-template", {"messages": [{"role": "user", "content": "a"}] * 60_000}),
        ("/tokenize", b'{"content":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
        (GENERATE, b'{"prompt":"' + b"\\u0041" * 600_000 + b'"}'),
    ]
    answers = together(len(bodies), lambda place: torture.server.post(*bodies[place]))
    return expect(answers, {200, 400, 413, 429}, "a large body")


def stalled_bodies(torture):
    """400 clients announce 4 MB, send nearly all of it, and stop."""
    head = b"POST /generate-lite HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 4000000\r\n\r\n"
    part = b'{"prompt":"' + b"a" * 65_525
    clients = []
    try:
        for _ in range(400):
            client = torture.server.raw(20)
            client.settimeout(0.2)
            client.sendall(head)
            clients.append(client)
        left = dict.fromkeys(clients, 60)
        until = time.monotonic() + 12
        while left and time.monotonic() < until:
            for client in list(left):
                try:
                    client.send(part)
                    left[client] -= 1
                except TimeoutError:
                    continue
                except OSError:
                    left[client] = 0
                if not left[client]:
                    del left[client]
        answer = torture.server.post(GENERATE, {"prompt": "a", "max_new_tokens": 2})
        return "others: " + expect([answer], {200, 429, 503}, "a small request meanwhile")
    finally:
        for client in clients:
            client.close()


def too_large_a_length(torture):
    """Rejected at once by its head, also with Expect: 100-continue."""
    answers = []
    for expectation in (b"", b"Expect: 100-continue\r\n"):
        with torture.server.raw(20) as client:
            client.sendall(b"POST /generate-lite HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n" + expectation + b"\r\n")
            began = time.monotonic()
            first = client.recv(4096)
            if not first.startswith(b"HTTP/1.1 413") or time.monotonic() - began > 5:
                raise Failure(f"after {time.monotonic() - began:.1f} s: {first[:80]!r}")
            answers.append("413")
    return " ".join(answers)


def idle_connections(torture):
    """1,020 idle connections, then the worker is killed: it is replaced."""
    clients = open_connections(torture.server, 1020)
    try:
        # The worker that computes the stream: its pause is that of a restart.
        torture.row.is_stream_disturbed = True
        old = torture.server.workers()
        os.kill(old[0], signal.SIGKILL)
        took = eventually("a new worker", 60, lambda: set(torture.server.workers()) - set(old))
        eventually("readiness", 60, lambda: torture.server.get("/readyz").status == 200)
        answer = torture.server.post(GENERATE, {"prompt": "a", "max_new_tokens": 2})
        return expect([answer], {200}, "a request meanwhile") + f", new worker after {took:.1f} s"
    finally:
        for client in clients:
            client.close()


def keep_alive_clients(torture):
    """1,100 clients that ask once and stay: new ones still get in."""
    clients = open_connections(torture.server, 1100, b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    try:
        began = time.monotonic()
        answers = [torture.server.get("/livez") for _ in range(20)]
        took = (time.monotonic() - began) / 20
        answers.append(torture.server.post(GENERATE, {"prompt": "a", "max_new_tokens": 2}))
        return expect(answers, {200}, "a new client") + f", {took * 1000:.0f} ms a new client"
    finally:
        for client in clients:
            client.close()


def open_connections(server, count, request=None):
    """Connections as far as the system gives them: the server may close the idlest of them."""
    clients = []
    for _ in range(count):
        try:
            client = server.raw(5)
        except OSError:
            continue
        clients.append(client)
        if request:
            try:
                client.sendall(request)
            except OSError:
                continue
    return clients


def gzip_bombs(torture):
    plain = gzip.compress(json.dumps({"prompt": "a", "max_new_tokens": 2}).encode())
    bomb = gzip.compress(b'{"prompt":"' + b"a" * (1 << 30) + b'"}', 9)
    encoded = {"Content-Encoding": "gzip"}
    first = expect([torture.server.post(GENERATE, plain, encoded)], {200, 415}, "a gzip body")
    bombs = together(4, lambda _: torture.server.post(GENERATE, bomb, encoded))
    return first + " " + expect(bombs, {400, 413, 415, 429, 503}, "a gzip bomb")


def a_full_log_pipe(torture):
    """A log pipe that is not read: requests are answered, and dropped lines are counted."""
    reading, writing = os.pipe()
    try:
        arguments = ["--set", "log.level=trace"]
        server = Server(torture.eka, torture.root, torture.work, arguments, stderr=writing)
        with server:
            with torture.watching(server):
                answers = together(4, lambda _: [server.post(GENERATE, {"prompt": "The river", "max_new_tokens": 30}) for _ in range(50)])
                seen = expect(sum(answers, []), {200}, "a request while the log is stuck")
                dropped = server.metric("eka_log_lines_dropped_total")
            server.process.terminate()
            try:
                server.process.wait(60)
            except subprocess.TimeoutExpired:
                raise Failure("the server does not end while its log is stuck") from None
        return f"{seen}, {dropped:.0f} lines dropped"
    finally:
        os.close(reading)
        os.close(writing)


def templates_of_requests(torture):
    """Deep and strange JSON in places that are read by hand."""
    deep = {"a": 1}
    for _ in range(100):
        deep = {"a": deep}
    messages = [{"role": "user", "content": "a"}]
    tool = {"type": "function", "function": {"name": "f", "description": None, "parameters": {"type": "object", "properties": deep}}}
    bodies = [
        {"messages": messages, "tools": [tool]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "\u0000\ud800"}]},
        {"messages": messages, "top_k": 10**30},
        {"messages": messages, "seed": -(2**63)},
        {"messages": messages, "stop": [""]},
        {"messages": [None]},
        {"messages": messages, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": deep}}},
    ]
    answers = [torture.server.post("/v1/chat/completions", {"max_tokens": 4} | body) for body in bodies]
    return expect(answers, {200, 400, 413, 415, 422, 501}, "a strange body")


# Item, description, function; cases that start a separate server come last.
CASES = [
    ("A1", "one exponential schema", one_exponential_schema),
    ("A1", "eight exponential schemas", eight_exponential_schemas),
    ("A1", "other exponential forms", exponential_forms_of_other_kinds),
    ("A2", "40,960 logit biases, 100,000 fields", logit_biases),
    ("A4", "stop strings of 250 kB", stop_strings),
    ("A5", "prompts that cannot fit", prompts_that_cannot_fit),
    ("A5", "400 stalled bodies of 4 MB", stalled_bodies),
    ("A5", "a Content-Length of 1 GB", too_large_a_length),
    ("A6", "1,020 idle connections, worker killed", idle_connections),
    ("A6", "1,100 keep-alive clients", keep_alive_clients),
    ("A7", "large bodies on other routes", big_bodies_of_other_routes),
    ("A7", "strange JSON", templates_of_requests),
    ("C15", "gzip, and bombs of 1 GB", gzip_bombs),
]
OWN_SERVER = [("A3", "a log pipe without a reader", a_full_log_pipe)]
