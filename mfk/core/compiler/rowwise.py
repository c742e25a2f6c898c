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
from mfk.core.compiler.rowarrays import LEAST_ROWS, MOST_ENTRIES, Array, Unsupported, aligned
from mfk.core.compiler.rowrules import CONDITIONS, RULES
from mfk.core.compiler.scalars import Load, Program, needed

_aten: Any = torch.ops.aten
_MOST_BEFORE = 8  # as the members of an ensemble, that may come before the batch axis
_LEAST_STEPS = 150  # fewer are left to Inductor
_MOST_STEPS = 60_000


class RowProgram(NamedTuple):
    """A part of a graph as a program for each row."""

    program: Program
    rows: int
    inputs: list[fx.Node]  # what it reads, in the order of its loads' numbers
    outputs: list[tuple[fx.Node, Array]]  # what the rest of the graph takes from it
    steps: list[int]  # the values that these need


def row_programs(graph: fx.GraphModule) -> list[RowProgram]:
    """The programs worth having; empty where there is little to gain.

    Nodes that can be taken apart have a level: how often a path to them has left such nodes and come back.
    Those of one level and one number of rows make a program; no path leads out of it and back into it.
    """
    found: list[RowProgram] = []
    for dtype, kind in ((torch.float32, np.float32), (torch.float64, np.float64)):
        reader = Reader(graph, dtype, Program(kind))
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


def _boundary(inside: set[fx.Node], reader: Reader) -> list[tuple[fx.Node, Array]]:
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


class Reader:
    """Walks a graph once and takes apart what it can."""

    def __init__(self, graph: fx.GraphModule, dtype: torch.dtype, program: Program) -> None:
        """Numbers of other dtypes than `dtype` and bool are not taken apart."""
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
            rule = RULES.get(node.target)
            if rule is None:
                return
            if isinstance(value, Tensor) and (
                value.device.type != "cpu"
                or value.dtype != (torch.bool if node.target in CONDITIONS else self.dtype)
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
        except Unsupported:
            return

    def _checked(self, array: Array, value: Tensor) -> Array:
        """`array`, which must have the shape that the graph says."""
        shape = list(array.entries.shape)
        if array.axis is not None:
            shape[array.axis] = array.rows
        if shape != list(value.shape) or array.entries.size > MOST_ENTRIES:
            raise Unsupported
        return array

    def _load(self, node: fx.Node) -> Array | None:
        """A tensor that the program reads; None if it cannot."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.device.type != "cpu" or value.dtype != self.dtype:
            return None
        shape, stride = list(value.shape), value.stride()
        axis = None
        if value.numel() > MOST_ENTRIES:
            before = 1
            for k, n in enumerate(shape):
                if n >= LEAST_ROWS and value.numel() // n <= MOST_ENTRIES and before <= _MOST_BEFORE:
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
        if not isinstance(value, Tensor) or value.numel() > MOST_ENTRIES or value.dtype != self.dtype:
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
                raise Unsupported
            return array
        if isinstance(x, bool) or not isinstance(x, int | float):
            raise Unsupported
        return Array(np.array(self.program.constant(float(x)), dtype=object), None, 0)

    def mask(self, x: Any) -> Array:
        """An operand that is a condition."""
        if (
            isinstance(x, fx.Node)
            and x.meta["val"].dtype == torch.bool
            and (x in self.arrays or x in self.uniform)
        ):
            return self.arrays.get(x) or self.uniform[x]
        raise Unsupported

    def pointwise(self, name: str, *operands: Any) -> Array:
        """`name` on broadcast operands."""
        return self.combine(lambda *xs: self.program.call(name, *xs), *operands)

    def combine(self, fn: Callable[..., int], *operands: Any) -> Array:
        """`fn` on the numbers of broadcast operands."""
        given = [x if isinstance(x, Array) else self.array(x) for x in operands]
        given, axis, rows = aligned(given)
        broadcast = np.broadcast_arrays(*(a.entries for a in given))
        out = np.empty(broadcast[0].shape, dtype=object)
        for place in np.ndindex(*out.shape):
            out[place] = fn(*(int(b[place]) for b in broadcast))
        return Array(out, axis, rows)

    def filled(self, shape: Sequence[int], number: Any) -> Array:
        """A constant in every place; which axis is called the batch makes no difference."""
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise Unsupported
        long = [k for k, n in enumerate(shape) if n >= LEAST_ROWS]
        if len(long) > 1:
            raise Unsupported
        kept = [1 if k in long else n for k, n in enumerate(shape)]
        if int(np.prod(kept)) > MOST_ENTRIES:
            raise Unsupported
        entries = np.full(kept, self.program.constant(float(number)), dtype=object)
        return Array(entries, long[0], shape[long[0]]) if long else Array(entries, None, 0)

    def total(self, entries: np.ndarray, axes: tuple[int, ...], keepdim: bool) -> np.ndarray:
        """Sums over axes."""
        for axis in sorted(axes, reverse=True):
            parts = [np.take(entries, i, axis) for i in range(entries.shape[axis])]
            if not parts:
                raise Unsupported
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
