"""A real `eka serve` with two names for the demonstration model, and the memory of it and its workers."""

import http.client
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

# Hangs are injected: each should cost about a second, not the minute allowed on a slow machine.
SETTINGS = {"watchdog.decode_floor_ms": 2000, "watchdog.prefill_base_ms": 2000, "queue.max_jobs": 16, "models.keep_alive_ms": 20000}


class Server:
    def __init__(self, eka, root, work, faults):
        self.log = work / "server.log"
        models = work / "models"
        for name in ("base", "adapter"):
            shutil.copytree(root / "models/demo" / name, models / "twin" / name, dirs_exist_ok=True)
        command = [eka, "serve", "--port", "0", "--model", root / "models/demo", "--models", models]
        command += [f"--set={name}={value}" for name, value in (SETTINGS | {"model.cache_dir": work / "cache"}).items()]
        command += ["--faults", faults] if faults else []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EKA_")}
        environment.setdefault("ORT_DYLIB_PATH", str(root / ".onnxruntime"))
        ready_file = work / "ready.json"
        command += ["--ready-file", ready_file]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(list(map(str, command)), cwd=root, env=environment, stdin=subprocess.DEVNULL, stderr=log)
        self.address = self.wait_until_ready(ready_file, 120)

    def wait_until_ready(self, ready_file, timeout_s):
        """The address of the server, when it has loaded its model."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and self.process.poll() is None:
            try:
                server = json.loads(ready_file.read_bytes())
                if server["ready"]:
                    return server["address"]
            except FileNotFoundError:
                pass
            time.sleep(0.05)
        self.process.kill()
        raise SystemExit(f"soak: the server did not start: {self.log.read_text()[-400:]}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()

    def connect(self, timeout=120):
        return http.client.HTTPConnection(self.address, timeout=timeout)

    def get(self, path):
        connection = self.connect(10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metric(self, name):
        """The sum of a metric over its labels."""
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return sum(map(float, found))

    def held(self):
        """Memory in KiB, descriptors and threads of the parent; memory of the worker, if there is one just now."""
        parent = self.process.pid
        worker = next((pid for pid in children(parent) if b"worker" in command_line(pid)), None)
        return {
            "parent_kib": anonymous_kib(parent),
            "worker_kib": anonymous_kib(worker) if worker else None,
            "files": len(os.listdir(f"/proc/{parent}/fd")),
            "threads": len(os.listdir(f"/proc/{parent}/task")),
        }

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return None


def children(pid):
    """Those of all threads: a child belongs to the one that started it."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def anonymous_kib(pid):
    try:
        found = re.search(r"^RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def events(response):
    """The documents of a stream of server-sent events; the last is None if it ended as it should."""
    for line in response:
        if line.startswith(b"data: "):
            data = line[6:].strip()
            yield None if data == b"[DONE]" else json.loads(data)
