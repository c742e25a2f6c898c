"""What the README shows works as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


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


def test_the_two_commands_are_there_once() -> None:
    for end in ("pytest -q", "experiments/panda.py"):
        assert len(re.findall(rf"^python3 -m venv .*{re.escape(end)}$", README, re.MULTILINE)) == 1
