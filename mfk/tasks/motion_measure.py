"""Measures of motion models: the next frame, and rollouts, beside what needs no learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mfk.core.types import Params
from mfk.kinematics import quaternion_angle
from mfk.losses import finite_difference_velocity, foot_sliding, masked_sum
from mfk.tasks.motion_features import (
    Anchor,
    Frames,
    from_features,
    joint_rotations,
    keep_lengths,
    to_features,
    world_positions,
)
from mfk.tasks.motion_scale import Base, extrapolate

Predictor: TypeAlias = Callable[[Tensor, Tensor | None, int | None], Tensor]
"""(standardised features [B, T, F], label [B, C] or None, which step of a rollout) -> the next [B, F].

Without a step, all frames of windows are predicted at once: B is windows times frames."""


class NextStep(NamedTuple):
    """Errors of single frames, each predicted from true ones; all [B, R], `valid` says which count."""

    mse: Tensor  # mean over the standardised features
    mae: Tensor
    joint_deg: Tensor  # mean over the bones
    position_cm: Tensor  # mean over the bones, after FK
    valid: Tensor  # bool


class Rollout(NamedTuple):
    """Errors of frames that follow from predicted ones; all but the last [B, R]."""

    mse: Tensor
    joint_deg: Tensor
    position_cm: Tensor
    velocity_mse: Tensor  # of the standardised features' differences, per frame
    valid: Tensor  # bool
    frames: Tensor  # [B, R, bones, 7], what was predicted


def extrapolator(base: Base, scale: Params) -> Predictor:
    """What needs no learning, as a predictor."""
    return lambda x, label, k: extrapolate(base, scale, x)[:, -1]


def next_steps(
    how: Frames,
    scale: Params,
    predictor: Predictor,
    frames: Tensor,
    valid: Tensor,
    labels: Tensor | None,
    horizon: int,
) -> NextStep:
    """Predict each frame of windows [B, horizon + R, bones, 7] from the `horizon` true ones before it."""
    steps = frames.shape[1] - horizon
    windows = frames.unfold(1, horizon + 1, 1).movedim(-1, 2).flatten(0, 1)
    x, anchor = standardised(how, scale, windows)
    label = None if labels is None else labels[:, horizon - 1 : -1].flatten(0, 1)
    predicted = predictor(x[:, :-1], label, None)
    error = predicted - x[:, -1]
    found = keep_lengths(
        how, from_features(how, _plain(scale, predicted[:, None]), anchor)[:, 0], windows[:, -2]
    )
    degrees, centimetres = _distance(how, found, windows[:, -1])
    mse, mae, degrees, centimetres = (
        x.unflatten(0, (-1, steps))
        for x in (error.square().mean(-1), error.abs().mean(-1), degrees, centimetres)
    )
    return NextStep(mse, mae, degrees, centimetres, valid[:, horizon:])


def roll(
    how: Frames,
    scale: Params,
    predictor: Predictor,
    seen: Tensor,
    labels: Tensor | None,
    steps: int,
) -> Tensor:
    """Continue windows of true frames [B, T, bones, 7] by `steps` frames, [B, steps, bones, 7].

    Each predicted frame has unit quaternions and, where `how` says so, the bones' true lengths, and is seen
    in turn. `labels` [B, T - 1 + steps, C] are those of the frames that are predicted from.
    """
    window, last, found = seen, seen[:, -1], []
    for k in range(steps):
        x, anchor = standardised(how, scale, window)
        label = None if labels is None else labels[:, seen.shape[1] - 1 + k]
        out = _plain(scale, predictor(x, label, k)[:, None])
        frame = keep_lengths(how, from_features(how, out, anchor)[:, 0], last)
        found.append(frame)
        window = torch.cat((window[:, 1:], frame[:, None]), 1)
    return torch.stack(found, 1)


def rollouts(
    how: Frames,
    scale: Params,
    predictor: Predictor,
    frames: Tensor,
    valid: Tensor,
    labels: Tensor | None,
    horizon: int,
) -> Rollout:
    """Continue the first `horizon` frames of windows [B, horizon + R, bones, 7]; compare with the rest."""
    steps = frames.shape[1] - horizon
    found = roll(how, scale, predictor, frames[:, :horizon], labels, steps)
    both = torch.stack((frames, torch.cat((frames[:, :horizon], found), 1)))
    # Both are seen from the same beginning, so that they may be compared as features.
    (truth, made), _ = standardised(how, scale, both)
    velocity = finite_difference_velocity(made, 1.0) - finite_difference_velocity(truth, 1.0)
    degrees, centimetres = _distance(how, found, frames[:, horizon:])
    return Rollout(
        (made - truth)[:, horizon:].square().mean(-1),
        degrees,
        centimetres,
        velocity[:, horizon - 1 :].square().mean(-1),
        valid[:, horizon:],
        found,
    )


def feet_of(bone_names: tuple[str, ...]) -> list[int]:
    """The bones whose names say that they are feet: foot, toe or ankle."""
    return [
        i for i, name in enumerate(bone_names) if any(x in name.lower() for x in ("foot", "toe", "ankle"))
    ]


def sliding(how: Frames, frames: Tensor, truth: Tensor, feet: list[int], fps: float) -> Tensor:
    """`foot_sliding` [B] in m/s of frames [B, R, bones, 7], over the ground where true feet stand lowest."""
    assert how.up is not None
    made, true = (world_positions(how, x)[..., feet, :] for x in (frames, truth))
    floor = true[..., how.up].amin(1)  # [B, feet]
    lowered = made.clone()
    lowered[..., how.up] -= floor[:, None]
    return foot_sliding(lowered, up=how.up, fps=fps, ground=0.0)


def standardised(how: Frames, scale: Params, frames: Tensor) -> tuple[Tensor, Anchor | None]:
    """Features of windows [..., T, bones, 7] in units of their deviation, and where the windows begin."""
    features, anchor = to_features(how, frames, scale["reference"])
    return (features - scale["mean"]) / scale["std"], anchor


def masked_mean(values: Tensor, valid: Tensor) -> float:
    """The mean of the values [...] that count; NaN if none does."""
    total, weight = masked_sum(values, valid)
    return float(total / weight)


def _plain(scale: Params, x: Tensor) -> Tensor:
    return x * scale["std"] + scale["mean"]


def _distance(how: Frames, found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the bones of the angle in degrees, and of the distance in cm, of frames [..., bones, 7]."""
    angle = quaternion_angle(joint_rotations(how, found), joint_rotations(how, truth))
    distance = (world_positions(how, found) - world_positions(how, truth)).norm(dim=-1)
    return torch.rad2deg(angle).mean(-1), 100 * distance.mean(-1)
