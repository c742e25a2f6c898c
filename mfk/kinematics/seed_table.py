"""A table of reachable poses: where to start from, for a pose that lies near some of them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Rows
from mfk.kinematics.chain import Chain
from mfk.kinematics.fk import forward

_ROWS = 100_000
_A_CELL = 32  # rows of a reachable one, about
_LOOKED_AT = 64
_BLOCK = 16_384
_REACHED = 0.5  # of the box around all positions, about


class SeedTable(NamedTuple):
    """Configurations and their poses, in the order of the cells of a grid over the positions."""

    q: Tensor  # [rows, dof], float32, rad or m
    pose: Tensor  # [rows, 7], float32
    first: Tensor  # [cells + 1], int64: the row where each cell begins
    corner: Tensor  # [3], m
    edge: float  # of a cell, m
    cells: Tensor  # [3], int64, along each axis


@lru_cache(maxsize=8)
def seed_table(chain: Chain, device: torch.device, rows: int = _ROWS) -> SeedTable:
    """Configurations uniform within the limits, sorted by where the tip is; the same at every call."""
    u = rng.uniform(rng.key(0, "seed_table"), Rows.all(rows), (chain.dof,)).to(device)
    lower, upper = chain.lower.float().to(device), chain.upper.float().to(device)
    q = lower + (upper - lower) * u
    pose = torch.cat([forward(chain, part) for part in q.split(_BLOCK)]).contiguous()
    corner = pose[:, :3].amin(0)
    extent = (pose[:, :3].amax(0) - corner).clamp(min=1e-6)
    edge = float((extent.double().prod() * _REACHED * _A_CELL / rows) ** (1 / 3))
    edge = max(edge, float(extent.max()) / 1000)  # an arm that moves in a plane or on a line
    cells = (extent / edge).long() + 1
    table = SeedTable(q, pose, torch.empty(0), corner, edge, cells)
    cell = _cell(table, pose)
    order = torch.argsort(cell, stable=True)
    count = int(cells.prod())
    first = torch.searchsorted(cell[order], torch.arange(count + 1, device=device))
    return table._replace(q=q[order], pose=pose[order], first=first)


def nearest_seeds(table: SeedTable, target: Tensor, count: int, rotation_weight: float = 0.3) -> Tensor:
    """The rows of the table whose poses are nearest to targets [n, 7], as configurations [n, count, dof].

    Looked at are the first rows of the target's cell; nearest is by the squared distance [m^2] plus
    `rotation_weight` times 1 - |cos(half the angle)|. Where a cell has fewer rows than are wanted, its
    neighbours in the table stand in.
    """
    target = target.float()
    looked = max(_LOOKED_AT, count)
    cell = _cell(table, target)
    begin, end = table.first[cell], table.first[cell + 1]
    row = begin.unsqueeze(-1) + torch.arange(looked, device=target.device)
    inside = row < end.unsqueeze(-1)
    row = row.clamp(max=len(table.q) - 1)
    pose = table.pose[row]
    distance = (pose[..., :3] - target[:, None, :3]).square().sum(-1)
    turned = 1 - (pose[..., 3:] * target[:, None, 3:]).sum(-1).abs()
    # Rows beyond the cell lie elsewhere; they come last.
    score = distance + rotation_weight * turned + torch.where(inside, 0.0, 1e3)
    best = torch.topk(score, count, dim=-1, largest=False).indices
    return table.q[torch.gather(row, -1, best)]


def _cell(table: SeedTable, pose: Tensor) -> Tensor:
    place = ((pose[..., :3] - table.corner) / table.edge).floor()
    # As floats: a pose may be too far away for an integer.
    x, y, z = torch.minimum(place.clamp(min=0), (table.cells - 1).to(place.dtype)).long().unbind(-1)
    return (x * table.cells[1] + y) * table.cells[2] + z
