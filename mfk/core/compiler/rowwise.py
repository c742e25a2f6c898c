"""Which part of a graph treats the rows of a batch one by one, and what it computes for a row.

Kinematics under forward mode is thousands of operations on columns of a batch: operator by operator they are
all overhead, and Inductor takes a minute over them. Here each tensor is taken apart into the numbers of one
row, views, stacks and sums over the other axes become bookkeeping, and what remains is one straight-line
program.

Whether an axis is "the batch" need not be known: a long axis that no operation mixes can be treated as one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, fx

from mfk.core.compiler.graphs import may_share_memory
from mfk.core.compiler.scalars import Load, Program, needed

_aten: Any = torch.ops.aten
LEAST_ROWS = 64  # a shorter axis is no batch
_MOST_ENTRIES = 128  # numbers of a row in one tensor
_MOST_BEFORE = 8  # as the members of an ensemble, that may come before the batch axis
_LEAST_STEPS = 150  # fewer are left to Inductor
_MOST_STEPS = 60_000


class Array(NamedTuple):
    """A tensor taken apart: for each of a row's numbers the value in the program."""

    entries: np.ndarray  # of int objects; the batch axis has length 1
    axis: int | None  # the batch axis; None: the same for all rows
    rows: int  # its length; 0 without one


class RowProgram(NamedTuple):
    """A part of a graph as a program for each row."""

    program: Program
    rows: int
    inputs: list[fx.Node]  # what it reads, in the order of its loads' numbers
    outputs: list[tuple[fx.Node, Array]]  # what the rest of the graph takes from it
    steps: list[int]  # the values that these need


COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


class _Unsupported(Exception):
    """The node is left to the rest of the graph."""


def row_programs(graph: fx.GraphModule) -> list[RowProgram]:
    """The programs worth having; empty where there is little to gain.

    Nodes that can be taken apart have a level: how often a path to them has left such nodes and come back.
    Those of one level and one number of rows make a program; no path leads out of it and back into it.
    """
    found: list[RowProgram] = []
    for dtype, kind in ((torch.float32, np.float32), (torch.float64, np.float64)):
        reader = _Reader(graph, dtype, Program(kind))
        groups: dict[tuple[int, int], set[fx.Node]] = {}
        for node, array in reader.arrays.items():
            groups.setdefault((reader.level[node], array.rows), set()).add(node)
        for key in sorted(groups):
            outputs = _boundary(groups[key], reader)
            steps = needed(reader.program, [int(i) for _, array in outputs for i in array.entries.flat])
            computed = sum(reader.program.steps[i].name not in ("load", "constant") for i in steps)
            if _LEAST_STEPS <= computed <= _MOST_STEPS:
                loads = [
                    reader.program.steps[i].value for i in steps if reader.program.steps[i].name == "load"
                ]
                inputs = [reader.sources[k] for k in sorted({load.input for load in loads})]
                found.append(RowProgram(reader.program, key[1], inputs, outputs, steps))
    return found


def _boundary(inside: set[fx.Node], reader: _Reader) -> list[tuple[fx.Node, Array]]:
    """Nodes whose numbers the rest needs; views, conditions and constants are made again there."""
    wanted: set[fx.Node] = set()
    stack = [n for n in inside if any(user not in inside for user in n.users)]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node not in inside:
            continue
        if may_share_memory(node) or node.meta["val"].dtype == torch.bool or reader.is_constant(node):
            fresh = [source for source in node.all_input_nodes if source not in seen]
            seen.update(fresh)
            stack += fresh
        else:
            wanted.add(node)
    return [(node, array) for node, array in reader.arrays.items() if node in wanted]


