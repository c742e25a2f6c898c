"""Statistics of fields and of their trajectories; all positive, so that spread over mean is defined."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mfk.data.operator_simulate import FRAME, STEP

BANDS = ((0.0, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, math.inf))
"""Radial wave numbers, in waves across the grid, low < k <= high; of power without the mean."""

BINS = 16
"""Of the histogram whose entropy is taken, between the smallest and the largest value of a field."""

FIELD = (
    "mean", "std", "area_above", "flatness", "gradient_x", "gradient_y",
    "band_0", "band_1", "band_2", "band_3", "centroid", "spectral_entropy", "length_x", "length_y", "entropy",
)  # fmt: skip
"""What `field_statistics` says of one field."""

TIME = ("growth", "spread_in_time", "change", "memory_1", "memory_4", "shifted_memory", "drift_of_mean")
"""What is said of one field's frames together."""

CATEGORIES = {
    "spatial": ("mean", "std", "area_above", "flatness", "gradient_x", "gradient_y", "entropy"),
    "spectral": (
        "band_0",
        "band_1",
        "band_2",
        "band_3",
        "centroid",
        "spectral_entropy",
        "length_x",
        "length_y",
    ),
    "temporal": TIME,
    "cross_channel": ("agreement",),
}
"""Statistics by what they are about."""

FRAME_NAMES = (*(f"{species}_{name}" for species in "uv" for name in FIELD), "uv_agreement")
"""Of one frame, 31."""

TRAJECTORY_NAMES = (*FRAME_NAMES, *(f"{species}_{name}" for species in "uv" for name in TIME))
"""Of one trajectory, 45: those of a frame, averaged over the second half, and those in time."""

_TINY = 1e-18  # its square is still a float32


def field_statistics(fields: Tensor) -> Tensor:
    """Statistics [..., 15] of fields [..., n, n] on a periodic grid, in the order of `FIELD`.

    Mean; standard deviation; the share of cells above the mean; the mean absolute deviation over the standard
    one (0.80 of normal numbers, 1 of two equally frequent values); root mean square differences of neighbours
    in x and y; shares of the variance in four bands of wave numbers; mean wave number and normalised entropy
    of the power spectrum; sums over all distances of the squared autocorrelation along x and y, in cells;
    normalised entropy of a histogram.
    """
    size = fields.shape[-1]
    mean = fields.mean((-2, -1))
    centred = fields - mean[..., None, None]
    deviation, above = centred.abs().mean((-2, -1)), (centred > 0).float().mean((-2, -1))
    transformed = torch.view_as_real(torch.fft.rfft2(centred))
    twice = _twice(size)
    real, imaginary = transformed[..., 0], transformed[..., 1]
    power = (real * real).addcmul_(imaginary, imaginary).mul_(twice / size**4)  # sums to the variance
    along_x, along_y = power.sum(-2), power.sum(-1)
    variance = along_y.sum(-1)
    safe = variance.clamp_min(_TINY)
    shares = power.flatten(-2) / safe[..., None]
    by_wave = shares @ _sums(size)  # the bands and the mean wave number
    # Two waves of opposite direction share what a real field has at one.
    entropy = torch.special.entr(shares).sum(-1) + shares @ twice.flatten().log()
    turn = 2 * math.pi * torch.arange(size) / size
    half = size // 2 + 1
    # The autocorrelation along an axis is the transform of the power summed along the other.
    kept_x = along_x @ (turn[:half, None] * torch.arange(size)).cos()
    kept_y = along_y @ (turn[:, None] * torch.arange(size)).cos()
    steps = [(2 * (kept[..., 0] - kept[..., 1])).clamp_min(0).sqrt() for kept in (kept_x, kept_y)]
    lengths = [kept.square().sum(-1) / safe.square() for kept in (kept_x, kept_y)]
    return torch.stack(
        [
            mean, variance.sqrt(), above, deviation / safe.sqrt(), *steps, *by_wave.unbind(-1),
            entropy / (2 * math.log(size)), *lengths, histogram_entropy(fields),
        ],
        -1,
    )  # fmt: skip


