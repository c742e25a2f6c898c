"""Experiments under torchrun, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import panda
import pytest
import torch

from mfk.train import checkpoint

SCRIPT, DYING = Path(panda.__file__), Path(__file__).with_name("dying_panda.py")
SMALL = [
    "quick", "--no-jit", "--steps", "12", "--warmup-steps", "2", "--batch-size", "32", "--width", "32",
    "--blocks", "1", "--checkpoint-every", "3", "--validate-every", "6", "--validation-poses", "40",
    "--report-poses", "20", "--keep-last", "None", "--log-every", "4",
]  # fmt: skip


def torchrun(folder: Path, script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    module = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    return subprocess.run(
        [*module, str(script), *SMALL, *words],
        cwd=folder, capture_output=True, text=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def end(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.find(run, 12)
    read = checkpoint._read(saved, list(saved.leaves))
    return {name: torch.from_numpy(x.copy()) for name, x in read.items()}


@pytest.mark.slow
def test_a_run_that_lost_a_rank_goes_on_in_its_folder(tmp_path: Path) -> None:
    """Neither --out nor --resume is given: the processes find what they had begun."""
    whole = torchrun(tmp_path, SCRIPT, "--out", "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    # One process speaks, and reports.
    assert whole.stdout.count("run: whole, step 0 of 12, fp32 on cpu, 2 ranks") == 1
    assert whole.stdout.count("wrote whole/report.json") == 1
    done = torchrun(tmp_path, DYING)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "run: outputs/panda/001, step 0 of 12" in done.stdout
    assert "run: outputs/panda/001, step 6 of 12" in done.stdout
    assert [folder.name for folder in sorted((tmp_path / "outputs/panda").iterdir())] == ["001", "latest"]
    found, expected = end(tmp_path / "outputs/panda/001"), end(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    # A mistake is told once, and by exit code.
    again = torchrun(tmp_path, SCRIPT, "--out", "whole", "--max-consecutive-skips", "0")
    assert again.returncode != 0 and "max_consecutive_skips" in again.stderr
