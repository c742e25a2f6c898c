"""Small functions over trees of tensors, on optree.

Flattening goes through optree only: it sorts dict keys, whereas torch's own pytree keeps insertion
order, and None holds no leaf in one and is a leaf in the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from mfk.core.types import Tree, describe

_PIECE = 2**18  # numbers whose squares are added at once


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn` to corresponding leaves; the trees must have one structure (ValueError)."""
    structure = optree.tree_structure(tree)
    for other in rest:
        # optree alone would take a tree that goes on below a leaf, and hand `fn` the subtree.
        if optree.tree_structure(other) != structure:
            raise ValueError(f"tree: expected {structure}, got {optree.tree_structure(other)}")
    return optree.tree_map(fn, tree, *rest)


def leaves(tree: Tree) -> list[Any]:
    """The leaves, dict keys in sorted order."""
    return optree.tree_leaves(tree)


def named_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """(name, leaf) pairs; a name joins dict keys, field names and indices with "/"."""
    paths, values, _ = optree.tree_flatten_with_path(tree)
    fields = _field_names(tree)
    names = ["/".join(fields(path)) for path in paths]
    return list(zip(names, values, strict=True))


def unflatten(tree: Tree, values: list[Any]) -> Tree:
    """A tree of `tree`'s structure that holds `values`, in the order of `leaves`."""
    return optree.tree_unflatten(optree.tree_structure(tree), values)


def global_norm(tree: Tree) -> Tensor:
    """Euclidean norm of all leaves taken as one vector; 0-dimensional, fp32 or wider."""
    return square_sum(tree).sqrt().to(widest(tree))


def widest(tree: Tree) -> torch.dtype:
    """What fp32 and the dtypes of all leaves promote to."""
    return functools.reduce(torch.promote_types, [x.dtype for x in leaves(tree)], torch.float32)


def square_sum(tree: Tree) -> Tensor:
    """Sum of the squares of all leaves' numbers; 0-dimensional, float64.

    Neither their range nor how the leaves are cut into parts shows in its fp32 digits.
    """
    return _square_sums(leaves(tree)).sum()


def member_norms(tree: Tree) -> Tensor:
    """The `global_norm` of each member of a stacked tree, [k], in fp32 or wider; leaves are [k, ...]."""
    tensors = leaves(tree)
    squares = _square_sums([x for leaf in tensors for x in leaf.unbind()])
    return squares.view(len(tensors), -1).sum(0).sqrt().to(widest(tree))


def stack(members: Sequence[Tree]) -> Tree:
    """Trees of one structure, shapes and dtypes as one tree: each leaf with the member as its first axis.

    Raises:
        ValueError: no tree, or two that differ in structure, or in the shape or dtype of a leaf (named).
    """
    if not members:
        raise ValueError("members: expected at least one tree to stack, got none")
    for i, other in enumerate(members[1:], start=1):
        if optree.tree_structure(other) != optree.tree_structure(members[0]):
            raise ValueError(f"members: expected trees of one structure; 0 and {i} differ")
        for (name, x), y in zip(named_leaves(members[0]), leaves(other), strict=True):
            if x.shape != y.shape or x.dtype != y.dtype:
                raise ValueError(
                    f"members: leaf {name!r} is {describe(x)} in member 0 and {describe(y)} in member {i}"
                )
    return map(lambda *parts: torch.stack(parts), *members)


def member(stacked: Tree, i: int) -> Tree:
    """Member `i` of a tree as from `stack`: views that share its memory."""
    return map(lambda x: x[i], stacked)


def along(x: Tensor, like: Tensor) -> Tensor:
    """`x` so that it multiplies `like` member by member: [k] gets axes after its own, [] is left alone."""
    return x if x.ndim == 0 else x.reshape(x.shape + (1,) * (like.ndim - x.ndim))


def cast(tree: Tree, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tree:
    """Move the tree to `device` and its floating-point tensors to `dtype`; the rest keeps its dtype."""

    def one(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

    return map(one, tree)


def clone(tree: Tree) -> Tree:
    """A tree of copies that share no memory with `tree`, so that either may be donated."""
    return map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, tree)


def size(tree: Tree) -> int:
    """Number of scalars in all tensors: the parameter count of a parameter tree."""
    return sum(x.numel() for x in leaves(tree) if isinstance(x, torch.Tensor))


def all_finite(tree: Tree) -> Tensor:
    """A 0-dimensional bool: no floating-point leaf holds NaN or infinity. No host synchronisation."""
    flags = [torch.isfinite(x).all() for x in leaves(tree) if isinstance(x, Tensor) and x.is_floating_point()]
    return torch.stack(flags).all() if flags else torch.tensor(True)


def _square_sums(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of each tensor's squares, float64 [n], where the first one is."""
    if not tensors:
        raise ValueError("tree: expected at least one tensor to take the norm of, got an empty tree")
    if (odd := next((x for x in tensors if not x.is_floating_point()), None)) is not None:
        raise ValueError(f"tree: expected floating-point tensors to take the norm of, got {describe(odd)}")
    # On a CPU each piece is copied in float64 on the way.
    pieces = [x.view(-1).split(_PIECE) if x.is_contiguous() and x.numel() > _PIECE else (x,) for x in tensors]
    norms = torch._foreach_norm([x for each in pieces for x in each], 2, torch.float64)
    squares = torch.stack([norm.to(norms[0].device) for norm in norms]).square()
    if len(squares) == len(tensors):
        return squares
    return torch.stack([part.sum() for part in squares.split([len(each) for each in pieces])])


def _field_names(tree: Tree) -> Callable[[tuple[Any, ...]], list[str]]:
    """Paths of optree name a NamedTuple's field by index; read the field's name off the tree."""

    def names(path: tuple[Any, ...]) -> list[str]:
        node, out = tree, []
        for entry in path:
            fields = getattr(node, "_fields", None)
            out.append(fields[entry] if fields and isinstance(entry, int) else str(entry))
            node = node[entry]
        return out

    return names
