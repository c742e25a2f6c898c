"""The fastest matrix product of full fp32 precision that the CPU at hand has.

torch's default (MKL) may leave part of an AMD processor unused; oneDNN uses it. `exact_matmul` picks,
once a process:

* "onednn": torch sends fp32 products to oneDNN while ``torch.backends.mkldnn.matmul.fp32_precision`` is
  "bf16". That *allows* bf16, which a CPU with AMX would use; one without computes in fp32. Taken only where
  there is no AMX, oneDNN's own default does not allow less, and products with the identity give every bit
  back.
* "strict": oneDNN's linear layer through an operator of our own, which allows nothing; no batched products.
* "default": torch's own.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx

from mfk.core.compiler.graphs import insert_call

Matmul: TypeAlias = Literal["exact", "default"]
"""exact: the fastest fp32-exact route of this CPU; default: torch's own, whatever it is set to."""

Route: TypeAlias = Literal["onednn", "strict", "default"]

_aten: Any = torch.ops.aten


@functools.cache
def exact_matmul() -> Route:
    """The route of this CPU; it computes a few small products the first time it is asked."""
    if not torch.backends.mkldnn.is_available():
        return "default"
    narrow = os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT").upper() != "STRICT"
    if not narrow and not _has_amx() and _keeps_bits(_through_onednn):
        return "onednn"
    return "strict" if not narrow and _keeps_bits(_strict_product) else "default"


def matmul_context(route: Route) -> Callable[[], AbstractContextManager[Any]]:
    """What a compiled call runs under."""
    return (lambda: _ONEDNN) if route == "onednn" else nullcontext


class _Onednn:
    """torch's switch, which is one for all threads: the first that enters sets it, the last restores it."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, ""
        self._settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before = self._settings.fp32_precision
                self._settings.fp32_precision = "bf16"
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._settings.fp32_precision = self._before


_ONEDNN = _Onednn()


def use_strict(graph: fx.GraphModule) -> None:
    """Send the fp32 products of a traced graph on the CPU through oneDNN's strict linear layer, in place."""
    for node in list(graph.graph.nodes):
        if node.target not in (_aten.mm.default, _aten.addmm.default):
            continue
        value = node.meta["val"]
        if value.dtype != torch.float32 or value.device.type != "cpu" or node.kwargs or value.numel() == 0:
            continue
        *term, a, b = node.args
        with graph.graph.inserting_before(node):
            new = insert_call(graph, torch.ops.mfk.strict_mm.default, (a, b))
            if term:
                new = insert_call(graph, _aten.add.Tensor, (new, term[0]))
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)


def _strict_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.t().contiguous(), None, "none", [], "")


@torch.library.custom_op("mfk::strict_mm", mutates_args=())
def _strict_mm(a: Tensor, b: Tensor) -> Tensor:
    return _strict_product(a, b)


@_strict_mm.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _through_onednn(a: Tensor, b: Tensor) -> Tensor:
    with _ONEDNN:
        return a @ b


@torch.no_grad()
def _keeps_bits(product: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether x I == x, bit for bit, for numbers that bf16 and tf32 would round."""
    for rows, size in ((64, 64), (256, 128), (1024, 512)):
        x = torch.linspace(-3.0, 3.0, rows * size).reshape(rows, size) * (1 + 2.0**-20)
        eye = torch.eye(size)
        try:
            if not (torch.equal(product(x, eye), x) and torch.equal(product(eye, x.t()), x.t())):
                return False
        except RuntimeError:  # this build of torch has no such operator
            return False
    return True


def _has_amx() -> bool:
    """True where in doubt."""
    try:
        return bool(torch.cpu._is_amx_tile_supported())
    except (AttributeError, RuntimeError):
        return True
