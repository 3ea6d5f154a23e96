"""Starts the processes of a cluster on this machine, and asks its gateways."""

import http.client
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT_FILES = (
    "eka.json tokenizer.json tokenizer_config.json special_tokens_map.json generation_config.json chat_template.jinja".split()
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A process that can be started again on the same port."""

    def __init__(self, name, arguments, folder, address):
        self.name, self.arguments = name, [str(argument) for argument in arguments]
        self.host, self.port = address
        self.log = open(folder / f"{name}.log", "ab")
        self.child = None
        self.start()

    def start(self):
        self.child = subprocess.Popen(self.arguments, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def signal(self, number):
        self.child.send_signal(number)

    def kill(self):
        self.child.send_signal(signal.SIGCONT)
        self.child.kill()
        self.child.wait()

    def terminate(self):
        """Ends it as an upgrade does; the seconds that it took."""
        began = time.monotonic()
        self.child.terminate()
        self.child.wait()
        return time.monotonic() - began

    def get(self, path, timeout=5):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def metric(self, name):
        """A metric without labels; None if the process does not answer."""
        try:
            lines = self.get("/metrics")[1].splitlines()
        except OSError:
            return None
        return next((float(line.split()[1]) for line in lines if line.startswith(name + " ")), None)

    def is_ready(self):
        try:
            return self.get("/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def wait_ready(self, seconds=180):
        until = time.monotonic() + seconds
        while not self.is_ready():
            if time.monotonic() > until or self.child.poll() is not None:
                sys.exit(f"{self.name} is not ready; see {self.log.name}")
            time.sleep(0.1)


class Cluster:
    """NATS servers, nodes and gateways. `flags` are for all processes of eka. With `networks` every node and gateway is on a machine
    of its own; with `cores` every node has one of these processors."""

    def __init__(self, options, folder, nodes=2, gateways=1, brokers=1, flags=(), networks=None, cores=None):
        self.cores = cores
        self.options, self.folder, self.networks = options, folder, networks
        self.model = getattr(options, "model", None) or ROOT / "models/demo"
        self.brokers = start_brokers(options.nats, folder, brokers, "10.79.0.1" if networks else "127.0.0.1")
        self.nats = self.brokers[0]
        urls = ",".join(f"nats://{broker.host}:{broker.port}" for broker in self.brokers)
        self.join = ["--join", urls, *flags]
        if brokers > 1:
            self.join += ["--set", f"cluster.replicas={brokers}"]
        self.nodes, self.gateways = [], []
        for _ in range(nodes):
            # The first one exports the model, unless it is exported.
            self.add_node().wait_ready()
        self.models = self.text_files()
        for _ in range(gateways):
            self.add_gateway()
        for gateway in self.gateways:
            gateway.wait_ready()
        self.wait_slots(nodes)

    def add_node(self):
        prefix = ["taskset", "-c", str(self.cores[len(self.nodes)])] if self.cores else []
        name = f"node-{len(self.nodes) + 1}"
        arguments = [self.options.eka, "node", *self.join, "--model", self.model, "--threads", "1"]
        arguments += ["--set", f"cluster.node_id={name}"]
        self.nodes.append(self.start(name, [*prefix, *arguments]))
        return self.nodes[-1]

    def add_gateway(self):
        arguments = [self.options.eka, "gateway", *self.join, "--models", self.models]
        self.gateways.append(self.start(f"gateway-{len(self.gateways) + 1}", arguments))
        return self.gateways[-1]

    def start(self, name, arguments):
        host, prefix, port = "127.0.0.1", [], free_port()
        if self.networks:
            host, prefix = self.networks.add(name)
            arguments = [*arguments, "--set", f"server.bind={host}"]
        return Process(name, [*prefix, *arguments, "--port", port], self.folder, (host, port))

    def text_files(self):
        """A directory of models with what gateways need: no weights."""
        source, log = pathlib.Path(self.model), (self.folder / "node-1.log").read_text()
        if not (source / "eka.json").is_file():
            source = pathlib.Path(log.split(" dir=")[1].split()[0])
        models = self.folder / "models"
        target = models / pathlib.Path(self.model).name
        target.mkdir(parents=True, exist_ok=True)
        for name in TEXT_FILES:
            if (source / name).is_file():
                shutil.copy(source / name, target / name)
        return models

    def wait_slots(self, slots, gateway=None):
        gateway = gateway or self.gateways[0]
        until = time.monotonic() + 120
        while gateway.metric("eka_cluster_slots") != slots:
            if time.monotonic() > until:
                sys.exit(f"{gateway.name} does not see {slots} slots; see {gateway.log.name}")
            time.sleep(0.05)

    def running_nodes(self):
        return [node for node in self.nodes if (node.metric("eka_slot_busy") or 0) > 0]

    def stop(self):
        for process in [*self.gateways, *self.nodes, *self.brokers]:
            process.kill()
        if self.networks:
            self.networks.remove()


def start_brokers(nats, folder, count, host="127.0.0.1"):
    """NATS servers with JetStream; several form a cluster."""
    brokers, routes = [], [free_port() for _ in range(count)]
    for number, route in enumerate(routes, 1):
        port = free_port()
        arguments = [nats, "-js", "-a", host, "-p", port, "-sd", folder / f"store-{number}"]
        if count > 1:
            others = ",".join(f"nats://127.0.0.1:{other}" for other in routes)
            arguments += ["-n", f"nats-{number}", "--cluster_name", "bench"]
            arguments += ["--cluster", f"nats://127.0.0.1:{route}", "--routes", others, "-m", free_port()]
        brokers.append(Process(f"nats-{number}", arguments, folder, (host, port)))
    for broker in brokers:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((host, broker.port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > until:
                    sys.exit(f"{broker.name} does not listen; see {broker.log.name}")
                time.sleep(0.05)
    return brokers


class Interrupted(Exception):
    """The gateway has gone or takes no requests: the client asks another one."""


class Answer:
    """A streamed answer with the time of each piece."""

    def __init__(self):
        self.text, self.tokens, self.resumed, self.times = "", 0, 0, []
        self.error, self.status, self.retry_after = None, None, None

    def pause(self):
        return max((b - a for a, b in zip(self.times, self.times[1:])), default=0.0)


def stream(gateway, prompt, tokens, on_piece=None, timeout=320):
    """Streams an answer; `on_piece(answer)` may return True to leave.

    Raises Interrupted when the gateway is away, or goes away.
    """
    body = {
        "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True},
    }
    answer, is_done = Answer(), False
    try:
        connection = http.client.HTTPConnection(gateway.host, gateway.port, timeout=timeout)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        answer.status, answer.retry_after = response.status, response.headers.get("retry-after")
        if response.status in (429, 503):
            response.read()
            raise Interrupted(f"status {response.status}")
        if response.status != 200:
            answer.error = f"status {response.status}: {response.read()[:300]!r}"
            return answer
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                is_done = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                answer.error = json.dumps(event["error"])
                return answer
            note(answer, event)
            if on_piece and on_piece(answer):
                connection.close()
                return answer
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(str(error)) from error
    if not is_done:
        raise Interrupted("the stream has no end")
    return answer


def note(answer, event):
    choices = event.get("choices", [])
    if any(choice.get("text") for choice in choices):
        answer.times.append(time.monotonic())
    answer.text += "".join(choice.get("text", "") for choice in choices)
    answer.tokens = (event.get("usage") or {}).get("completion_tokens", answer.tokens)
    answer.resumed = (event.get("timings") or {}).get("resumed", answer.resumed)
