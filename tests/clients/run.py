"""Runs each client in an environment of its own and prints a table; `scripts/clients` starts it.

    run.py EKA MODEL [CLIENT ...] [--keep-going] [--write docs/clients.md]

A client is one program in tests/clients/programs. It gets the server's URL and the model's name, and exits with 0 if the client
works. Installing uses the package registries; afterwards everything runs in a network namespace that has only a loopback device
(where the system can make one), with an empty home folder and none of the caller's variables.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

PROGRAMS = pathlib.Path(__file__).parent / "programs"
LIMIT_S = 900


@dataclass(frozen=True)
class Client:
    """A client: its program, the packages that it needs (the first one's version is reported), and what the table calls it."""

    program: str
    packages: tuple[str, ...]
    title: str
    # What eka answers on purpose, if the client does something that eka does not implement.
    refused: str = ""


def client(program: str, title: str, *packages: str, refused: str = "") -> Client:
    """A line of the table."""
    return Client(program, packages, title, refused)


CLIENTS = [
    client("openai_python.py", "openai for Python", "openai"),
    client("openai_node.mjs", "openai for Node", "openai"),
    client("anthropic_python.py", "anthropic for Python", "anthropic"),
    client("anthropic_node.mjs", "anthropic for Node", "@anthropic-ai/sdk"),
    client("ollama_python.py", "ollama for Python", "ollama"),
    client("ollama_node.mjs", "ollama for Node", "ollama"),
    client("langchain_python.py", "LangChain for Python", "langchain-openai", "langchain-anthropic", "langchain-ollama"),
    client("langchain_node.mjs", "LangChain for Node", "@langchain/openai", "@langchain/core"),
    client("llama_index.py", "LlamaIndex", "llama-index-llms-openai-like"),
    client("litellm_sdk.py", "LiteLLM library", "litellm"),
    client("litellm_proxy.py", "LiteLLM proxy", "litellm[proxy]"),
    client("vercel_ai.mjs", "Vercel AI SDK", "ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic", "zod"),
    client("instructor_client.py", "instructor", "instructor"),
    client("pydantic_ai_client.py", "pydantic-ai", "pydantic-ai-slim[openai]"),
    client("openai_agents.py", "OpenAI Agents SDK", "openai-agents"),
    client("smolagents_client.py", "smolagents", "smolagents[openai]"),
    client("dspy_client.py", "DSPy", "dspy"),
    client("llm_cli.sh", "llm", "llm"),
    client("lm_eval.sh", "lm-evaluation-harness", "lm-eval[api]"),
    client("promptfoo.sh", "promptfoo", "promptfoo"),
    client("aider.sh", "aider", "aider-chat"),
    client("codex.sh", "Codex CLI", "@openai/codex"),
    client("opencode.sh", "opencode", "opencode-ai"),
]
NODE_COMMANDS = {"promptfoo.sh", "codex.sh", "opencode.sh"}


@dataclass(frozen=True)
class Result:
    """How a client did."""

    client: Client
    version: str
    outcome: str
    output: str
    seconds: float


def is_node(entry: Client) -> bool:
    """Whether npm installs the client."""
    return entry.program.endswith(".mjs") or entry.program in NODE_COMMANDS


def install(entry: Client, folder: pathlib.Path) -> tuple[str, str]:
    """Installs a client's packages and returns its version and where its commands are."""
    first = entry.packages[0].split("[")[0]
    if is_node(entry):
        command = ["npm", "install", "--silent", "--no-fund", "--no-audit", "--no-save", "--prefix", folder, *entry.packages]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        package = folder / "node_modules" / first / "package.json"
        return json.loads(package.read_text())["version"], str(folder / "node_modules" / ".bin")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *entry.packages], check=True)
    script = f"import importlib.metadata; print(importlib.metadata.version({first!r}))"
    version = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
    return version, str(python.parent)


def command_of(entry: Client, folder: pathlib.Path) -> list[str]:
    """The command that runs a client's program, which is copied beside its packages."""
    program = folder / entry.program
    shutil.copy(PROGRAMS / entry.program, program)
    if entry.program.endswith(".mjs"):
        return ["node", str(program)]
    if entry.program.endswith(".sh"):
        return ["bash", str(program)]
    # A module must not be found before the package that it uses, which may have the same name.
    return [str(folder / "env" / "bin" / "python"), "-P", str(program)]


