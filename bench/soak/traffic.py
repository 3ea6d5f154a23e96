"""The requests, their expected results, and the clients.

Every answer is known: an undisturbed server said it before. So a lost, a wrong, a repeated or a truncated answer is found in
whatever company it comes.
"""

import json
import random
import threading
import time

from .server import events

# Rejections with Retry-After.
FULL = "queue_full"


class Question:
    """One of the prompts, to its end, cut short, or far beyond its end; of one of the models."""

    def __init__(self, prompt, most, ignore_eos, model):
        self.body = {"model": model, "max_new_tokens": most, "ignore_eos": ignore_eos, "messages": [{"role": "user", "content": prompt}]}
        self.expected = None


def questions(root, models):
    document = json.loads((root / "tests/fixtures/demo/expected.json").read_text())
    prompts = [prompt["prompt"] for prompt in document["prompts"]]
    # Long ones: the same request after much that has nothing to do with it.
    prompts += [f"{' '.join(['The river is long.'] * times)} {prompts[times % len(prompts)]}" for times in (10, 25, 40)]
    lengths = [(48, False), (3, False), (96, True)]
    return [Question(prompt, most, ignore, model) for model in models for prompt in prompts for most, ignore in lengths]


# Invalid requests and the expected error codes.
BAD = [
    ({"prompt": "x", "temperature": -1}, 400),
    ({"prompt": "x", "frobnicate": 1}, 400),
    ({"messages": []}, 400),
    ({"prompt": "x" * 40000}, 400),
    ({"prompt": "x", "model": "nobody"}, 404),
    ("no json", 400),
]


class Seen:
    """What became of a request."""

    def __init__(self, kind, at):
        self.kind, self.at, self.first, self.took, self.resumed, self.wrong, self.refused = kind, at, None, None, 0, None, False


class Traffic:
    def __init__(self, server, asked, seed):
        self.server, self.questions, self.seed = server, asked, seed
        self.began, self.seen, self.lock = time.monotonic(), [], threading.Lock()

    def post(self, body):
        connection = self.server.connect()
        text = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST", "/generate-lite", text.encode(), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def learn(self):
        """What the answers are, from a server that nothing disturbs."""
        for question in self.questions:
            connection, response = self.post(question.body)
            document = json.loads(response.read())
            connection.close()
            if response.status != 200:
                raise SystemExit(f"soak: undisturbed, {question.body} is answered with {document}")
            question.expected = document["text"]

    def note(self, seen):
        with self.lock:
            self.seen.append(seen)

    def ask(self, question, kind):
        """Streams an answer and compares the whole text with the expected one."""
        seen = Seen(kind, time.monotonic() - self.began)
        began = time.monotonic()
        try:
            connection, response = self.post(question.body | {"stream": True})
            if response.status != 200:
                code = json.loads(response.read())["error"]["code"]
                seen.refused, seen.wrong = code == FULL, None if code == FULL else code
            else:
                self.read(response, question, seen, began)
            connection.close()
        except (OSError, ValueError, KeyError) as error:
            seen.wrong = f"{type(error).__name__}: {error}"
        seen.took = time.monotonic() - began
        self.note(seen)
        return seen

    def read(self, response, question, seen, began):
        said, last, done = "", None, False
        for event in events(response):
            if event is None:
                done = True
            elif "error" in event:
                seen.wrong = event["error"]["code"]
                return
            elif "finish_reason" in event:
                last = event
            else:
                seen.first = seen.first or time.monotonic() - began
                said += event.get("text", "")
        if not done or last is None:
            seen.wrong = "the stream breaks off"
        elif last["text"] != question.expected or said != question.expected:
            seen.wrong = f"{last['text']!r} is not {question.expected!r}"
        else:
            seen.resumed = last["timings"]["resumed"]

    def cancel(self, question, pick):
        """Leaves after a few events, or before any: nothing may come of it but silence."""
        seen = Seen("cancel", time.monotonic() - self.began)
        try:
            connection, response = self.post(question.body | {"stream": True})
            if response.status == 200:
                for number, _ in enumerate(events(response)):
                    if number >= pick.randrange(4):
                        break
            else:
                code = json.loads(response.read())["error"]["code"]
                seen.refused, seen.wrong = code == FULL, None if code == FULL else code
            response.close()
            connection.close()
        except OSError as error:
            seen.wrong = f"{type(error).__name__}: {error}"
        self.note(seen)

    def bad(self, body, status):
        seen = Seen("bad", time.monotonic() - self.began)
        try:
            connection, response = self.post(body)
            found, said = response.status, response.read()
            connection.close()
            # Some errors are found only when the body is read, which a full queue does not wait for.
            seen.refused = found == 429 and json.loads(said)["error"]["code"] == FULL
            if found != status and not seen.refused:
                seen.wrong = f"{str(body)[:40]} is answered with {found}, not {status}"
        except OSError as error:
            seen.wrong = f"{type(error).__name__}: {error}"
        self.note(seen)

    def client(self, number, until):
        """One client: mostly questions, and now and then something else."""
        pick = random.Random(self.seed * 1000 + number)
        while time.monotonic() < until:
            what = pick.random()
            if what < 0.08:
                self.cancel(pick.choice(self.questions), pick)
            elif what < 0.14:
                self.bad(*pick.choice(BAD))
            elif self.ask(pick.choice(self.questions), "ask").refused:
                # As Retry-After would have it, made short.
                time.sleep(0.2)

    def bursts(self, until, every=20.0, size=30):
        """More requests than the queue holds: each is answered, or rejected at once with a 429."""
        pick = random.Random(self.seed)
        while time.monotonic() + every < until:
            time.sleep(every)
            crowd = [threading.Thread(target=self.ask, args=(pick.choice(self.questions), "burst")) for _ in range(size)]
            for one in crowd:
                one.start()
            for one in crowd:
                one.join()
