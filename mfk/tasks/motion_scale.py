"""What a motion model knows of its data beside its parameters: measured once, on training windows only."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mfk.core.types import Params
from mfk.tasks.motion_features import Frames, to_features

Base: TypeAlias = Literal["none", "last", "velocity", "linear"]

_CONSTANT = 1e-3  # m, or of a quaternion: features that move less are not scaled up
_LEAST = 1e-6  # of a standard deviation: float32's rounding is not scaled up
_RIDGE = 1e-3


def fit_scale(how: Frames, frames: Tensor, horizon: int, base: Base = "linear") -> Params:
    """Mean, deviation and linear prediction of the features of training windows.

    Args:
        how: see `read_as`.
        frames: [rows, horizon + 1, bones, 7], the windows and one frame more.
        horizon: frames that a model sees.
        base: what the model corrects, see `extrapolate`.

    Returns:
        "reference" [bones, 4], the rotation whose sign the quaternions take: the principal axis of their
        second moments; "mean" and "std" [F] of the features (a feature that does not move has std 1);
        "velocity_std" [F], of the difference of two frames in units of std; "lags" [horizon - 2, F], the
        weights that predict the next acceleration of each feature from its last ones by least squares, the
        newest last; "residual_std" [F], of what the
        base leaves, the unit of a network's output; "residual_root" [F, F], the symmetric root of the second
        moments of it in these units: of the Gaussian that a flow begins at.

    Raises:
        ValueError: too few windows to measure anything.
    """
    if len(frames) < 2:
        raise ValueError(f"data: expected at least two training windows, got {len(frames)}")
    identity = torch.zeros(how.bones, 4, dtype=frames.dtype)
    identity[:, 0] = 1.0
    seen, _ = to_features(how, frames, identity)
    first = seen[:, 0].unflatten(-1, (how.bones, 7))[..., 3:].double()
    moments = torch.einsum("nbi,nbj->bij", first, first)
    reference = torch.linalg.eigh(moments).eigenvectors[..., -1]
    # An eigenvector has no sign; qw >= 0 is the usual one.
    reference = torch.where(reference[:, :1] < 0, -reference, reference).to(frames.dtype)
    seen, _ = to_features(how, frames, reference)
    mean, std = seen.mean((0, 1)), seen.std((0, 1))
    still = std < _CONSTANT
    std = torch.where(still, torch.ones_like(std), std)
    x = (seen - mean) / std
    velocity = x.diff(dim=1)
    velocity_std = velocity.std((0, 1))
    lags = _lags(velocity.diff(dim=1)) if horizon >= 3 else x.new_zeros((max(0, horizon - 2), x.shape[-1]))
    scale = {
        "reference": reference,
        "mean": mean,
        "std": std,
        "velocity_std": torch.where(still, torch.ones_like(std), velocity_std.clamp(min=_LEAST)),
        "lags": lags,
    }
    left = x[:, -1] - extrapolate(base, scale, x[:, :-1])[:, -1]
    deviation = left.square().mean(0).sqrt()
    deviation = torch.where(still, torch.ones_like(std), deviation.clamp(min=_LEAST))
    return scale | {"residual_std": deviation, "residual_root": _root(left / deviation)}


def extrapolate(base: Base, scale: Params, x: Tensor) -> Tensor:
    """What comes after each frame of x [..., T, F] without any learning, [..., T, F]; a causal function of x.

    none: 0, the mean; last: x_t; velocity: x_t + v_t; linear: that and the last accelerations times lags.
    """
    if base == "none":
        return torch.zeros_like(x)
    if base == "last" or x.shape[-2] < 2:
        return x
    # The first frame has no velocity, the second no acceleration.
    velocity = torch.cat((torch.zeros_like(x[..., :1, :]), x.diff(dim=-2)), -2)
    if base == "velocity" or x.shape[-2] < 3:
        return x + velocity
    acceleration = torch.cat((torch.zeros_like(x[..., :2, :]), velocity[..., 1:, :].diff(dim=-2)), -2)
    lags = scale["lags"]
    total = x + velocity
    frames = x.shape[-2]
    for age in range(min(len(lags), frames)):
        weight = lags[len(lags) - 1 - age]
        older = acceleration[..., : frames - age, :]
        total = total + weight * torch.cat((torch.zeros_like(acceleration[..., :age, :]), older), -2)
    return total


def _root(x: Tensor) -> Tensor:
    """The symmetric root of the second moments of rows x [n, F], [F, F]."""
    wide = x.double()
    values, vectors = torch.linalg.eigh(wide.T @ wide / len(x))
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).to(x.dtype)


def _lags(acceleration: Tensor) -> Tensor:
    """Ridge regression of each feature's last acceleration on those before it, [lags, F]."""
    past, last = acceleration[:, :-1].double(), acceleration[:, -1].double()
    size = past.shape[1]
    moments = torch.einsum("nkf,nlf->fkl", past, past)
    ridge = _RIDGE * moments.diagonal(dim1=1, dim2=2).mean(-1) + 1e-9
    moments = moments + ridge[:, None, None] * torch.eye(size, dtype=moments.dtype)
    weights = torch.linalg.solve(moments, torch.einsum("nkf,nf->fk", past, last)[..., None])
    return weights[..., 0].T.to(acceleration.dtype).contiguous()
