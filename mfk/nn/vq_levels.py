"""How many codes of which width a category of so many features gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mfk.core.types import describe
from mfk.nn.checks import check_sizes


class LevelConfig(NamedTuple):
    """One level of a category: a codebook."""

    latent_dim: int  # width of its codes
    tokens: int  # number of its codes


def auto_levels(
    features: int, ratios: Sequence[float] | None = None, rows: int = 10_000
) -> tuple[LevelConfig, ...]:
    """Three levels, from most and widest codes to fewest and narrowest, as documented.

        tokens_0 = ⌊b / 4⌋ 4, at least t;  tokens_l = ⌊b / 2^l⌋, at least 6;  b = ⌊7 log2 F⌋
        width_l = F (1 + 0.8 (F / 100)^0.7) / 2^l, rounded up to a multiple of 4, at least w for l = 0, else 8

    A width that is not below the one before becomes the larger of that less 4 and its half, at least 4. The
    least values grow with the data: beyond 1000 rows t = ⌊4.8 √(rows / 1000)⌋, from 6 to 28, and
    w = 12 log10(rows), rounded up to a multiple of 4, to 64 at most; up to 1000 rows t = 6 and w = 8.

    Args:
        features: F, number of the category's features, >= 1.
        ratios: widths in units of F, one for each level, in place of the formula: F · ratio, rounded up to a
            multiple of 4. There are then as many levels as ratios.
        rows: number of training rows, >= 1.

    Raises:
        ValueError: a size below 1, no ratio, or one that is not a finite number > 0.

    Source: dgabriele/spinlock, whose least values are those of 10,000 rows whatever the data.
    """
    check_sizes(features=features, rows=rows)
    if ratios is not None and (isinstance(ratios, str) or not isinstance(ratios, Sequence) or not ratios):
        raise ValueError(f"ratios: expected a number for each level, or None, got {describe(ratios)}")
    for i, ratio in enumerate(ratios or ()):
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < math.inf:
            raise ValueError(f"ratios[{i}]: expected a finite number > 0, got {describe(ratio)}")
    many = rows > 1000
    base = int(7 * math.log2(features))
    tokens = [max(min(28, max(6, int(4.8 * math.sqrt(rows / 1000)))) if many else 6, base // 4 * 4)]
    tokens += [max(6, int(base / 2**level)) for level in range(1, len(ratios or (1, 2, 3)))]
    if ratios is not None:
        widths = [_by_four(features * ratio) for ratio in ratios]
        return tuple(map(LevelConfig, widths, tokens))
    widths = []
    for level in range(len(tokens)):
        width = _by_four(features * (1 + 0.8 * (features / 100) ** 0.7) / 2**level)
        width = max(width, min(64, _by_four(12 * math.log10(rows))) if many and level == 0 else 8)
        if widths and width >= widths[-1]:
            width = max(widths[-1] - 4, widths[-1] // 2, 4)
        widths.append(width)
    return tuple(map(LevelConfig, widths, tokens))


def _by_four(width: float) -> int:
    """Rounded up to a multiple of 4."""
    return math.ceil(width / 4) * 4
