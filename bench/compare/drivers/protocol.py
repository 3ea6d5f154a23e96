"""The protocol of a driver: one line of JSON when it is ready, and one for each request.

Runs under the Python of the library, and imports nothing of eka's. Arguments: MODEL THREADS.
"""

import json
import os
import sys
import time

# The library's own output must not mix with the lines.
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def say(reply):
    print(json.dumps(reply), file=replies, flush=True)


def serve(version, load):
    """`load(folder, threads)` gives `begin(ids, steps)`, which reads a prompt and gives what makes one more token."""
    begin = load(sys.argv[1], int(sys.argv[2]))
    begin([1], 1)()
    say({"version": version})
    for line in sys.stdin:
        asked = json.loads(line)
        say(measure(begin, asked["ids"], asked["steps"]))


def measure(begin, ids, steps):
    started = time.perf_counter()
    step = begin(ids, steps)
    read = time.perf_counter()
    for _ in range(steps):
        step()
    return {"prefill_seconds": read - started, "decode_seconds": time.perf_counter() - read}