class _Reader:
    """Walks a graph once and takes apart what it can."""

    def __init__(self, graph: fx.GraphModule, dtype: torch.dtype, program: Program) -> None:
        self.graph, self.dtype, self.program = graph, dtype, program
        self.arrays: dict[fx.Node, Array] = {}
        self.lists: dict[fx.Node, list[Array]] = {}
        self.uniform: dict[fx.Node, Array] = {}
        self.level: dict[fx.Node, int] = {}
        self.sources: list[fx.Node] = []
        self.loaded: dict[fx.Node, Array | None] = {}
        self.current = 0
        for node in graph.graph.nodes:
            value = node.meta.get("val")
            self.level[node] = self.current = max((self.level[n] for n in node.all_input_nodes), default=0)
            if node.op == "get_attr":
                self._keep(node, self._constant(getattr(graph, str(node.target))))
            elif node.op == "call_function":
                self._read(node, value)
            if node not in self.arrays and node not in self.uniform:
                left = (self.level[n] + (n in self.arrays) for n in node.all_input_nodes)
                self.level[node] = max(left, default=0)

    def _keep(self, node: fx.Node, array: Array | None) -> None:
        if array is not None:
            (self.uniform if array.axis is None else self.arrays)[node] = array

    def _read(self, node: fx.Node, value: Any) -> None:
        try:
            if node.target is operator.getitem:
                if node.args[0] in self.lists and self.level[node.args[0]] == self.current:
                    self._keep(node, self._checked(self.lists[node.args[0]][cast(int, node.args[1])], value))
                return
            rule = _RULES.get(node.target)
            if rule is None:
                return
            if isinstance(value, Tensor) and (
                value.device.type != "cpu"
                or value.dtype != (torch.bool if node.target in _CONDITIONS else self.dtype)
            ):
                return
            result = rule(self, node, *node.args, **node.kwargs)
            if isinstance(result, list):
                self.lists[node] = result
                # A list is inside where all that it holds is: its getitems are read as they come.
                if result and all(a.axis is not None for a in result):
                    self.arrays[node] = result[0]
            else:
                self._keep(node, self._checked(result, value))
        except _Unsupported:
            return

    def _checked(self, array: Array, value: Tensor) -> Array:
        """`array`, which must have the shape that the graph says."""
        shape = list(array.entries.shape)
        if array.axis is not None:
            shape[array.axis] = array.rows
        if shape != list(value.shape) or array.entries.size > _MOST_ENTRIES:
            raise _Unsupported
        return array

    def _load(self, node: fx.Node) -> Array | None:
        """A tensor that the program reads; None if it cannot."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.device.type != "cpu" or value.dtype != self.dtype:
            return None
        shape, stride = list(value.shape), value.stride()
        axis = None
        if value.numel() > _MOST_ENTRIES:
            before = 1
            for k, n in enumerate(shape):
                if n >= LEAST_ROWS and value.numel() // n <= _MOST_ENTRIES and before <= _MOST_BEFORE:
                    axis = k
                    break
                before *= n
            else:
                return None
        step = 0 if axis is None else stride[axis]
        rows = 0 if axis is None else shape[axis]
        if axis is not None:
            shape[axis] = 1
        entries = np.empty(shape, dtype=object)
        for place in np.ndindex(*shape):
            offset = sum(i * s for i, s in zip(place, stride, strict=True))
            entries[place] = self.program.load(Load(len(self.sources), offset, step))
        self.sources.append(node)
        return Array(entries, axis, rows)

    def _constant(self, value: Any) -> Array | None:
        if not isinstance(value, Tensor) or value.numel() > _MOST_ENTRIES or value.dtype != self.dtype:
            return None
        entries = np.empty(tuple(value.shape), dtype=object)
        for place in np.ndindex(*value.shape):
            entries[place] = self.program.constant(float(value[place]))
        return Array(entries, None, 0)

    def is_constant(self, node: fx.Node) -> bool:
        """Whether all numbers of a taken-apart node are constants."""
        array = self.arrays.get(node)
        return array is not None and all(self.program.value(int(i)) is not None for i in array.entries.flat)

    # What rules use.

    def array(self, x: Any) -> Array:
        """An operand: a taken-apart node or a number."""
        if isinstance(x, fx.Node) and x.meta["val"].dtype == torch.bool:
            one, zero = self.program.constant(1.0), self.program.constant(0.0)
            return self.combine(lambda i: self.program.call("where", i, one, zero), self.mask(x))
        if isinstance(x, fx.Node):
            near = self.level[x] == self.current or self.is_constant(x)
            if near and x in self.arrays and x not in self.lists:
                return self.arrays[x]
            if x in self.uniform:
                return self.uniform[x]
            if x not in self.loaded:
                self.loaded[x] = self._load(x)
            array = self.loaded[x]
            if array is None:
                raise _Unsupported
            return array
        if isinstance(x, bool) or not isinstance(x, int | float):
            raise _Unsupported
        return Array(np.array(self.program.constant(float(x)), dtype=object), None, 0)

    def mask(self, x: Any) -> Array:
        """An operand that is a condition."""
        if (
            isinstance(x, fx.Node)
            and x.meta["val"].dtype == torch.bool
            and (x in self.arrays or x in self.uniform)
        ):
            return self.arrays.get(x) or self.uniform[x]
        raise _Unsupported

    def pointwise(self, name: str, *operands: Any) -> Array:
        """`name` on broadcast operands."""
        return self.combine(lambda *xs: self.program.call(name, *xs), *operands)

    def combine(self, fn: Callable[..., int], *operands: Any) -> Array:
        """`fn` on the numbers of broadcast operands."""
        given = [x if isinstance(x, Array) else self.array(x) for x in operands]
        given, axis, rows = _aligned(given)
        broadcast = np.broadcast_arrays(*(a.entries for a in given))
        out = np.empty(broadcast[0].shape, dtype=object)
        for place in np.ndindex(*out.shape):
            out[place] = fn(*(int(b[place]) for b in broadcast))
        return Array(out, axis, rows)

    def filled(self, shape: Sequence[int], number: Any) -> Array:
        """A constant in every place; which axis is called the batch makes no difference."""
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise _Unsupported
        long = [k for k, n in enumerate(shape) if n >= LEAST_ROWS]
        if len(long) > 1:
            raise _Unsupported
        kept = [1 if k in long else n for k, n in enumerate(shape)]
        if int(np.prod(kept)) > _MOST_ENTRIES:
            raise _Unsupported
        entries = np.full(kept, self.program.constant(float(number)), dtype=object)
        return Array(entries, long[0], shape[long[0]]) if long else Array(entries, None, 0)

    def total(self, entries: np.ndarray, axes: tuple[int, ...], keepdim: bool) -> np.ndarray:
        """Sums over axes."""
        for axis in sorted(axes, reverse=True):
            parts = [np.take(entries, i, axis) for i in range(entries.shape[axis])]
            if not parts:
                raise _Unsupported
            out = parts[0]
            for part in parts[1:]:
                out = self._sum(out, part)
            entries = (
                np.expand_dims(np.asarray(out, dtype=object), axis)
                if keepdim
                else np.asarray(out, dtype=object)
            )
        return entries

    def _sum(self, x: Any, y: Any) -> np.ndarray:
        a, b = np.asarray(x, dtype=object), np.asarray(y, dtype=object)
        out = np.empty(a.shape, dtype=object)
        for place in np.ndindex(*a.shape):
            out[place] = self.program.call("add", int(a[place]), int(b[place]))
        return out


def _aligned(given: list[Array]) -> tuple[list[Array], int | None, int]:
    """Operands that can be broadcast, and where the batch axis of the result is."""
    ndim = max(a.entries.ndim for a in given)
    places = {(a.axis + ndim - a.entries.ndim, a.rows) for a in given if a.axis is not None}
    if len(places) > 1:
        raise _Unsupported
    if not places:
        return given, None, 0
    axis, rows = places.pop()
    for a in given:
        own = axis - (ndim - a.entries.ndim)
        if a.axis is None and own >= 0 and a.entries.shape[own] != 1:
            raise _Unsupported
    return given, axis, rows


def _dim(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


# Rules: (reader, node, *the node's arguments) -> Array, or a list of them.


def _binary(name: str) -> Callable[..., Array]:
    def rule(
        reader: _Reader, node: fx.Node, x: Any, y: Any, *, alpha: Any = 1, rounding_mode: Any = None
    ) -> Array:
        if rounding_mode is not None or (node.meta["val"].dtype == torch.bool and name not in COMPARISONS):
            raise _Unsupported
        second = y if alpha == 1 else reader.pointwise("mul", y, alpha)
        return reader.pointwise(name, x, second)

    return rule


def _unary(name: str) -> Callable[..., Array]:
    return lambda reader, node, x: reader.pointwise(name, x)


def _logical(name: str) -> Callable[..., Array]:
    return lambda reader, node, *operands: reader.combine(
        lambda *xs: reader.program.call(name, *xs), *(reader.mask(x) for x in operands)
    )


def _rsub(reader: _Reader, node: fx.Node, x: Any, y: Any, alpha: Any = 1) -> Array:
    return reader.pointwise("sub", y, x if alpha == 1 else reader.pointwise("mul", x, alpha))


def _addcmul(name: str) -> Callable[..., Array]:
    def rule(reader: _Reader, node: fx.Node, x: Any, y: Any, z: Any, *, value: Any = 1) -> Array:
        term = reader.pointwise(name, y, z)
        return reader.pointwise("add", x, term if value == 1 else reader.pointwise("mul", term, value))

    return rule


def _pow(reader: _Reader, node: fx.Node, x: Any, exponent: Any) -> Array:
    base = reader.array(x)
    if exponent in (1, 2, 3, 4):
        out = base
        for _ in range(int(exponent) - 1):
            out = reader.pointwise("mul", out, base)
        return out
    if exponent == -1:
        return reader.pointwise("div", 1.0, base)
    if exponent == 0.5:
        return reader.pointwise("sqrt", base)
    if exponent == -0.5:
        return reader.pointwise("div", 1.0, reader.pointwise("sqrt", base))
    return reader.pointwise("pow", base, exponent)


def _where(reader: _Reader, node: fx.Node, condition: Any, x: Any, y: Any) -> Array:
    return reader.pointwise("where", reader.mask(condition), x, y)


def _clamp(reader: _Reader, node: fx.Node, x: Any, min: Any = None, max: Any = None) -> Array:
    out = reader.array(x)
    if min is not None:
        out = reader.pointwise("max", out, min)
    return out if max is None else reader.pointwise("min", out, max)


def _sigmoid_backward(reader: _Reader, node: fx.Node, grad: Any, out: Any) -> Array:
    rest = reader.pointwise("sub", 1.0, out)
    return reader.pointwise("mul", grad, reader.pointwise("mul", rest, out))


def _tanh_backward(reader: _Reader, node: fx.Node, grad: Any, out: Any) -> Array:
    return reader.pointwise("mul", grad, reader.pointwise("sub", 1.0, reader.pointwise("mul", out, out)))


def _sigmoid(reader: _Reader, node: fx.Node, x: Any) -> Array:
    grown = reader.pointwise("exp", reader.pointwise("neg", x))
    return reader.pointwise("div", 1.0, reader.pointwise("add", 1.0, grown))


def _same(reader: _Reader, node: fx.Node, x: Any, **options: Any) -> Array:
    return reader.array(x)


def _to_copy(reader: _Reader, node: fx.Node, x: Any, **options: Any) -> Array:
    source = x.meta["val"] if isinstance(x, fx.Node) else None
    if source is None or source.device.type != "cpu":
        raise _Unsupported
    if source.dtype == node.meta["val"].dtype != torch.bool:
        return reader.array(x)
    if source.dtype == torch.bool and node.meta["val"].dtype == reader.dtype:
        return reader.array(x)
    raise _Unsupported


def _copy(reader: _Reader, node: fx.Node, x: Any, source: Any, *rest: Any) -> Array:
    if isinstance(source, fx.Node) and source.meta["val"].dtype != node.meta["val"].dtype:
        raise _Unsupported
    return _expanded(reader.array(source), node.meta["val"].shape)


def _fill(reader: _Reader, node: fx.Node, x: Any, number: Any) -> Array:
    return reader.filled(node.meta["val"].shape, number)


def _constant_of(number: float) -> Callable[..., Array]:
    return lambda reader, node, *args, **options: reader.filled(node.meta["val"].shape, number)


def _full(position: int) -> Callable[..., Array]:
    return lambda reader, node, *args, **options: reader.filled(node.meta["val"].shape, args[position])


def _eye(reader: _Reader, node: fx.Node, n: int, m: int | None = None, **options: Any) -> Array:
    one, zero = reader.program.constant(1.0), reader.program.constant(0.0)
    entries = np.where(np.eye(n, n if m is None else m) > 0, one, zero).astype(object)
    return Array(entries, None, 0)


def _view(reader: _Reader, node: fx.Node, x: Any, shape: Any) -> Array:
    array, new = reader.array(x), list(node.meta["val"].shape)
    if array.axis is None:
        return Array(array.entries.reshape(new), None, 0)
    before = int(np.prod(array.entries.shape[: array.axis], dtype=int))
    for k, n in enumerate(new):
        if n == array.rows and int(np.prod(new[:k], dtype=int)) == before:
            new[k] = 1
            return Array(array.entries.reshape(new), k, array.rows)
    raise _Unsupported


def _expand(reader: _Reader, node: fx.Node, x: Any, shape: Any, **options: Any) -> Array:
    return _expanded(reader.array(x), node.meta["val"].shape)


def _expanded(array: Array, shape: Sequence[int]) -> Array:
    new, ndim = list(shape), len(shape)
    if array.axis is not None:
        axis = array.axis + ndim - array.entries.ndim
        new[axis] = 1
        return Array(_spread(array.entries, new), axis, array.rows)
    long = [k for k, n in enumerate(new) if n >= LEAST_ROWS]
    if len(long) > 1:
        raise _Unsupported
    for k in long:
        own = k - (ndim - array.entries.ndim)
        if own >= 0 and array.entries.shape[own] != 1:
            raise _Unsupported
        new[k] = 1
    entries = _spread(array.entries, new)
    return Array(entries, long[0], shape[long[0]]) if long else Array(entries, None, 0)


def _spread(entries: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if int(np.prod(shape)) > _MOST_ENTRIES:
        raise _Unsupported
    return np.broadcast_to(entries, tuple(shape))


def _permute(reader: _Reader, node: fx.Node, x: Any, dims: Sequence[int]) -> Array:
    array = reader.array(x)
    order = [_dim(d, array.entries.ndim) for d in dims]
    axis = None if array.axis is None else order.index(array.axis)
    return Array(array.entries.transpose(order), axis, array.rows)


def _transpose(reader: _Reader, node: fx.Node, x: Any, first: int, second: int) -> Array:
    ndim = reader.array(x).entries.ndim
    order = list(range(ndim))
    first, second = _dim(first, ndim), _dim(second, ndim)
    order[first], order[second] = order[second], order[first]
    return _permute(reader, node, x, order)


def _t(reader: _Reader, node: fx.Node, x: Any) -> Array:
    return _permute(reader, node, x, list(range(reader.array(x).entries.ndim))[::-1])


def _unsqueeze(reader: _Reader, node: fx.Node, x: Any, dim: int) -> Array:
    array = reader.array(x)
    dim = _dim(dim, array.entries.ndim + 1)
    axis = array.axis if array.axis is None or array.axis < dim else array.axis + 1
    return Array(np.expand_dims(array.entries, dim), axis, array.rows)


def _squeeze(reader: _Reader, node: fx.Node, x: Any, dims: Any = None) -> Array:
    array = reader.array(x)
    ndim = array.entries.ndim
    named = (
        range(ndim)
        if dims is None
        else [_dim(d, ndim) for d in (dims if isinstance(dims, list | tuple) else [dims])]
    )
    gone = [d for d in named if array.entries.shape[d] == 1 and d != array.axis]
    axis = None if array.axis is None else array.axis - sum(d < array.axis for d in gone)
    return Array(array.entries.squeeze(tuple(gone)), axis, array.rows)


def _select(reader: _Reader, node: fx.Node, x: Any, dim: int, index: int) -> Array:
    array = reader.array(x)
    dim = _dim(dim, array.entries.ndim)
    if dim == array.axis:
        raise _Unsupported
    axis = None if array.axis is None else array.axis - (dim < array.axis)
    return Array(np.asarray(array.entries.take(index, dim), dtype=object), axis, array.rows)


def _slice(
    reader: _Reader,
    node: fx.Node,
    x: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Array:
    array = reader.array(x)
    dim = _dim(dim, array.entries.ndim)
    if dim != array.axis:
        index = [slice(None)] * array.entries.ndim
        index[dim] = slice(start, end, step)
        return Array(array.entries[tuple(index)], array.axis, array.rows)
    first, last, step = slice(start, end, step).indices(array.rows)
    rows = len(range(first, last, step))
    if rows < LEAST_ROWS:
        raise _Unsupported
    entries = np.empty(array.entries.shape, dtype=object)
    for place in np.ndindex(*entries.shape):
        found = reader.program.steps[int(array.entries[place])]
        if found.name == "load":
            load = found.value
            moved = Load(load.input, load.offset + first * load.stride, load.stride * step)
            entries[place] = reader.program.load(moved)
        elif found.name == "constant":
            entries[place] = array.entries[place]
        else:  # rows of something computed: another program would have to compute it
            raise _Unsupported
    return Array(entries, dim, rows)


def _unbind(reader: _Reader, node: fx.Node, x: Any, dim: int = 0) -> list[Array]:
    n = reader.array(x).entries.shape[_dim(dim, reader.array(x).entries.ndim)]
    return [_select(reader, node, x, dim, i) for i in range(n)]


def _split(reader: _Reader, node: fx.Node, x: Any, sizes: Any, dim: int = 0) -> list[Array]:
    n = x.meta["val"].shape[dim]
    lengths = [min(sizes, n - i) for i in range(0, n, sizes)] if isinstance(sizes, int) else list(sizes)
    ends = np.cumsum(lengths)
    return [_slice(reader, node, x, dim, int(e) - m, int(e)) for e, m in zip(ends, lengths, strict=True)]


def _cat(reader: _Reader, node: fx.Node, parts: Any, dim: int = 0) -> Array:
    shape, dim = node.meta["val"].shape, _dim(dim, node.meta["val"].ndim)
    arrays = [reader.array(x) for x in parts]
    places = {(a.axis, a.rows) for a in arrays if a.axis is not None}
    if len(places) > 1 or (places and next(iter(places))[0] == dim):
        raise _Unsupported
    axis, rows = places.pop() if places else (None, 0)
    entries = []
    for a in arrays:
        target = [1 if k == axis else n for k, n in enumerate(shape)]
        target[dim] = a.entries.shape[dim]
        if a.entries.shape != tuple(target):
            raise _Unsupported
        entries.append(a.entries)
    return Array(np.concatenate(entries, dim), axis, rows)


def _stack(reader: _Reader, node: fx.Node, parts: Any, dim: int = 0) -> Array:
    arrays = [reader.array(x) for x in parts]
    places = {(a.axis, a.rows) for a in arrays}
    if len(places) > 1:
        raise _Unsupported
    axis, rows = places.pop()
    dim = _dim(dim, node.meta["val"].ndim)
    axis = axis if axis is None or axis < dim else axis + 1
    return Array(np.stack([a.entries for a in arrays], dim), axis, rows)


def _sum(
    reader: _Reader, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    array = reader.array(x)
    ndim = array.entries.ndim
    axes = tuple(range(ndim)) if not dims else tuple(_dim(d, ndim) for d in dims)
    if array.axis in axes:
        raise _Unsupported
    axis = array.axis
    if axis is not None and not keepdim:
        axis -= sum(d < axis for d in axes)
    return Array(reader.total(array.entries, axes, keepdim), axis, array.rows)


def _mean(
    reader: _Reader, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    source, result = reader.array(x), _sum(reader, node, x, dims, keepdim)
    share = source.entries.size // max(result.entries.size, 1)
    return reader.pointwise("div", result, float(share))


def _norm(
    reader: _Reader,
    node: fx.Node,
    x: Any,
    ord: Any = 2,
    dims: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Array:
    if ord != 2 or dims is None:
        raise _Unsupported
    array = reader.array(x)
    squared = reader.pointwise("mul", array, array)
    axes = tuple(_dim(d, array.entries.ndim) for d in dims)
    if array.axis in axes:
        raise _Unsupported
    axis = array.axis if array.axis is None or keepdim else array.axis - sum(d < array.axis for d in axes)
    return reader.pointwise("sqrt", Array(reader.total(squared.entries, axes, keepdim), axis, array.rows))


def _cumsum(reader: _Reader, node: fx.Node, x: Any, dim: int, *, dtype: Any = None) -> Array:
    array = reader.array(x)
    dim = _dim(dim, array.entries.ndim)
    if dim == array.axis:
        raise _Unsupported
    parts = [np.take(array.entries, [i], dim) for i in range(array.entries.shape[dim])]
    for i in range(1, len(parts)):
        parts[i] = reader._sum(parts[i - 1], parts[i])
    return Array(np.concatenate(parts, dim), array.axis, array.rows)


def _cross(reader: _Reader, node: fx.Node, x: Any, y: Any, *, dim: int = -1) -> Array:
    (a, b), axis, rows = _aligned([reader.array(x), reader.array(y)])
    if a.entries.ndim != b.entries.ndim:
        raise _Unsupported
    dim = _dim(dim, a.entries.ndim)
    if dim == axis:
        raise _Unsupported
    call, parts = reader.program.call, []
    first, second = np.broadcast_arrays(a.entries, b.entries)
    for i, j in ((1, 2), (2, 0), (0, 1)):
        p, q, r, s = (np.take(m, [k], dim) for m, k in ((first, i), (second, j), (first, j), (second, i)))
        part = np.empty(p.shape, dtype=object)
        for place in np.ndindex(*p.shape):
            left = call("mul", int(p[place]), int(q[place]))
            part[place] = call("sub", left, call("mul", int(r[place]), int(s[place])))
        parts.append(part)
    return Array(np.concatenate(parts, dim), axis, rows)


def _bmm(reader: _Reader, node: fx.Node, x: Any, y: Any) -> Array:
    a, b = reader.array(x), reader.array(y)
    if a.axis != 0 or b.axis != 0 or a.rows != b.rows:
        raise _Unsupported
    left, right = a.entries[..., None], b.entries[:, None]
    if int(np.prod(np.broadcast_shapes(left.shape, right.shape))) > 16 * _MOST_ENTRIES:
        raise _Unsupported
    product = reader.combine(
        lambda p, q: reader.program.call("mul", p, q), Array(left, 0, a.rows), Array(right, 0, a.rows)
    )
    return Array(reader.total(product.entries, (2,), False), 0, a.rows)


def _select_backward(reader: _Reader, node: fx.Node, grad: Any, sizes: Any, dim: int, index: int) -> Array:
    return _placed(reader, node, _unsqueeze(reader, node, grad, dim), dim, slice(index, index + 1 or None))


def _slice_backward(
    reader: _Reader, node: fx.Node, grad: Any, sizes: Any, dim: int, start: int, end: int, step: int
) -> Array:
    return _placed(reader, node, reader.array(grad), dim, slice(start, end, step))


def _placed(reader: _Reader, node: fx.Node, array: Array, dim: int, where: slice) -> Array:
    """Zeros of the node's shape with `array` in some places of an axis."""
    shape = list(node.meta["val"].shape)
    dim = _dim(dim, len(shape))
    if array.axis is None or array.axis == dim:
        raise _Unsupported
    shape[array.axis] = 1
    if int(np.prod(shape)) > _MOST_ENTRIES:
        raise _Unsupported
    entries = np.full(shape, reader.program.constant(0.0), dtype=object)
    index: list[Any] = [slice(None)] * len(shape)
    index[dim] = where
    entries[tuple(index)] = array.entries
    return Array(entries, array.axis, array.rows)


