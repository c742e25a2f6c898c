"""The networks that emulate impulse responses, as configured, for one world or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

from torch import nn

from mfk.core import stateless
from mfk.core.config import refuse_unused
from mfk.core.types import Model
from mfk.data.worlds import OBSERVABLES, World
from mfk.nn import (
    PerWorldNet,
    PooledResponseMLP,
    ResponseGRU,
    ResponseMLP,
    ResponseNet,
    UniversalResponseNet,
)
from mfk.tasks.irf_coordinates import Coordinates, Kind, coordinates

Arch: TypeAlias = Literal["residual", "mlp", "gru", "pooled", "universal"]


@dataclass(frozen=True)
class IRFNetConfig:
    """Which network, and what it sees of the parameters."""

    arch: Arch = "residual"
    """residual, mlp, gru: a network for each world; pooled, universal: one for all."""
    coordinates: Kind = "world"
    """world: parameters reshaped as their world suggests; raw: as they stand."""
    shock: int | None = None
    """Emulate this shock alone, as the documents' baselines do; needs raw. None: all shocks."""
    widths: tuple[int, ...] = ()
    """mlp, pooled: hidden layers; (): the documents', (256, 128, 64) and (512, 256, 128)."""
    hidden: int = 128
    """gru: width of the state."""
    trunk_dim: int = 256
    """residual, universal: width of the residual stream."""
    trunk_layers: int = 3
    """residual, universal: residual blocks."""
    world_embed_dim: int = 32
    """universal: width of a world's token."""
    theta_embed_dim: int = 64
    """universal: width of a parameter's identity."""
    shock_embed_dim: int = 16
    """universal: width of a response's token."""
    head_dim: int = 128
    """universal: hidden width of the head."""


class IRFNets(NamedTuple):
    """A network with what is needed to call it."""

    model: (
        Model  # (x [B, F], world int64 [B], mask bool [B, F]) -> [B, K or S, H + 1, 1 or V] or [B, H + 1, V]
    )
    worlds: tuple[World, ...]
    coordinates: tuple[Coordinates, ...]
    horizon: int
    config: IRFNetConfig


def irf_nets(config: IRFNetConfig, worlds: Sequence[World], horizon: int) -> IRFNets:
    """The configured network.

    Raises:
        ValueError: a setting is out of range or has no effect.
    """
    for name, choices in (("arch", get_args(Arch)), ("coordinates", get_args(Kind))):
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(config, name)!r}")
    if not worlds:
        raise ValueError("worlds: expected at least one, got none")
    refuse_unused(config, config.arch in ("mlp", "pooled"), "widths")
    refuse_unused(config, config.arch == "gru", "hidden")
    refuse_unused(config, config.arch in ("residual", "universal"), "trunk_dim", "trunk_layers")
    refuse_unused(
        config,
        config.arch == "universal",
        "world_embed_dim",
        "theta_embed_dim",
        "shock_embed_dim",
        "head_dim",
    )
    if config.shock is not None:
        fewest = min(len(world.shocks.names) for world in worlds)
        if config.arch not in ("mlp", "gru", "pooled") or config.coordinates != "raw":
            raise ValueError(
                f"shock: expected None but for mlp, gru and pooled with raw coordinates, got {config.shock}"
            )
        if not 0 <= config.shock < fewest:
            raise ValueError(f"shock: expected None or 0 to {fewest - 1}, got {config.shock}")
    own = tuple(coordinates(world, config.coordinates) for world in worlds)
    model = stateless(partial(_build, config, tuple(worlds), own, horizon))
    return IRFNets(model, tuple(worlds), own, horizon, config)


def _build(
    config: IRFNetConfig, worlds: tuple[World, ...], own: tuple[Coordinates, ...], horizon: int
) -> nn.Module:
    features = [one.features for one in own]
    # Coefficients of a basis are responses of a single number.
    counts = [one.coefficients or len(world.shocks.names) for one, world in zip(own, worlds, strict=True)]
    variables = 1 if own[0].coefficients is not None else len(OBSERVABLES)
    if config.arch == "universal":
        return UniversalResponseNet(
            features, counts, horizon, variables,
            world_dim=config.world_embed_dim, theta_dim=config.theta_embed_dim,
            shock_dim=config.shock_embed_dim, width=config.trunk_dim, blocks=config.trunk_layers,
            head=config.head_dim,
        )  # fmt: skip
    single = config.shock is not None
    if config.arch == "pooled":
        return PooledResponseMLP(
            len(worlds), max(features), None if single else max(counts), horizon, variables,
            widths=config.widths or (512, 256, 128),
        )  # fmt: skip

    def build(inputs: int, count: int) -> nn.Module:
        if config.arch == "residual":
            return ResponseNet(
                inputs, count, horizon, variables, width=config.trunk_dim, blocks=config.trunk_layers
            )
        shocks = None if single else count
        if config.arch == "mlp":
            return ResponseMLP(inputs, shocks, horizon, variables, widths=config.widths or (256, 128, 64))
        return ResponseGRU(inputs, shocks, horizon, variables, hidden=config.hidden)

    return PerWorldNet([build(*sizes) for sizes in zip(features, counts, strict=True)], features)
