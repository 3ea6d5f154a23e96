"""Section D: what becomes of workers that stop, and of jobs whose model vanishes."""

import http.client
import os
import shutil
import signal
import threading
import time

from .clients import GENERATE, expect
from .folders import exported
from .server import Failure, Server, eventually, is_alive

ASK = {"prompt": "The river is long.", "max_new_tokens": 4}


def a_stopped_idle_worker(torture):
    """SIGSTOP of an idle worker: it is replaced before anybody asks."""
    with Server(torture.eka, torture.root, torture.work) as server:
        old = server.workers()
        os.kill(old[0], signal.SIGSTOP)
        took = eventually("a new worker", 90, lambda: set(server.workers()) - set(old) and not is_alive(old[0]))
        began = time.monotonic()
        expect([server.post(GENERATE, ASK)], {200}, "the next request")
        return f"replaced after {took:.0f} s, next answer after {time.monotonic() - began:.1f} s"


def a_stopped_worker_of_a_killed_parent(torture):
    with Server(torture.eka, torture.root, torture.work) as server:
        worker = server.workers()[0]
        os.kill(worker, signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        took = eventually("the end of the stopped worker", 20, lambda: not is_alive(worker))
        return f"gone after {took * 1000:.0f} ms"


def weights_that_vanish(torture):
    """The model's files go, then the worker: the request that runs gets the same 503 as those that come later."""
    own = exported(torture, "vanishing")
    with Server(torture.eka, torture.root, torture.work, ["--model", own]) as server:
        answers, broken, worker = [], [], server.workers()[0]
        long = ASK | {"max_new_tokens": 200, "ignore_eos": True}

        def ask():
            while not answers or answers[-1].status == 200:
                try:
                    answers.append(server.post(GENERATE, long))
                except (OSError, http.client.HTTPException) as error:
                    broken.append(error)
                    return

        client = threading.Thread(target=ask)
        client.start()
        eventually("a first answer", 60, lambda: answers)
        shutil.rmtree(own)
        os.kill(worker, signal.SIGKILL)
        client.join(60)
        if client.is_alive() or broken:
            raise Failure(f"the request that ran has no answer after 60 s: {broken}")
        later = server.post(GENERATE, ASK)
        if (answers[-1].status, answers[-1].code) != (later.status, later.code):
            raise Failure(f"the request that ran: {answers[-1].status} {answers[-1].code}; a later one: {later.status} {later.code}")
        return expect([later], {503}, "a request without weights")


CASES = [
    ("D16", "an idle worker is stopped", a_stopped_idle_worker),
    ("D16", "a stopped worker, a killed parent", a_stopped_worker_of_a_killed_parent),
    ("D17", "the weights vanish while a job runs", weights_that_vanish),
]
