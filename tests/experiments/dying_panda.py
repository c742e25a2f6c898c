"""experiments/panda.py, of which the last rank dies at step 7 unless torchrun has started it anew."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import inverse_kinematics
import panda

from mfk.tasks import ik

real = ik.ik_task


def dying(*words: Any) -> Any:
    task = real(*words)

    def draw(seed: int, step: int, *more: Any) -> Any:
        if step == 7 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return task.draw(seed, step, *more)

    return task._replace(draw=draw)


ik.ik_task = dying
inverse_kinematics.main("panda", panda.PRESETS, "A panda that dies.")
