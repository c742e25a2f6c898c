"""Row programs as C++: sixteen rows (eight in float64) at a time in vector registers; kept on disk."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mfk.core.compiler.rowwise import RowProgram
from mfk.core.compiler.scalars import Step

_FLAGS = (
    "-std=c++17",
    "-O1",
    "-march=native",
    "-shared",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-w",
)
# Steps of one C++ function; compilers take more than proportionally long for long ones.
_CHUNK = 600
# Steps times rows from which a second thread is worth waking.
_WORTH_A_THREAD = 4_000_000

_HEAD = """#include <cmath>
#include <cstring>
typedef {scalar} S;
typedef S V __attribute__((vector_size({bytes})));
typedef {integer} I __attribute__((vector_size({bytes})));
enum {{ W = {width} }};
#define LANES(e) V y; for (int k = 0; k < W; ++k) y[k] = (e); return y;
static inline V splat(S x) {{ return V{{}} + x; }}
static inline V near(const S* p) {{ V y; std::memcpy(&y, p, sizeof y); return y; }}
static inline V far_(const S* p, long s) {{ LANES(p[k * s]) }}
static inline void put(S* p, V x) {{ std::memcpy(p, &x, sizeof x); }}
static inline void scatter(S* p, long s, V x) {{ for (int k = 0; k < W; ++k) p[k * s] = x[k]; }}
static inline V vmax(V a, V b) {{ return ((a > b) | (a != a)) ? a : b; }}
static inline V vmin(V a, V b) {{ return ((a < b) | (a != a)) ? a : b; }}
static inline V vabs(V a) {{ LANES(std::fabs(a[k])) }}
static inline V vsqrt(V a) {{ LANES(std::sqrt(a[k])) }}
{functions}
"""
_LANEWISE = {
    "sin": "sin", "cos": "cos", "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p",
    "floor": "floor", "ceil": "ceil", "round": "rint", "erf": "erf",
}  # fmt: skip
_LANEWISE_PAIRS = {"atan2": "atan2", "pow": "pow"}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_MASKS = frozenset((*_COMPARE, "and", "or", "not"))


class NoCompiler(RuntimeError):
    """There is no C++ compiler that works."""


def compile_rows(row_program: RowProgram, threads: int = 1) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """A function of the program's inputs that computes its outputs, on at most `threads` threads.

    Raises:
        NoCompiler: the C++ compiler is missing or fails.
    """
    run = _library(source_of(row_program)).run
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    run.restype = None
    rows = row_program.rows
    layouts = [n.meta["val"].stride() for n in row_program.inputs]
    shapes = [
        (n.meta["val"].shape, n.meta["val"].stride(), n.meta["val"].dtype) for n, _ in row_program.outputs
    ]
    threads = min(threads, max(1, len(row_program.steps) * rows // _WORTH_A_THREAD))
    ends = [rows * (k + 1) // threads for k in range(threads)]

    def call(given: Sequence[Tensor]) -> list[Tensor]:
        results = [torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in shapes]
        # Kept by name: a copy must outlive the call.
        read = [_laid_out(x, layout) for x, layout in zip(given, layouts, strict=True)]
        pointers = (ctypes.c_void_p * len(read))(*[x.data_ptr() for x in read])
        targets = (ctypes.c_void_p * len(results))(*[x.data_ptr() for x in results])
        if threads == 1:
            run(pointers, targets, 0, rows)
        else:
            pool = _pool(threads)
            jobs = [
                pool.submit(run, pointers, targets, begin, end)
                for begin, end in zip([0, *ends], ends, strict=False)
            ]
            for job in jobs:
                job.result()
        return results

    return call


def _laid_out(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """`x` with the strides that the program was written for."""
    return x if x.stride() == strides else torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "mfk-rows")


def name_of(row_program: RowProgram) -> str:
    """The same name for the same program, in every process."""
    layouts = [(n.meta["val"].shape, n.meta["val"].stride()) for n, _ in row_program.outputs]
    return hashlib.sha256(f"{source_of(row_program)}{layouts}".encode()).hexdigest()


def source_of(row_program: RowProgram) -> str:
    """The program in C++."""
    program, rows = row_program.program, row_program.rows
    double = program.dtype is np.float64
    width = 8 if double else 16
    suffix = "" if double else "f"
    functions = [f"static V v{name}(V a) {{ LANES({c}{suffix}(a[k])) }}" for name, c in _LANEWISE.items()]
    functions += [
        f"static V v{n}(V a, V b) {{ LANES({c}{suffix}(a[k], b[k])) }}" for n, c in _LANEWISE_PAIRS.items()
    ]
    head = _HEAD.format(
        scalar="double" if double else "float", integer="long" if double else "int", bytes=64, width=width,
        functions="\n".join(functions),
    )  # fmt: skip
    inputs = sorted(
        {program.steps[i].value.input for i in row_program.steps if program.steps[i].name == "load"}
    )
    position = {number: k for k, number in enumerate(inputs)}
    statements: list[tuple[int | None, str]] = []
    for i in row_program.steps:
        step = program.steps[i]
        kind = "I" if step.name in _MASKS else "V"
        statements.append((i, f"{kind} v{i} = {_expression(step, position, suffix)};"))
    for k, (node, array) in enumerate(row_program.outputs):
        strides = node.meta["val"].stride()
        assert array.axis is not None
        by_row = strides[array.axis]
        for place in np.ndindex(*array.entries.shape):
            offset = sum(p * s for p, s in zip(place, strides, strict=True))
            value = int(array.entries[place])
            if by_row == 1:
                statements.append((None, f"put(out[{k}] + {offset} + i, v{value});"))
            else:
                statements.append((None, f"scatter(out[{k}] + {offset} + i * {by_row}, {by_row}, v{value});"))
    return head + _functions(row_program, statements) + _MAIN.format(rows=rows)


_MAIN = """
extern "C" void run(const S* const* in, S* const* out, long begin, long end) {{
    // The last block begins early enough to be whole: rows are computed twice rather than read past the end.
    for (long b = begin; b < end; b += W) block(in, out, b + W <= {rows} ? b : {rows} - W);
}}
"""


def _functions(row_program: RowProgram, statements: list[tuple[int | None, str]]) -> str:
    """The statements as functions of bounded length; what several of them need lies in an array."""
    steps = row_program.program.steps
    chunk_of: dict[int, int] = {}
    chunks = [statements[k : k + _CHUNK] for k in range(0, len(statements), _CHUNK)]
    for c, chunk in enumerate(chunks):
        chunk_of |= {i: c for i, _ in chunk if i is not None}
    shared: dict[int, int] = {}
    text, calls = [], []
    bodies: list[tuple[list[str], set[int]]] = []
    values = {i: steps[i].operands for i in row_program.steps}
    for c, chunk in enumerate(chunks):
        foreign: set[int] = set()
        for i, line in chunk:
            used = values[i] if i is not None else (int(line.rsplit(" v", 1)[1].rstrip(");")),)
            foreign |= {int(u) for u in used if chunk_of[int(u)] != c}
        bodies.append(([line for _, line in chunk], foreign))
        for u in sorted(foreign):
            shared.setdefault(u, len(shared))
    for c, (lines, foreign) in enumerate(bodies):
        head = [f"{_kind(steps[u])} v{u} = ({_kind(steps[u])})m[{shared[u]}];" for u in sorted(foreign)]
        own = [i for i, _ in chunks[c] if i in shared]
        tail = [f"m[{shared[i]}] = (V)v{i};" for i in own if i is not None]
        body = "\n    ".join([*head, *lines, *tail])
        text.append(
            f"static __attribute__((noinline)) void part{c}"
            f"(const S* const* in, S* const* out, long i, V* m) {{\n    {body}\n}}\n"
        )
        calls.append(f"part{c}(in, out, i, m);")
    block = "\n    ".join(calls)
    size = max(len(shared), 1)
    return "\n".join(text) + (
        "\nstatic void block(const S* const* in, S* const* out, long i) {\n"
        f"    V m[{size}];\n    {block}\n}}\n"
    )


def _kind(step: Step) -> str:
    return "I" if step.name in _MASKS else "V"


def _expression(step: Step, position: dict[int, int], suffix: str) -> str:
    names = [f"v{i}" for i in step.operands]
    if step.name == "constant":
        return f"splat({_number(float(step.value), suffix)})"
    if step.name == "load":
        source, offset, stride = f"in[{position[step.value.input]}]", step.value.offset, step.value.stride
        if stride == 0:
            return f"splat({source}[{offset}])"
        if stride == 1:
            return f"near({source} + {offset} + i)"
        return f"far_({source} + {offset} + i * {stride}, {stride})"
    if step.name in _INFIX:
        return f"{names[0]} {_INFIX[step.name]} {names[1]}"
    if step.name in _COMPARE:
        return f"{names[0]} {_COMPARE[step.name]} {names[1]}"
    if step.name == "neg":
        return f"-{names[0]}"
    if step.name == "where":
        return f"{names[0]} ? {names[1]} : {names[2]}"
    if step.name in ("and", "or"):
        return f"{names[0]} {'&' if step.name == 'and' else '|'} {names[1]}"
    if step.name == "not":
        return f"~{names[0]}"
    return f"v{step.name}({', '.join(names)})"


def _number(x: float, suffix: str) -> str:
    if x != x:
        return "(S)NAN"
    if x in (float("inf"), float("-inf")):
        return "(S)INFINITY" if x > 0 else "-(S)INFINITY"
    return f"{x.hex()}{suffix}"


@functools.cache
def _library(source: str) -> ctypes.CDLL:
    """The compiled source, from the disk where it has been compiled before on such a machine."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise NoCompiler(f"{os.environ.get('CXX', 'g++')} is not there")
    key = hashlib.sha256("\0".join((source, *_FLAGS, compiler, _processor())).encode()).hexdigest()
    folder = _cache_folder()
    target = folder / f"{key}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            text, built = Path(temporary, "rows.cpp"), Path(temporary, "rows.so")
            text.write_text(source)
            command = [compiler, *_FLAGS, str(text), "-o", str(built), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise NoCompiler(f"{compiler}: {done.stderr.strip()[-500:]}")
            os.replace(built, target)  # whole or not at all, for whoever reads it at the same time
    return ctypes.CDLL(str(target))


def _cache_folder() -> Path:
    from torch._inductor.runtime.runtime_utils import cache_dir

    return Path(cache_dir()) / "mfk_rows"


@functools.cache
def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        kept = [
            line
            for line in lines
            if line.startswith(("model name", "flags", "cpu family", "model", "Features"))
        ]
        return platform.machine() + "\n".join(kept)
    except OSError:
        return platform.machine() + platform.processor()
