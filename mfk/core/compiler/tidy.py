"""Cleaning of a graph without mutations: identities out, equal nodes merged, unused ones gone."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from mfk.core.compiler.graphs import alike, insert_call, may_share_memory

_aten: Any = torch.ops.aten

# The first operand itself, where shape, dtype, device and strides stay the same.
_IDENTITIES = {
    _aten.alias.default,
    _aten.detach.default,
    _aten.lift_fresh.default,
    _aten._to_copy.default,
    _aten.clone.default,
    _aten.expand.default,
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten.slice.Tensor,
    _aten.permute.default,
    _aten.transpose.int,
    _aten.squeeze.dim,
    _aten.contiguous.default,
}
# Metadata questions that torch asks while it differentiates; the trace has their answers.
_QUESTIONS = {_aten.is_same_size.default, _aten._has_same_storage_numel.default}


def tidy(graph: fx.GraphModule) -> None:
    """Remove identities, merge common subexpressions, remove what nothing uses; in place."""
    nodes = graph.graph
    for node in list(nodes.nodes):
        if node.target in _QUESTIONS:
            nodes.erase_node(node)
    for node in list(nodes.nodes):
        same = _identical(node)
        if same is not None:
            node.replace_all_uses_with(same)
    nodes.eliminate_dead_code()
    seen: dict[Hashable, fx.Node] = {}
    for node in list(nodes.nodes):
        key = _key(node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            nodes.erase_node(node)


def separate_outputs(graph: fx.GraphModule) -> None:
    """Give each output memory of its own: none shares an input's, a constant's or another output's."""
    output = graph.graph.output_node()
    owned: set[fx.Node] = set()
    results = []
    with graph.graph.inserting_before(output):
        for node in output.args[0]:  # type: ignore[union-attr]
            root = _owner(node)
            if root in owned or root.op != "call_function":
                node = insert_call(graph, _aten.clone.default, (node,))
                root = node
            owned.add(root)
            results.append(node)
    output.args = (results,)


def _owner(node: fx.Node) -> fx.Node:
    """The node whose memory `node` is a view of."""
    while isinstance(node.args[0] if node.args else None, fx.Node) and may_share_memory(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _identical(node: fx.Node) -> fx.Node | None:
    """The operand that `node` is a mere copy or view of."""
    if node.op != "call_function":
        return None
    if node.target is _aten.copy.default:  # the first operand gives the layout, the second the values
        source = node.args[1]
    elif node.target in _IDENTITIES:
        source = node.args[0]
    else:
        return None
    if not isinstance(source, fx.Node) or not alike(source, node):
        return None
    return source


def _key(node: fx.Node) -> Hashable | None:
    if node.op == "get_attr":
        return ("get_attr", node.target)
    if node.op != "call_function" or node.target is _aten.empty.memory_format:
        return None
    return (node.target, _hashable(node.args), _hashable(node.kwargs))


def _hashable(x: Any) -> Hashable:
    """A number's type belongs to it: 1, 1.0 and True are equal and mean different dtypes."""
    if isinstance(x, list | tuple):
        return tuple(_hashable(y) for y in x)
    if isinstance(x, dict):
        return tuple((k, _hashable(y)) for k, y in sorted(x.items()))
    if isinstance(x, slice):
        return ("slice", x.start, x.stop, x.step)
    return x if isinstance(x, fx.Node) else (type(x), repr(x) if isinstance(x, float) else x)
