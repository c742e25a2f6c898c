"""A model that is shared out: each rank keeps its part of every parameter, moment and average.

A leaf of n numbers is cut into N runs of ⌈n/N⌉, rounded up to whole cache lines, as far as it goes; rank i
has the i-th, as a vector, which may be shorter, or empty. The parts of neighbouring leaves travel in one flat
buffer: gathered before the gradient is taken, summed and scattered of it.

Source: Rajbhandari et al., ZeRO (2020), arXiv:1910.02054, stage 3 (parameters are gathered once a step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import optree
import torch
from torch import Tensor

from mfk.core import ranks, tree
from mfk.core.types import Tree, describe
from mfk.train.state import TrainState

_LINE = 64  # numbers; at least a cache line of every dtype


class Shards(NamedTuple):
    """How one tree is shared out among the ranks."""

    split: Callable[[Tree], Tree]  # whole tree -> this rank's parts, copies
    gather: Callable[[Tree], Tree]  # this rank's parts -> the whole tree, on every rank; ValueError if others
    reduce: Callable[[Tree], Tree]  # whole trees, one of each rank -> this rank's parts of their sum
    norm: Callable[[Tree], Tensor]  # this rank's parts -> the norm of the whole tree, []
    blank: Callable[[Tree], Tree]  # this rank's parts -> a whole tree in host memory in which nothing is set


def shards_of(like: Tree) -> Shards:
    """How trees of the structure, shapes and dtypes of `like` are shared out; its numbers do not matter.

    Raises:
        ValueError: there is no leaf.
    """
    rank, count = ranks.current()
    structure, names = optree.tree_structure(like), [name for name, _ in tree.named_leaves(like)]
    shapes = [x.shape for x in tree.leaves(like)]
    if not shapes:
        raise ValueError("params: expected at least one tensor to share out, got none")
    # An optimizer's kernel rounds the numbers behind the last whole vector otherwise than those in vectors.
    # Cut between cache lines, a number is behind it only where it is so in the whole leaf.
    lengths = [-(-shape.numel() // (count * _LINE)) * _LINE for shape in shapes]
    own = [
        slice(min(rank * n, shape.numel()), min((rank + 1) * n, shape.numel()))
        for n, shape in zip(lengths, shapes, strict=True)
    ]

    def filled(x: Tensor, length: int) -> Tensor:
        """A vector of so many numbers, zeros behind those of `x`."""
        return torch.nn.functional.pad(x, (0, length - x.numel()))

    def split(whole: Tree) -> Tree:
        leaves = zip(tree.leaves(whole), own, strict=True)
        return tree.unflatten(whole, [x.detach().reshape(-1)[part].clone() for x, part in leaves])

    def check(parts: Tree) -> None:
        found = tree.named_leaves(parts)
        if optree.tree_structure(parts) != structure:
            raise ValueError(
                f"state: expected this rank's parts of the leaves {names}, got {[name for name, _ in found]}"
            )
        for (name, x), part in zip(found, own, strict=True):
            if x.shape != (part.stop - part.start,):
                raise ValueError(
                    f"state: leaf {name!r}: expected this rank's part, {part.stop - part.start} numbers, got "
                    f"{describe(x)}; init_state(..., split=shards.split) makes a state of parts"
                )

    def gather(parts: Tree) -> Tree:
        check(parts)
        joined = ranks.all_parts(filled(x, n) for x, n in zip(tree.leaves(parts), lengths, strict=True))
        whole = [x.reshape(-1)[: s.numel()].reshape(s) for x, s in zip(joined, shapes, strict=True)]
        return tree.unflatten(parts, whole)

    def reduce(whole: Tree) -> Tree:
        leaves = zip(tree.leaves(whole), lengths, strict=True)
        each = (filled(x.detach().reshape(-1), count * n).view(count, n) for x, n in leaves)
        summed = zip(ranks.own_parts(each), own, strict=True)
        return tree.unflatten(whole, [x[: part.stop - part.start] for x, part in summed])

    def norm(parts: Tree) -> Tensor:
        # Rounded once, as `tree.global_norm` does, so that fp32 has the same bits.
        return ranks.add_up(tree.square_sum(parts)).sqrt().to(tree.widest(parts))

    def blank(parts: Tree) -> Tree:
        # Memory is taken page by page as it is written to: of a tree that is only compared with, none.
        leaves = zip(tree.leaves(parts), shapes, strict=True)
        return tree.unflatten(parts, [torch.empty(s, dtype=x.dtype, device="cpu") for x, s in leaves])

    return Shards(split, gather, reduce, norm, blank)


def gather_state(shards: Shards, state: TrainState) -> TrainState:
    """A state of parts as a whole one, in host memory; what of it is kept is up to rank 0."""
    return _convert(state, state.params, lambda parts: tree.cast(shards.gather(parts), device="cpu"))


def blank_state(shards: Shards, state: TrainState) -> TrainState:
    """A whole state in host memory, for what is read from a disk, in the place of a state of parts."""
    return _convert(state, state.params, shards.blank)


def split_state(shards: Shards, whole: TrainState, like: TrainState) -> TrainState:
    """This rank's parts of a whole state, where those of `like` are."""
    device = tree.leaves(like.params)[0].device
    parts = _convert(whole, whole.params, lambda x: tree.cast(shards.split(x), device=device))
    return parts._replace(opt=tree.cast(parts.opt, device=device))


def _convert(state: TrainState, like: Tree, fn: Callable[[Tree], Tree]) -> TrainState:
    """`state` with `fn` of each subtree of params, opt and ema with the structure and shapes of `like`."""
    structure, shapes = optree.tree_structure(like), [x.shape for x in tree.leaves(like)]

    def alike(x: Tree) -> bool:
        found = [getattr(y, "shape", None) for y in tree.leaves(x)]
        return optree.tree_structure(x) == structure and found == shapes

    def one(x: Tree) -> Tree:
        return fn(x) if alike(x) else x

    params, opt, ema = (optree.tree_map(one, x, is_leaf=alike) for x in (state.params, state.opt, state.ema))
    return state._replace(params=params, opt=opt, ema=ema)