def histogram_entropy(fields: Tensor) -> Tensor:
    """Entropy [...] of fields [..., n, n] in `BINS` bins from smallest to largest value, over log BINS."""
    values = fields.flatten(-2)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    place = ((values - low) * (BINS / (high - low).clamp_min(_TINY))).long().clamp_(max=BINS - 1)
    counts = torch.zeros(*values.shape[:-1], BINS).scatter_add_(-1, place, torch.ones_like(values))
    share = counts / values.shape[-1]
    return -(share * share.clamp_min(_TINY).log()).sum(-1) / math.log(BINS)


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """(1 + r) / 2 [...] of the correlations r of fields [..., n, n]; 1/2 where one is constant."""
    first, second = (x - x.mean((-2, -1), keepdim=True) for x in (first, second))
    covariance = (first * second).mean((-2, -1))
    scale = (first.square().mean((-2, -1)) * second.square().mean((-2, -1))).sqrt()
    return (1 + covariance / scale.clamp_min(_TINY)) / 2


def trajectory_statistics(frames: Iterable[Tensor], initial: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics of simulated frames.

    In time, of each species, over the second half of the frames: `growth`, the last standard deviation in
    space over the sum of that and the initial one; `spread_in_time`, a cell's standard deviation in time;
    `change`, the root mean square change of a cell in a frame; `memory_1` and `memory_4`, `agreement` with
    the field 1 and 4 frames before, `shifted_memory` that with the field one frame before moved a cell in x;
    `drift_of_mean`, the standard deviation in time of the mean in space.

    Args:
        frames: [2, rows, realisations, n, n] each, from `simulate`; more than eight.
        initial: [rows, 2, n, n].

    Returns:
        By frame [rows, realisations, T, 31], in the order of `FRAME_NAMES`, and by trajectory [rows,
        realisations, 45], in the order of `TRAJECTORY_NAMES`.
    """
    kept = list(frames)
    by_frame = torch.stack([_frame(each) for each in kept], 2)
    half = kept[len(kept) // 2 :]
    in_time = _in_time(half, initial.transpose(0, 1).std((-2, -1), correction=0)[:, :, None])
    late = by_frame[:, :, len(kept) // 2 :].mean(2)
    return by_frame, torch.cat([late, *in_time], -1)


def _in_time(frames: list[Tensor], start: Tensor) -> Tensor:
    """[2, rows, realisations, 7], in the order of `TIME`; by frames, so that no tensor outgrows the cache."""
    middle = torch.stack(frames).mean(0)
    means = torch.stack([frame.mean((-2, -1)) for frame in frames])
    moved = torch.stack([(frame - middle).square_().mean((-2, -1)) for frame in frames]).mean(0)
    centred = [frame - mean[..., None, None] for frame, mean in zip(frames, means, strict=True)]
    scales = [frame.square().mean((-2, -1)).sqrt().clamp_min(_TINY) for frame in centred]

    def memory(lag: int, shift: int = 0) -> Tensor:
        found = []
        for late in range(lag, len(frames)):
            before = centred[late - lag].roll(shift, -1) if shift else centred[late - lag]
            covariance = (centred[late] * before).mean((-2, -1))
            found.append(covariance / (scales[late] * scales[late - lag]))
        return (1 + torch.stack(found).mean(0)) / 2

    changes = [(late - early).square_().mean((-2, -1)) for early, late in itertools.pairwise(frames)]
    return torch.stack(
        [
            scales[-1] / (scales[-1] + start),
            moved.sqrt(),
            torch.stack(changes).mean(0).sqrt() / (FRAME * STEP),
            memory(1),
            memory(4),
            memory(1, 1),
            means.std(0, correction=0),
        ],
        -1,
    )


def _frame(frame: Tensor) -> Tensor:
    u, v = field_statistics(frame)
    return torch.cat([u, v, agreement(*frame)[..., None]], -1)


def _twice(size: int) -> Tensor:
    """How often a wave of `rfft2` counts, [n, n // 2 + 1]: its opposite is left out, unless it is its own."""
    counts = torch.full((size, size // 2 + 1), 2.0)
    counts[:, 0] = 1
    if size % 2 == 0:
        counts[:, -1] = 1
    return counts


def _sums(size: int) -> Tensor:
    """What sums power over the waves of `rfft2`, flat, to each of the `BANDS` and to the mean wave number."""
    along_y, along_x = torch.fft.fftfreq(size) * size, torch.fft.rfftfreq(size) * size
    wave = (along_y[:, None].square() + along_x.square()).sqrt().flatten()
    return torch.stack([*(((wave > low) & (wave <= high)).float() for low, high in BANDS), wave], -1)
