"""Row programs as operators of a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from mfk.core.compiler.graphs import insert_call, may_share_memory
from mfk.core.compiler.rowcode import compile_rows, name_of
from mfk.core.compiler.rowwise import RowProgram


class _Entry(NamedTuple):
    compiled: Future[Callable[[Sequence[Tensor]], list[Tensor]]]
    shapes: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]


_PROGRAMS: dict[str, _Entry] = {}
"""What `mfk::rows` runs, by the name that stands in the graph: Inductor keeps graphs on disk, as text."""


def call_rows(graph: fx.GraphModule, programs: Sequence[RowProgram]) -> None:
    """Replace the nodes of each program by one call of it, in place; most are compiled in the background.

    Raises:
        NoCompiler: the smallest program cannot be compiled; the graph is as it was.
    """
    threads = torch.get_num_threads()
    compiling = ThreadPoolExecutor(2, "mfk-compile")
    for place, row_program in enumerate(sorted(programs, key=lambda p: len(p.steps))):
        job = compiling.submit(compile_rows, row_program, threads)
        if place == 0:
            job.result()
        values = [node.meta["val"] for node, _ in row_program.outputs]
        _PROGRAMS[name_of(row_program)] = _Entry(job, [(x.shape, x.stride(), x.dtype) for x in values])
    compiling.shutdown(wait=False)  # its threads end with the last program
    replaced: dict[fx.Node, fx.Node] = {}
    for row_program in programs:
        with graph.graph.inserting_before(graph.graph.output_node()):
            inputs = [replaced.get(node, node) for node in row_program.inputs]
            call = insert_call(graph, torch.ops.mfk.rows.default, (inputs, name_of(row_program)))
            for k, (node, _) in enumerate(row_program.outputs):
                replaced[node] = insert_call(graph, operator.getitem, (call, k))
                node.replace_all_uses_with(replaced[node])
    _sort(graph)
    graph.graph.eliminate_dead_code()


def is_bookkeeping(graph: fx.GraphModule) -> bool:
    """Whether a graph does nothing but call row programs and look at their results."""
    return all(
        node.target in (torch.ops.mfk.rows.default, torch.ops.aten.clone.default, operator.getitem)
        or may_share_memory(node)
        for node in graph.graph.nodes
        if node.op == "call_function"
    )


def _sort(graph: fx.GraphModule) -> None:
    """Put each node behind its operands, and otherwise keep the order."""
    placed: set[fx.Node] = set()
    output = graph.graph.output_node()
    for start in list(graph.graph.nodes):
        stack = [start]
        while stack:
            node = stack[-1]
            waiting = [n for n in node.all_input_nodes if n not in placed]
            if node in placed or not waiting:
                stack.pop()
                if node not in placed and node is not output:
                    placed.add(node)
                    output.prepend(node)
            else:
                stack += reversed(waiting)


@torch.library.custom_op("mfk::rows", mutates_args=())
def _rows(inputs: Sequence[Tensor], program: str) -> list[Tensor]:
    return _PROGRAMS[program].compiled.result()(inputs)


@_rows.register_fake
def _(inputs: Sequence[Tensor], program: str) -> list[Tensor]:
    like: Any = inputs[0]
    return [
        like.new_empty_strided(shape, stride, dtype=dtype)
        for shape, stride, dtype in _PROGRAMS[program].shapes
    ]
