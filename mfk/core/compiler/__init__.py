"""Compilation of pure functions: trace, fold zeros, tidy, and hand the graph to Inductor."""

from mfk.core.compiler.backend import prepare
from mfk.core.compiler.capture import TraceError
from mfk.core.compiler.jitted import Jitted, jit, refuse_trace
from mfk.core.compiler.matmul import Matmul, exact_matmul
from mfk.core.compiler.report import Counts, Report
from mfk.core.compiler.rowarrays import LEAST_ROWS

__all__ = [
    "LEAST_ROWS",
    "Counts",
    "Jitted",
    "Matmul",
    "Report",
    "TraceError",
    "exact_matmul",
    "jit",
    "prepare",
    "refuse_trace",
]
