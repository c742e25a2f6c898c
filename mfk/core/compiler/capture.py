"""From a pure function of tensors to one flat graph of ATen operators, without transforms of torch.func."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mfk.core import norms, replacing
from mfk.core.compiler.closures import ClosedOver
from mfk.core.compiler.mutations import remove_mutations
from mfk.core.compiler.rewrites import Rewriting
from mfk.core.types import describe

_aten: Any = torch.ops.aten
_LIFTS = {_aten.lift_fresh.default, _aten.lift_fresh_copy.default, _aten.lift.default}
_MADE = {_aten._efficientzerotensor.default, _aten._new_zeros_with_same_feature_meta.default}
# Asked of every operand, thousands of times a trace: through the modes they take a tenth of its time.
_QUESTIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.prim.device.default: lambda x: x.fake_device,
    _aten.is_same_size.default: lambda x, y: x.shape == y.shape,
    _aten._has_same_storage_numel.default: lambda x, y: _storage_numel(x) == _storage_numel(y),
}
_MASKS = (torch.bool, torch.uint8)
_functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
_LIBRARIES = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(__file__) + os.sep,
    *(str(module.__file__) for module in (norms, replacing)),
)


class TraceError(ValueError):
    """A function did, while it was traced, what a pure function of tensors does not do."""


class Captured(NamedTuple):
    """A traced function."""

    graph: (
        fx.GraphModule
    )  # ATen operators without mutations; inputs are the leaves, then the tensors closed over
    fakes: list[FakeTensor]  # the inputs without numbers
    closed_over: list[ClosedOver]  # in the order in which the graph takes them
    outputs: list[Any]  # for each output: None for the graph's next one, or a value that is no tensor


def capture(
    fn: Callable[..., Sequence[Any]], leaves: Sequence[Tensor], around: Mapping[int, ClosedOver]
) -> Captured:
    """Trace `fn`, which takes `leaves` and returns a flat list.

    Args:
        fn: deterministic; it may use grad, jvp, vmap and autograd inside.
        leaves: what it is given; only shapes, strides, dtypes and devices matter.
        around: what it may reach beside these, as from `closed_over`.

    Raises:
        TraceError: see `mfk.jit`.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # it brings sympy: a third of a second

    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    fakes = [mode.from_tensor(x.detach()) for x in leaves]
    beside = {i: mode.from_tensor(c.tensor.detach()) for i, c in around.items() if _plain(c.tensor)}
    kept: list[Any] = []
    used: dict[int, None] = {}

    def flat(*inputs: Tensor) -> list[Tensor]:
        given = inputs[: len(fakes)]
        stand_ins = dict(zip(beside, inputs[len(fakes) :], strict=True))
        with Rewriting(_REFUSED), _Watch(mode, given, stand_ins, around, used):
            outputs = fn(*given)
        kept[:] = [None if isinstance(x, Tensor) else x for x in outputs]
        return [_output(x, mode, stand_ins, used) for x in outputs if isinstance(x, Tensor)]

    everything = [*fakes, *beside.values()]
    with mode, torch.no_grad():
        graph = make_fx(flat)(*everything)
        graph.graph.eliminate_dead_code()
        if not remove_mutations(graph):
            graph = make_fx(functionalize(graph, remove="mutations"))(*everything)
    graph.graph.eliminate_dead_code()
    # Placeholders of what was within reach and not touched.
    for i, node in zip(beside, graph.graph.find_nodes(op="placeholder")[len(fakes) :], strict=True):
        if i not in used:
            graph.graph.erase_node(node)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            node.meta.setdefault("val", mode.from_tensor(getattr(graph, str(node.target))))
    order = [i for i in beside if i in used]
    return Captured(graph, [*fakes, *(beside[i] for i in order)], [around[i] for i in order], kept)


