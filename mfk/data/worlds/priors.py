"""Parameters drawn from a world's prior: row i depends on the seed, the world and i alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Rows, describe
from mfk.data.worlds.world import World, bounds

LARGEST_RADIUS = 0.95
"""No prior has a larger eigenvalue."""

_ATTEMPTS = 100
_ONE = Rows.all(1)


def draw_theta(world: World, seed: int, rows: range) -> Tensor:
    """Draw parameters from the prior: valid ones, within the manifest's bounds.

    A candidate that is not is drawn again, from the next key of its own row.

    Args:
        world: one of `WORLDS`, or your own.
        seed: of all rows.
        rows: which samples, such as ``range(1000, 2000)``.

    Returns:
        [len(rows), P], float64.

    Raises:
        ValueError: `rows` is not a range of numbers >= 0, or the prior has no valid candidate for a row.
    """
    if not isinstance(rows, range) or (len(rows) and min(rows[0], rows[-1]) < 0):
        raise ValueError(f"rows: expected a range of numbers >= 0, got {describe(rows)}")
    lower, upper = bounds(world.parameters)
    theta = torch.empty(len(rows), len(lower), dtype=torch.float64, device="cpu")
    missing = torch.arange(len(rows))
    for attempt in range(_ATTEMPTS):
        if not len(missing):
            break
        keys = [rng.key(seed, "theta", world.name, rows[i], attempt) for i in missing.tolist()]
        candidates = world.draw(keys)
        accepted = world.valid(candidates) & ((candidates >= lower) & (candidates <= upper)).all(-1)
        theta[missing[accepted]] = candidates[accepted]
        missing = missing[~accepted]
    if len(missing):
        raise ValueError(
            f"world {world.name}: no valid parameters for row {rows[int(missing[0])]} "
            f"in {_ATTEMPTS} draws from its prior"
        )
    return theta


def draw_shocks(world: World, seed: int, rows: range, periods: int) -> Tensor:
    """Standard normal shocks of each sample's trajectory, [len(rows), periods, S], float64."""
    keys = [rng.key(seed, "shocks", world.name, row) for row in rows]
    return normals(keys, periods, len(world.shocks.names))


def uniforms(keys: Sequence[int], *shape: int) -> Tensor:
    """Numbers uniform in [0, 1), of each key its own, float64 [len(keys), *shape]."""
    drawn = [rng.uniform(rng.key(key, "uniform"), _ONE, shape, torch.float64) for key in keys]
    return torch.cat(drawn) if drawn else torch.empty(0, *shape, dtype=torch.float64)


def normals(keys: Sequence[int], *shape: int) -> Tensor:
    """Standard normal numbers, of each key its own, float64 [len(keys), *shape]."""
    drawn = [rng.normal(rng.key(key, "normal"), _ONE, shape, torch.float64) for key in keys]
    return torch.cat(drawn) if drawn else torch.empty(0, *shape, dtype=torch.float64)


def symmetric_matrices(numbers: Tensor, directions: Tensor) -> Tensor:
    """The documents' random stable matrices: V diag(Re λ) Vᵀ, V orthogonal, λ = r e^{± i a} in pairs.

    r is uniform in [0.3, 0.95) and a on the circle. As in the documents the real part is taken, so that the
    matrix is symmetric with the double eigenvalues r cos a: none rotates, and the largest has a median
    of about 0.55, though r >= 0.3.

    Args:
        numbers: uniform in [0, 1), [..., n / 2, 2] for r and a.
        directions: standard normal, [..., n, n]; V is the Q of its QR decomposition.

    Returns:
        [..., n, n].
    """
    radius = 0.3 + (LARGEST_RADIUS - 0.3) * numbers[..., 0]
    eigenvalues = (radius * torch.cos(2 * math.pi * numbers[..., 1])).repeat_interleave(2, -1)
    basis = torch.linalg.qr(directions).Q
    return (basis * eigenvalues.unsqueeze(-2)) @ basis.mT
