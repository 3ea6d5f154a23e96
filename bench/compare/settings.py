"""The measurements, and their names in tables and files."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Lengths in tokens, times in seconds."""
    threads: int
    rounds: int
    limit: float
    work: Path
    llama_slots: int
    prefill: int = 512
    contexts: tuple = (0, 512, 1536)
    steps: int = 128
    served_prompt: int = 128
    served_steps: int = 64
    served_requests: int = 2
    clients: int = 8


@dataclass(frozen=True)
class Measure:
    """One line of the table; `unit` is of the values, and more is better or worse."""
    name: str
    title: str
    unit: str
    more_is_better: bool


def measures(settings):
    """All measures, in the order of the table."""
    rate, less = ("tokens/s", True), False
    return [
        Measure("prefill", f"prefill {settings.prefill}", *rate),
        *(Measure(f"decode_{context}", f"decode {settings.steps} at context {context}", *rate) for context in settings.contexts),
        Measure("ttft", f"TTFT over HTTP, prompt {settings.prefill}", "ms", less),
        Measure("served_1", "end to end, 1 client", *rate),
        Measure(f"served_{settings.clients}", f"end to end, {settings.clients} clients at once", *rate),
        Measure("load_cold", "load, cold", "s", less),
        Measure("load_warm", "load, warm", "s", less),
        Measure("peak_memory", "peak memory (VmHWM)", "MiB", less),
    ]


def physical_cores():
    """Physical cores; logical CPUs if the system does not report cores."""
    cores = set()
    for topology in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        try:
            cores.add((topology / "thread_siblings_list").read_text().strip())
        except OSError:
            continue
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(len(cores) or usable, usable)
