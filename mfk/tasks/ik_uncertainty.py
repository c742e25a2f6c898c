"""What an ensemble of networks knows of its error: its prediction, its spread, and their calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from mfk.core.types import Model, Params
from mfk.kinematics import Chain, check_pose, clip_to_limits, forward
from mfk.losses import sample
from mfk.tasks.ik import PoseErrors, ik_field, pose_errors

FACTORS = (1, 2, 3)
"""Multiples of the spread for which the report says how many errors are no larger."""
_BINS = 10


class Prediction(NamedTuple):
    """The members' mean configuration, and how far their poses are from its pose."""

    q: Tensor  # [..., dof], float32, rad or m
    spread: PoseErrors  # [...], float64, m and rad


@dataclass(frozen=True)
class Bin:
    """Held-out poses of similar spread."""

    poses: int
    spread: float
    """Mean spread, what the ensemble predicts."""
    error: float
    """Root mean square of the actual errors."""


@dataclass(frozen=True)
class Calibration:
    """How an ensemble's spread compares with the actual error of its prediction."""

    unit: str
    rank_correlation: float
    """Spearman's, of spread and error: 1 where the spread orders the poses by their error."""
    coverage: dict[str, float]
    """c -> share of the poses with error <= c spread."""
    factor_90: float
    """The c that covers nine poses of ten: what the spread has to be multiplied by."""
    bins: tuple[Bin, ...]
    """The poses by their spread, in ten parts of equal size, the most certain first."""


def predict(
    chain: Chain,
    model: Model,
    params: Params,
    buffers: Params,
    pose: Tensor,
    reference: Tensor,
    steps: int = 1,
) -> Prediction:
    """Solve target poses with all members of an ensemble, each from the same reference.

    With q_i the members' solutions and T the forward kinematics, the prediction and its spread are::

        q = mean_i q_i          spread^2 = sum_i dist(T(q_i), T(q))^2 / (k - 1)

    clipped to the limits, and with dist the distance of the positions, or the angle of the rotations. The
    mean is one of joint angles: it is sound because the members start from one reference, and their
    solutions lie around one solution near it, not on several branches.

    The spread sees what differs between the members. An error that they share, such as a training that ended
    too early, is not in it: `calibrate` against held-out poses before it is used as an error bar.

    Args:
        chain: the robot.
        model: as from `mfk.tasks.ik.ik_model`.
        params: the members' parameters, stacked: leaves [k, ...].
        buffers: the members' buffers, stacked.
        pose: targets, [..., 7], as for `mfk.tasks.ik_solve.solve_pose`.
        reference: configuration to start from, [..., dof] in rad or m.
        steps: network steps.

    Raises:
        ValueError: as `solve_pose`, or fewer than two members.
    """
    check_pose(pose, "pose")
    members = len(next(iter(params.values())))
    if members < 2:
        raise ValueError(f"params: expected at least two members, stacked, got {members}")

    def one(params: Params, buffers: Params) -> Tensor:
        return sample(ik_field(model, params, buffers, pose.float()), reference.float(), steps)

    with torch.no_grad():
        each = clip_to_limits(chain, vmap(one)(params, buffers))
        q = clip_to_limits(chain, each.mean(0))
        centre = forward(chain, q.double())
        distances = pose_errors(chain, each, centre.expand(members, *centre.shape))
        spread = PoseErrors(*(x.square().sum(0).div(members - 1).sqrt() for x in distances))
    return Prediction(q, spread)


def calibrations(errors: PoseErrors, spread: PoseErrors) -> dict[str, Calibration]:
    """The calibration of position (mm) and rotation (deg); both arguments [N], in m and rad."""
    return {
        "position": calibrate(errors.position * 1e3, spread.position * 1e3, "mm"),
        "rotation": calibrate(torch.rad2deg(errors.rotation), torch.rad2deg(spread.rotation), "deg"),
    }


def calibrate(errors: Tensor, spread: Tensor, unit: str) -> Calibration:
    """Compare actual errors [N] with the spread that was predicted for them, [N], both in `unit`.

    Raises:
        ValueError: they are not vectors of one length, at least 1.
    """
    if errors.ndim != 1 or errors.shape != spread.shape or not len(errors):
        raise ValueError(
            "errors, spread: expected vectors of one length, at least 1, "
            f"got {tuple(errors.shape)} and {tuple(spread.shape)}"
        )
    errors, spread = errors.double(), spread.double()
    order = spread.argsort(stable=True)
    bins = tuple(
        Bin(len(part), float(spread[part].mean()), float(errors[part].square().mean().sqrt()))
        for part in order.tensor_split(min(_BINS, len(order)))
    )
    coverage = {str(c): float((errors <= c * spread).double().mean()) for c in FACTORS}
    # 0 / 0 is no error and no spread: any factor covers it.
    factor = float(
        (errors / spread).nan_to_num(0.0, math.inf).sort().values[math.ceil(0.9 * len(errors)) - 1]
    )
    return Calibration(unit, rank_correlation(errors, spread), coverage, factor, bins)


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation of two vectors [N], equal values sharing their mean rank.

    NaN where a value is not finite, or all values of a vector are equal.
    """
    if not bool((x.isfinite() & y.isfinite()).all()):
        return float("nan")
    a, b = (ranks - ranks.mean() for ranks in (_ranks(x), _ranks(y)))
    return float((a @ b) / (a.norm() * b.norm()))


def calibration_markdown(members: int, found: Mapping[str, Calibration]) -> list[str]:
    """The lines of the report."""
    lines = [
        "",
        "## Uncertainty",
        "",
        f"The prediction is the mean configuration of {members} networks after one step, its uncertainty "
        f"their spread: the root mean square distance (divided by {members} - 1) of their poses from the "
        "pose of the mean. Poses are ordered by spread and cut into parts of equal size. An error that all "
        "networks share is not in the spread.",
    ]
    for name, c in found.items():
        shares = ", ".join(f"{100 * share:.1f} % within {k} x spread" for k, share in c.coverage.items())
        lines += [
            "",
            f"{name}: rank correlation of spread and error {c.rank_correlation:.3f}; errors: {shares}; "
            f"90 % within {c.factor_90:.3g} x spread.",
        ]
        lines += ["", f"| poses | mean spread, {c.unit} | rms error, {c.unit} | error / spread |"]
        lines += ["|---:" * 4 + "|"]
        lines += [
            f"| {b.poses} | {b.spread:.4g} | {b.error:.4g} | {b.error / (b.spread or math.nan):.2f} |"
            for b in c.bins
        ]
    return lines


def calibration_lines(found: Mapping[str, Calibration]) -> Sequence[str]:
    """One line a quantity, for the terminal."""
    return [
        f"{name}: spread from {c.bins[0].spread:.3g} to {c.bins[-1].spread:.3g} {c.unit}, "
        f"rank correlation with the error {c.rank_correlation:.2f}, "
        f"90 % of the errors within {c.factor_90:.3g} x spread"
        for name, c in found.items()
    ]


def _ranks(x: Tensor) -> Tensor:
    """Positions in ascending order, from 1; equal values have their mean."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]
