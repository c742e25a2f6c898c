"""Which samples of a world are trained on, and which are held out: at random, and by what they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Rows, describe
from mfk.data.worlds import World

TRAIN, VAL = 0.8, 0.1
EXTRAPOLATION = 0.025
"""Share of each of the two splits that are held out by what they are."""

LEAST = 6
"""Samples, so that every split has one."""

SPLITS = ("train", "val", "test_interpolation", "test_extrapolation_slice", "test_extrapolation_corner")


class Split(NamedTuple):
    """A world's samples, each in one of the splits."""

    samples: dict[str, list[int]]  # name of the split -> sample numbers
    held_out: dict[str, Any]  # the two regions, in words and bounds, for the manifest


def split_samples(world: World, theta: Tensor, seed: int) -> Split:
    """Split samples into the documented five.

    Two *regions* of the parameters are held out whole, so that no sample of them is trained on, or in any
    other split: the slice, where `world.slice` is above its 97.5th percentile, and of the rest the corner,
    where persistence and volatility both are above one percentile of their own, chosen so that it has 2.5 %.
    The documents drew 2.5 % out of much larger regions (phi_pi > 2 is 61 % of the prior), whose other
    samples stayed in the training. The rest is dealt at random: 80 % of all samples to train, 10 % to val,
    what remains to test_interpolation.

    Args:
        world: of the samples.
        theta: their parameters, float64 [N, P], N >= 6.
        seed: of the random part.

    Raises:
        ValueError: fewer samples, or a statistic of the world that is not finite.
    """
    count = len(theta)
    if count < LEAST:
        raise ValueError(f"theta: expected at least {LEAST} samples for five splits, got {count}")
    statistics = {
        name: _ranked(world, name, theta) for name in ("slice", "persistence", "volatility")
    }  # each float64 [N]
    size = max(1, int(EXTRAPOLATION * count))
    above = np.sort(statistics["slice"])[-size - 1]
    in_slice = statistics["slice"] > above
    rest = np.flatnonzero(~in_slice)
    persistence, volatility = statistics["persistence"][rest], statistics["volatility"][rest]
    joint = np.minimum(_ranks(persistence), _ranks(volatility))
    level = np.sort(joint)[-size]
    in_corner = np.zeros(count, dtype=bool)
    in_corner[rest[joint >= level]] = True
    free = np.flatnonzero(~(in_slice | in_corner))
    order = rng.uniform(rng.key(seed, "split", world.name), Rows.all(count), (), torch.float64).numpy()
    free = free[np.argsort(order[free], kind="stable")]
    val = max(1, int(VAL * count))
    train = min(int(TRAIN * count), len(free) - val - 1)
    dealt = np.split(free, [train, train + val])
    parts = (*dealt, np.flatnonzero(in_slice), np.flatnonzero(in_corner))
    held_out = {
        "slice": {"statistic": world.held_out, "above": float(above)},
        "corner": {
            "persistence_at_least": float(np.sort(persistence)[level]),
            "volatility_at_least": float(np.sort(volatility)[level]),
        },
    }
    return Split({name: part.tolist() for name, part in zip(SPLITS, parts, strict=True)}, held_out)


def splits_manifest(seed: int) -> dict[str, dict[str, Any]]:
    """What the data set's manifest says of the splits."""
    shares = (TRAIN, VAL, 1 - TRAIN - VAL - 2 * EXTRAPOLATION, EXTRAPOLATION, EXTRAPOLATION)
    kinds = (*3 * ("random outside the regions",), "region, whole", "region, whole")
    return {
        name: {"fraction": round(share, 6), "seed": seed, "algorithm": kind}
        for name, share, kind in zip(SPLITS, shares, kinds, strict=True)
    }


def _ranked(world: World, name: str, theta: Tensor) -> np.ndarray:
    values: Tensor = getattr(world, name)(theta)
    if tuple(values.shape) != (len(theta),) or not bool(values.isfinite().all()):
        raise ValueError(
            f"world {world.name}: expected a finite {name} of each of {len(theta)} samples, "
            f"got {describe(values)}"
        )
    return values.double().numpy(force=True)


def _ranks(values: np.ndarray) -> np.ndarray:
    """0 for the smallest; among equals the earlier is the smaller."""
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks
