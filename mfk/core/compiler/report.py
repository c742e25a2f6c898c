"""What compiling did to a function, counted."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils.flop_counter import flop_registry

_aten: Any = torch.ops.aten
MATMULS = frozenset((
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten.mv.default,
    _aten.addmv.default, _aten.convolution.default, _aten.convolution_backward.default,
))  # fmt: skip


class Counts(NamedTuple):
    """Of one graph."""

    nodes: int  # calls of operators
    matmuls: int  # matrix products and convolutions; a convolution's backward pass is one for each gradient
    flops: int  # of these, a multiplication and an addition being two


class Report(NamedTuple):
    """Of one compiled function at the shapes of one call."""

    before: Counts  # as traced
    after: Counts  # as handed to Inductor
    folded_zeros: int  # nodes that were known to be zero
    trace_seconds: float
    compile_seconds: float  # Inductor and the C++ compiler, or reading their cache

    def __str__(self) -> str:
        """The report as a few lines."""
        (a, b, c), (x, y, z) = self.before, self.after
        return (
            f"operators {a} -> {x}, matrix products {b} -> {y}, GFLOP {c / 1e9:.3f} -> {z / 1e9:.3f}, "
            f"{self.folded_zeros} zeros folded; traced in {self.trace_seconds:.2f} s, compiled in "
            f"{self.compile_seconds:.2f} s"
        )


def count(graph: fx.GraphModule) -> Counts:
    """Operators, matrix products and floating-point operations of a traced graph."""
    nodes = matmuls = flops = 0
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        nodes += 1
        if node.target not in MATMULS:
            continue
        backward = node.target is _aten.convolution_backward.default
        matmuls += sum(node.args[10][:2]) if backward else 1
        flops += _flops(node)
    return Counts(nodes, matmuls, flops)


def _flops(node: fx.Node) -> int:
    args, kwargs = cast(Any, map_arg((node.args, node.kwargs), lambda n: n.meta["val"]))
    formula = flop_registry.get(node.target.overloadpacket)  # type: ignore[union-attr]
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=node.meta["val"]))
    vector = args[-1]  # mv and addmv have no formula there
    matrix = args[-2]
    return 2 * matrix.shape[0] * vector.shape[0]
