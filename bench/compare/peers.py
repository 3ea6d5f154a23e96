"""eka and its peers: where each is installed, how it is started, and how its speed is measured.

A peer has `name`, `why_not` (None, or in a few words why it takes no part), `prepare(checkpoint, settings)`, which makes
its model and says what it is, and `engine(settings)`, which measures without HTTP. `serve(settings, port)` gives a
server's command, or None where there is none.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from . import client, gguf
from .process import Child, Failed, files, run

DRIVERS = Path(__file__).parent / "drivers"
# How long a conversion of weights may take, in seconds: it is measured nowhere.
PREPARE = 3600


def finished(path: Path, make):
    """`path`, made by `make(unfinished)` if it does not exist; unfinished output is discarded."""
    if not path.exists():
        unfinished = path.with_name(f"unfinished-{path.name}")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)
        make(unfinished)
        unfinished.rename(path)
    return path


def first_line(command):
    """The first line of a program's version output; None if it does not run."""
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = (done.stdout + done.stderr).strip().splitlines()
    return said[0] if said and done.returncode == 0 else None


def weights_size(path: Path):
    """Bytes of the files that hold the weights."""
    names = (".gguf", ".data", ".safetensors", ".onnx")
    return sum(file.stat().st_size for file in files(path) if file.name.endswith(names))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Peer:
    """What the peers share; `model` is the file or folder that it loads, once it is prepared."""

    name = ""
    why_not = None
    version = None
    model = None

    def log(self, settings):
        return settings.work / f"{self.name.replace(' ', '-')}.log"

    def describe(self, parameters):
        size = weights_size(self.model)
        return {"version": self.version, "weights_bytes": size, "bits_per_weight": round(8 * size / parameters, 2)}

    def serve(self, _settings, _port):
        return None

    def environment(self):
        return None

    ready_path = "/health"
    # The name that a request gives the model.
    served_name = "model"


class Eka(Peer):
    """eka itself, in a release build."""

    name = "eka"
    ready_path = "/readyz"

    def __init__(self, program: Path, onnxruntime: Path):
        self.program, self.onnxruntime = program, onnxruntime
        self.version = first_line([program, "--version"])
        if self.version is None:
            self.why_not = f"{program} does not run: cargo build --release, or name another with --eka"

    def environment(self):
        return os.environ | {"EKA_ONNXRUNTIME_DIR": str(self.onnxruntime)}

    def export(self, checkpoint, settings, name, *options):
        command = [self.program, "export", "--base", checkpoint, "--quantize", "int4", *options, "--quiet", "--out"]
        make = lambda out: run([*command, out], self.log(settings), PREPARE, env=self.environment())
        return finished(settings.work / name, make)

    def prepare(self, checkpoint, settings):
        self.model = self.export(checkpoint, settings, "eka-int4")

    def engine(self, settings):
        # A prompt of one token is context 0: its step is the prefill's, and `steps` follow.
        lengths = sorted({settings.prefill, *(max(context, 1) for context in settings.contexts)})
        said = run([self.program, "bench", self.model, "--prompt", ",".join(map(str, lengths)), "--generate", settings.steps + 1,
                    "--rounds", 1, "--threads", settings.threads, "--device", "cpu", "--json"],
                   self.log(settings), settings.limit, env=self.environment())
        results = {result["prompt_tokens"]: result for result in json.loads(said)["results"]}
        speed = lambda length, kind: results[length][f"{kind}_tokens_per_second"]["median"]
        decode = {f"decode_{context}": speed(max(context, 1), "decode") for context in settings.contexts}
        return {"prefill": speed(settings.prefill, "prefill")} | decode

    def serve(self, settings, port):
        return [self.program, "serve", "--model", self.model, "--model-id", self.served_name, "--bind", "127.0.0.1", "--port", port,
                "--threads", settings.threads, "--device", "cpu", "--queue", settings.clients, "--log", "warn"]


