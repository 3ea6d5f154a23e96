"""Two observers in separate processes: one requests /livez every 10 ms, the other reads a stream and measures its gaps.

Processes, not threads: the attacks run in this interpreter, whose lock would be measured otherwise.
"""

import http.client
import json
import multiprocessing
import os
import time

PROBE_EVERY_S = 0.01


class Watch:
    """What the bystanders saw between `begin` and `end`."""

    def __init__(self, port, headers=None):
        spawn = multiprocessing.get_context("fork")
        self.livez, self.gap = spawn.Value("d", 0.0), spawn.Value("d", 0.0)
        self.failures, self.gaps = spawn.Value("i", 0), spawn.Value("i", 0)
        self.processes = [
            spawn.Process(target=probe, args=(port, self.livez, self.failures), daemon=True),
            spawn.Process(target=stream, args=(port, headers or {}, self.gap, self.gaps), daemon=True),
        ]
        for process in self.processes:
            process.start()

    def begin(self):
        for value in (self.livez, self.gap, self.failures, self.gaps):
            value.value = 0

    def end(self):
        """The slowest /livez and the longest gap of a stream in seconds, probes that failed, and gaps counted."""
        return self.livez.value, self.gap.value, self.failures.value, self.gaps.value

    def stop(self):
        for process in self.processes:
            process.kill()
            process.join()


def prefer():
    """Measures the server, not the turn of a Python process among the attackers, where the system allows it."""
    try:
        os.nice(-5)
    except OSError:
        pass


def note(value, seen):
    with value.get_lock():
        value.value = max(value.value, seen)


def probe(port, slowest, failures):
    prefer()
    while True:
        began = time.monotonic()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/livez")
            response = connection.getresponse()
            response.read()
            connection.close()
            ok = response.status == 200
        except (OSError, http.client.HTTPException):
            ok = False
        took = time.monotonic() - began
        if ok:
            note(slowest, took)
        else:
            with failures.get_lock():
                failures.value += 1
        time.sleep(max(0.0, PROBE_EVERY_S - took))


def stream(port, headers, longest, gaps):
    prefer()
    body = json.dumps({"prompt": "The river is long.", "max_new_tokens": 200, "ignore_eos": True, "stream": True, "cache_prompt": False}).encode()
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request("POST", "/generate-lite", body, {"Content-Type": "application/json"} | headers)
            response = connection.getresponse()
            last = None
            for line in response:
                if line.startswith(b"data: "):
                    now = time.monotonic()
                    if last is not None:
                        note(longest, now - last)
                        gaps.value += 1
                    last = now
            connection.close()
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