_RULES: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: _binary("add"), _aten.add.Scalar: _binary("add"),
    _aten.sub.Tensor: _binary("sub"), _aten.sub.Scalar: _binary("sub"),
    _aten.mul.Tensor: _binary("mul"), _aten.mul.Scalar: _binary("mul"),
    _aten.div.Tensor: _binary("div"), _aten.div.Scalar: _binary("div"),
    _aten.rsub.Scalar: _rsub, _aten.rsub.Tensor: _rsub,
    _aten.addcmul.default: _addcmul("mul"), _aten.addcdiv.default: _addcmul("div"),
    _aten.maximum.default: _binary("max"), _aten.minimum.default: _binary("min"),
    _aten.atan2.default: _binary("atan2"),
    _aten.pow.Tensor_Scalar: _pow, _aten.where.self: _where,
    _aten.clamp.default: _clamp, _aten.clamp_min.default: lambda r, n, x, low: _clamp(r, n, x, low),
    _aten.clamp_max.default: lambda r, n, x, high: _clamp(r, n, x, None, high),
    _aten.reciprocal.default: lambda r, n, x: r.pointwise("div", 1.0, x),
    _aten.rsqrt.default: lambda r, n, x: r.pointwise("div", 1.0, r.pointwise("sqrt", x)),
    _aten.sigmoid.default: _sigmoid, _aten.sigmoid_backward.default: _sigmoid_backward,
    _aten.tanh_backward.default: _tanh_backward,
    _aten.logical_and.default: _logical("and"), _aten.bitwise_and.Tensor: _logical("and"),
    _aten.logical_or.default: _logical("or"), _aten.bitwise_or.Tensor: _logical("or"),
    _aten.logical_not.default: _logical("not"), _aten.bitwise_not.default: _logical("not"),
    _aten.alias.default: _same, _aten.detach.default: _same, _aten.clone.default: _same,
    _aten.lift_fresh_copy.default: _same, _aten._to_copy.default: _to_copy, _aten.copy.default: _copy,
    _aten.fill.Scalar: _fill, _aten.full.default: _full(1), _aten.full_like.default: _full(1),
    _aten.new_full.default: _full(2), _aten.scalar_tensor.default: _full(0),
    _aten.zeros.default: _constant_of(0.0), _aten.zeros_like.default: _constant_of(0.0),
    _aten.new_zeros.default: _constant_of(0.0), _aten.ones.default: _constant_of(1.0),
    _aten.ones_like.default: _constant_of(1.0), _aten.new_ones.default: _constant_of(1.0),
    _aten.eye.default: _eye, _aten.eye.m: _eye,
    _aten.view.default: _view, _aten._unsafe_view.default: _view, _aten.reshape.default: _view,
    _aten.expand.default: _expand, _aten.permute.default: _permute, _aten.transpose.int: _transpose,
    _aten.t.default: _t, _aten.unsqueeze.default: _unsqueeze, _aten.squeeze.default: _squeeze,
    _aten.squeeze.dim: _squeeze, _aten.squeeze.dims: _squeeze, _aten.select.int: _select,
    _aten.slice.Tensor: _slice, _aten.unbind.int: _unbind, _aten.split.Tensor: _split,
    _aten.split_with_sizes.default: _split, _aten.cat.default: _cat, _aten.stack.default: _stack,
    _aten.sum.dim_IntList: _sum, _aten.mean.dim: _mean, _aten.linalg_vector_norm.default: _norm,
    _aten.cumsum.default: _cumsum, _aten.linalg_cross.default: _cross, _aten.bmm.default: _bmm,
    _aten.select_backward.default: _select_backward, _aten.slice_backward.default: _slice_backward,
    **{getattr(_aten, name).default: _unary(name) for name in (
        "neg", "abs", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "expm1",
        "log", "log1p", "sqrt", "floor", "ceil", "round", "erf",
    )},
    **{getattr(getattr(_aten, name), overload): _binary(name) for name in COMPARISONS
       for overload in ("Scalar", "Tensor")},
}  # fmt: skip
# Results that are conditions; others of that dtype (views of conditions, say) are left alone.
_CONDITIONS = {
    *(getattr(getattr(_aten, name), overload) for name in COMPARISONS for overload in ("Scalar", "Tensor")),
    _aten.logical_and.default, _aten.bitwise_and.Tensor, _aten.logical_or.default, _aten.bitwise_or.Tensor,
    _aten.logical_not.default, _aten.bitwise_not.default,
}  # fmt: skip
