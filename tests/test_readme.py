"""What the README shows works as shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from mfk.tasks import ik_report
from mfk.tasks.ik_compare import SolverResult

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_composition_script() -> None:
    """Twenty lines, imports aside. N(0, 2) to N(0, 1) with correlation: the flow's slope is 1/sqrt(2), and a
    denoiser, or flow matching alone, would have 1/2."""
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in script.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 20
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(script, "README.md", "exec"), names)
    clean, change = names["clean"], names["change"]
    assert isinstance(clean, torch.Tensor) and isinstance(change, torch.Tensor)
    assert clean.std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.07)
    assert change.mean(0).tolist() == pytest.approx([0.5**0.5] * 2, abs=0.05)


def test_the_table_is_that_of_the_committed_report() -> None:
    report = json.loads((ROOT / "benchmarks/results/panda_default.json").read_text(encoding="utf-8"))
    _, rows = ik_report.table([SolverResult(**result) for result in report["results"]])
    for row in rows:
        assert "| " + " | ".join(row) + " |" in README


def test_the_two_commands_are_there_once() -> None:
    for end in ("pytest -q", "experiments/panda.py"):
        assert len(re.findall(rf"^python3 -m venv .*{re.escape(end)}$", README, re.MULTILINE)) == 1
