"""Medians, spreads and ratios, as a table and as a document; and what they were measured on."""

import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

EKA = "eka"


def spread(values):
    """Median, least and most; None of nothing."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def value(cells, peer, measure):
    """A number, or None where there is none."""
    cell = cells.get(peer, {}).get(measure)
    return cell if isinstance(cell, (int, float)) else None


def summarize(rounds, peers, measures):
    """Of each measure: every peer's spread, and eka's value over the peer's in the rounds that have both."""
    summary = {}
    for measure in measures:
        pairs = {peer: [(value(cells, EKA, measure.name), value(cells, peer, measure.name)) for cells in rounds] for peer in peers}
        ratios = {peer: [ours / theirs for ours, theirs in pairs[peer] if ours and theirs] for peer in peers if peer != EKA}
        summary[measure.name] = {
            "unit": measure.unit,
            "more_is_better": measure.more_is_better,
            "peers": {peer: spread([theirs for _, theirs in pairs[peer] if theirs is not None]) for peer in peers},
            "eka_over": {peer: (spread(of) or {}) | {"rounds": of} for peer, of in ratios.items()},
        }
    return summary


def errors(rounds):
    """What failed, once each."""
    found = {}
    for cells in rounds:
        for peer, measured in cells.items():
            for name, cell in measured.items():
                if isinstance(cell, dict):
                    found.setdefault((peer, cell["error"]), []).append(name)
    return [f"{peer}: {', '.join(dict.fromkeys(names))}: {why}" for (peer, why), names in found.items()]


def machine():
    """Processor, cores, memory, system."""
    return {
        "processor": field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "logical_cores": os.cpu_count(),
        "memory": field("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def field(path, name):
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def commit(root: Path):
    """The commit that is checked out, with a plus if files that git knows differ from it."""
    git = lambda *arguments: subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False).stdout.strip()
    return (git("rev-parse", "--short=8", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def load_average():
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write(path: Path, document):
    """All or nothing, so that a run that is stopped leaves the rounds that it had."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    unfinished.rename(path)


def rounded(number):
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 1000 else f"{number:.0f}"


def cell(of, of_ratio=None):
    if not of:
        return "–"
    text = f"{rounded(of['median'])} ({rounded(of['min'])} to {rounded(of['max'])})"
    if of_ratio and of_ratio["rounds"]:
        text += f"; **{of_ratio['median']:.2f}** ({of_ratio['min']:.2f} to {of_ratio['max']:.2f})"
    return text


def table(summary, peers, measures):
    """Markdown: the median and the spread, and behind it eka's ratio to that peer."""
    lines = ["| | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
    for measure in measures:
        of = summary[measure.name]
        better = "more" if measure.more_is_better else "less"
        cells = [cell(of["peers"][peer], of["eka_over"].get(peer)) for peer in peers]
        lines.append(f"| {measure.title}, {measure.unit}, {better} is better | " + " | ".join(cells) + " |")
    return "\n".join(lines)