class _Watch(TorchDispatchMode):
    """Refuses what would make the graph wrong for the next call, where it happens."""

    def __init__(
        self,
        mode: FakeTensorMode,
        inputs: Sequence[Tensor],
        stand_ins: Mapping[int, Tensor],
        around: Mapping[int, ClosedOver],
        used: dict[int, None],
    ) -> None:
        super().__init__()
        self.mode, self.stand_ins, self.around, self.used = mode, stand_ins, around, used
        self.owned = {_storage(x): f"argument {i}" for i, x in enumerate(inputs)}
        self.owned |= {_storage(x): around[i].name for i, x in stand_ins.items()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named: Any = kwargs or {}
        if func in _QUESTIONS and all(type(x) is FakeTensor for x in args):
            return _QUESTIONS[func](*args)
        if func is _aten.to.dtype_layout and _changes_nothing(args[0], named):
            return args[0]
        if func not in _LIFTS and any(map(self._is_foreign, (*args, *named.values()))):
            args, named = tree_map_only(Tensor, self._stand_in, (args, named))
        if _draws(func, args, named):
            raise TraceError(
                f"{_where()}: {func} draws random numbers, which would be the same at every call of the "
                "compiled function. Draw them outside and pass them as arguments."
            )
        if torch.Tag.data_dependent_output in func.tags or func is _aten._local_scalar_dense.default:
            if getattr(args[0], "constant", None) is None:
                raise TraceError(
                    f"{_where()}: the value of a tensor is read ({func}: .item(), float(), bool(), an if or "
                    "a loop on a tensor), and it is not known while tracing. Use torch.where, or return "
                    "the tensor."
                )
        elif torch.Tag.dynamic_output_shape in func.tags:
            _check_shape_known(func, args, named)
        if func._schema.is_mutable:
            self._check_writes(func, args, named)
        # The mode's memory of earlier calls forgets how views of zero tangents lie, which torch then asserts.
        self.mode.cache_enabled = not (func.is_view or func in _MADE)
        return func(*args, **named)

    def _is_foreign(self, x: Any) -> bool:
        """Whether an operand is, or a list of them holds, a tensor with numbers or of another trace."""
        if isinstance(x, list | tuple):
            return any(map(self._is_foreign, x))
        return isinstance(x, Tensor) and not (isinstance(x, FakeTensor) and x.fake_mode is self.mode)

    def _stand_in(self, x: Tensor) -> Tensor:
        if isinstance(x, FakeTensor):
            if x.fake_mode is not self.mode:
                raise _leak(f"{_where()}: {describe(x)}")
            return x
        if id(x) in self.stand_ins:
            self.used[id(x)] = None
            return self.stand_ins[id(x)]
        raise TraceError(
            f"{_where()}: {describe(x)} is neither an argument nor found among what the function closes "
            "over, so that a later call could not see it change. Pass it as an argument."
        )

    def _check_writes(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for x in value if isinstance(value, list | tuple) else [value]:
                if isinstance(x, Tensor) and _storage(x) in self.owned:
                    raise TraceError(
                        f"{_where()}: {func} writes to {self.owned[_storage(x)]} ({describe(x)}). A compiled "
                        "function does not change what it is given: work on a clone, or out of place, and "
                        "return the result."
                    )


def _check_shape_known(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse an operator that torch tags as one of dynamic shape, unless with these operands it is not."""
    if func is _aten.index.Tensor and not any(x is not None and x.dtype in _MASKS for x in args[1]):
        return
    if func is _aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None:
        return
    if func is _aten.linalg_lstsq.default:
        raise TraceError(
            f"{_where()}: torch cannot trace {func}: which of its results are empty depends on the rank that "
            "it finds. Use torch.linalg.qr and solve_triangular, or torch.linalg.pinv."
        )
    raise TraceError(
        f"{_where()}: the shape of the result of {func} depends on values, which are not known while "
        "tracing. Use torch.where or a mask of fixed shape."
    )


def _leak(what: str) -> TraceError:
    return TraceError(
        f"{what}: a tensor made during an earlier trace was stored, by the traced function or what it calls, "
        "and is met again. It has no numbers: a traced function stores nothing. Make the tensor outside, "
        "before the first call."
    )


def _output(
    x: Tensor, mode: FakeTensorMode, stand_ins: Mapping[int, Tensor], used: dict[int, None]
) -> Tensor:
    if isinstance(x, FakeTensor) and x.fake_mode is not mode:
        raise _leak(f"output: {describe(x)}")
    if isinstance(x, FakeTensor) or not _plain(x):
        return x
    if id(x) not in stand_ins:
        raise TraceError(f"output: {describe(x)} was made outside the function; pass it as an argument")
    used[id(x)] = None
    return stand_ins[id(x)]


def _plain(x: Tensor) -> bool:
    """A strided tensor with numbers as they are, not one of another trace or transform."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.layout == torch.strided
        and x.device.type != "meta"
        and not (x.is_neg() or x.is_conj())
    )


def _draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator draws random numbers; attention does so only for its dropout."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for i, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            return given != 0
    return True


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _changes_nothing(x: Tensor, to: Mapping[str, Any]) -> bool:
    """Whether `x.to(...)` is `x` itself; derivatives ask for it at each multiplication."""
    return (
        type(x) is FakeTensor
        and to.get("dtype") in (None, x.dtype)
        and to.get("layout") in (None, x.layout)
        and to.get("device") in (None, x.fake_device)
        and to.get("memory_format") is None
        and not to.get("copy")
    )


def _storage_numel(x: Tensor) -> int:
    return x.untyped_storage().nbytes() // x.element_size()


def _where() -> str:
    """File and line of the innermost frame outside torch and this package."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((*_LIBRARIES, "<")):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "jit"


def _unknown(x: Any) -> bool:
    """Whether `x` is, or a list holds, a tensor without numbers."""
    if isinstance(x, list | tuple):
        return any(map(_unknown, x))
    while isinstance(x, Tensor) and _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return isinstance(x, FakeTensor)


def _refused(what: str, instead: str, applies: Callable[..., bool]) -> Callable[..., Any]:
    """Stands for a function that reads numbers past the operators, which `_Watch` does not see."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not applies(*args, **kwargs):
            return NotImplemented
        raise TraceError(
            f"{_where()}: {what} reads the numbers of a tensor, which has none while tracing. {instead}"
        )

    return call


def _refuses(what: str, instead: str) -> Callable[..., Any]:
    return _refused(what, instead, lambda x, *args, **kwargs: _unknown(x))


_LISTS = "a list that holds tensors"
_REFUSED: dict[Any, Callable[..., Any]] = {
    torch.tensor: _refused(
        f"torch.tensor of {_LISTS}",
        "Use torch.stack or torch.cat.",
        lambda data, *args, **kwargs: isinstance(data, list | tuple) and _unknown(data),
    ),
    Tensor.__format__: _refused(
        "a format of a number",
        "Return the tensor and format it outside.",
        lambda x, spec="": bool(spec) and _unknown(x),
    ),
    Tensor.numpy: _refuses(".numpy()", "Use torch's operators, or return the tensor."),
    Tensor.__array__: _refuses("numpy", "Use torch's operators, or return the tensor."),
    Tensor.data_ptr: _refuses(".data_ptr()", "The address would be the same at every call; do without it."),
}
