"""The network of a tokenizer: which encoders, categories and codebooks, and what is built from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

from torch import nn

from mfk.core import stateless
from mfk.core.types import Model, describe
from mfk.data.categories import Categories
from mfk.nn.family_encoders import MLPEncoder, TemporalCNNEncoder
from mfk.nn.vq_levels import LevelConfig, auto_levels
from mfk.nn.vqvae import CategoricalVQVAE, FamilyInput
from mfk.tasks.vqvae_preparation import Preparation, columns_of, feature_names


@dataclass(frozen=True)
class EncoderParams:
    """The network that reads one family."""

    hidden_dims: tuple[int, ...] = (128, 64)
    """MLPEncoder: widths of the hidden layers."""
    channels: tuple[int, ...] = (32, 64, 128)
    """TemporalCNNEncoder: channels of the convolutions."""
    kernel_size: int = 5
    """TemporalCNNEncoder: taps of a convolution, odd."""
    output_dim: int = 64
    """Length of the family's embedding."""
    dropout: float = 0.1
    """Share of the hidden units that a training step drops."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Of the hidden layers."""
    batch_norm: bool = True
    """Normalise hidden units over the batch; running means are used in evaluation."""


@dataclass(frozen=True)
class FamilyConfig:
    """One family of features."""

    encoder: Literal["MLPEncoder", "TemporalCNNEncoder"] = "MLPEncoder"
    """MLPEncoder for rows [N, D], or for series [N, T, D] laid flat; TemporalCNNEncoder for series."""
    encoder_params: EncoderParams = field(default_factory=EncoderParams)


@dataclass(frozen=True)
class LevelSetting:
    """One level of codes of every category."""

    latent_dim: int
    """Length of a code."""
    num_tokens: int
    """Codes in the codebook."""


@dataclass(frozen=True)
class VQVAENetConfig:
    """Widths."""

    group_embedding_dim: int = 64
    """Length of a category's embedding."""
    group_hidden_dim: int = 128
    """Hidden width of a category's projection."""
    decoder_dim: int = 256
    """Hidden width of the decoder of all codes."""
    partial_dim: int = 128
    """Hidden width of the decoder of each code by itself."""
    dropout: float = 0.1
    """Share of hidden units that a training step drops, in projections and level heads."""


class VQVAENets(NamedTuple):
    """The network and what its parts stand for."""

    model: Model  # of `mfk.nn.CategoricalVQVAE`, called by method
    groups: tuple[tuple[int, ...], ...]  # columns of each category
    categories: tuple[str, ...]  # their names
    codebooks: tuple[tuple[int, int], ...]  # (category, level) of each, in the network's order
    levels: tuple[LevelConfig, ...]  # width and number of codes of each


def vqvae_nets(
    config: VQVAENetConfig,
    families: Mapping[str, FamilyConfig],
    levels: Sequence[LevelSetting],
    prepared: Preparation,
    categories: Categories,
    rows: int,
) -> VQVAENets:
    """Build the network.

    Args:
        config: widths.
        families: encoder of each family; a family that is not named has the defaults.
        levels: of every category, coarse to fine; none: by the number of a category's features, with a code
            a training row at most.
        prepared: the table's columns.
        categories: of its features.
        rows: training rows, which decide the least sizes of levels.

    Raises:
        ValueError: a family that the table does not have, a TemporalCNNEncoder for one without time, a
            feature in no category, more codes than training rows, or a size that is not possible.
    """
    columns = columns_of(prepared)
    for name in families:
        if name not in columns:
            raise ValueError(f"families: expected families of the table, {', '.join(columns)}; got {name!r}")
    inputs = {
        name: FamilyInput(
            [column for feature in own for column in feature],
            _encoder(name, families.get(name, FamilyConfig()), prepared.families[name].frames),
        )
        for name, own in columns.items()
    }
    flat = [feature for own in columns.values() for feature in own]
    if len(categories.assignment) != len(flat) or (categories.assignment < 0).any():
        names = feature_names(prepared)
        left = [name for name, g in zip(names, categories.assignment, strict=False) if g < 0]
        raise ValueError(
            f"categories: expected each of {len(flat)} features in one, got {len(categories.assignment)}"
            + (f", and {left[0]} in none" if left else "")
        )
    members = [
        [i for i, g in enumerate(categories.assignment) if g == k] for k in range(len(categories.names))
    ]
    groups = tuple(tuple(column for i in own for column in flat[i]) for own in members)
    sizes = [
        tuple(LevelConfig(level.latent_dim, level.num_tokens) for level in levels)
        or tuple(x._replace(tokens=min(x.tokens, rows)) for x in auto_levels(len(own), rows=rows))
        for own in members
    ]
    for name, own in zip(categories.names, sizes, strict=True):
        if (most := max(level.tokens for level in own)) > rows:
            raise ValueError(f"levels: category {name}: expected at most {rows} codes, one a row, got {most}")

    def make() -> nn.Module:
        return CategoricalVQVAE(
            groups,
            sizes,
            inputs,
            embedding_dim=config.group_embedding_dim,
            hidden_dim=config.group_hidden_dim,
            decoder_dim=config.decoder_dim,
            partial_dim=config.partial_dim,
            dropout=config.dropout,
        )

    books = tuple((g, level) for g, own in enumerate(sizes) for level in range(len(own)))
    return VQVAENets(stateless(make), groups, categories.names, books, tuple(x for own in sizes for x in own))


def _encoder(name: str, config: FamilyConfig, frames: int | None) -> partial[nn.Module]:
    params = config.encoder_params
    common = {
        "output_dim": params.output_dim,
        "dropout": params.dropout,
        "activation": params.activation,
        "batch_norm": params.batch_norm,
    }
    if config.encoder == "MLPEncoder":
        return partial(MLPEncoder, hidden_dims=params.hidden_dims, **common)
    if config.encoder != "TemporalCNNEncoder":
        raise ValueError(
            f"families.{name}.encoder: expected MLPEncoder or TemporalCNNEncoder, "
            f"got {describe(config.encoder)}"
        )
    if frames is None:
        raise ValueError(f"families.{name}.encoder: TemporalCNNEncoder needs a family [N, T, D], got [N, D]")
    return partial(
        TemporalCNNEncoder, frames=frames, channels=params.channels, kernel=params.kernel_size, **common
    )
