"""Sums whose rounding does not depend on who adds what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def in_pairs(values: Iterable[T], add: Callable[[T, T], T]) -> T:
    """The sum of values that come one after another, added as a tree: ((0 + 1) + (2 + 3)) + ...

    Where the values are cut into runs of 2^k, added by themselves, the sum of the runs' sums has the same
    bits: these are branches of the same tree. Of n values ⌊log2 n⌋ + 1 are held at once.

    Args:
        values: at least one.
        add: of two neighbours, the sum. It may use the memory of both.

    Raises:
        ValueError: there is no value.
    """
    branches: list[tuple[int, T]] = []  # heights fall from left to right
    for value in values:
        height = 0
        while branches and branches[-1][0] == height:
            value, height = add(branches.pop()[1], value), height + 1
        branches.append((height, value))
        del value  # or it would live beside the next one
    if not branches:
        raise ValueError("values: expected at least one, got none")
    total = branches.pop()[1]
    while branches:
        total = add(branches.pop()[1], total)
    return total
