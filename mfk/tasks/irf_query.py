"""What a trained emulator says of an economy, and whether to trust it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.tasks.irf_measure import Member, deviation, emulated
from mfk.tasks.irf_net import IRFNets
from mfk.tasks.irf_range import outside


class OutOfRange(UserWarning):
    """An economy is not one of those that the emulator was trained on."""


class Answer(NamedTuple):
    """Emulated responses."""

    irf: Tensor  # float32 [N, S, H + 1, V], in units of the observables; of an ensemble the mean
    spread: Tensor | None  # of its members, see `irf_measure.deviation`; None of a single network
    outside: Tensor  # bool [N], whether an economy is out of the training's range
    reasons: list[list[str]]  # why, of each


def ask(
    nets: IRFNets, members: Sequence[Member], world_id: str, theta: Tensor, *, warn: bool = True
) -> Answer:
    """The responses of economies, with a warning where they are out of the training's range.

    Args:
        nets: as of `irf_nets`.
        members: of the run: (params, state) of one network, or of each of an ensemble.
        world_id: name of the world.
        theta: parameters, float64 [N, P].
        warn: whether to issue an `OutOfRange` warning for each economy that is.

    Raises:
        ValueError: an unknown world, or another shape. TypeError: `theta` is not float64.
    """
    names = [world.name for world in nets.worlds]
    if world_id not in names:
        raise ValueError(f"world_id: expected one of {', '.join(names)}, got {describe(world_id)}")
    number = names.index(world_id)
    world = nets.worlds[number]
    if not isinstance(theta, Tensor) or theta.dtype != torch.float64:
        raise TypeError(f"theta: expected a float64 tensor, got {describe(theta)}")
    if theta.ndim != 2 or theta.shape[1] != len(world.parameters.names):
        raise ValueError(
            f"theta: expected a shape [N, {len(world.parameters.names)}], got {tuple(theta.shape)}"
        )
    each = torch.stack([emulated(nets, *member, world, theta) for member in members])
    found = outside(world, number, members[0][1]["scale"], theta)
    for row, reasons in enumerate(found.reasons) if warn else ():
        if reasons:
            warnings.warn(
                f"world {world_id}, economy {row}: out of the training's range: {'; '.join(reasons)}",
                OutOfRange,
                stacklevel=2,
            )
    spread = deviation(each) if len(members) > 1 else None
    return Answer(each.mean(0), spread, found.flag, found.reasons)
