"""Kills processes of a cluster while clients stream answers, and checks every answer.

    scripts/chaos --cluster [--requests N] [--nodes N] [--gateways N] [--clients N] [--every SECONDS] [--seed N]
                            [--storage file|memory] [--tokens N] [--stop]

Every few seconds one process is killed with SIGKILL, a node, a gateway or the NATS server, and started again. With --stop, nodes
are also stopped with SIGSTOP for longer than cluster.lost_ms. A client whose gateway is killed asks another one; nothing else may
fail. Every streamed answer must be the one that an undisturbed server gave, so a token that is lost or sent twice is found.
"""

import argparse
import collections
import http.client
import json
import pathlib
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

TEXT_FILES = (
    "eka.json tokenizer.json tokenizer_config.json special_tokens_map.json generation_config.json chat_template.jinja".split()
)
PROMPTS = [
    "Translate to Hindi: Good morning, friend.",
    "Translate to Kannada: Please speak slowly.",
    "The weather is",
    "One, two, three",
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A process that is started again after it was killed, on the same port."""

    def __init__(self, name, arguments, folder, port):
        self.name, self.arguments, self.port = name, arguments, port
        self.log = open(folder / f"{name}.log", "ab")
        self.child = None
        self.start()

    def start(self):
        self.child = subprocess.Popen(self.arguments, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def kill(self):
        self.child.send_signal(signal.SIGCONT)
        self.child.kill()
        self.child.wait()

    def is_ready(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def wait_ready(self, seconds=180):
        until = time.monotonic() + seconds
        while not self.is_ready():
            if time.monotonic() > until or self.child.poll() is not None:
                sys.exit(f"{self.name} is not ready; see {self.log.name}")
            time.sleep(0.1)


class Cluster:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        nats_port = free_port()
        store = folder / "store"
        self.nats = Process(
            "nats", [options.nats, "-js", "-a", "127.0.0.1", "-p", str(nats_port), "-sd", str(store)], folder, nats_port
        )
        join = ["--join", f"nats://127.0.0.1:{nats_port}", "--set", f"cluster.storage={options.storage}"]
        limits = ["--set", "queue.timeout_ms=300000", "--set", "cluster.max_losses=20"]
        self.nodes = []
        for number in range(1, options.nodes + 1):
            port = free_port()
            arguments = [options.eka, "node", *join, *limits, "--model", str(options.root / "models/demo")]
            arguments += ["--threads", "1", "--port", str(port), "--set", f"cluster.node_id=node-{number}"]
            self.nodes.append(Process(f"node-{number}", arguments, folder, port))
            # The first one exports the model, unless it is exported.
            self.nodes[-1].wait_ready()
        models = folder / "models" / "demo"
        models.mkdir(parents=True)
        export = pathlib.Path((folder / "node-1.log").read_text().split(" dir=")[1].split()[0])
        for name in TEXT_FILES:
            if (export / name).is_file():
                shutil.copy(export / name, models / name)
        self.gateways = []
        for number in range(1, options.gateways + 1):
            port = free_port()
            arguments = [options.eka, "gateway", *join, *limits, "--models", str(folder / "models"), "--port", str(port)]
            self.gateways.append(Process(f"gateway-{number}", arguments, folder, port))
        for gateway in self.gateways:
            gateway.wait_ready()

    def stop(self):
        for process in [*self.gateways, *self.nodes, self.nats]:
            process.kill()


class Interrupted(Exception):
    """The gateway has gone: the client asks again."""


def stream(port, prompt, tokens):
    """Streams an answer: its text, the number of tokens, how often it was resumed, and the longest pause."""
    body = {
        "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True},
    }
    text, usage, resumed, pause, last = "", None, 0, 0.0, None
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=320)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status in (429, 503):
            response.read()
            raise Interrupted(f"status {response.status}")
        if response.status != 200:
            return {"error": f"status {response.status}: {response.read()[:300]!r}"}
        is_done = False
        for line in response:
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            if last is not None:
                pause = max(pause, now - last)
            last = now
            if line.strip() == b"data: [DONE]":
                is_done = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                return {"error": json.dumps(event["error"])}
            for choice in event.get("choices", []):
                text += choice.get("text", "")
            usage = event.get("usage") or usage
            resumed = (event.get("timings") or {}).get("resumed", resumed)
        if not is_done:
            raise Interrupted("the stream has no end")
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(str(error)) from error
    return {"text": text, "tokens": usage["completion_tokens"], "resumed": resumed, "pause": pause}


class Clients:
    """Threads that ask until all requests are answered."""

    def __init__(self, cluster, wanted, options):
        self.cluster, self.wanted, self.options = cluster, wanted, options
        self.lock = threading.Lock()
        self.next = 0
        self.counts = collections.Counter()
        self.pauses, self.wrong = [], []

    def run(self):
        choose = random.Random()
        while True:
            with self.lock:
                if self.next == self.options.requests:
                    return
                number = self.next
                self.next += 1
            prompt = PROMPTS[number % len(PROMPTS)]
            while True:
                gateway = choose.choice(self.cluster.gateways)
                try:
                    answer = stream(gateway.port, prompt, self.options.tokens)
                    break
                except Interrupted:
                    with self.lock:
                        self.counts["asked again"] += 1
                    time.sleep(0.2)
            with self.lock:
                self.note(number, prompt, answer)

    def note(self, number, prompt, answer):
        if "error" in answer:
            self.wrong.append(f"request {number}: {answer['error']}")
        elif (answer["text"], answer["tokens"]) != self.wanted[prompt]:
            self.wrong.append(f"request {number}: {answer['tokens']} tokens, {answer['text']!r}")
        else:
            self.counts["right"] += 1
            self.counts["resumed"] += answer["resumed"] > 0
            self.pauses.append(answer["pause"])


def disturb(cluster, options, ended):
    """Kills processes until the clients have ended; counts what was killed."""
    choose, kills = random.Random(options.seed), collections.Counter()
    while not ended.wait(options.every):
        kinds = ["node"] * 3 + ["gateway"] * (options.gateways > 1) + ["nats"] + ["stop"] * options.stop
        kind = choose.choice(kinds)
        kills[kind] += 1
        if kind == "stop":
            node = choose.choice(cluster.nodes)
            node.child.send_signal(signal.SIGSTOP)
            ended.wait(3)
            node.child.send_signal(signal.SIGCONT)
            continue
        process = {"node": choose.choice(cluster.nodes), "gateway": choose.choice(cluster.gateways), "nats": cluster.nats}[kind]
        process.kill()
        process.start()
    return kills


def options_of(arguments):
    parser = argparse.ArgumentParser(prog="scripts/chaos --cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--eka", required=True, type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--nats", required=True, type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--storage", choices=["file", "memory"], default="file")
    parser.add_argument("--stop", action="store_true", help="also stop nodes with SIGSTOP")
    options = parser.parse_args(arguments)
    options.root = pathlib.Path(__file__).resolve().parents[2]
    return options


def main():
    options = options_of(sys.argv[1:])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="eka-chaos-"))
    cluster = Cluster(options, folder)
    try:
        wanted = {}
        for prompt in PROMPTS:
            answer = stream(cluster.gateways[0].port, prompt, options.tokens)
            wanted[prompt] = (answer["text"], answer["tokens"])
        clients, ended, kills = Clients(cluster, wanted, options), threading.Event(), []
        disturbing = threading.Thread(target=lambda: kills.append(disturb(cluster, options, ended)))
        threads = [threading.Thread(target=clients.run) for _ in range(options.clients)]
        began = time.monotonic()
        for thread in [disturbing, *threads]:
            thread.start()
        for thread in threads:
            thread.join()
        ended.set()
        disturbing.join()
    finally:
        cluster.stop()
    pauses = sorted(clients.pauses) or [0.0]
    print(f"{clients.counts['right']} of {options.requests} right in {time.monotonic() - began:.0f} s; storage {options.storage}")
    print("killed:", ", ".join(f"{kind} {count}" for kind, count in sorted(kills[0].items())) or "nothing")
    print(f"resumed answers {clients.counts['resumed']}, asked again {clients.counts['asked again']}")
    print(f"longest pause of a stream: p50 {statistics.median(pauses):.2f} s, p99 {pauses[int(len(pauses) * 0.99) - 1]:.2f} s, "
          f"max {pauses[-1]:.2f} s; above 5 s: {sum(pause > 5 for pause in pauses)}")
    for line in clients.wrong[:20]:
        print("WRONG", line)
    if clients.wrong or clients.counts["right"] != options.requests:
        print(f"the logs are in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
