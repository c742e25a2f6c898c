"""Forty-two statistics of initial fields: fourteen that are known, and those of a bank of random filters."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Rows
from mfk.data.operator_statistics import FIELD, field_statistics

FILTERS = ((1, 5), (2, 5), (4, 4))
"""(dilation, number of filters) of the bank: 14 of 5 x 5 cells that see u and v."""

INITIAL = {
    "spatial": ("u_mean", "v_mean", "u_std", "v_std"),
    "spectral": ("u_centroid", "u_long_waves", "u_gradient_in_x"),
    "information": ("u_entropy", "v_entropy", "u_spectral_entropy", "mutual_information"),
    "morphological": ("u_area", "u_border", "u_euler"),
    "bank": tuple(
        f"filter_{i:02d}_{what}" for i in range(sum(n for _, n in FILTERS)) for what in ("mean", "peak")
    ),
}
"""Names by category, in the order of `initial_statistics`."""

_WIDTH, _JOINT, _TINY = 5, 8, 1e-12


def initial_statistics(fields: Tensor) -> Tensor:
    """Statistics [rows, 42], named by `INITIAL`, of fields [rows, 2, n, n] of u and v on a torus, n >= 16.

    Means and standard deviations; of u the mean wave number, the share of power at up to four waves, and the
    share of squared differences that is in x; entropies (see `field_statistics`), and the mutual information
    of u and v in 8 x 8 bins between their smallest and largest values, over log 8; of the cells where u is
    above its mean their share, the length of their border in cell sides over the number of cells, and their
    Euler characteristic. Of each filter the mean of the rectified response, and its root mean square over
    that mean.
    """
    stats = dict(zip(FIELD, field_statistics(fields).unbind(-1), strict=True))
    u = {name: value[:, 0] for name, value in stats.items()}
    in_x, in_y = u["gradient_x"].square(), u["gradient_y"].square()
    manual = [
        stats["mean"][:, 0], stats["mean"][:, 1], stats["std"][:, 0], stats["std"][:, 1],
        u["centroid"], u["band_0"] + u["band_1"], in_x / (in_x + in_y).clamp_min(_TINY),
        stats["entropy"][:, 0], stats["entropy"][:, 1], u["spectral_entropy"],
        mutual_information(fields[:, 0], fields[:, 1]),
        *morphology(fields[:, 0] > u["mean"][:, None, None]),
    ]  # fmt: skip
    responses = torch.cat([_filtered(fields, dilation, i) for i, (dilation, _) in enumerate(FILTERS)], 1)
    mean = responses.relu_().mean((-2, -1))
    peak = responses.square().mean((-2, -1)).sqrt() / mean.clamp_min(_TINY)
    return torch.cat([torch.stack(manual, -1), torch.stack([mean, peak], -1).flatten(1)], -1)


def mutual_information(first: Tensor, second: Tensor) -> Tensor:
    """Mutual information [...] of the values of two fields [..., n, n] in 8 x 8 bins, over log 8."""
    place = _JOINT * _binned(first) + _binned(second)
    counts = torch.zeros(*place.shape[:-1], _JOINT**2).scatter_add_(-1, place, torch.ones(place.shape))
    joint = (counts / place.shape[-1]).unflatten(-1, (_JOINT, _JOINT))
    entropies = [
        torch.special.entr(share).sum(-1) for share in (joint.sum(-1), joint.sum(-2), joint.flatten(-2))
    ]
    return (entropies[0] + entropies[1] - entropies[2]) / math.log(_JOINT)


def morphology(inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Share, border per cell, and Euler characteristic, each [...], of sets of cells [..., n, n] on a torus.

    Cells are neighbours if they share a side. The Euler characteristic is cells - pairs of neighbours +
    squares of four: the number of pieces less that of holes, unless a piece goes around the torus.
    """
    cell = inside.float()
    right, below = cell.roll(-1, -1), cell.roll(-1, -2)
    pairs = (cell * right + cell * below).sum((-2, -1))
    squares = (cell * right * below * right.roll(-1, -2)).sum((-2, -1))
    count, size = cell.sum((-2, -1)), cell.shape[-1] ** 2
    return count / size, (4 * count - 2 * pairs) / size, count - pairs + squares


def _binned(fields: Tensor) -> Tensor:
    values = fields.flatten(-2)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return ((values - low) * (_JOINT / (high - low).clamp_min(_TINY))).long().clamp_(max=_JOINT - 1)


def _filtered(fields: Tensor, dilation: int, place: int) -> Tensor:
    pad = dilation * (_WIDTH // 2)
    return F.conv2d(F.pad(fields, (pad,) * 4, mode="circular"), _bank(place), dilation=dilation)


@functools.cache
def _bank(place: int) -> Tensor:
    """Filters [count, 2, 5, 5] of sum 0 over each field and norm 1; no seed of a user's changes them."""
    filters = rng.normal(rng.key(0, "bank", place), Rows.all(FILTERS[place][1]), (2, _WIDTH, _WIDTH))
    filters = filters - filters.mean((-2, -1), keepdim=True)
    return filters / filters.square().sum((-3, -2, -1), keepdim=True).sqrt()
