"""Whether an economy is one of those that an emulator was trained on, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.types import Params
from mfk.data.worlds import World

_SLACK = 1e-6  # of the range: float32's rounding is not outside


class Outside(NamedTuple):
    """Which economies are outside the training rows."""

    flag: Tensor  # bool [N]
    reasons: list[list[str]]  # of each economy, in words; [] where it is inside


def outside(world: World, number: int, scale: Params, theta: Tensor) -> Outside:
    """Compare economies with the range of the training rows.

    Outside is: a parameter beyond the least or largest of the training rows; parameters without a solution;
    the world's persistence, volatility or the statistic of its slice beyond theirs; persistence and
    volatility both in ranks that no training row has at once (the corner).

    Args:
        world: of the economies.
        number: of the world in the emulator.
        scale: as of `mfk.tasks.irf_data.measure_scale`.
        theta: float64 [N, P].
    """
    low, high = (scale[name][number, : theta.shape[-1]].double() for name in ("theta_low", "theta_high"))
    slack = _SLACK * (high - low) + 1e-12
    beyond = (theta < low - slack) | (theta > high + slack) | ~theta.isfinite()  # [N, P]
    # Eigenvalues of NaN raise, and what has no solution has no statistics: the defaults stand in.
    stand_in = theta.new_tensor(world.parameters.defaults)
    finite = theta.isfinite().all(-1)
    valid = world.valid(torch.where(finite.unsqueeze(-1), theta, stand_in)) & finite
    some = torch.where(valid.unsqueeze(-1), theta, stand_in)
    statistics = torch.stack(
        [getattr(world, name)(some) for name in ("persistence", "volatility", "slice")], -1
    )
    least, most = scale["statistic_low"][number].double(), scale["statistic_high"][number].double()
    room = _SLACK * (most - least) + 1e-12
    odd = ((statistics < least - room) | (statistics > most + room)) & valid.unsqueeze(-1)  # [N, 3]
    ranks = torch.stack(
        [
            torch.searchsorted(scale["ranks"][number, k].double(), statistics[:, k].contiguous())
            for k in (0, 1)
        ]
    )
    corner = (ranks.amin(0) > scale["joint"][number]) & valid
    labels = ("persistence", "volatility", world.held_out)
    flag = ~valid | beyond.any(-1) | odd.any(-1) | corner
    reasons: list[list[str]] = [[] for _ in range(len(theta))]
    for row in flag.nonzero().flatten().tolist():
        why = [] if bool(valid[row]) else ["no stable solution"]
        why += _named(world.parameters.names, theta[row], beyond[row], low, high)
        why += _named(labels, statistics[row], odd[row], least, most)
        if bool(corner[row]) and not bool(odd[row].any()):
            why.append("persistence and volatility higher together than in any training sample")
        reasons[row] = list(dict.fromkeys(why))
    return Outside(flag, reasons)


def _named(names: Sequence[str], values: Tensor, bad: Tensor, low: Tensor, high: Tensor) -> list[str]:
    return [
        f"{names[k]} {float(values[k]):.4g} outside [{float(low[k]):.4g}, {float(high[k]):.4g}]"
        for k in bad.nonzero().flatten().tolist()
    ]
