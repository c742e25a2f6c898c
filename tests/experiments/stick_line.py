"""What tests of experiments/stick.py have in common: its command line, and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import stick

from mfk.data.stick_files import write_stick
from mfk.data.stick_generate import generate_stick

TINY = [
    "quick", "--steps", "6", "--warmup-steps", "1", "--validate-every", "3", "--batch-size", "4",
    "--width", "16", "--heads", "2", "--layers", "1", "--embedding-dim", "32", "--frames", "20",
    "--threads", "1", "--log-every", "1",
]  # fmt: skip
SILENT = ["--sample-text", ""]


def run(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stick.py", *words])
        try:
            stick.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command line with a mistake ends with."""
    capsys.readouterr()
    assert run(*words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and len(told.splitlines()) == 1, told
    return told


def clips_file(path: Path, count: int = 10, **more: Any) -> Path:
    write_stick(path, generate_stick(count, seed=1, frames=60, **more))
    return path
