"""The networks of stick figures: the transformer that predicts, and the one that refines predictions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

from mfk.core import stateless
from mfk.core.config import refuse_unused
from mfk.core.types import Model, Params
from mfk.data.stick import ACTIONS, SEGMENTS
from mfk.nn import StickDenoiser, StickOutput, StickTransformer
from mfk.tasks.stick_features import Seen, feature_count, meant, see

Refinement: TypeAlias = Literal["ddpm", "meanflow"]


@dataclass(frozen=True)
class StickNetConfig:
    """Which transformer, and what it is told."""

    width: int = 384
    """Of the residual stream (d_model); 256, 384, 512 are small, medium, large."""
    layers: int = 8
    """Transformer layers (num_layers)."""
    heads: int = 12
    """Attention heads (nhead); they divide the width."""
    dropout: float = 0.1
    """Share of activations dropped in training."""
    embedding_dim: int = 1024
    """Width of a text's embedding."""
    num_actions: int = 60
    """Classes of the action head."""
    condition_actions: bool = True
    """Whether the transformer is told the actions of the frames it has seen; never the one it predicts."""
    condition_camera: bool = False
    """Whether it is told the camera of the frames it has seen."""


@dataclass(frozen=True)
class RefineConfig:
    """A second network that denoises motion, given what the transformer predicted."""

    enabled: bool = False
    """Whether there is one."""
    refinement: Refinement = "meanflow"
    """meanflow: in one step; ddpm: in `sample_steps` of the `noise_steps` of a diffusion."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Channels of each level."""
    noise_steps: int = 1_000
    """ddpm: steps of the noise's schedule, beta from 1e-4 to 0.02."""
    sample_steps: int = 10
    """ddpm: evaluations of the network."""
    temperature: float = 0.0
    """Share of the noise that a motion is made from; 0: none, the likeliest motion; 1: a sample."""


class StickNets(NamedTuple):
    """The networks with what is needed to call them."""

    model: Model  # of StickTransformer
    denoiser: Model | None  # of StickDenoiser
    width: int  # D, numbers of a frame
    config: StickNetConfig
    refine: RefineConfig


def stick_nets(config: StickNetConfig, refine: RefineConfig, width: int) -> StickNets:
    """The configured networks for frames of `width` numbers.

    Raises:
        ValueError: a setting is out of range or has no effect.
    """
    if width not in SEGMENTS:
        raise ValueError(f"motion: expected frames of {' or '.join(map(str, SEGMENTS))} numbers, got {width}")
    if config.num_actions < len(ACTIONS):
        raise ValueError(
            f"num_actions: expected at least the {len(ACTIONS)} there are, got {config.num_actions}"
        )
    refuse_unused(refine, refine.enabled, "refinement", "channels", "temperature")
    refuse_unused(refine, refine.enabled and refine.refinement == "ddpm", "noise_steps", "sample_steps")
    if not 1 <= refine.sample_steps <= refine.noise_steps:
        raise ValueError(
            f"sample_steps: expected 1 to noise_steps, {refine.noise_steps}, got {refine.sample_steps}"
        )
    if not 0 <= refine.temperature <= 1:
        raise ValueError(f"temperature: expected a share in [0, 1], got {refine.temperature!r}")
    model = stateless(partial(_transformer, config, width))
    denoiser = stateless(partial(_denoiser, config, refine, width)) if refine.enabled else None
    return StickNets(model, denoiser, width, config, refine)


def next_frames(
    nets: StickNets,
    params: Params,
    buffers: Params,
    scale: Params,
    motion: Tensor,
    text: Tensor | None = None,
    actions: Tensor | None = None,
    camera: Tensor | None = None,
    key: Tensor | None = None,
) -> StickOutput:
    """What the transformer says of the frame after each of motion [B, T, D]; its pose in units, [B, T, D].

    Args:
        nets: as of `stick_nets`.
        params: of its transformer.
        buffers: of its transformer.
        scale: as of `fit_stick`.
        motion: frames.
        text: [B, embedding_dim]; None, or a row of zeros: no text.
        actions: [B, T], int64, -1: none; of the frames of `motion`, not of those predicted.
        camera: [B, T, 3].
        key: [B], int64, of the dropout; None: nothing is dropped.
    """
    seen, out = outputs(nets, params, buffers, scale, motion, text, actions, camera, key)
    return out._replace(pose=meant(seen, out.pose[..., : nets.width]))


def outputs(
    nets: StickNets,
    params: Params,
    buffers: Params,
    scale: Params,
    motion: Tensor,
    text: Tensor | None = None,
    actions: Tensor | None = None,
    camera: Tensor | None = None,
    key: Tensor | None = None,
) -> tuple[Seen, StickOutput]:
    """`next_frames` with the pose as the network has it, and the frames as it saw them.

    Of the pose's 2 D numbers the first D are those of `meant`, the others the anchor of `anchored`.
    """
    seen = see(scale, motion)
    return seen, nets.model.apply(params, buffers, seen.features, text, actions, camera, None, key)


def _transformer(config: StickNetConfig, width: int) -> nn.Module:
    told = {"actions": config.condition_actions, "camera": config.condition_camera}
    net = StickTransformer(
        feature_count(width),
        2 * width,
        config.num_actions,
        config.embedding_dim,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        dropout=config.dropout,
        conditions=[name for name, there in told.items() if there],
    )
    # Its pose is the correction of constant velocity and then the anchor. Untrained, both are 0; a random
    # head would be far worse, and be unlearnt first.
    last = [m for m in net.leave["pose"].modules() if isinstance(m, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return net


def _denoiser(config: StickNetConfig, refine: RefineConfig, width: int) -> nn.Module:
    try:
        return StickDenoiser(width, config.embedding_dim, given=3 * width + 2, widths=refine.channels)
    except ValueError as error:
        raise ValueError(str(error).replace("widths", "channels")) from None
