"""Measures a cluster on this machine, and prints a table of measured values and bars.

    scripts/cluster --measure [--model DIR] [--only NAME,...] [--rounds N] [--tokens N]

Every process is real: NATS servers, gateways, nodes with a model and their workers. The model should be slow enough that an answer
of `--tokens` tokens takes seconds, or nodes cannot be killed in the middle of one. Ratios come from alternating measurements.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from processes import ROOT, Cluster, Interrupted, Process, free_port, stream

PROMPT = "Translate to Hindi: Good morning, friend."


class Table:
    def __init__(self):
        self.rows = []

    def add(self, what, value, bar, holds):
        self.rows.append((what, value, bar, holds))
        print(f"{'holds ' if holds else 'MISSED'}  {what}: {value} (bar: {bar})", flush=True)

    def seconds(self, what, values, bar):
        text = f"median {statistics.median(values):.2f} s, worst {max(values):.2f} s of {len(values)}"
        self.add(what, text, f"{bar:.1f} s", max(values) <= bar)


@contextlib.contextmanager
def cluster_of(options, **arguments):
    with tempfile.TemporaryDirectory(prefix="eka-measure-") as folder:
        cluster = Cluster(options, pathlib.Path(folder), **arguments)
        try:
            # The first answer of each node warms it up.
            for _ in cluster.nodes:
                stream(cluster.gateways[0], PROMPT, 8)
            yield cluster
        finally:
            cluster.stop()


class Streaming(threading.Thread):
    """A stream in the background."""

    def __init__(self, gateway, tokens):
        super().__init__()
        self.gateway, self.tokens, self.answer, self.broken = gateway, tokens, None, None
        self.began = threading.Event()
        self.start()

    def run(self):
        try:
            self.answer = stream(self.gateway, PROMPT, self.tokens, on_piece=lambda answer: self.note(answer))
        except Interrupted as error:
            self.broken = str(error)

    def note(self, answer):
        self.answer = answer
        if len(answer.times) >= 3:
            self.began.set()

    def finish(self):
        self.join()
        return self.answer


def disturbed(cluster, tokens, disturb):
    """A stream whose node is disturbed after some tokens; the answer and what `disturb` gave."""
    streaming = Streaming(cluster.gateways[0], tokens)
    streaming.began.wait(60)
    given = disturb(cluster.running_nodes()[0])
    return streaming.finish(), given


def cost_of_gateway(options, table):
    """Decode and time to first token beside `eka serve`, in turns."""
    with cluster_of(options, nodes=1) as cluster:
        port = free_port()
        arguments = [options.eka, "serve", "--model", cluster.model, "--threads", "1", "--port", port]
        alone = Process("serve", arguments, cluster.folder, ("127.0.0.1", port))
        alone.wait_ready()
        firsts, decodes = {alone: [], cluster.gateways[0]: []}, {alone: [], cluster.gateways[0]: []}
        for round_ in range(2 * options.rounds + 1):
            for server in firsts:
                began = time.monotonic()
                answer = stream(server, f"{round_}: {PROMPT}", options.tokens)
                if round_:
                    firsts[server].append(answer.times[0] - began)
                    decodes[server].append((answer.times[-1] - answer.times[0]) / (len(answer.times) - 1))
        alone.kill()
    first = [statistics.median(firsts[server]) * 1000 for server in firsts]
    decode = [statistics.median(decodes[server]) * 1000 for server in decodes]
    # Each round is a pair, so that a slow moment of the machine meets both.
    pairs = [through / plain for plain, through in zip(*decodes.values())]
    cost = (statistics.median(pairs) - 1) * 100
    table.add("gateway: decode", f"{cost:+.1f} % ({decode[0]:.2f} and {decode[1]:.2f} ms per token)", "3 %", cost <= 3)
    table.add("gateway: time to first token", f"{first[1] - first[0]:+.1f} ms ({first[0]:.1f} and {first[1]:.1f} ms)", "3 ms",
              first[1] - first[0] <= 3)


def lost_nodes(options, table):
    """kill -9 and SIGSTOP of a node; a client that leaves; a gateway that is killed."""
    with cluster_of(options, nodes=2, gateways=2) as cluster:
        wanted = stream(cluster.gateways[0], PROMPT, options.tokens).text
        gaps, right = [], []
        for _ in range(options.rounds):
            answer, node = disturbed(cluster, options.tokens, lambda node: (node.kill(), node)[1])
            gaps.append(answer.pause())
            right.append(answer.text == wanted and answer.resumed == 1)
            node.start()
            node.wait_ready()
            cluster.wait_slots(2)
        table.seconds("node killed: to the next token", gaps, 1.0)
        gaps = []
        for _ in range(options.rounds):
            answer, node = disturbed(cluster, options.tokens, lambda node: (node.signal(signal.SIGSTOP), node)[1])
            gaps.append(answer.pause())
            right.append(answer.text == wanted)
            node.signal(signal.SIGCONT)
            cluster.wait_slots(2)
            time.sleep(1)
        table.seconds("node stopped: to the next token (lost_ms is 2 s)", gaps, 2.5)
        stale = cluster.gateways[0].metric("eka_cluster_stale_total")
        table.add("late messages of stopped nodes dropped", f"{stale:.0f}", "more than 0", stale > 0)
        table.add("answers with each token once", f"{sum(right)} of {len(right)}", "all", all(right))
        table.seconds("client leaves: slot free", [left(cluster, options) for _ in range(options.rounds)], 1.0)
        table.seconds("gateway killed: slot free", [orphaned(cluster, options) for _ in range(options.rounds)], 2.0)


def left(cluster, options):
    leave = {}

    def on_piece(answer):
        if len(answer.times) == 3:
            leave["node"] = cluster.running_nodes()[0]
            leave["at"] = time.monotonic()
            return True

    stream(cluster.gateways[0], PROMPT, options.tokens, on_piece)
    return free_after(leave["node"], leave["at"])


def orphaned(cluster, options):
    gateway = cluster.gateways[1]
    streaming = Streaming(gateway, options.tokens)
    streaming.began.wait(60)
    node = cluster.running_nodes()[0]
    at = time.monotonic()
    gateway.kill()
    took = free_after(node, at)
    streaming.join()
    gateway.start()
    gateway.wait_ready()
    cluster.wait_slots(2, gateway)
    return took


def free_after(node, since):
    while node.metric("eka_slot_busy") != 0 and time.monotonic() - since < 30:
        time.sleep(0.01)
    return time.monotonic() - since


def broker_away(options, table):
    """The NATS server is killed for some time under 20 streams."""
    with cluster_of(options, nodes=2) as cluster:
        for outage in (0.2, 3.0):
            streams = [Streaming(cluster.gateways[0], options.tokens) for _ in range(20)]
            streams[0].began.wait(60)
            cluster.nats.kill()
            time.sleep(outage)
            cluster.nats.start()
            answers = [streaming.finish() for streaming in streams]
            failed = sum(streaming.broken is not None or answer is None or answer.error is not None
                         for streaming, answer in zip(streams, answers))
            longest = max(answer.pause() for answer in answers if answer)
            table.add(f"NATS server away for {outage} s, 20 streams", f"{failed} failed, longest gap {longest:.2f} s",
                      f"0 failed, {outage + 0.5:.1f} s", failed == 0 and longest <= outage + 0.5)


def three_brokers(options, table):
    """Three NATS servers; the leader of the queue is killed."""
    with cluster_of(options, nodes=2, brokers=3) as cluster:
        gaps, failed, waits = [], 0, []
        for _ in range(options.rounds):
            streaming = Streaming(cluster.gateways[0], options.tokens)
            streaming.began.wait(60)
            leader = leader_of(cluster)
            leader.kill()
            began = time.monotonic()
            try:
                answer = stream(cluster.gateways[0], PROMPT, 8)
                failed += answer.error is not None
                waits.append(time.monotonic() - began)
            except Interrupted:
                failed += 1
            gaps.append(streaming.finish().pause())
            leader.start()
            time.sleep(5)
        table.seconds("leader of three NATS servers killed: gap of running streams", gaps, 0.2)
        table.add("new requests meanwhile", f"{failed} failed; answered after at most {max(waits, default=0):.1f} s", "0 failed",
                  failed == 0)


def leader_of(cluster):
    """The NATS server that leads the stream, as its monitoring port says."""
    for broker in cluster.brokers:
        port = broker.arguments[broker.arguments.index("-m") + 1]
        found = subprocess.run(["curl", "-s", f"http://127.0.0.1:{port}/jsz?streams=true"], capture_output=True, text=True).stdout
        for account in json.loads(found).get("account_details", []):
            for one in account.get("stream_detail", []):
                leader = (one.get("cluster") or {}).get("leader")
                if leader:
                    return next(broker for broker in cluster.brokers if broker.name == leader)
    sys.exit("no NATS server names the leader of the stream")


def transit(options, table):
    """Half of a question's way to a node and back, while nodes send tokens."""
    with cluster_of(options, nodes=2) as cluster:
        clients = [Streaming(cluster.gateways[0], options.tokens) for _ in range(2)]
        clients[0].began.wait(60)
        began = time.monotonic()
        times = sorted(took / 2 * 1000 for took in round_trips(cluster, 3000))
        took = time.monotonic() - began
        rate = sum(client.finish().tokens / (client.answer.times[-1] - client.answer.times[0]) for client in clients)
        p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
        table.add(f"transit between gateway and node, {rate:.0f} tokens/s and {len(times) / took:.0f} questions/s",
                  f"p50 {p50:.2f} ms, p99 {p99:.2f} ms", "p50 0.3 ms, p99 5 ms", p50 <= 0.3 and p99 <= 5)


