"""The experiments' scripts as modules."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "experiments"), str(Path(__file__).parents[1] / "tasks")]