class LlamaCpp(Peer):
    """llama.cpp's llama-bench, and llama-server if it is there, with Q4_0 throughout: 4.5 bits a weight."""

    name = "llama.cpp"

    def __init__(self, folder, given: Path | None, random_weights: bool):
        find = lambda program: shutil.which(program, path=folder) if folder else shutil.which(program)
        self.bench, self.server, self.quantize = map(find, ("llama-bench", "llama-server", "llama-quantize"))
        self.given = given
        if not self.bench:
            self.why_not = "no llama-bench in " + (str(folder) if folder else "PATH") + ": name their folder with --llama-cpp"
        elif given is None and not random_weights:
            self.why_not = "needs the checkpoint as a GGUF file: llama.cpp's convert_hf_to_gguf.py makes one for --gguf"
        elif given is None and not self.quantize:
            self.why_not = "no llama-quantize beside llama-bench: build it as well"
        else:
            self.version = first_line([self.bench, "--version"]) or "unknown"

    def prepare(self, checkpoint, settings):
        if self.given and not self.quantize:
            self.model = self.given
            return
        self.model = finished(settings.work / "q4_0.gguf", lambda out: self.quantized(checkpoint, out, settings))

    def quantized(self, checkpoint, output, settings):
        whole = self.given or finished(settings.work / "bf16.gguf", lambda out: gguf.write(checkpoint, out))
        run([self.quantize, "--pure", whole, output, "Q4_0"], self.log(settings), PREPARE)
        if not self.given:
            whole.unlink()

    def bench_run(self, settings, *arguments):
        command = [self.bench, "-m", self.model, "-t", settings.threads, "-ngl", 0, "-r", 1, "-o", "json", *arguments]
        return json.loads(run(command, self.log(settings), settings.limit))

    def engine(self, settings):
        prefill = self.bench_run(settings, "-p", settings.prefill, "-n", 0)
        contexts = ",".join(map(str, settings.contexts))
        decode = self.bench_run(settings, "-p", 0, "-n", settings.steps, "-d", contexts)
        return {"prefill": prefill[0]["avg_ts"]} | {f"decode_{result['n_depth']}": result["avg_ts"] for result in decode}

    def serve(self, settings, port):
        if not self.server:
            return None
        # With more slots than one, each has its share of the context.
        room = (max(settings.contexts) + settings.steps + 256) * settings.llama_slots
        return [self.server, "-m", self.model, "-t", settings.threads, "-ngl", 0, "-np", settings.llama_slots, "-c", room,
                "--host", "127.0.0.1", "--port", port]


class Library(Peer):
    """A Python library, run by a driver beside this file under a Python that has it."""

    driver = module = ""

    def __init__(self, python):
        self.python = python
        self.version = first_line([python, "-c", f"import {self.module} as m; print(m.__version__)"])
        if self.version is None:
            self.why_not = f"{python} cannot import {self.module}: name a Python that can with --{self.option}"

    def session(self, settings):
        return Session([self.python, DRIVERS / self.driver, self.model, settings.threads], self.log(settings), settings.limit)


class Session(Child):
    """A driver that has loaded its model."""

    def __init__(self, command, log, limit):
        super().__init__(command, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.limit = limit
        try:
            self.version = self.reply()["version"]
        except BaseException:
            self.stop()
            raise
        self.load_seconds = time.monotonic() - self.started

    def reply(self):
        from selectors import EVENT_READ, DefaultSelector
        deadline, line = time.monotonic() + self.limit, b""
        with DefaultSelector() as selector:
            selector.register(self.process.stdout, EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0, deadline - time.monotonic())):
                    raise Failed(f"no answer after {self.limit:.0f} s")
                piece = self.process.stdout.read(65536)
                if not piece:
                    self.process.wait(10)
                    self.check_alive()
                line += piece
        return json.loads(line)

    def ask(self, ids, steps):
        try:
            self.process.stdin.write(json.dumps({"ids": ids, "steps": steps}).encode() + b"\n")
        except OSError:
            self.process.wait(10)
            self.check_alive()
        return self.reply()

    def engine(self, settings, vocabulary):
        values = {}
        for context in settings.contexts:
            said = self.ask(client.prompt(max(context, 1), vocabulary, context), settings.steps)
            values[f"decode_{context}"] = settings.steps / said["decode_seconds"]
        said = self.ask(client.prompt(settings.prefill, vocabulary, 1), 1)
        return values | {"prefill": settings.prefill / said["prefill_seconds"]}


class Genai(Library):
    """onnxruntime-genai, on what eka exports for it: int4 in blocks of 32."""

    name, driver, module, option = "onnxruntime-genai", "genai.py", "onnxruntime_genai", "genai"

    def __init__(self, python, eka: Eka):
        super().__init__(python)
        self.eka = eka

    def prepare(self, checkpoint, settings):
        self.model = self.eka.export(checkpoint, settings, "genai-int4", "--layout", "genai")


class Transformers(Library):
    """transformers with torch, in bfloat16."""

    name, driver, module, option = "transformers", "hf.py", "transformers", "transformers"

    def prepare(self, checkpoint, _settings):
        self.model = checkpoint


class Vllm(Peer):
    """vLLM's server, in bfloat16; measured over HTTP only."""

    name = "vLLM"

    def __init__(self, program):
        self.program = shutil.which(program)
        self.version = first_line([self.program, "--version"]) if self.program else None
        if self.version is None:
            self.why_not = f"{program} is no program that runs: name vLLM's with --vllm"

    def prepare(self, checkpoint, _settings):
        self.model = checkpoint

    def engine(self, _settings):
        return {}

    def serve(self, settings, port):
        return [self.program, "serve", self.model, "--served-model-name", self.served_name, "--host", "127.0.0.1", "--port", port,
                "--dtype", "bfloat16", "--max-num-seqs", 1, "--no-enable-prefix-caching"]
