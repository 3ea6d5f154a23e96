"""Child processes with a time limit, the memory they held, and files that are not in the page cache."""

import os
import signal
import subprocess
import time
from pathlib import Path

PAGE = 4096


class Failed(Exception):
    """A peer failed; the text is its last output."""


def last_words(log: Path):
    """The last line of a log that is not empty."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


class Child:
    """A process in a new session, ended with all of its children."""

    def __init__(self, command, log: Path, **options):
        self.log = log
        self.started = time.monotonic()
        with open(log, "ab") as stderr:
            options = {"stdin": subprocess.DEVNULL, "stdout": stderr, "stderr": stderr} | options
            self.process = subprocess.Popen(list(map(str, command)), start_new_session=True, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def check_alive(self):
        code = self.process.poll()
        if code is not None:
            raise Failed(f"it ended with {code}: {last_words(self.log)}")

    def stop(self):
        """Asks it to end, and ends its session after ten seconds."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def peak_mib(self):
        """The most resident memory of the process and of its children, VmHWM, in MiB."""
        return sum(peak_kib(pid) for pid in family(self.process.pid)) / 1024


def run(command, log: Path, limit, **options):
    """The stdout of a command."""
    with open(log, "ab") as stderr:
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                                   start_new_session=True, text=True, **options)
    try:
        said, _ = process.communicate(timeout=limit)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Failed(f"not done after {limit:.0f} s") from None
        raise
    if process.returncode:
        raise Failed(f"it ended with {process.returncode}: {last_words(log)}")
    return said


def family(pid):
    """A process and all below it."""
    try:
        children = " ".join(task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")).split()
    except OSError:
        return []
    return [pid] + [member for child in children for member in family(int(child))]


def peak_kib(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def files(path: Path):
    return [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]


def forget(path: Path):
    """Drops a file, or a folder's files, from the page cache; whether they are gone, as far as can be seen."""
    return all([forget_file(file) for file in files(path)])


def forget_file(file: Path):
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(file, os.O_RDONLY)
    try:
        # Recently written pages can be dropped only after they are on the disk.
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        # Asking for a page makes the system read it, and without this its neighbours too: each is asked for once.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        pages = -(-os.fstat(descriptor).st_size // PAGE)
        return not any(cached(descriptor, page) for page in {pages * place // 16 for place in range(16)} if page < pages)
    finally:
        os.close(descriptor)


def cached(descriptor, page):
    """Whether a page can be read without the disk; no, where that cannot be asked."""
    try:
        return os.preadv(descriptor, [bytearray(1)], page * PAGE, os.RWF_NOWAIT) > 0
    except (BlockingIOError, AttributeError):
        return False
    except OSError:
        return True
