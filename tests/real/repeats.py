"""Sends the same requests again and again, in random order beside other traffic and while workers are killed: one answer each.

    repeats.py SERVER_PID URL [SECONDS_BETWEEN_KILLS]

Half of the requests are greedy, half have a seed. Compared are text, token ids and log-probabilities, bit by bit.
"""

import json
import os
import random
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.dont_write_bytecode = True
from real_check import PROMPTS  # noqa: E402

REQUESTS, REPEATS, CLIENTS = 50, 6, 4


def requests():
    """One body each: completions, chats and plain generations of different lengths."""
    chance = random.Random(7)
    for number in range(REQUESTS):
        prompt = PROMPTS[number % len(PROMPTS)] + " Please." * (number // len(PROMPTS))
        seeded = {"temperature": 0.9, "seed": number, "top_p": 0.95} if number % 2 else {"temperature": 0}
        tokens = chance.randint(16, 96)
        match number % 3:
            case 0:
                yield "/v1/completions", {"prompt": prompt, "max_tokens": tokens, "logprobs": 2, **seeded}
            case 1:
                messages = [{"role": "user", "content": prompt}]
                yield "/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "logprobs": True, "top_logprobs": 2, **seeded}
            case _:
                yield "/v1/responses", {"input": prompt, "max_output_tokens": max(tokens, 16), **seeded}


def post(url, path, body):
    """The answer. A request whose workers were killed three times (502), or that met a full queue, is sent again, as a client would."""
    data = json.dumps(body).encode()
    for _ in range(20):
        try:
            request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code not in (429, 502, 503):
                raise RuntimeError(f"{path}: {error.code} {error.read().decode()}") from error
            time.sleep(0.3)
    raise RuntimeError(f"{path}: no answer in 20 tries")


def essence(answer):
    """What must be equal: everything but ids, times and what the cache had."""
    if "output" in answer:
        return json.dumps([part for item in answer["output"] for part in item.get("content", [])], sort_keys=True)
    return json.dumps([{key: value for key, value in choice.items() if key != "id"} for choice in answer["choices"]], sort_keys=True)


def workers(server):
    """Process ids of the server's children that are workers."""
    children = Path(f"/proc/{server}/task").glob("*/children")
    for child in (int(child) for file in children for child in file.read_text().split()):
        try:
            if b"worker" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[1:2]:
                yield child
        except OSError:
            continue


def kill_now_and_then(server, seconds, over, killed):
    chance = random.Random(3)
    while not over.wait(chance.uniform(0.5, 1.5) * seconds):
        for child in workers(server):
            os.kill(child, signal.SIGKILL)
            killed.append(child)


def disturb(url, over):
    """Other traffic, which changes the prefix cache and the batches that the requests are read in."""
    chance = random.Random(5)
    while not over.is_set():
        body = {"prompt": chance.choice(PROMPTS) * chance.randint(1, 8), "max_tokens": chance.randint(1, 24), "seed": chance.randint(0, 99)}
        post(url, "/v1/completions", body)


def main(server, url, seconds):
    bodies = list(requests())
    order = [number for number in range(REQUESTS) for _ in range(REPEATS)]
    random.Random(1).shuffle(order)
    over, killed = threading.Event(), []
    beside = [threading.Thread(target=kill_now_and_then, args=(server, seconds, over, killed)), threading.Thread(target=disturb, args=(url, over))]
    for thread in beside:
        thread.start()
    try:
        with ThreadPoolExecutor(CLIENTS) as clients:
            answers = list(clients.map(lambda number: (number, essence(post(url, *bodies[number]))), order))
    finally:
        over.set()
        for thread in beside:
            thread.join()
    found = [{answer for number, answer in answers if number == wanted} for wanted in range(REQUESTS)]
    for number, different in enumerate(found):
        if len(different) > 1:
            print(f"request {number} {bodies[number]}: {len(different)} answers", *different, sep="\n  ")
    equal = sum(len(different) == 1 for different in found)
    print(f"{REQUESTS} requests {REPEATS} times each, {len(killed)} workers killed: {equal} of {REQUESTS} with one answer")
    return equal == REQUESTS and len(killed) > 0


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(0 if main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]) if len(sys.argv) == 4 else 6.0) else 1)
