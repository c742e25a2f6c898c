"""Inverse-kinematics rows as a file: drawn in blocks from keys, the same bytes for a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, astuple
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Rows
from mfk.data.ik import IKDataConfig, draw_ik
from mfk.data.resumable import Settings, write_resumably
from mfk.data.tensor_writer import Layout, lay_out
from mfk.kinematics import Chain
from mfk.losses import TimeConfig, draw_times

BLOCK = 65_536
"""Rows drawn at a time. Their numbers depend on it, so it is no option."""

UNIFORM_TIMES = TimeConfig("uniform", jvp_share=1.0)
"""r and t are the smaller and the larger of two uniform numbers, in every row."""


class Generated(NamedTuple):
    """A finished file."""

    path: Path
    size: int  # bytes
    found: int  # rows that an earlier, unfinished call had left


def generate_ik(
    path: Path | str,
    chain: Chain,
    *,
    rows: int,
    config: IKDataConfig | None = None,
    times: TimeConfig = UNIFORM_TIMES,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> Generated:
    """Write inverse-kinematics rows to a .pt or .npz file of float32 tensors.

        q            [rows, dof]  state at time r of the straight path, (1 - r) q_reference + r q_target
        target_pose  [rows, 7]    of the tip at q_target in the base frame: x y z [m], qw qx qy qz
        q_target     [rows, dof]  the solution, rad (m for a prismatic joint)
        r, t         [rows, 1]    0 <= r <= t <= 1
        v_t          [rows, dof]  velocity of the path, q_target - q_reference

    Row i depends on `seed`, `chain`, `config`, `times` and i alone: a longer file begins with the rows of
    a shorter one, and the same call makes the same bytes, given the versions of torch and NumPy and the
    CPU's vector instructions. The file appears complete or not at all. Unfinished work lies in the folder
    ``<path>.parts``; after an error, Ctrl-C or kill -9 the same call goes on with it.

    Args:
        path: of the file; it must not exist, its folder must.
        chain: the robot.
        rows: how many.
        config: solutions and references, see `draw_ik`.
        times: see `draw_times`; its jvp_share must be 1, for each row has a t.
        seed: of all draws. They differ from those that a training with this seed makes by itself.
        progress: called with (rows there, `rows`) at the start and after each block.

    Raises:
        ValueError: a bad setting, or a work folder that is damaged or of other settings.
        FileExistsError: the file exists, or another process is writing it.
        FileNotFoundError, NotADirectoryError: the folder of the file.
        OSError: too little space, or the folder cannot be written to; what is done is kept.
    """
    path, config = Path(path), config or IKDataConfig()
    layout = plan_ik(path, chain, rows)
    if times.jvp_share != 1.0:
        raise ValueError(f"jvp_share: expected 1, for each row of a file has a t; got {times.jvp_share!r}")
    # A key of its own: a training draws the rows of its steps from the seed itself.
    key = rng.key(seed, "data file")

    def draw(block: int, rows: int = BLOCK) -> dict[str, Tensor]:
        return draw_rows(chain, config, times, key, block, Rows.all(rows))

    draw(0, rows=1)  # refuses bad settings before anything is made
    settings = _settings(chain, config, times, seed)
    found = write_resumably(path, layout, settings, BLOCK, draw, progress)
    return Generated(path, path.stat().st_size, found)


def draw_rows(
    chain: Chain, config: IKDataConfig, times: TimeConfig, seed: int, step: int, rows: Rows
) -> dict[str, Tensor]:
    """The tensors of `generate_ik` for some rows of a batch; arguments as of `draw_ik` and `draw_times`."""
    drawn = draw_ik(chain, config, seed, step, rows)
    r, t = draw_times(times, seed, step, rows)
    v = drawn.q_target - drawn.q_reference
    return {
        "q": drawn.q_reference + r * v,
        "target_pose": drawn.pose,
        "q_target": drawn.q_target,
        "r": r,
        "t": t,
        "v_t": v,
    }


def plan_ik(path: Path | str, chain: Chain, rows: int) -> Layout:
    """The file that `generate_ik` makes; its ``.size`` in bytes is known beforehand.

    Raises:
        ValueError: a suffix other than .pt and .npz, or fewer than one row.
    """
    widths = {"q": chain.dof, "target_pose": 7, "q_target": chain.dof, "r": 1, "t": 1, "v_t": chain.dof}
    return lay_out(path, widths, rows)


def _settings(chain: Chain, config: IKDataConfig, times: TimeConfig, seed: int) -> Settings:
    """What the numbers depend on, by the names under which a user knows it."""
    geometry = hashlib.blake2b(repr(astuple(chain)).encode(), digest_size=8).hexdigest()
    return {
        "robot": f"{chain.name} from {chain.base} to {chain.tip}",
        "geometry": geometry,
        **asdict(config),
        **{f"times.{name}": value for name, value in asdict(times).items()},
        "seed": seed,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
