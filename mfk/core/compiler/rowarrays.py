"""A tensor taken apart into the numbers of one row of its batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAST_ROWS = 64  # a shorter axis is no batch
MOST_ENTRIES = 128  # numbers of a row in one tensor


class Array(NamedTuple):
    """A tensor taken apart: for each of a row's numbers the value in the program."""

    entries: np.ndarray  # of int objects; the batch axis has length 1
    axis: int | None  # the batch axis; None: the same for all rows
    rows: int  # its length; 0 without one


class Unsupported(Exception):
    """The node is left to the rest of the graph."""


def aligned(given: list[Array]) -> tuple[list[Array], int | None, int]:
    """Operands that can be broadcast, and where the batch axis of the result is."""
    ndim = max(a.entries.ndim for a in given)
    places = {(a.axis + ndim - a.entries.ndim, a.rows) for a in given if a.axis is not None}
    if len(places) > 1:
        raise Unsupported
    if not places:
        return given, None, 0
    axis, rows = places.pop()
    for a in given:
        own = axis - (ndim - a.entries.ndim)
        if a.axis is None and own >= 0 and a.entries.shape[own] != 1:
            raise Unsupported
    return given, axis, rows


def axis_of(dim: int, ndim: int) -> int:
    """A dimension counted from the front."""
    return dim + ndim if dim < 0 else dim


# Rules: (reader, node, *the node's arguments) -> Array, or a list of them.
