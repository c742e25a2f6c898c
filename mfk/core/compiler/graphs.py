"""Small questions about nodes of a traced graph, whose ``meta["val"]`` holds a tensor without numbers."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg


def insert_call(
    graph: fx.GraphModule, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> fx.Node:
    """A new call at the graph's insertion point, with its fake value."""
    node = graph.graph.call_function(target, tuple(args), dict(kwargs or {}))
    given, named = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with _fake_mode(graph), torch.no_grad():
        node.meta["val"] = target(*given, **named)
    return node


def alike(node: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes are tensors of one shape, dtype, device and memory layout."""
    x, y = node.meta.get("val"), other.meta.get("val")
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return False
    return x.shape == y.shape and x.dtype == y.dtype and x.device == y.device and _strides(x) == _strides(y)


def may_share_memory(node: fx.Node) -> bool:
    """Whether the result may be a view of the first operand."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and may_share_memory(node.args[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    aliases = any(r.alias_info is not None for r in node.target._schema.returns)
    return aliases or node.target in (
        torch.ops.aten._unsafe_view.default,
        torch.ops.aten._reshape_alias.default,
    )


def _strides(x: Tensor) -> list[int]:
    """Strides of the axes that have more than one entry; the others' mean nothing."""
    return [s for n, s in zip(x.shape, x.stride(), strict=True) if n > 1] if x.numel() else []


def _fake_mode(graph: fx.GraphModule) -> Any:
    for node in graph.graph.nodes:
        if isinstance(node.meta.get("val"), torch._subclasses.FakeTensor):
            return node.meta["val"].fake_mode
    raise AssertionError("a graph without tensors")
