"""Small functions over trees of tensors, on optree.

Flattening goes through optree only: it sorts dict keys, whereas torch's own pytree keeps insertion
order, and None holds no leaf in one and is a leaf in the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from mfk.core.types import Tree


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
    tensors = leaves(tree)
    if not tensors:
        raise ValueError("tree: expected at least one tensor to take the norm of, got an empty tree")
    norms = torch._foreach_norm([_at_least_float32(x) for x in tensors])
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))


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


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


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
