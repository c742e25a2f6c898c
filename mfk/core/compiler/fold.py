"""Symbolic zeros: what is known to be zero is not computed.

torch's forward mode gives every linear layer a weight tangent of zeros and multiplies the input by it.
`fold_zeros` follows such zeros through a graph without mutations, replaces what they make zero, drops them
from sums, and narrows convolutions' backward passes. A node is replaced only by one of its own shape, dtype,
device and strides.

As in JAX, 0 times NaN or infinity is 0 here, and 0 / 0 is 0, where the zero is known from the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from mfk.core.compiler.graphs import alike, insert_call

_aten: Any = torch.ops.aten
_ANY = "any"  # every output of the node

_ZEROS = {
    _aten.zero.default,
    _aten.zeros.default,
    _aten.zeros_like.default,
    _aten.new_zeros.default,
    _aten._efficientzerotensor.default,
    _aten._new_zeros_with_same_feature_meta.default,
}
# Position of the number that fills the result.
_FILLED = {
    _aten.full.default: 1,
    _aten.full_like.default: 1,
    _aten.new_full.default: 2,
    _aten.scalar_tensor.default: 0,
    _aten.fill.Scalar: 1,
}
# Zero wherever the first operand is, whatever the others are.
_FOLLOWS_FIRST = {
    getattr(getattr(_aten, name), overload)
    for name, overload in (
        *((name, "default") for name in (
            "alias", "detach", "clone", "view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "t",
            "permute", "unsqueeze", "squeeze", "_to_copy", "lift_fresh", "lift_fresh_copy", "contiguous",
            "neg", "abs", "sign", "sum", "sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh",
            "erf", "expm1", "log1p", "sqrt", "relu", "silu", "gelu", "sgn", "flip", "roll", "repeat", "tril",
            "triu", "diagonal", "unfold", "gather", "index_select", "slice_backward", "select_backward",
            "unfold_backward", "diagonal_backward", "silu_backward", "gelu_backward", "sigmoid_backward",
            "tanh_backward", "threshold_backward", "elu_backward", "leaky_relu", "elu",
            "_softmax_backward_data", "_log_softmax_backward_data", "cumsum", "native_layer_norm_backward",
            "native_group_norm_backward", "embedding_dense_backward", "pixel_shuffle", "view_as_real",
            "view_as_complex", "native_dropout_backward", "avg_pool2d", "avg_pool2d_backward",
            "upsample_nearest1d", "upsample_nearest1d_backward", "upsample_nearest2d",
            "upsample_nearest2d_backward", "upsample_linear1d", "upsample_linear1d_backward",
        )),
        ("transpose", "int"), ("squeeze", "dim"), ("squeeze", "dims"), ("slice", "Tensor"), ("select", "int"),
        ("split", "Tensor"), ("split_with_sizes", "default"), ("unbind", "int"), ("sum", "dim_IntList"),
        ("index", "Tensor"), ("div", "Tensor"), ("div", "Scalar"), ("mul", "Scalar"),
        ("mean", "dim"), ("mean", "default"), ("cumsum", "default"), ("movedim", "int"), ("view", "dtype"),
    )
    if hasattr(_aten, name) and hasattr(getattr(_aten, name), overload)
}  # fmt: skip
# Zero wherever one of the two factors is.
_PRODUCTS = {
    _aten.mul.Tensor,
    _aten.mm.default,
    _aten.bmm.default,
    _aten.mv.default,
    _aten.dot.default,
}
# Zero where all of these operands are.
_ALL_OF: dict[Any, Callable[[fx.Node], list[Any]]] = {
    _aten.add.Tensor: lambda n: [n.args[0], n.args[1]],
    _aten.sub.Tensor: lambda n: [n.args[0], n.args[1]],
    _aten.where.self: lambda n: [n.args[1], n.args[2]],
    _aten.cat.default: lambda n: _nodes(n.args[0]),
    _aten.stack.default: lambda n: _nodes(n.args[0]),
    _aten.copy.default: lambda n: [n.args[1]],
    _aten.maximum.default: lambda n: [n.args[0], n.args[1]],
    _aten.minimum.default: lambda n: [n.args[0], n.args[1]],
    _aten.slice_scatter.default: lambda n: [n.args[0], n.args[1]],
    _aten.select_scatter.default: lambda n: [n.args[0], n.args[1]],
    _aten.index_add.default: lambda n: [n.args[0], n.args[3]],
    _aten.index_put.default: lambda n: [n.args[0], n.args[2]],
    _aten.scatter_add.default: lambda n: [n.args[0], n.args[3]],
    _aten.masked_fill.Tensor: lambda n: [n.args[0], n.args[2]],
}
# (first term, two factors): term + factor * factor.
_FUSED_SUMS = {
    _aten.addmm.default,
    _aten.addmv.default,
    _aten.baddbmm.default,
    _aten.addcmul.default,
    _aten.addcdiv.default,
}
_PLAIN_PRODUCT = {
    _aten.addmm.default: _aten.mm.default,
    _aten.addmv.default: _aten.mv.default,
    _aten.baddbmm.default: _aten.bmm.default,
}
CONVOLUTION, CONVOLUTION_BACKWARD = _aten.convolution.default, _aten.convolution_backward.default


def fold_zeros(graph: fx.GraphModule) -> int:
    """Fold the zeros of `graph` in place; returns how many nodes were zeros that would have been computed.

    Args:
        graph: ATen operators without mutations, with each node's fake value in ``meta["val"]``.
    """
    zeros: dict[fx.Node, Any] = {}
    folded = 0
    for node in list(graph.graph.nodes):
        zeros[node] = _zero_outputs(graph, node, zeros)
        if zeros[node] is _ANY and isinstance(node.meta.get("val"), Tensor):
            if _is_made(node):
                continue
            new = _insert_zeros(graph, node)
            if new is not None:
                zeros[new] = _ANY
                node.replace_all_uses_with(new)
                folded += 1
        elif zeros[node] is None:
            _drop_terms(graph, node, zeros)
    graph.graph.eliminate_dead_code()
    _narrow_convolutions(graph)
    return folded


def _is_made(node: fx.Node) -> bool:
    """Whether the node is a constructor, or a view of one, which costs nothing."""
    return node.target is _aten.full.default


def _zero_outputs(graph: fx.GraphModule, node: fx.Node, zeros: dict[fx.Node, Any]) -> Any:
    """`_ANY` if the node is known to be zero, a set of positions if some of its outputs are, else None."""

    def zero(x: Any) -> bool:
        return (isinstance(x, fx.Node) and zeros.get(x) is _ANY) or (
            isinstance(x, int | float) and not isinstance(x, bool) and x == 0
        )

    if node.op == "get_attr":
        return _ANY if _is_zero_constant(getattr(graph, str(node.target))) else None
    if node.op != "call_function":
        return None
    target, args = node.target, node.args
    if target is operator.getitem:
        outputs = zeros.get(args[0]) if isinstance(args[0], fx.Node) else None
        return _ANY if outputs is _ANY or (isinstance(outputs, set) and args[1] in outputs) else None
    if not _is_floating(node.meta.get("val")):
        return None
    if target in _ZEROS:
        return _ANY
    if target in _FILLED:
        return _ANY if zero(args[_FILLED[target]]) else None
    if target in _FOLLOWS_FIRST:
        mean_of_nothing = target in (_aten.mean.default, _aten.mean.dim) and _numel(args[0]) == 0
        return _ANY if zero(args[0]) and not mean_of_nothing and not _rounded(node) else None
    if target in _PRODUCTS:
        return _ANY if any(zeros.get(x) is _ANY for x in args[:2] if isinstance(x, fx.Node)) else None
    if target in _ALL_OF:
        return _ANY if all(zero(x) for x in _ALL_OF[target](node)) else None
    if target in _FUSED_SUMS:
        first, second = args[1], args[2]
        product = zero(first) or (target is not _aten.addcdiv.default and zero(second))
        return _ANY if zero(args[0]) and product else None
    if target is _aten.pow.Tensor_Scalar:
        return _ANY if zero(args[0]) and isinstance(args[1], int | float) and args[1] > 0 else None
    if target is _aten.constant_pad_nd.default:
        return _ANY if zero(args[0]) and (len(args) < 3 or zero(args[2])) else None
    if target is _aten.masked_fill.Scalar:
        return _ANY if zero(args[0]) and zero(args[2]) else None
    if target is CONVOLUTION:
        no_bias = args[2] is None or zero(args[2])
        return _ANY if (zero(args[0]) or zero(args[1])) and no_bias else None
    if target is CONVOLUTION_BACKWARD:
        if zero(args[0]):
            return _ANY
        positions = {position for position, x in ((0, args[2]), (1, args[1])) if zero(x)}
        return positions or None
    return None


def _drop_terms(graph: fx.GraphModule, node: fx.Node, zeros: dict[fx.Node, Any]) -> None:
    """Take zero terms out of a sum that is not zero itself."""
    if node.op != "call_function":
        return
    target, args = node.target, node.args

    def zero(x: Any) -> bool:
        return isinstance(x, fx.Node) and zeros.get(x) is _ANY

    alpha = node.kwargs.get("alpha", 1)
    if target in (_aten.add.Tensor, _aten.sub.Tensor):
        if zero(args[1]):
            _replace(graph, node, args[0])
        elif zero(args[0]) and alpha == 1 and isinstance(args[1], fx.Node):
            if target is _aten.add.Tensor:
                _replace(graph, node, args[1])
            elif alike(args[1], node):
                _call(graph, node, _aten.neg.default, (args[1],))
    elif target in _FUSED_SUMS:
        scale = node.kwargs.get("beta", 1)
        product = zero(args[1]) or (zero(args[2]) and target is not _aten.addcdiv.default)
        if product and scale == 1:
            _replace(graph, node, args[0])
        elif zero(args[0]) and target in _PLAIN_PRODUCT and alpha == 1:
            _call(graph, node, _PLAIN_PRODUCT[target], args[1:])
    elif target is CONVOLUTION and (zero(args[0]) or zero(args[1])):
        bias, value = args[2], node.meta["val"]
        with graph.graph.inserting_before(node):
            shaped = insert_call(graph, _aten.view.default, (bias, [-1] + [1] * (value.ndim - 2)))
            whole = insert_call(graph, _aten.expand.default, (shaped, list(value.shape)))
            _call(graph, node, _aten.clone.default, (whole,))


def _replace(graph: fx.GraphModule, node: fx.Node, other: Any) -> None:
    """Replace `node` by `other`, which may have to be spread over the node's shape."""
    if not isinstance(other, fx.Node) or not isinstance(other.meta.get("val"), Tensor):
        return
    if alike(other, node):
        node.replace_all_uses_with(other)
        return
    value, given = node.meta["val"], other.meta["val"]
    if given.dtype != value.dtype or given.device != value.device or not value.is_contiguous():
        return
    with graph.graph.inserting_before(node):
        spread = insert_call(graph, _aten.expand.default, (other, list(value.shape)))
        _call(graph, node, _aten.clone.default, (spread,), {"memory_format": torch.contiguous_format})


