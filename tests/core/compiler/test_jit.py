"""What a compiled function does that the plain one does, what it refuses, and when it is traced again."""

from __future__ import annotations

import functools
import gc
import inspect
import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import mfk
from mfk.core.compiler import Report, TraceError, backend

GLOBAL = torch.ones(3)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph itself stands for the compiled code."""
    monkeypatch.setattr("mfk.core.compiler.jitted.compile_graph", lambda graph, fakes: run_graph(graph))


def run_graph(graph: torch.fx.GraphModule) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    return lambda inputs: graph(*inputs)


@pytest.fixture
def compiled(uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfk.core.compiler.jitted.compile_graph", backend.compile_graph)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# What it closes over


def test_a_tensor_in_a_closure_is_read_at_each_call() -> None:
    scale = torch.ones(3)

    def fn(x: Tensor) -> Tensor:
        return x * scale

    f, x = mfk.jit(fn), torch.arange(3.0)
    assert f(x).tolist() == [0, 1, 2]
    scale = torch.full((3,), 2.0)
    assert f(x).tolist() == [0, 2, 4]
    scale.fill_(3)
    assert f(x).tolist() == [0, 3, 6]
    scale = torch.tensor([5.0])  # another shape
    assert f(x).tolist() == [0, 5, 10]
    scale = torch.tensor([6.0], dtype=torch.float64)  # another dtype
    assert f(x).dtype == torch.float64 and f.traces == 3


def test_a_global_tensor_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fn(x: Tensor) -> Tensor:
        return x + GLOBAL

    f = mfk.jit(fn)
    assert f(torch.zeros(3)).tolist() == [1, 1, 1]
    monkeypatch.setitem(globals(), "GLOBAL", torch.full((3,), 7.0))
    assert f(torch.zeros(3)).tolist() == [7, 7, 7]
    assert f.traces == 1


def test_attributes_partials_dicts_lists_modules_and_methods_are_read_at_each_call() -> None:
    class Shift:
        def __init__(self) -> None:
            self.by = torch.ones(2)

        def __call__(self, x: Tensor) -> Tensor:
            return x + self.by

        def twice(self, x: Tensor) -> Tensor:
            return x + 2 * self.by

    shift, space = Shift(), SimpleNamespace(by=torch.ones(2))
    table: dict[str, Any] = {"deep": [torch.ones(2)]}
    linear = nn.Linear(2, 2).requires_grad_(False)
    partial = functools.partial(torch.add, torch.ones(2))

    def with_default(x: Tensor, table: dict[str, Any] = table) -> Tensor:
        return x + table["deep"][0]

    def with_space(x: Tensor) -> Tensor:
        return x + space.by

    x = torch.zeros(2)
    plain: list[Any] = [shift, shift.twice, with_space, with_default, linear, partial]
    fns = [mfk.jit(fn) for fn in plain]
    before = [f(x).clone() for f in fns]
    for f, y in zip(fns, before, strict=True):
        assert torch.equal(f(x), y)
    shift.by, space.by, table["deep"][0] = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    linear.bias.data = torch.full((2,), 9.0)
    partial.args[0].zero_()
    for f in fns[:4] + fns[5:]:
        assert f(x).tolist() == [0, 0]
    assert fns[4](x).tolist() == [9, 9]
    assert all(f.traces == 1 for f in fns)


def test_a_closed_over_tensor_that_went_is_traced_anew() -> None:
    table: dict[str, Any] = {"x": torch.ones(2)}
    f = mfk.jit(lambda x: x + table["x"] if "x" in table else x)
    assert f(torch.zeros(2)).tolist() == [1, 1]
    del table["x"]
    assert f(torch.zeros(2)).tolist() == [0, 0]
    assert f.traces == 2


def test_names_of_one_tensor_may_part() -> None:
    a = b = torch.ones(2)
    first = second = nn.Linear(2, 2).requires_grad_(False)

    def fn(x: Tensor) -> Tensor:
        return x * a + b

    def difference(x: Tensor) -> Tensor:
        return first(x) - second(x)

    f, g, x = mfk.jit(fn), mfk.jit(difference), torch.ones(2)
    assert f(x).tolist() == [2, 2] and g(x).tolist() == [0, 0]
    b, second = torch.full((2,), 5.0), nn.Linear(2, 2).requires_grad_(False)
    assert f(x).tolist() == [6, 6] and torch.equal(g(x), difference(x))
    a = torch.full((2,), 3.0)
    assert f(x).tolist() == [8, 8]
    assert (f.traces, g.traces) == (2, 2)
    a = b
    assert f(x).tolist() == [10, 10]


def test_a_replaced_tensor_is_not_kept() -> None:
    big = torch.ones(10)

    def fn(x: Tensor) -> Tensor:
        return x + big

    old, f = weakref.ref(big), mfk.jit(fn)
    f(torch.ones(10))
    big = torch.zeros(10)
    f(torch.ones(10))
    gc.collect()
    assert old() is None


def test_a_container_that_cannot_be_read_is_passed_over() -> None:
    class Lazy(dict[str, int]):
        def __getitem__(self, key: str) -> int:
            raise RuntimeError("not loaded")

    lazy = Lazy(a=1)
    assert mfk.jit(lambda x: x + len(lazy))(torch.ones(1)).item() == 2


def test_a_number_in_a_closure_is_a_constant() -> None:
    scale = 2.0

    def fn(x: Tensor) -> Tensor:
        return x * scale

    f = mfk.jit(fn)
    assert f(torch.ones(1)).item() == 2
    scale = 3.0
    assert f(torch.ones(1)).item() == 2


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x


class Classwide:
    by = torch.ones(2)


def line_of(fn: Callable[..., Any], text: str) -> str:
    """file:line of the line of `fn` that contains `text`."""
    lines, first = inspect.getsourcelines(fn)
    (i,) = [i for i, line in enumerate(lines) if text in line]
    return f"{__file__}:{first + i}"


def test_a_tensor_that_cannot_be_found_is_refused() -> None:
    hidden, made = Slotted(torch.ones(2)), iter([torch.ones(2)])

    def slotted(x: Tensor) -> Tensor:
        return x + hidden.x  # here

    def by_c(x: Tensor) -> Tensor:
        return x + next(made)  # here

    def of_the_class(x: Tensor) -> Tensor:
        return x + Classwide().by  # here

    def returned(x: Tensor) -> Tensor:
        return hidden.x

    for fn in (slotted, by_c, of_the_class):
        with pytest.raises(TraceError, match="neither an argument nor found") as error:
            mfk.jit(fn)(torch.ones(2))
        assert line_of(fn, "# here") in str(error.value)
    with pytest.raises(TraceError, match="made outside the function"):
        mfk.jit(returned)(torch.ones(2))
    shift = torch.ones(2)
    with pytest.raises(TraceError, match="neither an argument nor found"):  # a static leaf's own closure
        mfk.jit(lambda x, k: k(x))(torch.ones(2), lambda x: x + shift)


# Leaves


def test_none_belongs_to_the_structure() -> None:
    f = mfk.jit(lambda x, y: (x if y is None else x + y, None))
    assert f(torch.ones(1), None)[0].item() == 1
    assert f(torch.ones(1), torch.ones(1)) == (torch.tensor([2.0]), None)
    assert f.traces == 2


def test_bf16_leaves() -> None:
    f = mfk.jit(lambda x: x @ x.t())
    x = numbers(4, 3).bfloat16()
    assert f(x).dtype == torch.bfloat16
    torch.testing.assert_close(f(x), x @ x.t())


def test_static_leaves_are_told_apart_by_type_and_value() -> None:
    seen: list[Any] = []

    def fn(x: Tensor, k: Any) -> Any:
        seen.append(k)
        return k(x) if callable(k) else x * (k if isinstance(k, int | float) else len(k))

    f, x = mfk.jit(fn), torch.tensor([2])
    for k in (1, 1.0, True, "ab", "abc", torch.sin, torch.cos, 0.0, -0.0):
        for _ in range(2):
            y = fn(x, k)
            seen.pop()
            z = f(x, k)
            assert z.dtype == y.dtype and torch.equal(z, y)
            assert math.copysign(1, z.item()) == math.copysign(1, y.item())
    assert f.traces == len(seen) == 9


@dataclass(frozen=True)
class Frozen:
    factor: Any


def test_static_leaves_are_told_apart_by_what_they_hold() -> None:
    """Each of a pair equals the other in Python."""

    def fn(x: Tensor, k: Any) -> Tensor:
        k = k.factor if isinstance(k, Frozen) else k
        k = next(iter(k)) if isinstance(k, frozenset | tuple) else k
        return x * (k.real if isinstance(k, complex) else k)

    pairs: list[tuple[Any, Any]] = [
        (Frozen(1), Frozen(1.0)), (Frozen(1), Frozen(True)), (Frozen((1,)), Frozen((1.0,))),
        (Frozen(0.0), Frozen(-0.0)), (frozenset({1}), frozenset({1.0})), (complex(0.0, 0), complex(-0.0, 0)),
    ]  # fmt: skip
    x = torch.tensor([2])
    for one, other in pairs:
        assert one == other and hash(one) == hash(other)
        f = mfk.jit(fn)
        for k in (one, other, one, other):
            got, want = f(x, k), fn(x, k)
            assert got.dtype == want.dtype and torch.equal(got, want), (one, other)
            assert math.copysign(1, got.item()) == math.copysign(1, want.item())
        assert f.traces == 2


def test_a_static_leaf_may_have_a_hash_of_its_own() -> None:
    @dataclass(eq=False)
    class ByIdentity:
        factors: list[float]

    class Named(Frozen):
        def __hash__(self) -> int:
            return 7

    f = mfk.jit(lambda x, k: x * sum(k.factors))
    one, other = ByIdentity([1.0, 2.0]), ByIdentity([5.0])
    assert [f(torch.ones(1), k).item() for k in (one, other, one)] == [3, 5, 3] and f.traces == 2
    g = mfk.jit(lambda x, k: x * k.factor[0])
    assert [g(torch.ones(1), Named([n])).item() for n in (2.0, 3.0, 2.0)] == [2, 3, 2] and g.traces == 2


def test_a_leaf_that_is_not_hashable_is_refused() -> None:
    with pytest.raises(TypeError, match="argument: expected tensors, and static leaves that are hashable"):
        mfk.jit(lambda x, y: x)(torch.ones(1), {1, 2})
    with pytest.raises(TypeError, match="strided"):
        mfk.jit(lambda x: x)(torch.ones(2).to_sparse())


def test_the_arguments_of_jit_are_checked() -> None:
    with pytest.raises(TypeError, match="fn: expected a function"):
        mfk.jit(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matmul: expected exact or default"):
        mfk.jit(lambda x: x, matmul="fast")  # type: ignore[arg-type]


def test_keyword_arguments() -> None:
    def fn(x: Tensor, *, scale: Tensor, power: int = 1) -> Tensor:
        """Doc."""
        return x**power * scale

    f = mfk.jit(fn)
    x, scale = torch.tensor([3.0]), torch.tensor([2.0])
    assert f(x, scale=scale).item() == 6
    assert f(x, scale=scale, power=2).item() == f(x, power=2, scale=scale).item() == 18
    assert f(x=x, scale=scale).item() == 6
    assert f.traces == 4  # the order of the keywords belongs to the kind, as a function may look at it
    assert (f.__name__, f.__doc__) == ("fn", "Doc.")  # type: ignore[attr-defined]


def test_empty_batch_and_no_tensors() -> None:
    f = mfk.jit(grad(lambda x: (x @ x.t()).mean(0).sum()))
    assert f(torch.ones(0, 3)).shape == (0, 3)
    g = mfk.jit(lambda n: torch.arange(n) * 2)
    assert g(3).tolist() == [0, 2, 4]
    assert g(2).tolist() == [0, 2]
    assert mfk.jit(lambda: ())() == ()
    assert mfk.jit(lambda n: n + 1)(3) == 4


def test_strides_belong_to_the_kind() -> None:
    f, x = mfk.jit(lambda x: x * 2 + 1), numbers(4, 6)
    for y in (x, x.t(), x[:, ::2], x[1:], x[0].expand(4, 6)):
        assert torch.equal(f(y), y * 2 + 1)
    assert f.traces == 5
    assert torch.equal(f(x + 0), x * 2 + 1) and f.traces == 5


@pytest.mark.parametrize("really", [False, True])
def test_arguments_of_one_memory_are_arguments_of_any(really: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither that two arguments were one tensor nor where it began is compiled in."""
    if really:
        monkeypatch.setattr("mfk.core.compiler.jitted.compile_graph", backend.compile_graph)

    def fn(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a * 2 + b, a - b

    f, x, y, whole = mfk.jit(fn), numbers(3, 4), numbers(3, 4, seed=1), numbers(6, 4, seed=2)
    odd = whole.view(-1)[3:15].view(3, 4)  # begins at no multiple of 16 bytes
    for pair in ((x, x), (x, y), (whole[:3], whole[1:4]), (odd, odd), (y, odd)):
        torch.testing.assert_close(f(*pair), fn(*pair))
    assert f.traces == 1


def test_lazy_negation_and_conjugation_are_carried_out(compiled: None) -> None:
    z = torch.randn(2, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    negative = z.conj().imag
    f = mfk.jit(lambda x: x.sin() * 2 + x)
    assert negative.is_neg()
    torch.testing.assert_close(f(negative), negative.sin() * 2 + negative)
    torch.testing.assert_close(f(-z.imag), negative.sin() * 2 + negative)
    held = torch.ones(2, 3)

    def fn(x: Tensor) -> Tensor:
        return x + held

    g = mfk.jit(fn)
    g(held)
    held = negative
    torch.testing.assert_close(g(torch.zeros(2, 3)), negative)
    with pytest.raises(TraceError, match="neither an argument nor found"):
        mfk.jit(fn)(torch.zeros(2, 3))


def test_traces_counts_and_warns_of_many() -> None:
    f = mfk.jit(lambda x, k: x * k)
    assert f.traces == 0
    for k in range(15):
        f(torch.ones(1), k)
    with pytest.warns(RuntimeWarning, match="was traced 16 times") as caught:
        f(torch.ones(1), 15)
    assert caught[0].filename == __file__
    f(torch.ones(1), 16)
    assert f.traces == 17


# What a pure function does not do


def test_writing_to_an_argument_is_refused() -> None:
    held = torch.ones(3)

    def direct(x: Tensor) -> Tensor:
        return x.add_(1)  # here

    def view(x: Tensor) -> Tensor:
        x[1:].reshape(-1)[0] = 5.0  # here
        return x

    def by_list(x: Tensor) -> Tensor:
        torch._foreach_mul_([torch.ones(3), x], 2.0)  # here
        return x

    def out(x: Tensor) -> Tensor:
        return torch.add(torch.ones(3), 1, out=x)  # here

    def around(x: Tensor) -> Tensor:
        held.mul_(2)  # here
        return x

    def in_grad(x: Tensor) -> Tensor:
        def loss(y: Tensor) -> Tensor:
            y.detach().mul_(2)  # here
            return y.sum()

        return grad(loss)(x)

    def in_vmap(x: Tensor) -> Tensor:
        return vmap(lambda row: row.add_(1))(x)  # here

    def in_jvp(x: Tensor) -> Tensor:
        return jvp(lambda y: y.detach().sin_() * y, (x,), (torch.ones(3),))[1]  # here

    def resized(x: Tensor) -> Tensor:
        return x.resize_(2)  # here

    for fn in (direct, view, by_list, out, around, in_grad, in_vmap, in_jvp, resized):
        x = torch.ones(3)
        with pytest.raises(TraceError, match=r"writes to (argument 0|held)") as error:
            mfk.jit(fn)(x)
        assert line_of(fn, "# here") in str(error.value), fn.__name__
        assert torch.equal(x, torch.ones(3)) and torch.equal(held, torch.ones(3))


def test_writing_to_what_it_made_itself_is_fine() -> None:
    def fn(x: Tensor) -> Tensor:
        y = x.clone()
        y[0] = 5.0
        z = torch.zeros(3)
        z[1:] += y[1:]
        torch._foreach_add_([y, z], 1.0)
        return y + z

    x = numbers(3)
    assert torch.equal(mfk.jit(fn)(x), fn(x))


def test_reading_values_is_refused() -> None:
    def item(x: Tensor) -> Tensor:
        return x * x.sum().item()  # here

    def condition(x: Tensor) -> Tensor:
        if x.sum() > 0:  # here
            return x
        return -x

    def number(x: Tensor) -> Tensor:
        return x * float(x[0])  # here

    def nonzero(x: Tensor) -> Tensor:
        return x.nonzero()  # here

    def mask(x: Tensor) -> Tensor:
        return x[x > 0]  # here

    def unique(x: Tensor) -> Tensor:
        return torch.unique(x)  # here

    def in_grad(x: Tensor) -> Tensor:
        def loss(y: Tensor) -> Tensor:
            return (y if y.sum() > 0 else -y).sum()  # here

        return grad(loss)(x)

    def in_jvp(x: Tensor) -> Tensor:
        return jvp(lambda y: y if y.sum() > 0 else -y, (x,), (x,))[1]  # here

    def listed(x: Tensor) -> Tensor:
        return x * x.tolist()[0]  # here

    def bound(x: Tensor) -> Tensor:
        return x[: x.long()[0]]  # here

    def compared(x: Tensor) -> Tensor:
        return x if torch.equal(x, x + 1) else -x  # here

    def close(x: Tensor) -> Tensor:
        return x if torch.allclose(x, x + 1) else -x  # here

    def repeated(x: Tensor) -> Tensor:
        return torch.repeat_interleave(x, x.long())  # here

    of_values = (item, condition, number, in_grad, in_jvp, listed, bound, compared, close)
    for fn in (*of_values, nonzero, mask, unique, repeated):
        with pytest.raises(TraceError, match=r"value of a tensor|shape of the result") as error:
            mfk.jit(fn)(torch.ones(3))
        assert line_of(fn, "# here") in str(error.value), fn.__name__


def test_reading_a_constant_is_fine() -> None:
    f = mfk.jit(lambda x: x * torch.tensor(2.5).item())
    assert f(torch.ones(2)).tolist() == [2.5, 2.5]


def test_random_numbers_are_refused() -> None:
    generator = torch.Generator()

    def rand(x: Tensor) -> Tensor:
        return x + torch.rand(3)  # here

    def with_generator(x: Tensor) -> Tensor:
        return x + torch.randn(3, generator=generator)  # here

    def in_place(x: Tensor) -> Tensor:
        return torch.empty(3).uniform_() + x  # here

    def permutation(x: Tensor) -> Tensor:
        return x[torch.randperm(3)]  # here

    def dropout(x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)  # here

    def in_vmap(x: Tensor) -> Tensor:
        return vmap(lambda row: row + torch.rand_like(row), randomness="different")(x)  # here

    def dropout_in_vmap(x: Tensor) -> Tensor:
        return vmap(lambda row: nn.functional.dropout(row, 0.5), randomness="same")(x)  # here

    def in_jvp(x: Tensor) -> Tensor:
        return jvp(lambda y: nn.functional.dropout(y, 0.5), (x,), (x,))[1]  # here

    for fn in (rand, with_generator, in_place, permutation, dropout, in_vmap, dropout_in_vmap, in_jvp):
        with pytest.raises(TraceError, match="draws random numbers") as error:
            mfk.jit(fn)(torch.ones(3))
        assert line_of(fn, "# here") in str(error.value), fn.__name__
    q = numbers(1, 2, 3, 4)
    attention = nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(mfk.jit(lambda q: attention(q, q, q))(q), attention(q, q, q))
    gradient = grad(lambda q: attention(q, q, q).sin().sum())
    torch.testing.assert_close(mfk.jit(gradient)(q), gradient(q))
    with pytest.raises(TraceError, match="draws random numbers"):
        mfk.jit(lambda q: attention(q, q, q, dropout_p=0.5))(q)
    quiet = mfk.jit(lambda x: nn.functional.dropout(x, 0.5, training=False))
    assert quiet(torch.ones(2)).tolist() == [1, 1]


def test_after_an_error_it_can_be_called_again() -> None:
    f = mfk.jit(lambda x, bad: x * x.sum().item() if bad else x * 2)
    for _ in range(2):
        with pytest.raises(TraceError):
            f(torch.ones(1), True)
        assert f(torch.ones(1), False).item() == 2
    with pytest.raises(ZeroDivisionError):
        mfk.jit(lambda x: x * (1 // 0))(torch.ones(1))


def test_side_effects_happen_once() -> None:
    said: list[int] = []

    def fn(x: Tensor) -> Tensor:
        said.append(1)
        return x

    f = mfk.jit(fn)
    for _ in range(3):
        f(torch.ones(2))
    assert said == [1]


# Autograd and other transforms


def test_an_argument_that_requires_grad_is_refused_while_gradients_are_recorded() -> None:
    f, x = mfk.jit(lambda x: x * 2), torch.ones(2, requires_grad=True)
    for _ in range(2):
        with pytest.raises(TraceError, match="requires grad"):
            f(x)
        with torch.no_grad():
            assert f(x).tolist() == [2, 2]
        assert not f(x.detach()).requires_grad
    linear = nn.Linear(2, 2)
    with pytest.raises(TraceError, match="requires grad"):
        mfk.jit(linear)(torch.ones(2))
    with torch.no_grad():
        assert not mfk.jit(linear)(torch.ones(2)).requires_grad


def test_autograd_inside() -> None:
    def fn(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            return torch.autograd.grad((y**3).sum(), y)[0]

    assert mfk.jit(fn)(torch.tensor([2.0])).tolist() == [12]


def test_inside_other_transforms_it_is_the_plain_function() -> None:
    weight = numbers(3, seed=1)
    inner = mfk.jit(lambda x: (x * weight).sin().sum())
    x, v, rows = numbers(3), numbers(3, seed=2), numbers(4, 3, seed=3)
    plain: Callable[[Tensor], Tensor] = lambda x: (x * weight).sin().sum()  # noqa: E731
    assert torch.equal(grad(inner)(x), grad(plain)(x))
    assert torch.equal(vmap(inner)(rows), vmap(plain)(rows))
    assert torch.equal(jvp(inner, (x,), (v,))[1], jvp(plain, (x,), (v,))[1])
    assert torch.equal(vmap(grad(inner))(rows), vmap(grad(plain))(rows))
    traced = make_fx(inner)(v)
    assert torch.equal(traced(x), plain(x))
    closed = mfk.jit(torch.sin)
    assert torch.equal(make_fx(closed, tracing_mode="fake")(v)(x), x.sin()) and closed.traces == 0
    assert inner.traces == 0
    outer = mfk.jit(lambda x: grad(inner)(x) + inner(x))
    for _ in range(2):
        assert torch.equal(outer(x), grad(plain)(x) + plain(x))
    weight.mul_(2)  # reached through the inner function
    assert torch.equal(outer(x), grad(plain)(x) + plain(x))
    assert (inner.traces, outer.traces) == (0, 1)


def test_derivatives_inside_equal_eager(compiled: None) -> None:
    def loss(w: dict[str, Tensor], x: Tensor) -> Tensor:
        return (nn.functional.silu(x @ w["a"]) @ w["b"]).square().mean()

    w, x = {"a": numbers(5, 7), "b": numbers(7, 2, seed=1)}, numbers(6, 5, seed=2)
    got, want = mfk.jit(grad(loss))(w, x), grad(loss)(w, x)
    assert list(got) == ["a", "b"]
    for name in got:
        torch.testing.assert_close(got[name], want[name])


# Results


class Pair(NamedTuple):
    first: Any
    second: Any


def test_results_keep_their_trees() -> None:
    f = mfk.jit(lambda x: {"b": Pair(x, [x + 1, None]), "a": (3, "s", 2.5, True, ())})
    got = f(torch.ones(1))
    assert list(got) == ["b", "a"]
    assert isinstance(got["b"], Pair) and got["b"].second[1] is None
    assert got["a"] == (3, "s", 2.5, True, ()) and got["a"][3] is True
    assert mfk.jit(lambda x: None)(torch.ones(1)) is None


def storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@pytest.mark.parametrize("really", [False, True])
def test_results_share_no_memory(really: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if really:
        monkeypatch.setattr("mfk.core.compiler.jitted.compile_graph", backend.compile_graph)
    held = torch.full((4,), 3.0)

    def fn(x: Tensor) -> list[Tensor]:
        y = x + 1
        return [
            x, x[1:], x.t(), y, y, y.view(-1), y[0], x + 1, held, held[:2],
            torch.zeros(4), torch.zeros(4), torch.zeros(2, 2).view(-1), torch.tensor(2.5), torch.tensor(2.5),
            x.detach(), x.clone(), y.expand(2, 4, 4), x.sum(0, keepdim=True).expand(4, 4),
        ]  # fmt: skip

    x = numbers(4, 4)
    f = mfk.jit(fn)
    for _ in range(2):
        got, want = f(x), fn(x)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)
        places = [storage(a) for a in [x, held, *got]]
        assert len(set(places)) == len(places)
        for a in got:
            a.contiguous().zero_()
            if not any(s == 0 and n > 1 for s, n in zip(a.stride(), a.shape, strict=True)):
                a.fill_(99.0)
        assert torch.equal(x, numbers(4, 4)) and held.tolist() == [3] * 4
    assert f.traces == 1


# What else belongs to the kind


def test_autocast_belongs_to_the_kind() -> None:
    f, x = mfk.jit(lambda x, w: x @ w), numbers(3, 3)
    assert f(x, x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert f(x, x).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert f(x, x).dtype == torch.float32
        with torch.autocast("cpu", torch.float16):
            assert f(x, x).dtype == torch.float16
    assert f.traces == 3
    assert f(x, x).dtype == torch.float32 and f.traces == 3


def test_autocast_leaves_nothing_of_the_trace_behind() -> None:
    w = nn.Parameter(numbers(3, 3))
    x = numbers(3, 3, seed=1)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        f = mfk.jit(lambda x: x @ w)
        torch.testing.assert_close(f(x), x @ w)
    with torch.autocast("cpu", torch.bfloat16):
        (x @ w).sum().backward()
    assert w.grad is not None and w.grad.isfinite().all()


def test_default_dtype_belongs_to_the_kind() -> None:
    f = mfk.jit(lambda n: torch.ones(n) / 3)
    assert f(2).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert f(2).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert f(2).dtype == torch.float32 and f.traces == 2


def test_default_device_belongs_to_the_kind() -> None:
    f, x = mfk.jit(lambda x: (x + 1, torch.ones(2))), torch.ones(1)
    assert f(x)[1].device.type == "cpu"
    with torch.device("meta"):
        y, made = f(x)
        assert made.device.type == "meta"
        assert y.device.type == "cpu" and y.item() == 2
    assert f(x)[1].device.type == "cpu" and f.traces == 2


def test_the_number_of_threads_belongs_to_the_kind() -> None:
    f = mfk.jit(lambda x: x + 1)
    f(torch.ones(1))
    torch.set_num_threads(2)
    try:
        f(torch.ones(1))
    finally:
        torch.set_num_threads(1)
    f(torch.ones(1))
    assert f.traces == 2


def test_inference_mode(compiled: None) -> None:
    f = mfk.jit(lambda x, w: (x @ w, grad(lambda y: (y**2).sum())(x)))
    x, w = numbers(3, 3), nn.Parameter(numbers(3, 3, seed=1))
    with torch.inference_mode():
        made = torch.ones(3, 3)
        for a in (x, made):
            y, g = f(a, w)
            assert torch.equal(g, 2 * a)
            torch.testing.assert_close(y, a @ w)
    with torch.no_grad():
        torch.testing.assert_close(f(made, w)[0], made @ w)
    assert f.traces == 2


# Report, graph, note


def test_report_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfk.core.compiler.matmul.exact_matmul", lambda: "default")

    def fn(x: Tensor, w: Tensor) -> Tensor:
        return jvp(lambda y: (y @ w).sin() @ w, (x,), (torch.zeros_like(x),))[1] + x @ w

    x, w = numbers(5, 4), numbers(4, 4, seed=1)
    f = mfk.jit(fn)
    report = f.report(x, w)
    assert isinstance(report, Report)
    assert (report.before.matmuls, report.after.matmuls) == (6, 1)
    assert (report.before.flops, report.after.flops) == (6 * 2 * 5 * 4 * 4, 2 * 5 * 4 * 4)
    assert report.after.nodes == 1 < report.before.nodes
    assert report.folded_zeros > 0
    assert report.trace_seconds > 0 and report.compile_seconds >= 0
    text = str(report)
    assert "operators" in text and "matrix products 6 -> 1" in text and "\n" not in text
    assert torch.equal(f(x, w), x @ w)
    assert f.traces == 1  # report, then call: one compilation
    targets = [n.target for n in f.graph(x, w).graph.nodes if n.op == "call_function"]
    assert targets in ([torch.ops.aten.mm.default], [torch.ops.mfk.strict_mm.default])
    assert f.traces == 1


def test_note_is_told_of_each_compilation() -> None:
    said: list[str] = []
    f = mfk.jit(lambda x: x + 1, note=said.append)
    f(torch.ones(1))
    f(torch.ones(1))
    assert [line.split(":")[0].split(";")[0] for line in said] == ["compiling", "compiled"]
    f(torch.ones(2))
    assert len(said) == 4 and all("\n" not in line for line in said)


def test_no_warnings_and_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mfk.jit(grad(lambda x: (x @ x).sum()))(numbers(3, 3))
    assert torch.equal(state, torch.get_rng_state())
