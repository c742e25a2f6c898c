"""Floor 0: types, trees, stateless models, compilation, keys, configs. Knows no robots and no training."""

from mfk.core import ranks, rng, tree
from mfk.core.compiler import Report, TraceError, jit
from mfk.core.model import stateless
from mfk.core.types import (
    Aux,
    Batch,
    Batches,
    Field,
    Metrics,
    Model,
    Optimizer,
    Params,
    Rows,
    Schedule,
    Task,
    Tree,
)

__all__ = [
    "Aux",
    "Batch",
    "Batches",
    "Field",
    "Metrics",
    "Model",
    "Optimizer",
    "Params",
    "Report",
    "Rows",
    "Schedule",
    "Task",
    "TraceError",
    "Tree",
    "jit",
    "ranks",
    "rng",
    "stateless",
    "tree",
]
