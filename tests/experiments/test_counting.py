"""How far a job is: on a terminal, and in a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import counting
import pytest
from counting import counter


def test_a_file_gets_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    tell = counter("frames")
    for done in range(0, 1501, 3):
        tell(done, 1500)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{done:,}/1,500 frames" for done in range(0, 1501, 150)]
    few = counter()
    few(1, 2, "walk.bvh")
    few(2, 2, "run.bvh")
    assert capsys.readouterr().err == "1/2 walk.bvh\n2/2 run.bvh\n"


def test_a_terminal_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tell = counter("clips")
    for done in (1, 2, 3):
        tell(done, 3)
    assert capsys.readouterr().err == "\r1/3 clips\x1b[K\r2/3 clips\x1b[K\r3/3 clips\x1b[K\n"


JOB = """
import sys
sys.path.insert(0, sys.argv[1])
from counting import counter
tell = counter("clips")
for done in range(11):
    tell(done, 10)
print("done")
"""


@pytest.mark.parametrize("stream", ["2>&-", "2> >(:)", "2>/dev/full"])
def test_a_job_ends_well_though_nobody_reads(stream: str) -> None:
    line = f'exec "$@" {stream}'
    words = ["bash", "-c", line, "bash", sys.executable, "-c", JOB, str(Path(counting.__file__).parent)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n")
