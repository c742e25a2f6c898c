"""The vocabulary of mfk: what the packages hand to each other.

Everything here is a NamedTuple of functions or of trees, so that ``torch.func``, ``optree`` and the
checkpoint see through it; there is no base class to inherit from.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Tree: TypeAlias = Any
"""Nested dicts, tuples, lists and NamedTuples whose leaves are tensors (or Python numbers)."""

Params: TypeAlias = dict[str, Tensor]
"""Parameters or buffers of a module: dotted name -> tensor."""

Batch: TypeAlias = dict[str, Tensor]
"""Tensors of one batch, and nothing but tensors. What data sets yield has the row as its leading axis; what
`Task.draw` adds may have other lengths, such as one end time for each row that needs one."""

Metrics: TypeAlias = dict[str, Tensor]
"""Name -> 0-dimensional tensor, or [k] of an ensemble; it stays on the device until a logger asks."""

Schedule: TypeAlias = Callable[[int], float]
"""Step (0 is the first) -> value, without state."""

Field: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""An average velocity u(z[..., D], r[..., 1], t[..., 1]) -> [..., D], conditioning closed over."""


class Rows(NamedTuple):
    """Which rows of the global batch a caller wants."""

    index: range  # positions within the global batch, 0 <= i < total
    total: int  # rows in the global batch

    @staticmethod
    def all(total: int) -> Rows:
        """Every row of a batch of `total`."""
        return Rows(range(total), total)


class Batches(NamedTuple):
    """Where the batches of a run come from: in an order that a step's number decides."""

    start: Callable[[int], Iterator[Batch]]  # (first step) -> the batches from that step on, without end
    per_epoch: int | None  # batches of one pass over the data; None if there are no passes


class Model(NamedTuple):
    """A stateless model: see `mfk.stateless`."""

    init: Callable[[int], tuple[Params, Params]]  # (seed) -> (params, buffers)
    apply: Callable[..., Any]  # (params, buffers, *inputs, **kwargs) -> output


class Aux(NamedTuple):
    """What a loss returns beside its value."""

    state: Tree  # the carried state after this batch; with ``Task.update`` the sums that it is made of
    metrics: Metrics  # sums over the batch's rows; the step divides them by the weight


class Task(NamedTuple):
    """One training problem, as four pure functions.

    A loss returns *sums over rows and the sum of the weights*; the step divides once, after
    all micro-batches and ranks are summed.

    A carried state that moves with the data says how by `update`: the loss then returns, as ``Aux.state``,
    sums over its rows of what the new state is made of; they are added over micro-batches and ranks like all
    else, and `update` is called once, so that the split does not matter. Without it, micro-batches hand the
    state on in their order, which only one rank can do.

    Of an ensemble (`mfk.train.ensemble`), `members` says how many problems are solved side by side. Every
    leaf of params, state, teacher and drawn batch then has the member as its first axis, and every total,
    weight and metric is [k] in place of []. No member's value may depend on another's numbers.
    """

    init: Callable[[int], tuple[Tree, Tree]]  # (seed) -> (params, state)
    # (seed, step, rows, state, batch) -> batch with every random number that the loss needs
    draw: Callable[[int, int, Rows, Tree, Batch], Batch]
    # (params, state, batch, teacher) -> (total, weight, Aux); deterministic, differentiable
    loss: Callable[[Tree, Tree, Batch, Tree], tuple[Tensor, Tensor, Aux]]
    # (params, state, batch) -> (metric -> total, metric -> weight); the batch is one for all members
    evaluate: Callable[[Tree, Tree, Batch], tuple[Metrics, Metrics]]
    members: int | None = None  # k of an ensemble; None: no leaf has such an axis
    # (state, sums, weight) -> (the state after the step, metrics of it); None: the loss returns the state
    update: Callable[[Tree, Tree, Tensor], tuple[Tree, Metrics]] | None = None
    coupled: bool = False  # whether a row's loss depends on the other rows of its micro-batch
    teacher: bool = True  # whether the loss reads its teacher; off saves the memory of a sharded run


class Optimizer(NamedTuple):
    """A gradient transformation with explicit state: see `mfk.optim.adamw`."""

    init: Callable[[Tree], Tree]  # (params) -> opt_state
    # (grads, opt_state, params, lr, found_inf=None); found_inf is [k] for `mfk.optim.stacked`
    update: Callable[..., tuple[Tree, Tree]]


def describe(value: object, depth: int = 3) -> str:
    """One short phrase for an error message: shape and dtype of a tensor, a value cut to one line.

    Of lists in lists it says the first, `depth` times.
    """
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {sorted(map(str, value))[:8]}"
    if isinstance(value, list | tuple) and depth:
        if any(isinstance(x, torch.Tensor | list | tuple) for x in value):
            return f"a {type(value).__name__} of {len(value)}, the first {describe(value[0], depth - 1)}"
    try:
        shown = " ".join(_SHORT.repr(value).split())
    except Exception:  # a __repr__ of the caller's may raise anything; the message at hand matters more
        shown = "a value without a repr"
    return f"{shown if len(shown) <= 100 else shown[:97] + '...'} ({type(value).__name__})"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