def round_trips(cluster, count):
    """Asks a node about a run that it does not have: the question and the answer pass the NATS server as tokens do."""
    # MessagePack of {"Run": {"gateway": "g", "run": {"job": 0, "epoch": 0, "fence": 0}, "command": "Probe"}}.
    question = b"\x81\xa3Run\x83\xa7gateway\xa1g\xa3run\x83\xa3job\x00\xa5epoch\x00\xa5fence\x00\xa7command\xa5Probe"
    with socket.create_connection(("127.0.0.1", cluster.nats.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = connection.makefile("rb")
        lines.readline()
        connection.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nSUB answers 1\r\n')
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(b"PUB eka.1.node.node-1.ctl answers %d\r\n%s\r\n" % (len(question), question))
            while not (line := lines.readline()).startswith(b"MSG"):
                if line.startswith(b"PING"):
                    connection.sendall(b"PONG\r\n")
            answer, took = lines.read(int(line.split()[-1]) + 2), time.perf_counter() - began
            if b"Unknown" not in answer:
                sys.exit(f"node-1 answered {answer!r}, not that it has no such run")
            yield took


def full_queue(options, table):
    """Retry-After of a full queue against the time until the requests before it are answered."""
    ratios = []
    with cluster_of(options, nodes=2, flags=["--set", "cluster.max_jobs=6"]) as cluster:
        for _ in range(3):
            # The estimate needs the length of an answer.
            stream(cluster.gateways[0], PROMPT, options.tokens)
        for _ in range(max(2, options.rounds // 2)):
            streams = [Streaming(cluster.gateways[0], 2 * options.tokens) for _ in range(8)]
            time.sleep(0.3)
            refused, began = refusal(cluster.gateways[0], 2 * options.tokens), time.monotonic()
            for streaming in streams:
                streaming.finish()
            if refused:
                ratios.append(refused / max(1.0, time.monotonic() - began))
    text = ", ".join(f"{ratio:.2f}" for ratio in ratios) or "no request was refused"
    table.add("full queue: Retry-After as a multiple of the truth", text, "0.5 to 2", bool(ratios) and all(0.5 <= ratio <= 2 for ratio in ratios))


def refusal(gateway, tokens):
    import http.client

    connection = http.client.HTTPConnection(gateway.host, gateway.port, timeout=60)
    body = json.dumps({"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    response = connection.getresponse()
    response.read()
    return float(response.headers["retry-after"]) if response.status == 429 else None


def two_nodes(options, table):
    """Throughput of two nodes, each on a core of its own, against one."""
    with cluster_of(options, nodes=1, cores=sorted(os.sched_getaffinity(0))) as cluster:
        one = throughput([cluster.gateways[0]], options)
        cluster.add_node().wait_ready()
        cluster.wait_slots(2)
        two = throughput([cluster.gateways[0]] * 2, options)
        separate = two_servers(cluster, options)
    ratio = two / one
    table.add("two nodes against one", f"{ratio:.2f} × ({one:.1f} and {two:.1f} tokens/s)", "1.9 ×", ratio >= 1.9)
    # Cores share the memory, so this machine may not allow 1.9.
    table.add("the same beside two servers without a cluster", f"{ratio / separate:.2f} (they reach {separate:.2f} ×)", "0.95",
              ratio >= 0.95 * separate)


def two_servers(cluster, options):
    """Throughput of two `eka serve`, each on a core of its own, against one."""
    servers = []
    for number, core in enumerate(cluster.cores[:2], 1):
        port = free_port()
        arguments = ["taskset", "-c", core, options.eka, "serve", "--model", cluster.model, "--threads", "1", "--port", port]
        servers.append(Process(f"serve-{number}", arguments, cluster.folder, ("127.0.0.1", port)))
    for server in servers:
        server.wait_ready()
        stream(server, PROMPT, 8)
    one, two = throughput(servers[:1], options), throughput(servers, options)
    for server in servers:
        server.kill()
    return two / one


def throughput(servers, options):
    """Tokens per second of four answers for each entry of `servers`, all at once."""
    stream(servers[0], PROMPT, 8)
    began = time.monotonic()
    streams = [Streaming(server, options.tokens) for server in servers for _ in range(4)]
    tokens = sum(streaming.finish().tokens for streaming in streams)
    return tokens / (time.monotonic() - began)


MEASURES = {
    "cost": cost_of_gateway, "losses": lost_nodes, "broker": broker_away, "leader": three_brokers,
    "transit": transit, "retry": full_queue, "scale": two_nodes,
}


def main():
    parser = argparse.ArgumentParser(prog="scripts/cluster --measure", description=__doc__.splitlines()[0])
    parser.add_argument("--eka", required=True, type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--nats", required=True, type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/demo", help="a model directory or its sources")
    parser.add_argument("--only", default=",".join(MEASURES), help="some of: " + ", ".join(MEASURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    table = Table()
    for name in options.only.split(","):
        if name not in MEASURES:
            parser.error(f"--only {name}: expected some of {', '.join(MEASURES)}")
        MEASURES[name](options, table)
    print(f"\n| measured | value | bar | |\n|---|---|---|---|")
    for what, value, bar, holds in table.rows:
        print(f"| {what} | {value} | {bar} | {'holds' if holds else 'missed'} |")
    print(f"\n{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, model {options.model.name}, {options.tokens} tokens an answer")
    if not all(row[3] for row in table.rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
