"""Networks that predict the next frame of a motion: a backbone, what it sees, and what its output means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mfk.core import stateless
from mfk.core.config import refuse_unused
from mfk.core.types import Field, Model, Params
from mfk.nn import MotionMLP, MotionTransformer, UNet1D, time_features
from mfk.tasks.motion_scale import Base, extrapolate

TIME_FEATURES = 16  # of each of the two times of a flow


@dataclass(frozen=True)
class MotionNetConfig:
    """Which network, and what it sees."""

    arch: Literal["transformer", "mlp", "unet1d"] = "transformer"
    """transformer: causal attention; mlp: all frames at once; unet1d: convolutions along time."""
    input_dim: int | None = None
    """Numbers of a frame, 7 a bone; None: the data's. Another number than the data's is an error."""
    output_dim: int | None = None
    """The same of the prediction, which is a frame; None: the data's."""
    conditioning_dim: int | None = None
    """Width of the labels; None: the data's; 0: labels are not used."""
    horizon: int = 8
    """Frames that the network sees."""
    base: Base = "linear"
    """What the output is added to: nothing, the last frame, constant velocity, or linear prediction."""
    see_velocities: bool = True
    """Whether the network sees each frame's velocity beside its features."""
    dropout: float = 0.1
    """Share of activations dropped in training."""
    width: int = 128
    """transformer: width of the residual stream."""
    layers: int = 2
    """transformer: encoder layers."""
    heads: int = 4
    """transformer, unet1d: attention heads."""
    feedforward: int = 256
    """transformer: width inside a layer."""
    causal: bool = True
    """transformer: a frame sees those before it only."""
    max_seq_len: int = 64
    """transformer: the most frames that it has positions for."""
    conditioning: Literal["add", "prepend"] = "add"
    """transformer: the label is added to every frame, or is a token before them."""
    returns: Literal["last", "sequence"] = "last"
    """transformer: it is trained on the frame after its last one, or after each (causal only)."""
    hidden: tuple[int, ...] = (512, 1_024, 512)
    """mlp: widths of the hidden layers."""
    flatten_sequence: bool = True
    """mlp: sees all frames side by side; off: sees their mean."""
    channels: tuple[int, ...] = (32, 64)
    """unet1d: channels of each level."""


class Diffusion(NamedTuple):
    """A schedule of noise, and how many steps lead back."""

    steps: int
    first: float  # beta of the first step
    last: float
    samples: int  # evaluations of the network for a frame


class MotionNet(NamedTuple):
    """A network with what is needed to call it."""

    make: Callable[[], nn.Module]
    model: Model
    features: int  # F
    labels: int  # C; 0: it is not conditioned
    generative: bool  # whether it is a field u(z, r, t), the past frames its condition
    diffusion: Diffusion | None  # of a generative one: it is u(z, t, t), the noise in z; None: MeanFlow's
    config: MotionNetConfig


_OWN = {
    "transformer": ("width", "layers", "feedforward", "causal", "max_seq_len", "conditioning", "returns"),
    "mlp": ("hidden", "flatten_sequence"),
    "unet1d": ("channels",),
}


def motion_net(
    config: MotionNetConfig, features: int, labels: int, generative: bool, diffusion: Diffusion | None = None
) -> MotionNet:
    """The configured network for frames of `features` numbers and labels of `labels`.

    Raises:
        ValueError: a setting is out of range, has no effect, or disagrees with the data.
    """
    for name in ("input_dim", "output_dim"):
        if getattr(config, name) not in (None, features):
            raise ValueError(
                f"{name}: expected the {features} numbers of the data's frames, got {getattr(config, name)}"
            )
    if config.conditioning_dim not in (None, 0, labels):
        raise ValueError(
            f"conditioning_dim: expected the width of the data's labels, {labels}, or 0 to leave them out, "
            f"got {config.conditioning_dim}"
        )
    for arch, names in _OWN.items():
        refuse_unused(config, config.arch == arch, *names)
    refuse_unused(config, config.arch != "mlp", "heads")
    if config.horizon < 1:
        raise ValueError(f"horizon: expected at least 1 frame, got {config.horizon}")
    needed = {"none": 1, "last": 1, "velocity": 2, "linear": 3}.get(config.base)
    if needed is None:
        raise ValueError(f"base: expected none, last, velocity or linear, got {config.base!r}")
    if config.horizon < needed:
        raise ValueError(
            f"base: {config.base} needs a horizon of at least {needed} frames, got {config.horizon}"
        )
    if config.returns == "sequence" and not config.causal:
        raise ValueError("returns: sequence needs causal; a later frame would give its own prediction away")
    if generative and config.returns == "sequence":
        raise ValueError("returns: a generative network predicts the frame after its last one: last")
    labels = 0 if config.conditioning_dim == 0 else labels
    # The state of the flow is one token more, after the frames.
    frames = config.horizon + generative
    if config.arch == "transformer" and frames > config.max_seq_len:
        raise ValueError(
            f"horizon: {frames} frames (the flow's state counts as one where there is one) are more than "
            f"max_seq_len, {config.max_seq_len}"
        )
    inputs = features * (1 + config.see_velocities)
    condition = labels + 2 * TIME_FEATURES * generative
    make = partial(_build, config, inputs, features, condition, frames)
    return MotionNet(make, stateless(make), features, labels, generative, diffusion, config)


