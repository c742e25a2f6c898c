"""An optimizer for an ensemble: each member is updated as if it were alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mfk.core import tree
from mfk.core.types import Optimizer, Tree, describe


def stacked(optimizer: Optimizer, members: int, rates: Sequence[float] | None = None) -> Optimizer:
    """`optimizer` for trees whose leaves are [k, ...], the member being the first axis.

    Member i is updated with the learning rate ``lr * rates[i]`` and its own ``found_inf[i]``, through
    views of the stacked tensors: with a fused kernel that is k calls, each over all leaves of a member,
    and nothing is copied but gradients of another memory layout. The state is the members' states,
    stacked: AdamW's `step` is [k] and counts each member's own updates. So a member's parameters
    and state come out bit by bit as `optimizer` alone would make them from the same gradients.

    ``update(grads, opt_state, params, lr, found_inf=None)`` DONATES what `optimizer` does. `found_inf` is
    [k], 0 or 1; a 1 leaves that member as it was, bit by bit.

    Args:
        optimizer: such as `mfk.optim.adamw`.
        members: k, >= 1.
        rates: each member's share of the learning rate, k numbers >= 0; None: 1 for each.

    Raises:
        ValueError: `rates` are not k such numbers, a leaf of the parameters has not k members, or they
            are not laid out one after another; what `optimizer` raises.
    """
    if isinstance(members, bool) or not isinstance(members, int) or members < 1:
        raise ValueError(f"members: expected an int >= 1, got {describe(members)}")
    factors = (1.0,) * members if rates is None else check_each("rates", rates, members)

    def init(params: Tree) -> Tree:
        _check_stacked(params, members)
        return tree.stack([optimizer.init(tree.member(params, i)) for i in range(members)])

    @torch.no_grad()
    def update(
        grads: Tree, opt_state: Tree, params: Tree, lr: float, found_inf: Tensor | None = None
    ) -> tuple[Tree, Tree]:
        _check_stacked(params, members)
        if found_inf is not None and found_inf.shape != (members,):
            raise ValueError(f"found_inf: expected shape ({members},), got {describe(found_inf)}")
        before, after = [], []
        for i, rate in enumerate(factors):
            own = tree.member((params, opt_state), i)
            before.append(own)
            skip = None if found_inf is None else found_inf[i]
            after.append(optimizer.update(tree.member(grads, i), own[1], own[0], lr * rate, found_inf=skip))
        return _gathered((params, opt_state), before, after)

    return Optimizer(init, update)


def check_each(name: str, values: Sequence[float], members: int, positive: bool = False) -> tuple[float, ...]:
    """`values` as one finite number >= 0 (> 0 if `positive`) for each member; ValueError names `name`."""
    given = tuple(values) if isinstance(values, list | tuple) else ()
    if len(given) != members:
        raise ValueError(
            f"{name}: expected {members} numbers, one for each member, got {describe(values)} of {len(given)}"
        )
    for x in given:
        number = isinstance(x, int | float) and not isinstance(x, bool)
        if not number or not 0 <= x < math.inf or (positive and x == 0):
            raise ValueError(
                f"{name}: expected finite numbers {'>' if positive else '>='} 0, got {describe(x)}"
            )
    return tuple(float(x) for x in given)


def _gathered(stacked: Any, before: list[Any], after: list[Any]) -> Any:
    """The members' trees as one; a leaf whose views were written in place is the stacked leaf itself."""
    old, new = ([tree.leaves(x) for x in side] for side in (before, after))
    out = []
    for whole, views, results in zip(
        tree.leaves(stacked), zip(*old, strict=True), zip(*new, strict=True), strict=True
    ):
        in_place = all(result is view for view, result in zip(views, results, strict=True))
        out.append(whole if in_place else torch.stack(results))
    return tree.unflatten(stacked, out)


def _check_stacked(params: Tree, members: int) -> None:
    for name, x in tree.named_leaves(params):
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != members or not x.is_contiguous():
            raise ValueError(
                f"params: leaf {name!r} must be contiguous, with {members} members as its first axis, "
                f"got {describe(x)}"
            )
