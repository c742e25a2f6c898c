"""From a graph to something that runs it: Inductor, or the graph itself where there is no C++ compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mfk.core.compiler.rowcalls import call_rows, is_bookkeeping
from mfk.core.compiler.rowcode import NoCompiler
from mfk.core.compiler.rowwise import row_programs

Runner = Callable[[Sequence[Tensor]], Sequence[Tensor]]

_WITHOUT_COMPILER = ("InvalidCxxCompiler", "CppCompileError")
_said: set[str] = set()


def compile_graph(graph: fx.GraphModule, fakes: Sequence[Tensor]) -> Runner:
    """Compile a graph without mutations; `fakes` are its inputs without numbers.

    What treats the rows of a batch one by one is a program of its own (see `rowwise`), on the CPU; the rest
    goes to Inductor.
    """
    programs = [] if any(x.device.type != "cpu" for x in fakes) else row_programs(graph)
    try:
        call_rows(graph, programs)
    except NoCompiler as error:
        _say_once(str(error))
        return lambda inputs: graph(*inputs)
    graph.recompile()
    if programs and is_bookkeeping(graph):
        return lambda inputs: graph(*inputs)
    return _with_inductor(graph, fakes)


def _with_inductor(graph: fx.GraphModule, fakes: Sequence[Tensor]) -> Runner:
    """Compile with Inductor; on CUDA with CUDA graphs, whose outputs are copied out.

    Where Inductor finds no working C++ compiler the graph runs instead, operator by operator, and a warning
    says so once a process.
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    cuda = any(x.device.type == "cuda" for x in fakes)
    options = {"triton.cudagraphs": True} if cuda else {}
    try:
        with config.patch(options), torch.no_grad():
            compiled: Any = compile_fx(graph, list(fakes))
    except Exception as error:
        reason = _missing_compiler(error)
        if reason is None:
            raise
        _say_once(reason)
        return lambda inputs: graph(*inputs)

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        if not cuda:
            return compiled(*inputs)
        torch.compiler.cudagraph_mark_step_begin()
        return [x.clone() for x in compiled(*inputs)]

    return run


def _say_once(reason: str) -> None:
    if "compiler" not in _said:
        _said.add("compiler")
        warnings.warn(
            f"mfk.jit: no working C++ compiler ({reason}); the traced graph runs operator by operator, which "
            "is slower. Install g++, or set CXX.",
            RuntimeWarning,
            stacklevel=2,
        )


def _missing_compiler(error: BaseException) -> str | None:
    """What the compiler said, if want of one is what `error` is about."""
    inner = getattr(error, "inner_exception", error)
    if type(inner).__name__ in _WITHOUT_COMPILER:
        return " ".join(str(inner).split())[:200] or type(inner).__name__
    return None
