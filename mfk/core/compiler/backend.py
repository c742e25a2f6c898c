"""From a graph to something that runs it: Inductor, or the graph itself where there is no C++ compiler."""

from __future__ import annotations

import contextlib
import gc
import linecache
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from mfk.core.compiler.rowcalls import call_rows, is_bookkeeping
from mfk.core.compiler.rowcode import NoCompiler
from mfk.core.compiler.rowwise import row_programs

Runner = Callable[[Sequence[Tensor]], Sequence[Tensor]]

_WITHOUT_COMPILER = ("InvalidCxxCompiler", "CppCompileError")
_TRIVIAL = """#include <torch/csrc/inductor/cpp_prefix.h>
extern "C" void kernel(float* x) {}
"""
# Held while anything is traced or compiled: torch.fx, Inductor and their imports take one thread at a time.
COMPILING = threading.RLock()
_said: set[str] = set()
_prepared: list[bool] = []


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


def prepare() -> None:
    """Import Inductor and let its headers be compiled beside whatever comes next; once a process.

    On a machine that has never compiled with it, g++ takes as long for those headers as a trace takes.

    Raises:
        OSError: the folder that Inductor keeps compiled code in cannot be written to.
    """
    with COMPILING:
        if not _prepared:
            _check_cache_folder()
            _prepare()
            _prepared.append(True)


def _prepare() -> None:
    # Imported here, not in the thread: imports register things that a trace reads.
    with uncollected():
        from torch._inductor import async_compile, compile_fx  # noqa: F401

    def headers() -> None:
        with contextlib.suppress(Exception):  # whatever it is, the compilation itself will say it
            with _settings(cuda=False):
                async_compile.AsyncCompile().cpp_pybinding(["float*"], _TRIVIAL).result()

    threading.Thread(target=headers, name="mfk-headers", daemon=True).start()


def _check_cache_folder() -> None:
    """Inductor itself fails in the middle of its imports, and then for good."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder is None:  # a folder of the user's in that for temporary files
        return
    try:
        os.makedirs(os.path.abspath(folder), exist_ok=True)
        with tempfile.TemporaryFile(dir=os.path.abspath(folder)):
            pass
    except OSError as error:
        raise OSError(
            f"TORCHINDUCTOR_CACHE_DIR: expected a folder that compiled code can be written to, got "
            f"{folder!r} ({error.strerror or error}). Set the variable to another "
            "folder, or do not compile: --no-jit."
        ) from error


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection: looking through the millions of objects made takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def forgotten() -> Iterator[None]:
    """What is compiled within can be freed with the function that it is for.

    torch keeps the source of each graph, a megabyte of a large one, and each module that Inductor writes, as
    long as the process lives: to show lines in tracebacks, and to remove files.
    """
    from torch._inductor.codecache import PyCodeCache
    from torch.fx.graph_module import _loader

    sources: list[str] = []
    keep, here, modules = _loader.cache, threading.get_ident(), len(PyCodeCache.modules)

    def kept(*arguments: Any, **more: Any) -> str:
        name = keep(*arguments, **more)
        if threading.get_ident() == here:  # what another thread traces meanwhile is not ours
            sources.append(name)
        return name

    _loader.cache = kept
    try:
        yield
    finally:
        _loader.cache = keep
        for name in sources:
            _loader.eval_cache.pop(name, None)
            linecache.cache.pop(name, None)
        del PyCodeCache.modules[modules:]


def _with_inductor(graph: fx.GraphModule, fakes: Sequence[Tensor]) -> Runner:
    """Compile with Inductor; on CUDA with CUDA graphs, whose outputs are copied out.

    Where Inductor finds no working C++ compiler the graph runs instead, operator by operator, and a warning
    says so once a process.
    """
    from torch._inductor.compile_fx import compile_fx

    cuda = any(x.device.type == "cuda" for x in fakes)
    try:
        with _settings(cuda), torch.no_grad(), warnings.catch_warnings():
            # Of one part of torch to another, and no one else.
            warnings.filterwarnings("ignore", r"`torch\._prims_common", FutureWarning)
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


def _settings(cuda: bool) -> AbstractContextManager[Any]:
    """Inductor's settings while it compiles."""
    from torch._inductor import config

    if cuda:
        return config.patch({"triton.cudagraphs": True})
    # What the CPU has is read off its flags; by default a program is compiled for each instruction set.
    return config.patch({"cpp.vec_isa_ok": True})


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
