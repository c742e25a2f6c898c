"""Trained inverse-kinematics networks as files, and those that come with the package."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfk.core import config, tree
from mfk.core.files import write_atomically
from mfk.core.types import Model, Params, describe
from mfk.data.archives import read_npz
from mfk.kinematics import (
    Chain,
    SeedsFrom,
    Solution,
    check_pose,
    clip_to_limits,
    load_urdf,
    unit_pose,
    urdf_text,
)
from mfk.kinematics import solve as solve_numerically
from mfk.kinematics.seed_table import nearest_seeds, seed_table
from mfk.kinematics.solver import Seeds
from mfk.losses import sample
from mfk.tasks.ik import NetConfig, ik_field, ik_model

SHIPPED = ("panda", "ur10")
FORMAT = "mfk.ik/1"
_ROWS = 32_768  # that the network sees at once
_MOST = 10_000  # proposals for a pose
_MOST_BASE_STEPS = 16  # that a file may ask for


@dataclass(frozen=True, repr=False)
class IK:
    """A robot with a trained network; immutable."""

    chain: Chain
    network: NetConfig
    model: Model
    params: Params
    buffers: Params
    record: Mapping[str, Any]
    """What reproduces it: the settings, versions and step of its training, and the figures of its report."""

    def __repr__(self) -> str:
        """The robot and the size of the network."""
        return f"IK({self.chain.name}, {self.chain.tip}, {tree.size(self.params):,} parameters)"

    def to(self, device: torch.device | str) -> IK:
        """The same on another device."""
        params, buffers = (tree.cast(x, device=device) for x in (self.params, self.buffers))
        return replace(self, params=params, buffers=buffers)

    def propose(self, target: Tensor, q_ref: Tensor | None = None, num: int = 1, *, steps: int = 1) -> Tensor:
        """Joints by the network alone, inside the limits; not checked, and rarely exact to a millimetre.

            q = clip(q_ref + u(q_ref, 0, 1; target))

        Args:
            target: poses [..., 7] = x y z [m], qw qx qy qz of the tip in the base frame.
            q_ref: configuration to start from, [dof] or [..., dof], rad or m: what comes back is near it.
                None: the `num` configurations of a table of 100,000 whose poses are nearest to the target.
            num: how many proposals, at most 10,000; beside a `q_ref` the others come from the table.
            steps: network steps for each.

        Returns:
            [..., dof], or [..., num, dof] for num > 1, in the target's dtype; computed in float32.

        Raises:
            TypeError, ValueError: as `mfk.kinematics.solve`.
        """
        check_pose(target)
        if target.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"target: expected float32 or float64, got {target.dtype}")
        for name, value in (("num", num), ("steps", steps)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
                raise ValueError(f"{name}: expected a whole number from 1 to {_MOST:,}, got {value!r}")
        batch, dof = target.shape[:-1], self.chain.dof
        poses = unit_pose(target.reshape(-1, 7).float())
        given = 0
        if q_ref is not None:
            given = 1
            if not isinstance(q_ref, Tensor) or q_ref.shape not in ((dof,), (*batch, dof)):
                raise ValueError(
                    f"q_ref: expected a tensor ({dof},) or {(*batch, dof)}, got {describe(q_ref)}"
                )
            if q_ref.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"q_ref: expected float32 or float64, got {q_ref.dtype}")
            if not bool(torch.isfinite(q_ref).all()):
                raise ValueError("q_ref: expected finite numbers, got others")
            q_ref = q_ref.to(target.device).float().expand(*batch, dof).reshape(-1, 1, dof)
        parts = []
        with torch.no_grad():
            for begin in range(0, len(poses), max(1, _ROWS // num)):
                rows = slice(begin, begin + max(1, _ROWS // num))
                wanted = poses[rows]
                references = [] if q_ref is None else [q_ref[rows]]
                if num > given:
                    table = seed_table(self.chain, target.device)
                    references.append(nearest_seeds(table, wanted, num - given))
                reference = torch.cat(references, dim=1).reshape(-1, dof)
                several = wanted.repeat_interleave(num, dim=0)
                u = ik_field(self.model, self.params, self.buffers, several)
                q = sample(u, reference, steps)
                # Of a pose that is farther away than float32 can tell.
                parts.append(torch.where(q.isfinite(), q, reference))
        q = torch.cat(parts) if parts else poses.new_empty(0, dof)
        shape = (*batch, dof) if num == 1 else (*batch, num, dof)
        return clip_to_limits(self.chain, q.reshape(shape).to(target.dtype))

    def solve(self, target: Tensor, q0: Tensor | None = None, **options: Any) -> Solution:
        """`mfk.kinematics.solve`; with ``seeds="network"`` the network proposes the first start.

        Without that the first starts come from a table (or from `q0`), which costs less than the network
        saves: see benchmarks/README.md.

        Raises:
            TypeError, ValueError: as `mfk.kinematics.solve`.
        """
        seeds: Seeds | str = options.pop("seeds", "table")
        if isinstance(seeds, str) and seeds == "network":
            seeds = SeedsFrom(lambda poses, q0: self.propose(poses, q0).unsqueeze(-2))
        return solve_numerically(self.chain, target, q0, seeds=seeds, **options)  # type: ignore[arg-type]


def load_ik(name: str | Path) -> IK:
    """A robot with its trained network: "panda" or "ur10", which come with the package, or a file's.

    Files are those of `save_ik`; nothing in them is unpickled or run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such name, or a file that is damaged or not one of `save_ik`.
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"name: expected a name or a path, got {describe(name)}")
    if isinstance(name, str) and name in SHIPPED:
        with resources.as_file(resources.files("mfk.tasks").joinpath("weights", f"{name}.npz")) as path:
            return _read(path)
    if isinstance(name, str) and os.sep not in name and not name.endswith(".npz"):
        raise ValueError(f"name: expected {', '.join(SHIPPED)} or the path of an .npz file, got {name!r}")
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"name: {path} is not a file")
    return _read(path)


