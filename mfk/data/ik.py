"""Inverse-kinematics samples of any chain, made batch by batch from keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.config import refuse_unused
from mfk.core.types import Rows
from mfk.kinematics import Chain, clip_to_limits, forward


@dataclass(frozen=True)
class IKDataConfig:
    """Which solutions a network is trained on, and where it starts from."""

    reference: Literal["local", "uniform", "mixture"] = "local"
    """local: q_target plus Gaussian noise; uniform: anywhere in the limits; mixture: each row either."""
    sigma: float = 0.1
    """Standard deviation of a local reference's noise, in rad (m for a prismatic joint)."""
    sigma_max: float | None = None
    """Each row's own standard deviation, log-uniform between `sigma` and this; None: all have `sigma`."""
    uniform_share: float = 0.5
    """Share of uniform references in a mixture, in [0, 1]."""


class IKSamples(NamedTuple):
    """Rows of inverse-kinematics data."""

    q_target: Tensor  # [rows, dof], the solution; float32, rad or m
    q_reference: Tensor  # [rows, dof], where the flow starts; within the limits of joints that have some
    pose: Tensor  # [rows, 7], of the tip at q_target in the base frame: x y z [m], qw qx qy qz


def sampling_range(chain: Chain) -> tuple[Tensor, Tensor]:
    """Bounds that name each solution once: the limits, or one turn of them, -pi..pi if that lies inside.

    The UR10's joints reach ±2 pi, so that every pose would have up to 64 copies of each solution.

    Returns:
        (lower, upper), [dof] each, float64, in rad or m.

    Raises:
        ValueError: a joint has no finite limits.
    """
    lower, upper = chain.lower, chain.upper
    unbounded = [
        name
        for name, low, high in zip(chain.joint_names, lower, upper, strict=True)
        if not (math.isfinite(low) and math.isfinite(high))
    ]
    if unbounded:
        raise ValueError(f"chain: joint {unbounded[0]!r} has no finite limits to sample within")
    turns = torch.tensor([kind != "prismatic" for kind in chain.kinds], device="cpu")
    wide = turns & (upper - lower > 2 * math.pi)
    # One whole turn, moved into the limits where they lie to one side of zero.
    start = lower.clamp(min=-math.pi).minimum(upper - 2 * math.pi)
    return torch.where(wide, start, lower), torch.where(wide, start + 2 * math.pi, upper)


def draw_ik(chain: Chain, config: IKDataConfig, seed: int, step: int, rows: Rows) -> IKSamples:
    """Solutions uniform in the limits, their poses, and references.

        q_target ~ U(lower, upper),   q_reference = clip(q_target + sigma n),  n ~ N(0, I)
        sigma ~ sigma (sigma_max / sigma)^U(0, 1),  where there is a sigma_max

    Args:
        chain: the robot.
        config: see `IKDataConfig`.
        seed: of the run.
        step: of the run; another step, another batch.
        rows: which rows of the global batch.

    Raises:
        ValueError: sigma is not positive, sigma_max not above it, a share outside [0, 1], an unknown kind of
            reference.
    """
    _check(config)
    lower, upper = (bound.float() for bound in sampling_range(chain))
    shape = (chain.dof,)

    def anywhere(stream: str) -> Tensor:
        return torch.lerp(lower, upper, rng.uniform(rng.key(seed, step, stream), rows, shape))

    target = clip_to_limits(chain, anywhere("target"))
    if config.reference == "uniform":
        reference = anywhere("reference")
    else:
        noise = rng.normal(rng.key(seed, step, "noise"), rows, shape)
        sigma: float | Tensor = config.sigma
        if config.sigma_max is not None:
            u = rng.uniform(rng.key(seed, step, "sigma"), rows, (1,))
            sigma = sigma * (config.sigma_max / config.sigma) ** u
        reference = target + sigma * noise
        if config.reference == "mixture":
            pick = rng.uniform(rng.key(seed, step, "mixture"), rows, (1,)) < config.uniform_share
            reference = torch.where(pick, anywhere("reference"), reference)
    return IKSamples(target, clip_to_limits(chain, reference), forward(chain, target))


def _check(config: IKDataConfig) -> None:
    if config.reference not in ("local", "uniform", "mixture"):
        raise ValueError(f"reference: expected local, uniform or mixture, got {config.reference!r}")
    refuse_unused(config, config.reference != "uniform", "sigma", "sigma_max")
    refuse_unused(config, config.reference == "mixture", "uniform_share")
    if not (math.isfinite(config.sigma) and config.sigma > 0):
        raise ValueError(f"sigma: expected a positive number of rad, got {config.sigma!r}")
    if config.sigma_max is not None and not config.sigma < config.sigma_max < math.inf:
        raise ValueError(
            f"sigma_max: expected a number above sigma, {config.sigma}, got {config.sigma_max!r}"
        )
    if not 0 <= config.uniform_share <= 1:
        raise ValueError(f"uniform_share: expected a share in [0, 1], got {config.uniform_share!r}")
