"""What each operator does to tensors that are taken apart: a rule each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from mfk.core.compiler.rowarrays import LEAST_ROWS, MOST_ENTRIES, Array, Unsupported, aligned, axis_of
from mfk.core.compiler.scalars import Load

if TYPE_CHECKING:
    from mfk.core.compiler.rowwise import Reader

_aten: Any = torch.ops.aten
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


def _binary(name: str) -> Callable[..., Array]:
    def rule(
        reader: Reader, node: fx.Node, x: Any, y: Any, *, alpha: Any = 1, rounding_mode: Any = None
    ) -> Array:
        if rounding_mode is not None or (node.meta["val"].dtype == torch.bool and name not in COMPARISONS):
            raise Unsupported
        second = y if alpha == 1 else reader.pointwise("mul", y, alpha)
        return reader.pointwise(name, x, second)

    return rule


def _unary(name: str) -> Callable[..., Array]:
    return lambda reader, node, x: reader.pointwise(name, x)


def _logical(name: str) -> Callable[..., Array]:
    return lambda reader, node, *operands: reader.combine(
        lambda *xs: reader.program.call(name, *xs), *(reader.mask(x) for x in operands)
    )


def _rsub(reader: Reader, node: fx.Node, x: Any, y: Any, alpha: Any = 1) -> Array:
    return reader.pointwise("sub", y, x if alpha == 1 else reader.pointwise("mul", x, alpha))


def _addcmul(name: str) -> Callable[..., Array]:
    def rule(reader: Reader, node: fx.Node, x: Any, y: Any, z: Any, *, value: Any = 1) -> Array:
        term = reader.pointwise(name, y, z)
        return reader.pointwise("add", x, term if value == 1 else reader.pointwise("mul", term, value))

    return rule


def _pow(reader: Reader, node: fx.Node, x: Any, exponent: Any) -> Array:
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


def _where(reader: Reader, node: fx.Node, condition: Any, x: Any, y: Any) -> Array:
    return reader.pointwise("where", reader.mask(condition), x, y)


def _clamp(reader: Reader, node: fx.Node, x: Any, min: Any = None, max: Any = None) -> Array:
    out = reader.array(x)
    if min is not None:
        out = reader.pointwise("max", out, min)
    return out if max is None else reader.pointwise("min", out, max)


def _sigmoid_backward(reader: Reader, node: fx.Node, grad: Any, out: Any) -> Array:
    rest = reader.pointwise("sub", 1.0, out)
    return reader.pointwise("mul", grad, reader.pointwise("mul", rest, out))


def _tanh_backward(reader: Reader, node: fx.Node, grad: Any, out: Any) -> Array:
    return reader.pointwise("mul", grad, reader.pointwise("sub", 1.0, reader.pointwise("mul", out, out)))


def _sigmoid(reader: Reader, node: fx.Node, x: Any) -> Array:
    grown = reader.pointwise("exp", reader.pointwise("neg", x))
    return reader.pointwise("div", 1.0, reader.pointwise("add", 1.0, grown))


def _same(reader: Reader, node: fx.Node, x: Any, **options: Any) -> Array:
    return reader.array(x)


def _to_copy(reader: Reader, node: fx.Node, x: Any, **options: Any) -> Array:
    source = x.meta["val"] if isinstance(x, fx.Node) else None
    if source is None or source.device.type != "cpu":
        raise Unsupported
    if source.dtype == node.meta["val"].dtype != torch.bool:
        return reader.array(x)
    if source.dtype == torch.bool and node.meta["val"].dtype == reader.dtype:
        return reader.array(x)
    raise Unsupported


def _copy(reader: Reader, node: fx.Node, x: Any, source: Any, *rest: Any) -> Array:
    if isinstance(source, fx.Node) and source.meta["val"].dtype != node.meta["val"].dtype:
        raise Unsupported
    return _expanded(reader.array(source), node.meta["val"].shape)


def _fill(reader: Reader, node: fx.Node, x: Any, number: Any) -> Array:
    return reader.filled(node.meta["val"].shape, number)


def _constant_of(number: float) -> Callable[..., Array]:
    return lambda reader, node, *args, **options: reader.filled(node.meta["val"].shape, number)


def _full(position: int) -> Callable[..., Array]:
    return lambda reader, node, *args, **options: reader.filled(node.meta["val"].shape, args[position])


def _eye(reader: Reader, node: fx.Node, n: int, m: int | None = None, **options: Any) -> Array:
    one, zero = reader.program.constant(1.0), reader.program.constant(0.0)
    entries = np.where(np.eye(n, n if m is None else m) > 0, one, zero).astype(object)
    return Array(entries, None, 0)


def _view(reader: Reader, node: fx.Node, x: Any, shape: Any) -> Array:
    array, new = reader.array(x), list(node.meta["val"].shape)
    if array.axis is None:
        return Array(array.entries.reshape(new), None, 0)
    before = int(np.prod(array.entries.shape[: array.axis], dtype=int))
    for k, n in enumerate(new):
        if n == array.rows and int(np.prod(new[:k], dtype=int)) == before:
            new[k] = 1
            return Array(array.entries.reshape(new), k, array.rows)
    raise Unsupported


def _expand(reader: Reader, node: fx.Node, x: Any, shape: Any, **options: Any) -> Array:
    return _expanded(reader.array(x), node.meta["val"].shape)


def _expanded(array: Array, shape: Sequence[int]) -> Array:
    new, ndim = list(shape), len(shape)
    if array.axis is not None:
        axis = array.axis + ndim - array.entries.ndim
        new[axis] = 1
        return Array(_spread(array.entries, new), axis, array.rows)
    long = [k for k, n in enumerate(new) if n >= LEAST_ROWS]
    if len(long) > 1:
        raise Unsupported
    for k in long:
        own = k - (ndim - array.entries.ndim)
        if own >= 0 and array.entries.shape[own] != 1:
            raise Unsupported
        new[k] = 1
    entries = _spread(array.entries, new)
    return Array(entries, long[0], shape[long[0]]) if long else Array(entries, None, 0)


def _spread(entries: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if int(np.prod(shape)) > MOST_ENTRIES:
        raise Unsupported
    return np.broadcast_to(entries, tuple(shape))


def _permute(reader: Reader, node: fx.Node, x: Any, dims: Sequence[int]) -> Array:
    array = reader.array(x)
    order = [axis_of(d, array.entries.ndim) for d in dims]
    axis = None if array.axis is None else order.index(array.axis)
    return Array(array.entries.transpose(order), axis, array.rows)


def _transpose(reader: Reader, node: fx.Node, x: Any, first: int, second: int) -> Array:
    ndim = reader.array(x).entries.ndim
    order = list(range(ndim))
    first, second = axis_of(first, ndim), axis_of(second, ndim)
    order[first], order[second] = order[second], order[first]
    return _permute(reader, node, x, order)


def _t(reader: Reader, node: fx.Node, x: Any) -> Array:
    return _permute(reader, node, x, list(range(reader.array(x).entries.ndim))[::-1])


def _unsqueeze(reader: Reader, node: fx.Node, x: Any, dim: int) -> Array:
    array = reader.array(x)
    dim = axis_of(dim, array.entries.ndim + 1)
    axis = array.axis if array.axis is None or array.axis < dim else array.axis + 1
    return Array(np.expand_dims(array.entries, dim), axis, array.rows)


def _squeeze(reader: Reader, node: fx.Node, x: Any, dims: Any = None) -> Array:
    array = reader.array(x)
    ndim = array.entries.ndim
    named = (
        range(ndim)
        if dims is None
        else [axis_of(d, ndim) for d in (dims if isinstance(dims, list | tuple) else [dims])]
    )
    gone = [d for d in named if array.entries.shape[d] == 1 and d != array.axis]
    axis = None if array.axis is None else array.axis - sum(d < array.axis for d in gone)
    return Array(array.entries.squeeze(tuple(gone)), axis, array.rows)


def _select(reader: Reader, node: fx.Node, x: Any, dim: int, index: int) -> Array:
    array = reader.array(x)
    dim = axis_of(dim, array.entries.ndim)
    if dim == array.axis:
        raise Unsupported
    axis = None if array.axis is None else array.axis - (dim < array.axis)
    return Array(np.asarray(array.entries.take(index, dim), dtype=object), axis, array.rows)


def _slice(
    reader: Reader,
    node: fx.Node,
    x: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Array:
    array = reader.array(x)
    dim = axis_of(dim, array.entries.ndim)
    if dim != array.axis:
        index = [slice(None)] * array.entries.ndim
        index[dim] = slice(start, end, step)
        return Array(array.entries[tuple(index)], array.axis, array.rows)
    first, last, step = slice(start, end, step).indices(array.rows)
    rows = len(range(first, last, step))
    if rows < LEAST_ROWS:
        raise Unsupported
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
            raise Unsupported
    return Array(entries, dim, rows)


def _unbind(reader: Reader, node: fx.Node, x: Any, dim: int = 0) -> list[Array]:
    n = reader.array(x).entries.shape[axis_of(dim, reader.array(x).entries.ndim)]
    return [_select(reader, node, x, dim, i) for i in range(n)]


def _split(reader: Reader, node: fx.Node, x: Any, sizes: Any, dim: int = 0) -> list[Array]:
    n = x.meta["val"].shape[dim]
    lengths = [min(sizes, n - i) for i in range(0, n, sizes)] if isinstance(sizes, int) else list(sizes)
    ends = np.cumsum(lengths)
    return [_slice(reader, node, x, dim, int(e) - m, int(e)) for e, m in zip(ends, lengths, strict=True)]


def _cat(reader: Reader, node: fx.Node, parts: Any, dim: int = 0) -> Array:
    shape, dim = node.meta["val"].shape, axis_of(dim, node.meta["val"].ndim)
    arrays = [reader.array(x) for x in parts]
    places = {(a.axis, a.rows) for a in arrays if a.axis is not None}
    if len(places) > 1 or (places and next(iter(places))[0] == dim):
        raise Unsupported
    axis, rows = places.pop() if places else (None, 0)
    entries = []
    for a in arrays:
        target = [1 if k == axis else n for k, n in enumerate(shape)]
        target[dim] = a.entries.shape[dim]
        if a.entries.shape != tuple(target):
            raise Unsupported
        entries.append(a.entries)
    return Array(np.concatenate(entries, dim), axis, rows)


def _stack(reader: Reader, node: fx.Node, parts: Any, dim: int = 0) -> Array:
    arrays = [reader.array(x) for x in parts]
    places = {(a.axis, a.rows) for a in arrays}
    if len(places) > 1:
        raise Unsupported
    axis, rows = places.pop()
    dim = axis_of(dim, node.meta["val"].ndim)
    axis = axis if axis is None or axis < dim else axis + 1
    return Array(np.stack([a.entries for a in arrays], dim), axis, rows)


def _sum(
    reader: Reader, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    array = reader.array(x)
    ndim = array.entries.ndim
    axes = tuple(range(ndim)) if not dims else tuple(axis_of(d, ndim) for d in dims)
    if array.axis in axes:
        raise Unsupported
    axis = array.axis
    if axis is not None and not keepdim:
        axis -= sum(d < axis for d in axes)
    return Array(reader.total(array.entries, axes, keepdim), axis, array.rows)


def _mean(
    reader: Reader, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    source, result = reader.array(x), _sum(reader, node, x, dims, keepdim)
    share = source.entries.size // max(result.entries.size, 1)
    return reader.pointwise("div", result, float(share))


def _norm(
    reader: Reader,
    node: fx.Node,
    x: Any,
    ord: Any = 2,
    dims: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Array:
    if ord != 2 or dims is None:
        raise Unsupported
    array = reader.array(x)
    squared = reader.pointwise("mul", array, array)
    axes = tuple(axis_of(d, array.entries.ndim) for d in dims)
    if array.axis in axes:
        raise Unsupported
    axis = array.axis if array.axis is None or keepdim else array.axis - sum(d < array.axis for d in axes)
    return reader.pointwise("sqrt", Array(reader.total(squared.entries, axes, keepdim), axis, array.rows))


def _cumsum(reader: Reader, node: fx.Node, x: Any, dim: int, *, dtype: Any = None) -> Array:
    array = reader.array(x)
    dim = axis_of(dim, array.entries.ndim)
    if dim == array.axis:
        raise Unsupported
    parts = [np.take(array.entries, [i], dim) for i in range(array.entries.shape[dim])]
    for i in range(1, len(parts)):
        parts[i] = reader._sum(parts[i - 1], parts[i])
    return Array(np.concatenate(parts, dim), array.axis, array.rows)


def _cross(reader: Reader, node: fx.Node, x: Any, y: Any, *, dim: int = -1) -> Array:
    (a, b), axis, rows = aligned([reader.array(x), reader.array(y)])
    if a.entries.ndim != b.entries.ndim:
        raise Unsupported
    dim = axis_of(dim, a.entries.ndim)
    if dim == axis:
        raise Unsupported
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


def _bmm(reader: Reader, node: fx.Node, x: Any, y: Any) -> Array:
    a, b = reader.array(x), reader.array(y)
    if a.axis != 0 or b.axis != 0 or a.rows != b.rows:
        raise Unsupported
    left, right = a.entries[..., None], b.entries[:, None]
    if int(np.prod(np.broadcast_shapes(left.shape, right.shape))) > 16 * MOST_ENTRIES:
        raise Unsupported
    product = reader.combine(
        lambda p, q: reader.program.call("mul", p, q), Array(left, 0, a.rows), Array(right, 0, a.rows)
    )
    return Array(reader.total(product.entries, (2,), False), 0, a.rows)


def _select_backward(reader: Reader, node: fx.Node, grad: Any, sizes: Any, dim: int, index: int) -> Array:
    return _placed(reader, node, _unsqueeze(reader, node, grad, dim), dim, slice(index, index + 1 or None))


def _slice_backward(
    reader: Reader, node: fx.Node, grad: Any, sizes: Any, dim: int, start: int, end: int, step: int
) -> Array:
    return _placed(reader, node, reader.array(grad), dim, slice(start, end, step))


def _placed(reader: Reader, node: fx.Node, array: Array, dim: int, where: slice) -> Array:
    """Zeros of the node's shape with `array` in some places of an axis."""
    shape = list(node.meta["val"].shape)
    dim = axis_of(dim, len(shape))
    if array.axis is None or array.axis == dim:
        raise Unsupported
    shape[array.axis] = 1
    if int(np.prod(shape)) > MOST_ENTRIES:
        raise Unsupported
    entries = np.full(shape, reader.program.constant(0.0), dtype=object)
    index: list[Any] = [slice(None)] * len(shape)
    index[dim] = where
    entries[tuple(index)] = array.entries
    return Array(entries, array.axis, array.rows)


RULES: dict[Any, Callable[..., Any]] = {
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
CONDITIONS = {
    *(getattr(getattr(_aten, name), overload) for name in COMPARISONS for overload in ("Scalar", "Tensor")),
    _aten.logical_and.default, _aten.bitwise_and.Tensor, _aten.logical_or.default, _aten.bitwise_or.Tensor,
    _aten.logical_not.default, _aten.bitwise_not.default,
}  # fmt: skip