def save_ik(
    path: Path,
    params: Params,
    buffers: Params,
    network: NetConfig,
    robot: Mapping[str, str],
    record: Mapping[str, Any],
) -> None:
    """Write a trained network with what reproduces it; a reader never sees half a file.

    Args:
        path: of the .npz file, replaced if it exists.
        params: trained parameters, float32.
        buffers: the model's buffers.
        network: what `ik_model` made the model from.
        robot: "name", or "urdf" with the text of a description; "frame" and "base".
        record: what reproduces the training; JSON.

    Raises:
        OSError: the folder cannot be written.
    """
    about = {
        "format": FORMAT,
        "robot": dict(robot),
        "network": config.to_dict(network),
        "record": dict(record),
    }
    text = json.dumps(about, allow_nan=False, sort_keys=True).encode()
    arrays = {"about": np.frombuffer(text, dtype=np.uint8)}
    for kind, tensors in (("params", params), ("buffers", buffers)):
        arrays |= {f"{kind}/{name}": x.detach().cpu().numpy() for name, x in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomically(path, file.getvalue())


def _read(path: Path) -> IK:
    arrays = read_npz(path, path.stat().st_size)
    try:
        about = json.loads(arrays.pop("about").astype(np.uint8).tobytes())
        kind, robot, network = about["format"], about["robot"], about["network"]
        record = about["record"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a file of mfk.tasks.ik_pretrained.save_ik: {error!r}") from None
    if kind != FORMAT:
        raise ValueError(f"{path}: expected the format {FORMAT}, got {kind!r}")
    chain = _chain(path, robot)
    net = config.from_dict(NetConfig, network, source=str(path))
    # Before anything of that size is made.
    longest = max((n for x in arrays.values() for n in x.shape), default=0)
    if net.width > longest or net.blocks > len(arrays) or net.base_steps > _MOST_BASE_STEPS:
        raise ValueError(f"{path}: expected a network of the size of its arrays, got {net}")
    model = ik_model(chain, net)
    params, buffers = model.init(0)
    params, buffers = (_filled(path, arrays, k, x) for k, x in (("params", params), ("buffers", buffers)))
    return IK(chain, net, model, params, buffers, record)


def _chain(path: Path, robot: Any) -> Chain:
    """The chain that a file names, or describes."""
    wanted = {"frame", "base", "urdf" if isinstance(robot, dict) and "urdf" in robot else "name"}
    if (
        not isinstance(robot, dict)
        or {*robot} != wanted
        or not all(isinstance(x, str) for x in robot.values())
    ):
        raise ValueError(f"{path}: robot: expected strings {sorted(wanted)}, got {describe(robot)}")
    if "name" in robot and robot["name"] not in SHIPPED:
        raise ValueError(f"{path}: robot: expected {' or '.join(SHIPPED)}, got {robot['name']!r}")
    # What does not begin so would be taken for a file's path.
    if "urdf" in robot and not ("<robot" in robot["urdf"] and robot["urdf"].lstrip().startswith("<")):
        raise ValueError(f"{path}: robot: expected the text of a URDF, got {robot['urdf'][:40]!r}")
    try:
        text = robot["urdf"] if "urdf" in robot else urdf_text(robot["name"])
        return load_urdf(text, robot["frame"], base=robot["base"])
    except ValueError as error:
        raise ValueError(f"{path}: robot: {error}") from None


def _filled(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], kind: str, like: Params) -> Params:
    """The tensors `kind`/NAME of a file; all that `like` has, and no others."""
    prefix = f"{kind}/"
    found = {n.removeprefix(prefix): torch.from_numpy(x) for n, x in arrays.items() if n.startswith(prefix)}
    for name in sorted({*found, *like}):
        if name not in found or name not in like:
            state = "missing" if name in like else "unknown"
            raise ValueError(f"{path}: {kind}: expected the tensors of the network, {name!r} is {state}")
        x, wanted = found[name], like[name]
        if x.shape != wanted.shape or x.dtype != wanted.dtype or not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"{path}: {kind}: {name!r}: expected finite numbers {tuple(wanted.shape)} of {wanted.dtype}, "
                f"got {describe(x)}"
            )
    return {name: found[name] for name in like}
