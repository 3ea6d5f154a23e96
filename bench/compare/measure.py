"""The rounds: every peer in turn, first without HTTP, then over it. What fails is a cell with its reason."""

import sys
import time
from contextlib import contextmanager

from . import client
from .peers import Failed, Library, free_port
from .process import Child, forget


def say(text):
    print(text, file=sys.stderr, flush=True)


class Cells(dict):
    """What one peer did in one round: a value by measure, or `{"error": why}`."""

    @contextmanager
    def of(self, *names):
        """An exception inside becomes the reason why `names` have no value, if they have none yet."""
        try:
            yield
        except Failed as error:
            say(f"    {', '.join(names)}: {error}")
            for name in names:
                self.setdefault(name, {"error": str(error)})


def one_round(peers, settings, vocabulary, turn):
    """Every peer's cells."""
    cells = {peer.name: Cells() for peer in peers}
    for peer in peers:
        say(f"  {peer.name}: {'library' if isinstance(peer, Library) else 'engine'}")
        measure = library if isinstance(peer, Library) else engine
        measure(peer, settings, vocabulary, cells[peer.name])
    for peer in peers:
        if peer.serve(settings, 0):
            say(f"  {peer.name}: server")
            server(peer, settings, vocabulary, turn, cells[peer.name])
    return cells


def engine_names(settings):
    return ["prefill", *(f"decode_{context}" for context in settings.contexts)]


def engine(peer, settings, _vocabulary, cells):
    with cells.of(*engine_names(settings)):
        cells |= peer.engine(settings)


def cold_load(peer, cells, start):
    """Loads once with files that are not in the page cache; `start` gives the seconds that it took."""
    with cells.of("load_cold"):
        if not forget(peer.model):
            raise Failed("its files cannot be dropped from the page cache here")
        cells["load_cold"] = start()


def library(peer, settings, vocabulary, cells):
    def start():
        with peer.session(settings) as session:
            return session.load_seconds

    cold_load(peer, cells, start)
    with cells.of("load_warm", *engine_names(settings), "peak_memory"):
        with peer.session(settings) as session:
            cells["load_warm"] = session.load_seconds
            peer.version = session.version
            cells |= session.engine(settings, vocabulary)
            cells["peak_memory"] = session.peak_mib()


@contextmanager
def running(peer, settings):
    """The peer's server once it is ready, its port, and the seconds until then."""
    port = free_port()
    options = {"env": peer.environment(), "cwd": settings.work}
    with Child(peer.serve(settings, port), peer.log(settings), **options) as child:
        while client.get(port, peer.ready_path) != 200:
            child.check_alive()
            if time.monotonic() - child.started > settings.limit:
                raise Failed(f"not ready after {settings.limit:.0f} s")
            time.sleep(0.01)
        yield child, port, time.monotonic() - child.started


def server(peer, settings, vocabulary, turn, cells):
    def start():
        with running(peer, settings) as (_, _, seconds):
            return seconds

    many = f"served_{settings.clients}"
    cold_load(peer, cells, start)
    with cells.of("load_warm", "ttft", "served_1", many, "peak_memory"):
        with running(peer, settings) as (child, port, seconds):
            cells["load_warm"] = seconds
            requests(peer, settings, Asker(peer, port, vocabulary, turn, settings.limit), cells)
            child.check_alive()
            cells["peak_memory"] = child.peak_mib()


class Asker:
    """Asks with another prompt each time."""

    def __init__(self, peer, port, vocabulary, turn, limit):
        self.peer, self.port, self.vocabulary, self.limit = peer, port, vocabulary, limit
        self.turn = turn * 100

    def __call__(self, number, length, steps):
        ids = client.prompt(length, self.vocabulary, self.turn + number)
        return client.complete(self.port, self.peer.served_name, ids, steps, self.limit)


def requests(peer, settings, ask, cells):
    ask(0, 16, 4)
    with cells.of("ttft"):
        cells["ttft"] = 1e3 * ask(1, settings.prefill, 2).first
    for clients, each, start in ((1, settings.served_requests, 10), (settings.clients, 1, 20)):
        name = f"served_{clients}"
        with cells.of(name):
            one = lambda number: ask(start + number, settings.served_prompt, settings.served_steps)
            cells[name] = client.throughput(clients, each, one)
