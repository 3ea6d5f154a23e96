"""Kills processes of a cluster while clients stream answers, and checks every answer.

    scripts/chaos --cluster [--requests N] [--nodes N] [--gateways N] [--clients N] [--every SECONDS] [--seed N]
                            [--storage file|memory] [--tokens N] [--stop] [--restart] [--cut SECONDS]

Every few seconds one process is killed with SIGKILL, a node, a gateway or the NATS server, and started again. With --stop, nodes
are also stopped with SIGSTOP for longer than cluster.lost_ms. With --restart, nodes and gateways are stopped with SIGTERM one after
another instead, as an upgrade does, and no answer may be interrupted. With --cut, the network of a node, a gateway or the NATS server is
cut for that long instead: each is in a network namespace of its own, which needs root and `ip`.

A client whose gateway is killed asks another one; nothing else may fail. Every streamed answer must be the one that an undisturbed
server gave, so a token that is lost or sent twice is found.
"""

import argparse
import collections
import os
import pathlib
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time

from namespaces import Namespaces
from processes import ROOT, Cluster, Interrupted, stream

PROMPTS = [
    "Translate to Hindi: Good morning, friend.",
    "Translate to Kannada: Please speak slowly.",
    "The weather is",
    "One, two, three",
]


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
            answer = self.ask(prompt, choose)
            with self.lock:
                self.note(number, prompt, answer)

    def ask(self, prompt, choose):
        while True:
            gateway = choose.choice(self.cluster.gateways)
            seen = []
            try:
                return stream(gateway, prompt, self.options.tokens, on_piece=seen.append)
            except Interrupted:
                with self.lock:
                    self.counts["asked again"] += 1
                    self.counts["interrupted"] += bool(seen)
                time.sleep(0.2)

    def note(self, number, prompt, answer):
        if answer.error:
            self.wrong.append(f"request {number}: {answer.error}")
        elif (answer.text, answer.tokens) != self.wanted[prompt]:
            self.wrong.append(f"request {number}: {answer.tokens} tokens, {answer.text!r}")
        else:
            self.counts["right"] += 1
            self.counts["resumed"] += answer.resumed > 0
            self.pauses.append(answer.pause())


def kill_processes(cluster, options, ended, done):
    """Kills processes until the clients have ended."""
    choose = random.Random(options.seed)
    kinds = ["node"] * 3 + ["gateway"] * (options.gateways > 1) + ["nats"] + ["stop"] * options.stop
    while not ended.wait(options.every):
        kind = choose.choice(kinds)
        done[kind] += 1
        if kind == "stop":
            node = choose.choice(cluster.nodes)
            node.signal(signal.SIGSTOP)
            ended.wait(3)
            node.signal(signal.SIGCONT)
            continue
        process = {"node": choose.choice(cluster.nodes), "gateway": choose.choice(cluster.gateways), "nats": cluster.nats}[kind]
        process.kill()
        process.start()


def restart_processes(cluster, options, ended, done):
    """Stops and starts every node and gateway, one after another, until the clients have ended."""
    while not ended.is_set():
        for process in [*cluster.nodes, *cluster.gateways]:
            if ended.wait(options.every):
                return
            done[process.name.rsplit("-", 1)[0]] += 1
            process.terminate()
            process.start()
            process.wait_ready()


def cut_networks(cluster, options, ended, done):
    """Cuts the network of one machine at a time, until the clients have ended."""
    choose = random.Random(options.seed)
    while not ended.wait(options.every):
        machine = choose.choice([*cluster.nodes, *cluster.gateways])
        done["cut " + machine.name.rsplit("-", 1)[0]] += 1
        cluster.networks.cut(machine.name)
        ended.wait(options.cut)
        cluster.networks.join(machine.name)


def options_of(arguments):
    parser = argparse.ArgumentParser(prog="scripts/chaos --cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--eka", required=True, type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--nats", required=True, type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills, restarts or cuts")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--storage", choices=["file", "memory"], default="file")
    parser.add_argument("--stop", action="store_true", help="also stop nodes with SIGSTOP")
    parser.add_argument("--restart", action="store_true", help="restart nodes and gateways with SIGTERM, and kill nothing")
    parser.add_argument("--cut", type=float, metavar="SECONDS", help="cut networks for so long, and kill nothing")
    return parser.parse_args(arguments)


def main():
    options = options_of(sys.argv[1:])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="eka-chaos-"))
    flags = ["--set", f"cluster.storage={options.storage}", "--set", "queue.timeout_ms=300000"]
    networks = Namespaces() if options.cut else None
    cluster = Cluster(options, folder, nodes=options.nodes, gateways=options.gateways, flags=flags, networks=networks)
    done, ended = collections.Counter(), threading.Event()
    try:
        wanted = {}
        for prompt in PROMPTS:
            answer = stream(cluster.gateways[0], prompt, options.tokens)
            wanted[prompt] = (answer.text, answer.tokens)
        clients = Clients(cluster, wanted, options)
        work = cut_networks if options.cut else restart_processes if options.restart else kill_processes
        disturbing = threading.Thread(target=work, args=(cluster, options, ended, done))
        threads = [threading.Thread(target=clients.run) for _ in range(options.clients)]
        began = time.monotonic()
        for thread in [disturbing, *threads]:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        ended.set()
        disturbing.join()
        stale = sum(gateway.metric("eka_cluster_stale_total") or 0 for gateway in cluster.gateways)
    finally:
        ended.set()
        cluster.stop()
    is_right = report(options, clients, done, took, stale)
    if not is_right:
        print(f"the logs are in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


def report(options, clients, done, took, stale):
    pauses, counts = sorted(clients.pauses) or [0.0], clients.counts
    print(f"{counts['right']} of {options.requests} right in {took:.0f} s; storage {options.storage}; load {os.getloadavg()[0]:.1f}")
    print("disturbed:", ", ".join(f"{kind} {count}" for kind, count in sorted(done.items())) or "nothing")
    print(f"resumed answers {counts['resumed']}, asked again {counts['asked again']} "
          f"({counts['interrupted']} in the middle of an answer), late messages dropped {stale:.0f}")
    print(f"longest pause of a stream: p50 {statistics.median(pauses):.2f} s, p99 {pauses[int(len(pauses) * 0.99) - 1]:.2f} s, "
          f"max {pauses[-1]:.2f} s; above 5 s: {sum(pause > 5 for pause in pauses)}")
    for line in clients.wrong[:20]:
        print("WRONG", line)
    if options.restart and counts["interrupted"]:
        print("WRONG answers were interrupted by a restart")
        return False
    return not clients.wrong and counts["right"] == options.requests


if __name__ == "__main__":
    main()
