"""One run of a sweep as a process: how it is started, stopped with the sweep, and remembered."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from mfk.core.files import read_json as read_file
from mfk.core.files import write_atomically
from mfk.core.types import describe
from mfk.train import runs
from mfk.train.sweep_grid import Experiment, Run

OUTCOME, CONSOLE = "outcome.json", "console.log"
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Linux sends SIGTERM to the run when the sweep dies, however it dies; a run answers by saving. The program is
# started through Python, since code between fork and exec is unsafe in a process with threads.
_TIED = """
import ctypes, os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_DFL)
try:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
except AttributeError:
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit(143)
os.execv(sys.argv[2], sys.argv[2:])
"""


_LONGEST = 1e12  # s; what is more is no time that a process took


class Outcome(NamedTuple):
    """What outcome.json says of a run."""

    code: int | None  # exit code, 128 + the signal's number if one ended it; None: has not ended, or unseen
    seconds: float  # that its processes took, those of earlier sessions included
    begun: bool = True  # False if there is no outcome.json

    @property
    def has_failed(self) -> bool:
        """Whether it ended otherwise than finished, or stopped by a signal that makes a run save."""
        return self.code not in (None, 0, *(128 + number for number in _STOPS))

    @property
    def status(self) -> str:
        """In a word or two."""
        if self.has_failed:
            names = {128 + number: number.name for number in signal.Signals}
            return f"failed ({names.get(self.code or 0, self.code)})"
        return "waiting" if not self.begun else "finished" if self.code == 0 else "stopped"


class Process(NamedTuple):
    """A run at work."""

    run: Run
    folder: Path
    popen: subprocess.Popen[bytes]
    began: float  # time.monotonic()
    before: float  # seconds of earlier sessions
    offset: int  # of this session's output in console.log

    def elapsed(self) -> float:
        """Seconds of this session so far."""
        return time.monotonic() - self.began

    def stop(self) -> None:
        """Ask it to save and end."""
        self.popen.send_signal(signal.SIGTERM)

    def record(self) -> Outcome:
        """Write outcome.json; the process has ended."""
        code = self.popen.returncode
        outcome = Outcome(code if code >= 0 else 128 - code, self.before + self.elapsed())
        _write(self.folder, outcome)
        return outcome

    def output(self) -> bytes:
        """What it has printed in this session."""
        with (self.folder / CONSOLE).open("rb") as file:
            file.seek(self.offset)
            return file.read()


def start(experiment: Experiment, run: Run, folder: Path, threads: int | None, busy: int) -> Process:
    """Begin the run in its folder, or go on with it.

    Args:
        experiment: the script.
        run: with what to call it.
        folder: of the run.
        threads: CPU threads; None leaves them to the run.
        busy: descriptor of a file that the process is to hold open as long as it lives.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = read_outcome(folder).seconds
    limit = [] if threads is None else [f"--threads={threads}"]
    command = [sys.executable, str(experiment.script), *_arguments(run, folder, limit)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        # --threads is for the training; this is for what the experiment does before and after it.
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    _write(folder, Outcome(None, before))
    with (folder / CONSOLE).open("ab") as console:
        console.write(f"$ {shlex.join(command)}\n".encode())
        console.flush()
        offset = console.tell()
        popen = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(busy,),
            # Or else Ctrl-C would reach it twice: from the terminal, and from the sweep.
            start_new_session=True,
        )
    return Process(run, folder, popen, time.monotonic(), before, offset)


@contextmanager
def nobody_else(busy: Path) -> Iterator[int]:
    """Wait until no run of an earlier, killed sweep is at work; yields what `start` takes as `busy`."""
    with busy.open("a") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"{busy.parent}: waiting for runs of an earlier sweep that are still at work here")
                told = True
                time.sleep(0.05)
        yield file.fileno()


def read_outcome(folder: Path) -> Outcome:
    """How the run in `folder` ended, as far as is known.

    Raises:
        ValueError: outcome.json is damaged.
    """
    if not (folder / OUTCOME).is_file():
        return Outcome(None, 0.0, begun=False)
    found = read_json(folder / OUTCOME)
    seconds, code = found.get("seconds", 0.0), found.get("code")
    if type(code) not in (int, NoneType) or type(seconds) not in (int, float) or not 0 <= seconds <= _LONGEST:
        raise ValueError(f"{folder / OUTCOME}: expected an exit code and seconds, got {describe(found)}")
    if code is None:
        # Its sweep was killed; the last line that the run printed was its last sign of life.
        with suppress(OSError):
            seconds += max(0.0, (folder / CONSOLE).stat().st_mtime - (folder / OUTCOME).stat().st_mtime)
    return Outcome(code, seconds)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it holds something else.
    """
    found = read_file(path)
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return dict(found)


def tail(output: bytes, lines: int, indent: str = "  ") -> str:
    """The last lines of what a program printed, blank ones left out."""
    text = [line.rstrip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return "\n".join(indent + line for line in text[-lines:]) or f"{indent}(it printed nothing)"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def say(text: str) -> None:
    """Print; nobody may be reading any more, which is no reason to stop, nor to complain at exit."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(folder: Path, outcome: Outcome) -> None:
    text = json.dumps({"code": outcome.code, "seconds": round(outcome.seconds, 1)})
    write_atomically(folder / OUTCOME, text + "\n")


def _arguments(run: Run, folder: Path, limit: list[str]) -> list[str]:
    if (folder / runs.CONFIG).is_file():
        return ["--resume", str(folder)]
    history = folder / runs.HISTORY
    # Killed between opening its history and writing its settings, it left nothing to go on with.
    if history.is_file() and not history.stat().st_size:
        history.unlink()
    return [*run.words, *limit, "--out", str(folder)]
