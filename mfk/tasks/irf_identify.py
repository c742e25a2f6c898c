"""What measured responses tell of the parameters that were fitted to them: standard errors, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp

from mfk.data.worlds import World, bounds, draw_theta

RANK = 1e-8
"""Of the largest singular value: what is smaller is rounding."""

_LOADING = 1e-4  # of a direction that changes nothing: a parameter in it is not identified
_AT_BOUND = 1e-6  # of the bounds' distance
_ECONOMIES = 8  # of the prior, that tell whether a parameter moves anything


class Identified(NamedTuple):
    """How well each free parameter is told."""

    at_bound: tuple[str, ...]  # those at a bound of the world's, which count as fixed
    unidentified: tuple[str, ...]  # those that can change, some of them together, without any response
    combinations: int  # how many numbers the responses tell of `unidentified`
    deviation: dict[str, float]  # standard errors of the others


def identify(world: World, shock: int, free: Sequence[str], theta: Tensor, deviation: Tensor) -> Identified:
    """Standard errors of parameters that were estimated by minimum distance, where they are identified.

    With J the derivative of the world's own responses, each divided by its deviation, by the free parameters
    that are not at a bound, the covariance is that of Gauss and Newton, (Jᵀ J)⁻¹, which takes the measured
    numbers' errors for independent. Directions whose singular value is below `RANK` of the largest, J's
    columns being of length 1, change no response: no parameter that takes part in one is identified.

    Args:
        world: of the parameters.
        shock: number of the shock whose responses were fitted.
        free: names of the parameters that were estimated.
        theta: the estimate, float64 [P].
        deviation: of the measured responses, float64 [H + 1, V]; inf where none was.

    Source: Rothenberg 1971 (rank and identification); Iskrev 2010 for linear rational expectations.
    """
    lower, upper = bounds(world.parameters)
    span = upper - lower
    places = [world.parameters.names.index(name) for name in free]
    close = _AT_BOUND * span
    inside = (theta - lower > close) & (upper - theta > close)
    at_bound = tuple(name for name, k in zip(free, places, strict=True) if not inside[k])
    names = [name for name in free if name not in at_bound]
    slope = jacobian(world, shock, names, theta, deviation)  # [N, F]
    length = slope.norm(dim=0)
    moving = length > 0
    matrix = slope[:, moving] / length[moving]
    _, singular, right = torch.linalg.svd(matrix, full_matrices=True)
    kept = int((singular > RANK * singular.amax()).sum()) if singular.numel() else 0
    vague = torch.ones(len(names), dtype=torch.bool)
    vague[moving] = right[kept:].square().sum(0).sqrt() > _LOADING
    scaled = (right[:kept] / singular[:kept, None]).square().sum(0).sqrt()
    error = torch.zeros(len(names), dtype=theta.dtype)
    error[moving] = scaled / length[moving]
    told = {name: float(error[k]) for k, name in enumerate(names) if not vague[k]}
    unidentified = tuple(name for k, name in enumerate(names) if vague[k])
    return Identified(at_bound, unidentified, kept - len(told), told)


def unmoving(world: World, shock: int, free: Sequence[str], deviation: Tensor) -> list[str]:
    """Those of the parameters that move no measured response, in any of some economies of the prior."""
    theta = draw_theta(world, 0, range(_ECONOMIES))
    slopes = torch.stack([jacobian(world, shock, free, row, deviation) for row in theta])
    still = (slopes == 0).all(0).all(0)
    return [name for name, none in zip(free, still.tolist(), strict=True) if none]


def jacobian(world: World, shock: int, names: Sequence[str], theta: Tensor, deviation: Tensor) -> Tensor:
    """Derivatives of response / deviation by the parameters, of the N measured ones: float64 [N, F]."""
    measured = deviation.isfinite()

    def weighted(t: Tensor) -> Tensor:
        return (world.irf(t)[shock, : len(deviation)] / deviation)[measured]

    columns = []
    for name in names:
        direction = torch.zeros_like(theta)
        direction[world.parameters.names.index(name)] = 1.0
        columns.append(jvp(weighted, (theta,), (direction,))[1])
    return torch.stack(columns, -1) if columns else theta.new_zeros(int(measured.sum()), 0)