class Loopback:
    """A network namespace that has only a loopback device, or nothing where the system cannot make one."""

    def __init__(self) -> None:
        self.enter: list[str] = []
        self.holder = None
        if not shutil.which("unshare") or not shutil.which("nsenter") or not shutil.which("ip"):
            return
        holder = ["unshare", "--map-root-user", "--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"]
        self.holder = subprocess.Popen(holder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if self.holder.stdout.readline() == "ready\n":
            self.enter = ["nsenter", "--preserve-credentials", "--user", "--net", "--target", str(self.holder.pid), "--"]

    def end(self) -> None:
        """Ends the process that keeps the namespace."""
        if self.holder:
            self.holder.kill()
            self.holder.wait()


class Server:
    """An `eka serve` in the namespace."""

    def __init__(self, eka: str, model: str, work: pathlib.Path, loopback: Loopback) -> None:
        ready = work / "ready.json"
        self.log = (work / "server.log").open("w+")
        # A small model may repeat itself to the end of its context where a client sets no limit.
        settings = ["--set", f"model.cache_dir={work / 'cache'}", "--set", "engine.default_max_new_tokens=300"]
        arguments = ["serve", "--port", "0", "--model", model, "--ready-file", str(ready), *settings]
        self.process = subprocess.Popen([*loopback.enter, eka, *arguments], stderr=self.log)
        for _ in range(1200):
            if ready.exists() and (state := json.loads(ready.read_text())).get("ready"):
                self.url, self.model = state["url"], pathlib.Path(model).name.removesuffix(".gguf")
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.log.seek(0)
        sys.exit(f"the server did not start\n{self.log.read()}")

    def end(self) -> None:
        """Stops the server."""
        self.process.terminate()
        self.process.wait(60)


def run(entry: Client, server: Server, loopback: Loopback) -> Result:
    """Installs a client, runs its program and removes both."""
    started = time.monotonic()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="eka-client-"))
    try:
        version, commands = install(entry, folder)
        home = folder / "home"
        home.mkdir()
        environment = {
            "PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb",
            "GIT_AUTHOR_NAME": "a", "GIT_COMMITTER_NAME": "a", "EMAIL": "a@example.com",
        }
        command = [*loopback.enter, *command_of(entry, folder), server.url, server.model]
        try:
            done = subprocess.run(
                command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                timeout=LIMIT_S, stdin=subprocess.DEVNULL, check=False,
            )
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as late:
            output, code = f"{late.stdout}\nno end within {LIMIT_S} s", 1
        if code == 0:
            outcome = "works"
        elif entry.refused and entry.refused in output:
            outcome = "refused by name"
        else:
            outcome = "fails"
        return Result(entry, version, outcome, output, time.monotonic() - started)
    except subprocess.CalledProcessError as error:
        return Result(entry, "?", "not installed", str(error), time.monotonic() - started)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(results: list[Result]) -> str:
    """The results as a table of Markdown."""
    lines = ["| client | version | result |", "|---|---|---|"]
    lines += [f"| {result.client.title} | {result.version} | {result.outcome} |" for result in results]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the chosen clients; exits with 1 if one fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("eka")
    parser.add_argument("model")
    parser.add_argument("clients", nargs="*")
    parser.add_argument("--write", type=pathlib.Path)
    arguments = parser.parse_args()
    names = [entry.program.split(".")[0] for entry in CLIENTS]
    if unknown := set(arguments.clients) - set(names):
        sys.exit(f"unknown client {', '.join(sorted(unknown))}: choose from {', '.join(names)}")
    chosen = [entry for entry, name in zip(CLIENTS, names) if not arguments.clients or name in arguments.clients]

    work = pathlib.Path(tempfile.mkdtemp(prefix="eka-clients-"))
    loopback = Loopback()
    server = Server(arguments.eka, arguments.model, work, loopback)
    results = []
    try:
        for entry in chosen:
            result = run(entry, server, loopback)
            results.append(result)
            print(f"{result.outcome:16} {entry.title} {result.version} ({result.seconds:.0f} s)", flush=True)
            if result.outcome == "fails" or result.outcome == "not installed":
                print("\n".join(f"    {line[:2000]}" for line in result.output.splitlines()[-40:]), flush=True)
    finally:
        server.end()
        loopback.end()
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{table(results)}")
    if arguments.write:
        page = arguments.write.read_text()
        head, _, rest = page.partition("| client | version | result |")
        tail = rest.partition("\n\n")[2]
        arguments.write.write_text(head + table(results) + ("\n" + tail if tail else ""))
    sys.exit(any(result.outcome in ("fails", "not installed") for result in results))


if __name__ == "__main__":
    main()
