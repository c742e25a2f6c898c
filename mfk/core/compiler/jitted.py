"""`jit`: a pure function of trees, traced once for each kind of arguments and compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, cast

import optree
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from mfk.core.compiler.backend import COMPILING, Runner, compile_graph, forgotten, prepare, uncollected
from mfk.core.compiler.capture import TraceError, capture
from mfk.core.compiler.closures import ClosedOver, Structure, closed_over, structure
from mfk.core.compiler.fold import fold_zeros
from mfk.core.compiler.matmul import Matmul, Route, exact_matmul, matmul_context, use_strict
from mfk.core.compiler.report import Counts, Report, count
from mfk.core.compiler.tidy import separate_outputs, tidy
from mfk.core.types import describe

P = ParamSpec("P")
R = TypeVar("R")

_MANY_TRACES = 16
# A function may depend on the order of a dict's keys; the setting lasts as long as what holds it.
_NAMESPACE = "mfk.jit"
_ORDERED = contextlib.ExitStack()
_ORDERED.enter_context(optree.dict_insertion_ordered(True, namespace=_NAMESPACE))
_functorch: Any = torch._C._functorch  # type: ignore[attr-defined]


class _Compiled(NamedTuple):
    """What is kept for one kind of arguments."""

    run: Runner
    around: list[ClosedOver]  # what is read at each call, after the arguments' leaves
    kinds: list[Hashable]  # shape, strides, dtype and device that those had
    same: list[tuple[Callable[[], Any], Callable[[], Any]]]  # ways to one object, which must not part
    structure: Structure  # of what surrounds the function
    outputs: list[Any]  # for each leaf of the result: None for the next tensor, or a value
    spec: optree.PyTreeSpec  # of the result
    report: Report


def jit(
    fn: Callable[P, R], *, matmul: Matmul = "exact", note: Callable[[str], object] | None = None
) -> Jitted[P, R]:
    """Compile a pure function of trees of tensors, with its derivatives: what jax.jit is to JAX.

    At the first call with arguments of some kind the whole function is traced into one graph of ATen
    operators (grad, jvp and vmap inside it are gone then), zeros that the graph shows are folded, common
    subexpressions merged, and Inductor compiles it. Later calls of that kind run the compiled code::

        gradient = mfk.jit(torch.func.grad(loss))

    A kind is: the trees' structure, with the order in which dicts (and the keyword arguments) have their
    keys; each tensor's shape, strides, dtype and device; and each other leaf's type and value (numbers,
    strings, functions: they are static, and must be hashable; pass a tensor for what changes). None belongs
    to the structure. Autocast, the default dtype and device and the number of threads are part of it too.

    The function must be pure:

    * Python's side effects (print, appending to a list) happen once, while it is traced, and never again.
    * What is stored while it is traced (in a cache, say) is no tensor with numbers; a later trace that meets
      it raises.
    * A tensor that it closes over (closure, global, attribute, partial) becomes an input, which each call
      reads anew: rebound or changed in place, the next call sees it. Numbers that it closes over are
      constants.
    * Code, and the structure of what it closes over (None or not, lengths of lists, keys of dicts, which
      function a name is bound to), are as at the trace. The common changes are seen, and traced anew: of the
      nearest hundred names and entries, None or no tensor that becomes a tensor, and another function; and
      the lengths of lists and keys of dicts that hold a tensor which the function used. Others are not, such
      as the layers of an nn.Module: make a new function then.
    * torch.autograd.grad inside it needs ``with torch.enable_grad():`` around, as nothing is recorded;
      torch.func.grad does not.
    * Results share no memory with arguments or with each other.

    The result carries no autograd graph: differentiate inside, ``jit(grad(f))``. Called inside another trace
    or transform (jit, grad, vmap, jvp, torch.compile) it is the plain function.

    0 * NaN and 0 / 0 are 0 where the zero is known from the graph, as a tangent that was never set is; as in
    JAX. The sign of a zero may get lost there: 0 - a is -a,
    for a = 0 thus -0 instead of 0.

    Threads may call one function; they wait for each other while something is traced or compiled.

    Args:
        fn: a pure function; arguments and result are trees.
        matmul: exact: the fastest fp32-exact matrix product of the CPU at hand, set for the time of the call
            (see `mfk.core.compiler.matmul`); default: torch's own.
        note: is told, in a line each, when a compilation begins and what it came to.

    Returns:
        The compiled function, with ``traces`` (how often it was traced), ``graph`` and ``report``.

    Raises:
        TypeError: `fn` is not callable, or a leaf is neither a tensor nor hashable.
        ValueError: `matmul` is neither of the two.
        OSError: at a call: TORCHINDUCTOR_CACHE_DIR is no folder that can be written to.
        TraceError: (a ValueError) at a call: random numbers, a read of a tensor's value, a result whose shape
            depends on values, a write to an argument, or a tensor that is neither an argument nor found
            around the function; with file and line. Or an argument that requires grad while gradients are
            recorded.
    """
    return Jitted(fn, matmul, note)


class Jitted(Generic[P, R]):
    """A compiled function: see `jit`."""

    def __init__(self, fn: Callable[P, R], matmul: Matmul, note: Callable[[str], object] | None) -> None:
        """Nothing is traced before the first call."""
        if not callable(fn):
            raise TypeError(f"fn: expected a function, got {describe(fn)}")
        if matmul not in ("exact", "default"):
            raise ValueError(f"matmul: expected exact or default, got {matmul!r}")
        functools.update_wrapper(self, fn, updated=())
        self.traces = 0
        self._fn, self._matmul, self._note = fn, matmul, note
        self._cache: dict[Hashable, list[_Compiled]] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the compiled function."""
        if _inside_another():
            return self._fn(*args, **kwargs)
        leaves, spec = _flatten((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        if any(isinstance(x, FakeTensor) or _functorch.is_functorch_wrapped_tensor(x) for x in tensors):
            return self._fn(*args, **kwargs)
        leaves = _resolved(leaves)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        compiled, around = self._find(leaves, tensors, spec)
        with torch.no_grad(), matmul_context(self._route(tensors))():
            results = iter(compiled.run([*tensors, *around]))
        outputs = [next(results) if x is None else x for x in compiled.outputs]
        return cast(R, optree.tree_unflatten(compiled.spec, outputs))

    def report(self, *args: P.args, **kwargs: P.kwargs) -> Report:
        """What compiling for such arguments did: operators, matrix products, FLOPs, folded zeros, seconds."""
        leaves, spec = _flatten((args, kwargs))
        leaves = _resolved(leaves)
        return self._find(leaves, [x for x in leaves if isinstance(x, Tensor)], spec)[0].report

    def graph(self, *args: P.args, **kwargs: P.kwargs) -> torch.fx.GraphModule:
        """The graph that Inductor is given for such arguments: for reading, and for tests."""
        leaves, spec = _flatten((args, kwargs))
        with COMPILING:
            return self._lower(_resolved(leaves), spec).graph

    def _find(
        self, leaves: list[Any], tensors: list[Tensor], spec: optree.PyTreeSpec
    ) -> tuple[_Compiled, list[Tensor]]:
        _refuse_graph(tensors)
        key = (spec, tuple(map(_kind, leaves)), _surroundings())
        found = self._look_up(key)
        if found is None:
            with COMPILING:
                # Another thread may have compiled it in the meantime.
                found = self._look_up(key)
                if found is None:
                    found = self._compile(leaves, spec)
                    _refuse_graph(found[1])
                    self._cache.setdefault(key, []).append(found[0])
        _refuse_graph(found[1])
        return found

    def _look_up(self, key: Hashable) -> tuple[_Compiled, list[Tensor]] | None:
        for compiled in self._cache.get(key, ()):
            around = _read(compiled)
            if around is not None and [_kind(x) for x in around] == compiled.kinds:
                return compiled, around
        return None

    def _compile(self, leaves: list[Any], spec: optree.PyTreeSpec) -> tuple[_Compiled, list[Tensor]]:
        self.traces += 1
        if self.traces == _MANY_TRACES:
            warnings.warn(
                f"mfk.jit: {getattr(self, '__name__', self._fn)} was traced {self.traces} times; each new "
                "shape or static value is another one. Pass changing numbers as tensors.",
                RuntimeWarning,
                stacklevel=4,
            )
        if self._note is not None:
            self._note("compiling; this takes seconds, and less the next time")
        prepare()
        with uncollected(), forgotten():
            begun = time.perf_counter()
            lowered = self._lower(leaves, spec)
            traced = time.perf_counter()
            run = compile_graph(lowered.graph, lowered.inputs)
        report = Report(
            lowered.before, lowered.after, lowered.folded, traced - begun, time.perf_counter() - traced
        )
        if self._note is not None:
            self._note(f"compiled: {report}")
        tensors = [c.tensor for c in lowered.closed_over]
        # The tensors themselves are not kept: they may be replaced, and are large.
        around = [c._replace(tensor=torch.empty(0), same=(), containers=()) for c in lowered.closed_over]
        same = {id(other): (one, other) for c in lowered.closed_over for one, other in c.same}
        kinds = [_kind(x) for x in tensors]
        compiled = _Compiled(
            run, around, kinds, list(same.values()), lowered.structure, lowered.outputs, lowered.spec, report
        )
        return compiled, tensors

    def _lower(self, leaves: list[Any], spec: optree.PyTreeSpec) -> _Lowered:
        """Trace, fold and tidy."""
        where = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        results: list[optree.PyTreeSpec] = []

        def flat(*tensors: Tensor) -> list[Any]:
            full = list(leaves)
            for i, x in zip(where, tensors, strict=True):
                full[i] = x
            args, kwargs = cast(Any, optree.tree_unflatten(spec, full))
            outputs, result = _flatten(cast(Any, self._fn)(*args, **kwargs))
            results.append(result)
            return outputs

        reached = closed_over(self._fn)
        captured = capture(flat, [leaves[i] for i in where], reached.tensors)
        graph = captured.graph
        before = count(graph)
        tidy(graph)
        folded = fold_zeros(graph)
        tidy(graph)
        after = count(graph)
        separate_outputs(graph)
        if self._route(captured.fakes) == "strict":
            use_strict(graph)
        graph.graph.lint()
        graph.recompile()
        return _Lowered(
            graph,
            captured.fakes,
            captured.closed_over,
            structure(reached.holders, captured.closed_over),
            captured.outputs,
            results[-1],
            before,
            after,
            folded,
        )

    def _route(self, tensors: Sequence[Tensor]) -> Route:
        if self._matmul == "default" or any(x.device.type != "cpu" for x in tensors):
            return "default"
        return exact_matmul()


class _Lowered(NamedTuple):
    graph: torch.fx.GraphModule
    inputs: Sequence[Tensor]
    closed_over: list[ClosedOver]
    structure: Structure
    outputs: list[Any]
    spec: optree.PyTreeSpec
    before: Counts
    after: Counts
    folded: int


def _flatten(tree: Any) -> tuple[list[Any], optree.PyTreeSpec]:
    return optree.tree_flatten(tree, namespace=_NAMESPACE)


def _resolved(leaves: list[Any]) -> list[Any]:
    """Without torch's lazy negations and conjugations, of which compiled code knows nothing."""
    return [
        x.resolve_neg().resolve_conj() if isinstance(x, Tensor) and (x.is_neg() or x.is_conj()) else x
        for x in leaves
    ]


def _read(compiled: _Compiled) -> list[Tensor] | None:
    """The tensors closed over, as they are now; None where one is gone, one became two, or code changed."""
    try:
        if not compiled.structure.holds():
            return None
        values = _resolved([c.read() for c in compiled.around])
        parted = any(one() is not other() for one, other in compiled.same)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
    return None if parted or not all(isinstance(x, Tensor) for x in values) else values


def _kind(leaf: Any) -> Hashable:
    """What a compiled function is specialised to."""
    if isinstance(leaf, Tensor):
        if leaf.layout != torch.strided:
            raise TypeError(f"argument: expected strided tensors, got one of layout {leaf.layout}")
        return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
    try:
        hash(leaf)
    except TypeError:
        raise TypeError(
            f"argument: expected tensors, and static leaves that are hashable, got {describe(leaf)}"
        ) from None
    key = _static(leaf)
    try:
        hash(key)
    except TypeError:  # an object with a hash of its own, of what it holds or not
        return (type(leaf), leaf)
    return key


def _static(x: Any) -> Hashable:
    """The type and value of `x` and of what it holds: 1, 1.0 and True are equal; 0.0 and -0.0 too."""
    if isinstance(x, float | complex):
        return (type(x), repr(x))
    if isinstance(x, tuple):
        return (type(x), tuple(map(_static, x)))
    if isinstance(x, frozenset):
        return (type(x), frozenset(map(_static, x)))
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return (type(x), x, tuple(_static(getattr(x, f.name)) for f in dataclasses.fields(x) if f.compare))
    return (type(x), x)


def _surroundings() -> Hashable:
    """What else a trace or the compiled code depends on."""
    autocast = tuple(
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for device in ("cpu", "cuda")
    )
    defaults = (torch.get_default_dtype(), torch.get_default_device())
    return (autocast, defaults, torch.get_num_threads(), torch.is_inference_mode_enabled())


def _refuse_graph(tensors: Sequence[Tensor]) -> None:
    if torch.is_grad_enabled():
        for x in tensors:
            if x.requires_grad:
                raise TraceError(
                    f"argument: {describe(x)} requires grad, and a compiled function records no autograd "
                    "graph, so that backward() would find nothing. Differentiate inside, jit(grad(f)), or "
                    "pass x.detach()."
                )


def refuse_trace(what: str, instead: str) -> None:
    """Raise TraceError where a trace of `mfk.jit`, make_fx or torch.compile is on.

    Args:
        what: cannot be traced, as the error names it.
        instead: the way out.
    """
    if torch.compiler.is_compiling() or get_proxy_mode() is not None:
        raise TraceError(f"{what}: expected to run on numbers, got a trace; {instead}")


def _inside_another() -> bool:
    """Whether a trace or a transform is on, which has to see the plain function."""
    return (
        torch.compiler.is_compiling()
        or _functorch.peek_interpreter_stack() is not None
        or get_proxy_mode() is not None
    )