def _build(config: MotionNetConfig, inputs: int, outputs: int, condition: int, frames: int) -> nn.Module:
    net = _backbone(config, inputs, outputs, condition, frames)
    # Untrained, it is its base; a random head would be far worse, and be unlearnt first.
    nn.init.zeros_(net.leave.weight)
    nn.init.zeros_(net.leave.bias)
    return net


def _backbone(
    config: MotionNetConfig, inputs: int, outputs: int, condition: int, frames: int
) -> MotionTransformer | MotionMLP | UNet1D:
    if config.arch == "transformer":
        return MotionTransformer(
            inputs,
            outputs,
            condition,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            feedforward=config.feedforward,
            dropout=config.dropout,
            causal=config.causal,
            max_seq_len=config.max_seq_len,
            conditioning=config.conditioning,
            returns=config.returns,
        )
    if config.arch == "mlp":
        return MotionMLP(
            inputs,
            outputs,
            condition,
            frames=frames if config.flatten_sequence else 1,
            widths=config.hidden,
            dropout=config.dropout,
            flatten_sequence=config.flatten_sequence,
            pooling="last" if config.flatten_sequence else "mean",
        )
    if config.arch == "unet1d":
        return UNet1D(
            inputs,
            outputs,
            condition,
            widths=config.channels,
            heads=config.heads,
            dropout=config.dropout,
        )
    raise ValueError(f"arch: expected transformer, mlp or unet1d, got {config.arch!r}")


def predict(
    net: MotionNet,
    params: Params,
    state: Params,
    scale: Params,
    x: Tensor,
    label: Tensor | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """The frame after the last one of x [B, T, F], [B, F], or after each, [B, T, F] (returns = sequence).

    Args:
        net: as of `motion_net`, not generative.
        params: its parameters.
        state: its buffers.
        scale: as of `fit_scale`.
        x: standardised features.
        label: [B, C]; None where there is none.
        key: [B], int64, of the dropout; None: nothing is dropped.
    """
    out = net.model.apply(params, state, _seen(net, scale, x), label, key)
    base = extrapolate(net.config.base, scale, x)
    if out.ndim == 2:
        base = base[:, -1]
    return base + scale["residual_std"] * out


def flow_field(
    net: MotionNet,
    params: Params,
    state: Params,
    scale: Params,
    x: Tensor,
    label: Tensor | None = None,
    key: Tensor | None = None,
) -> Field:
    """The network as a field u(z, r, t) [B, F] over what the base leaves, in units of its deviation.

    Arguments as of `predict`, the network a generative one. The frame after x is
    ``flow_frame(net, scale, x, z1)`` of the flow's end z1.
    """
    seen = _seen(net, scale, x)

    def field(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        token = torch.cat((z, torch.zeros_like(seen[:, 0, net.features :])), -1)
        times = torch.cat((time_features(r, TIME_FEATURES), time_features(t, TIME_FEATURES)), -1)
        if net.labels:
            known = z.new_zeros((len(z), net.labels)) if label is None else label
            times = torch.cat((known, times), -1)
        return net.model.apply(params, state, torch.cat((seen, token[:, None]), 1), times, key)

    return field


def flow_start(scale: Params, noise: Tensor) -> Tensor:
    """Where a flow begins, [..., F]: the Gaussian of what the base leaves, from standard normal `noise`.

    So that a network need not learn how the bones' errors hang together, only what changes that.
    """
    return noise @ scale["residual_root"]


def flow_frame(net: MotionNet, scale: Params, x: Tensor, end: Tensor) -> Tensor:
    """The frame [B, F] that the flow's end [B, F] stands for, after x [B, T, F]."""
    base = extrapolate(net.config.base, scale, x)[:, -1]
    return base + scale["residual_std"] * end


def flow_end(net: MotionNet, scale: Params, x: Tensor, frame: Tensor) -> Tensor:
    """The inverse of `flow_frame`."""
    base = extrapolate(net.config.base, scale, x)[:, -1]
    return (frame - base) / scale["residual_std"]


def _seen(net: MotionNet, scale: Params, x: Tensor) -> Tensor:
    """What the backbone sees of each frame, [B, T, F] or [B, T, 2 F]."""
    if not net.config.see_velocities:
        return x
    velocity = torch.cat((torch.zeros_like(x[:, :1]), x.diff(dim=1)), 1)
    return torch.cat((x, velocity / scale["velocity_std"]), -1)
