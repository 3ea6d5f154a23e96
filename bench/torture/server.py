"""A real `eka serve` under the limits of a small machine: its processes, its memory, and requests to it."""

import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from soak.server import children, command_line

from .doorways import UnixConnection, over_http1, over_http2

# Address space and descriptors of the server and all its children, as `ulimit -v` and `ulimit -n` set them.
ADDRESS_SPACE_BYTES = 8 << 30
DESCRIPTORS = 1024


class Failure(Exception):
    """A problem that a case found."""


class Server:
    """`eka serve` with the demonstration model, or with what `arguments` name. Leaving the `with` block kills it and its workers."""

    # How requests come in: "http1", "http2" or "unix".
    over = "http1"

    def __init__(self, eka, root, work, arguments=(), stderr=None, environment=None, cwd=None):
        self.root, self.port, self.log = root, free_port(), None
        command = [eka, "serve", "--port", self.port, *arguments]
        self.socket = work / f"server-{self.port}.sock"
        if self.over == "unix":
            command += ["--listen", f"unix:{self.socket}"]
        if not any(str(argument).startswith("--set=model.cache_dir") for argument in arguments) and "HOME" not in (environment or {}):
            command += [f"--set=model.cache_dir={work / 'cache'}"]
        if "--model" not in arguments and "--models" not in arguments:
            command += ["--model", root / "models/demo"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("EKA_")}
        clean["ORT_DYLIB_PATH"] = str(onnxruntime(root))
        clean |= environment or {}
        clean = {name: value for name, value in clean.items() if value is not None}
        if stderr is None:
            self.log = work / f"server-{self.port}.log"
            stderr = open(self.log, "wb")
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=cwd or root, env=clean, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, preexec_fn=limit
        )

    def __enter__(self):
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        workers = self.workers()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def wait_until_ready(self, timeout_s=180):
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise Failure(f"the server ended with {self.process.returncode}: {self.said()}")
            try:
                if self.get("/readyz").status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise Failure(f"the server was not ready after {timeout_s} s: {self.said()}")

    def said(self):
        return self.log.read_text(errors="replace")[-600:] if self.log else ""

    def connect(self, timeout=120):
        """A connection for requests in HTTP/1."""
        if self.over == "unix":
            return UnixConnection(self.socket, timeout)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def raw(self, timeout=120):
        """A connection for bytes in HTTP/1."""
        if self.over != "unix":
            return self.tcp(timeout)
        connection = UnixConnection(self.socket, timeout)
        connection.connect()
        return connection.sock

    def tcp(self, timeout=120):
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def get(self, path, headers=None):
        return self.request("GET", path, None, headers, timeout=20)

    def post(self, path, body, headers=None, timeout=180):
        if not isinstance(body, (bytes, bytearray)):
            body = json.dumps(body).encode()
        return self.request("POST", path, body, {"Content-Type": "application/json"} | (headers or {}), timeout)

    def request(self, method, path, body, headers, timeout):
        if self.over == "http2":
            return Answer(*over_http2(self.port, method, path, body, headers or {}, timeout))
        return Answer(*over_http1(self.connect(timeout), method, path, body, headers or {}))

    def metric(self, name):
        """The sum of a metric over its labels."""
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    def workers(self):
        """The processes that hold the device."""
        return [pid for pid in children(self.process.pid) if b"worker" in command_line(pid)]

    def reset_peak(self):
        """Resets the peak resident memory; returns the resident memory in bytes."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.status_bytes("VmRSS")

    def peak(self):
        """The peak resident memory of the parent since `reset_peak`, in bytes."""
        return self.status_bytes("VmHWM")

    def status_bytes(self, name):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1]) << 10


class Answer:
    """A whole HTTP answer."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self):
        return self.body.decode(errors="replace")

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        """The stable code of an error."""
        error = self.json.get("error") if self.body.startswith(b"{") else None
        return error.get("code") if isinstance(error, dict) else None


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))


def onnxruntime(root):
    """The library that scripts/onnxruntime has installed."""
    found = sorted((root / ".onnxruntime/cpu").glob("libonnxruntime.*"))
    if not found:
        raise SystemExit("torture: ONNX Runtime is missing: run scripts/onnxruntime")
    return found[0]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_alive(pid):
    """Whether the process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def eventually(what, seconds, happens):
    """Waits for something, and gives how long it took."""
    began = time.monotonic()
    while not happens():
        if time.monotonic() - began > seconds:
            raise Failure(f"waited {seconds} s in vain for {what}")
        time.sleep(0.02)
    return time.monotonic() - began


def copy_demo(root, to):
    """The demonstration model's source directory at another place, to be damaged."""
    for name in ("base", "adapter"):
        shutil.copytree(root / "models/demo" / name, to / name)
    return to