def _call(
    graph: fx.GraphModule, node: fx.Node, target: Any, args: Any, kwargs: dict[str, Any] | None = None
) -> None:
    """Let `node` be another call, if that has the same value's metadata."""
    with graph.graph.inserting_before(node):
        new = insert_call(graph, target, args, kwargs)
    if alike(new, node):
        node.replace_all_uses_with(new)
    else:
        graph.graph.erase_node(new)


def _insert_zeros(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Zeros of the node's shape, dtype, device and strides before it; None where a simple call makes none."""
    value = node.meta["val"]
    spread = [i for i, (n, s) in enumerate(zip(value.shape, value.stride(), strict=True)) if s == 0 and n > 1]
    kept = [1 if i in spread else n for i, n in enumerate(value.shape)]
    # Axes from the outermost in memory to the innermost; axes of one entry may have any stride.
    order = sorted(range(value.ndim), key=lambda i: (-value.stride(i), kept[i] == 1))
    with graph.graph.inserting_before(node):
        options = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
        made = [insert_call(graph, _aten.full.default, ([kept[i] for i in order], 0), options)]
        if order != list(range(value.ndim)):
            back = [order.index(i) for i in range(value.ndim)]
            made.append(insert_call(graph, _aten.permute.default, (made[-1], back)))
        if spread:
            made.append(insert_call(graph, _aten.expand.default, (made[-1], list(value.shape))))
    if alike(made[-1], node):
        return made[-1]
    for new in reversed(made):
        graph.graph.erase_node(new)
    return None


def _narrow_convolutions(graph: fx.GraphModule) -> None:
    """Ask a convolution's backward pass for the outputs that are used, and no others."""
    for node in graph.graph.find_nodes(op="call_function", target=CONVOLUTION_BACKWARD):
        used = {user.args[1] for user in node.users if user.target is operator.getitem}
        mask = [wanted and i in used for i, wanted in enumerate(node.args[10])]
        node.args = (*node.args[:10], mask, *node.args[11:])


def _nodes(argument: Any) -> list[Any]:
    return list(argument)


def _is_floating(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.is_complex()
    return isinstance(value, tuple | list) and all(x is None or _is_floating(x) for x in value)


def _is_zero_constant(x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.is_floating_point()
        and x.numel() <= 64
        and not isinstance(x, torch._subclasses.FakeTensor)
        and not bool(x.any())
    )


def _numel(x: Any) -> int:
    return x.meta["val"].numel() if isinstance(x, fx.Node) else 1


def _rounded(node: fx.Node) -> bool:
    """A division that rounds: 0 // x is left alone."""
    return node.kwargs.get("rounding_mode") is not None
