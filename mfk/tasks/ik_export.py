"""A trained inverse-kinematics network as a program of torch.export, for use without mfk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfk.kinematics import Chain, clip_to_limits
from mfk.kinematics.seed_table import seed_table
from mfk.tasks.ik import ik_network
from mfk.tasks.ik_pretrained import IK

TOLERANCE = 1e-5  # rad or m


class OneStep(nn.Module):
    """clip(q_ref + u(q_ref, 0, 1; pose)), both [n, ...]."""

    def __init__(self, chain: Chain, net: nn.Module) -> None:
        """`net` is called as ``net(q, pose, r, t)``."""
        super().__init__()
        self.chain, self.net = chain, net

    def forward(self, q_ref: Tensor, pose: Tensor) -> Tensor:
        """Joints [n, dof] from a reference [n, dof] and a pose [n, 7]."""
        r = torch.zeros_like(q_ref[:, :1])
        return clip_to_limits(self.chain, q_ref + self.net(q_ref, pose, r, torch.ones_like(r)))


def export_ik(ik: IK, path: Path) -> float:
    """Write the network's one step as a .pt2 program (q_ref [n, dof], pose [n, 7]) -> q [n, dof], float32.

    The program is read back and compared with the network on other poses, in another number; only then is
    it at `path`. Returns the greatest difference found, in rad or m.

    Raises:
        RuntimeError: they differ by more than 1e-5. OSError: the folder cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"path: expected a file to write, {path} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part.pt2")
    part.touch()  # now, and not after seconds of work
    try:
        difference = _write(ik, part)
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{path}: the exported program differs from the network by {difference:.3g}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return difference


def _write(ik: IK, path: Path) -> float:
    """Write the program, read it back, and compare it with the network."""
    net = ik_network(ik.chain, ik.network)()
    net.load_state_dict({**ik.params, **ik.buffers})
    table = seed_table(ik.chain, torch.device("cpu"))
    batch = torch.export.Dim("n", min=2)
    shapes: Any = {"q_ref": {0: batch}, "pose": {0: batch}}
    with torch.no_grad():
        example = (table.q[:8], table.pose[8:16])
        program = torch.export.export(OneStep(ik.chain, net).eval(), example, dynamic_shapes=shapes)
        torch.export.save(program, path)
        q_ref, pose = table.q[100:137], table.pose[137:174]
        got = torch.export.load(path).module()(q_ref, pose)
        return float((got - ik.propose(pose, q_ref)).abs().max())
