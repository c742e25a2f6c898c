"""In-place operators made out-of-place where that is plainly the same."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from mfk.core.compiler.graphs import alike, insert_call, may_share_memory

_aten: Any = torch.ops.aten
_OUT_OF_PLACE: dict[Any, Any] = {
    _aten.zero_.default: _aten.zero.default,
    _aten.fill_.Scalar: _aten.fill.Scalar,
    _aten.copy_.default: _aten.copy.default,
    _aten.add_.Tensor: _aten.add.Tensor,
    _aten.sub_.Tensor: _aten.sub.Tensor,
    _aten.mul_.Tensor: _aten.mul.Tensor,
    _aten.div_.Tensor: _aten.div.Tensor,
    _aten.add_.Scalar: _aten.add.Scalar,
    _aten.sub_.Scalar: _aten.sub.Scalar,
    _aten.mul_.Scalar: _aten.mul.Scalar,
    _aten.div_.Scalar: _aten.div.Scalar,
    _aten.neg_.default: _aten.neg.default,
}


def remove_mutations(graph: fx.GraphModule) -> bool:
    """Replace in-place operators; False, and nothing changed, where one needs `torch.func.functionalize`.

    A write to a freshly made tensor of which no view exists yet is the out-of-place operator followed by a
    renaming. torch's own derivatives write in no other way.
    """
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    writing = [node for node in order if _is_mutable(node)]
    if not all(_is_plain(node, order) for node in writing):
        return False
    for node in writing:
        target = node.args[0]
        assert isinstance(target, fx.Node)
        with graph.graph.inserting_before(node):
            new = insert_call(graph, _OUT_OF_PLACE[node.target], node.args, node.kwargs)
            if not alike(new, target):  # of another layout or dtype: written into the target's
                new = insert_call(graph, _aten.copy.default, (target, new))
        place = order[node]
        order[new] = place
        for user in list(target.users):
            if order.get(user, -1) > place:
                user.replace_input_with(target, new)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    return True


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_plain(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether the node writes to a tensor that is fresh and has not been viewed before."""
    target = node.args[0]
    if node.target not in _OUT_OF_PLACE or not isinstance(target, fx.Node) or not _is_fresh(target):
        return False
    while _is_mutable(target):  # the same tensor by another name
        if any(_is_view(user) for user in target.users if order[user] < order[node]):
            return False
        target = target.args[0]
        assert isinstance(target, fx.Node)
    return not any(_is_view(user) for user in target.users if order[user] < order[node])


def _is_fresh(node: fx.Node) -> bool:
    """Whether the node's memory is its own."""
    if _is_mutable(node):
        return isinstance(node.args[0], fx.Node) and _is_fresh(node.args[0])
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_fresh(node.args[0])
    return node.op == "call_function" and not _is_view(node)


def _is_view(node: fx.Node) -> bool:
    return not _is_mutable(node) and may_share_memory(node)
