"""Data sets that several processes make together: the same bytes, whatever happens to one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import generate_by_ranks
import pytest

PROGRAM = Path(generate_by_ranks.__file__)


@pytest.mark.parametrize("kind", list(generate_by_ranks.KINDS))
def test_any_number_of_ranks_makes_the_same_bytes_killed_refused_and_gone_on_with(
    tmp_path: Path, kind: str
) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), kind, str(tmp_path), "20"],
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    died, resumed = map(int, done.stdout.split())
    assert died == 20 and resumed > 5
