"""A network that says a row of features in codes: one for each category of features and level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mfk.core.types import Params, describe
from mfk.nn.checks import check_choice, check_input, check_key, check_sizes
from mfk.nn.keyed_dropout import check_rate, dropout
from mfk.nn.vq_levels import LevelConfig
from mfk.nn.vqvae_checks import check_families, check_groups, check_levels

_METHODS = ("encode", "decode", "partial")


class FamilyInput(NamedTuple):
    """One family of features: where it is in a row, and what encodes it."""

    columns: Sequence[int]  # its columns of x, in the order that the encoder expects
    encoder: Callable[[int, int], nn.Module]  # (columns, copies) -> module, as partial(MLPEncoder, ...)


class Encoded(NamedTuple):
    """What goes to the quantisers."""

    latents: tuple[Tensor, ...]  # [B, latent_dim] for each level of the first category, then of the second
    embeddings: Tensor  # [B, G, embedding_dim] of the categories
    buffers: Params  # all of the network's, after this call; by name


class CategoricalVQVAE(nn.Module):
    """Encoder and decoder around quantisers that are the caller's (`mfk.nn.quantize` and its like).

    A category g with the columns S_g is encoded from these alone: every family f that S_g touches from its
    columns with those outside S_g set to zero, and then

        h_g = LayerNorm(Linear(dropout(ReLU(Linear([x_g, E_f(masked x_f) of each f])))))
        z_gl = dropout(Linear(h_g))    for each level l, with `latent_norm` its LayerNorm

    so that a category's latents depend on no column of another's, in training either. The decoder sees all
    codes side by side, Linear ReLU Linear; a partial decoder of each code, of the same form, sees that alone.

    Without families, with 58 columns in categories of 16, 33 and 9 at `auto_levels`, and
    with `latent_norm`, there are 212,224 parameters; 216,904 with the entries of the codebooks.

    Args:
        groups: columns of x in each category; every column of x, 0 to F - 1, in exactly one.
        levels: of each category, at least one.
        families: by name; columns may be in one family or in none, where they go to the projection alone.
        embedding_dim: width of h_g.
        hidden_dim: width of the projection's hidden layer.
        decoder_dim: width of the decoder's.
        partial_dim: width of each partial decoder's.
        dropout: rate in projections and heads, in [0, 1); where a call has no key nothing is dropped.
        latent_norm: whether a level's head ends in LayerNorm, as documented, which puts latents on a sphere.
            Off, since without it more codes are used at about the same reconstruction. It leaves nothing of
            one number and a sign of two, so that latents then have at least 3.

    Raises:
        ValueError: a column that is in no category or in several, sizes that are not positive, and the like.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        levels: Sequence[Sequence[LevelConfig]],
        families: Mapping[str, FamilyInput] | None = None,
        *,
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        decoder_dim: int = 256,
        partial_dim: int = 128,
        dropout: float = 0.1,
        latent_norm: bool = False,
    ) -> None:
        """See the class."""
        super().__init__()
        families = dict(families or {})
        check_sizes(
            embedding_dim=embedding_dim,
            hidden_dim=hidden_dim,
            decoder_dim=decoder_dim,
            partial_dim=partial_dim,
        )
        check_rate(dropout)
        self.groups, self.rate = check_groups(groups), dropout
        self.features = sum(map(len, self.groups))
        check_levels(levels, len(groups), 3 if latent_norm else 1)
        self.latent_dims = tuple(level.latent_dim for category in levels for level in category)
        self.tokens = tuple(level.tokens for category in levels for level in category)
        self.levels = tuple(len(category) for category in levels)

        # Of each family, the categories that it has columns of, and which these are.
        self.columns = check_families({name: f.columns for name, f in families.items()}, self.features)
        touched = [[g for g, group in enumerate(self.groups) if set(group) & set(c)] for c in self.columns]
        self.touched = touched
        self._masks = [
            [[column in set(self.groups[g]) for column in c] for g in gs]
            for c, gs in zip(self.columns, touched, strict=True)
        ]
        self.encoders = nn.ModuleList(
            family.encoder(len(c), len(gs))
            for family, c, gs in zip(families.values(), self.columns, touched, strict=True)
        )
        sizes = list(map(_sizes, families, self.encoders))
        self.dropouts = [dropouts for _, dropouts in sizes]
        widths = [
            len(group) + sum(width for (width, _), gs in zip(sizes, touched, strict=True) if g in gs)
            for g, group in enumerate(self.groups)
        ]
        self.enter = nn.ModuleList(nn.Linear(width, hidden_dim) for width in widths)
        self.leave = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden_dim, embedding_dim), nn.LayerNorm(embedding_dim)) for _ in groups
        )
        self.heads = nn.ModuleList(nn.Linear(embedding_dim, d) for d in self.latent_dims)
        self.head_norms = nn.ModuleList(nn.LayerNorm(d) for d in self.latent_dims if latent_norm)
        self.decoder = _perceptron(sum(self.latent_dims), decoder_dim, self.features)
        self.partials = nn.ModuleList(_perceptron(d, partial_dim, self.features) for d in self.latent_dims)

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """`encode`, `decode` or `partial`, by name: the one way in that `mfk.stateless` has."""
        check_choice("method", method, _METHODS)
        return getattr(self, method)(*args, **kwargs)

    def encode(self, x: Tensor, key: Tensor | None = None, training: bool = False) -> Encoded:
        """Rows [B, F] -> latents, embeddings and buffers.

        Args:
            x: standardised features.
            key: of `mfk.nn.dropout`, int64 [B]; None drops nothing.
            training: whether batch norm takes the batch's statistics and the buffers move.

        Raises:
            ValueError: another shape; no row; one row in training with batch norm.
            TypeError: another dtype than the parameters'; a key that is not int64.
        """
        rows = len(x) if isinstance(x, Tensor) and x.ndim else 0
        check_input("x", x, (rows, self.features), self._dtype(), "the network's")
        if not rows:
            raise ValueError(f"x: expected at least one row, got {describe(x)}")
        check_key(key, (rows,))
        parts: list[list[Tensor]] = [[x[:, group]] for group in self.groups]
        buffers = dict(self.named_buffers())
        site = len(self.groups) + len(self.heads)
        for i, encoder in enumerate(self.encoders):
            mask = torch.tensor(self._masks[i], device=x.device)
            # A choice and no product: what other columns hold must not matter, be it NaN.
            copies = torch.where(mask, x[:, self.columns[i]].unsqueeze(1), 0.0)
            encoded, new = encoder(copies, key, training=training, site=site)
            site += self.dropouts[i]
            buffers |= {f"encoders.{i}.{name}": value for name, value in new.items()}
            for copy, g in enumerate(self.touched[i]):
                parts[g].append(encoded[:, copy].to(x.dtype))
        embeddings, latents = [], []
        for g, part in enumerate(parts):
            h = nn.functional.relu(self.enter[g](torch.cat(part, -1)))
            h = self.leave[g](dropout(h, self.rate, key, g))
            embeddings.append(h)
            for _ in range(self.levels[g]):
                i = len(latents)
                z = dropout(self.heads[i](h), self.rate, key, len(self.groups) + i)
                latents.append(self.head_norms[i](z) if len(self.head_norms) else z)
        return Encoded(tuple(latents), torch.stack(embeddings, 1), buffers)

    def decode(self, quantized: Sequence[Tensor]) -> Tensor:
        """Codes, [B, latent_dim] in the latents' order, -> rows [B, F].

        Raises:
            ValueError: another number of codes or another shape. TypeError: another dtype.
        """
        self._check_codes(quantized)
        return self.decoder(torch.cat(tuple(quantized), -1))

    def partial(self, quantized: Sequence[Tensor]) -> list[Tensor]:
        """What each code alone says of all features: [B, F] for each; errors as `decode`."""
        self._check_codes(quantized)
        return [decoder(q) for decoder, q in zip(self.partials, quantized, strict=True)]

    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    def _check_codes(self, quantized: Sequence[Tensor]) -> None:
        if not isinstance(quantized, list | tuple) or len(quantized) != len(self.latent_dims):
            raise ValueError(
                f"quantized: expected a list of {len(self.latent_dims)} tensors, got {describe(quantized)}"
            )
        first = quantized[0]
        rows = len(first) if isinstance(first, Tensor) and first.ndim else 0
        for i, (q, d) in enumerate(zip(quantized, self.latent_dims, strict=True)):
            check_input(f"quantized[{i}]", q, (rows, d), self._dtype(), "the network's")


def _perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


def _sizes(name: str, encoder: nn.Module) -> tuple[int, int]:
    """Width of what an encoder returns, and how often it drops."""
    width, dropouts = getattr(encoder, "output_dim", None), getattr(encoder, "dropouts", None)
    if not isinstance(width, int) or not isinstance(dropouts, int):
        raise ValueError(
            f"families[{name!r}].encoder: expected it to make a module like MLPEncoder, with ints output_dim "
            f"and dropouts, got {type(encoder).__name__}"
        )
    return width, dropouts
