"""An experiment that gets a signal as it prints a text: whoever reads that and sends it may come too late.

python signalled.py SIGNAL TEXT SCRIPT WORDS...
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO


def signalled(name: str, text: str, script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script, which gets the signal of that name as it prints a line that begins with the text."""
    return subprocess.run(
        [sys.executable, __file__, name, text, str(script), *words],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


class Printed:
    """The standard output, read along."""

    def __init__(self, stream: TextIO, text: str, number: signal.Signals) -> None:
        self.stream, self.text, self.number = stream, text, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        written = self.stream.write(text)
        if text.startswith(self.text):
            self.stream.flush()
            os.kill(os.getpid(), self.number)
        return written


if __name__ == "__main__":
    name, text, script, *words = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup it is ignored
    sys.stdout = Printed(sys.stdout, text, signal.Signals[name])
    sys.argv = [script, *words]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
