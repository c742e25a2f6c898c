"""Do two trees match, and how does a tensor lie in memory? What in-place kernels must know first."""

from __future__ import annotations

import optree
import torch
from torch import Tensor

from mfk.core import tree
from mfk.core.types import Tree, describe


def check_like(argument: str, given: Tree, expected_name: str, expected: Tree) -> list[Tensor]:
    """The leaves of `given`, which must match those of `expected` in name, shape, dtype and device.

    Raises:
        ValueError: names the first leaf that differs.
    """
    found, spec = optree.tree_flatten(given)
    wanted, wanted_spec = optree.tree_flatten(expected)
    if spec != wanted_spec:
        have, want = ({name for name, _ in tree.named_leaves(t)} for t in (given, expected))
        missing, unknown = sorted(want - have), sorted(have - want)
        raise ValueError(
            f"{argument}: expected the structure of {expected_name} ({len(want)} leaves); "
            f"missing {missing[:4]}, unknown {unknown[:4]}"
            + ("" if missing or unknown else "; the names agree, the containers differ")
        )
    for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
        if (
            not isinstance(x, Tensor)
            or x.layout != torch.strided
            or x.shape != y.shape
            or x.dtype != y.dtype
            or x.device != y.device
        ):
            name = tree.named_leaves(expected)[i][0]
            place = f" on {x.device}" if isinstance(x, Tensor) else ""
            raise ValueError(
                f"{argument}: leaf {name!r} must match {expected_name}, "
                f"{describe(y)} on {y.device}; got {describe(x)}{place}"
            )
    return found


def _kind(x: Tensor) -> tuple[object, ...]:
    return x.shape, x.dtype, x.device, x.layout


def dense(x: Tensor) -> bool:
    """Whether the entries fill one block of memory, in whatever order of axes."""
    # empty_like keeps strides exactly for such tensors; the meta device makes it free of memory.
    return x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride()


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """`x` itself if it lies in memory as the dense tensor `like` does, else a copy that does."""
    if x.stride() == like.stride() or (x.is_contiguous() and like.is_contiguous()):
        return x
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


def may_overlap(x: Tensor) -> bool:
    """Whether two entries of `x` may share memory, as in an expanded tensor or a sliding window."""
    reach = 0
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length > 1:
            if stride <= reach:
                return x.numel() > 0
            reach += stride * (length - 1)
    return False
