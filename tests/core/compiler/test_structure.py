"""What surrounds a compiled function, and its arguments' dicts: traced anew where their structure changed."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import mfk
from mfk.core.compiler import TraceError
from mfk.core.compiler.closures import closed_over

X = torch.arange(3.0)
WEIGHT = torch.ones(3)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph itself stands for the compiled code."""

    def run(graph: torch.fx.GraphModule, fakes: object) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
        return lambda inputs: graph(*inputs)

    monkeypatch.setattr("mfk.core.compiler.jitted.compile_graph", run)


def helper(x: Tensor) -> Tensor:
    return x * WEIGHT


def another_helper(x: Tensor) -> Tensor:
    return 5 * x * WEIGHT


# What it closes over


def test_a_variable_that_was_none() -> None:
    offset: Tensor | None = None
    f = mfk.jit(lambda x: x * WEIGHT if offset is None else x * WEIGHT + offset)
    assert f(X).tolist() == [0, 1, 2]
    offset = torch.ones(3)
    assert f(X).tolist() == [1, 2, 3]
    offset = torch.full((3,), 2.0)
    assert f(X).tolist() == [2, 3, 4] and f.traces == 2
    offset = None
    assert f(X).tolist() == [0, 1, 2] and f.traces == 2


def test_an_attribute_and_an_entry_that_were_none_or_a_number() -> None:
    settings, entries = SimpleNamespace(offset=None), {"scale": 1.0}
    f = mfk.jit(lambda x: x * entries["scale"] + (0 if settings.offset is None else settings.offset))
    assert f(X).tolist() == [0, 1, 2]
    settings.offset = torch.ones(3)
    assert f(X).tolist() == [1, 2, 3]
    changed: dict[str, Any] = entries
    changed["scale"] = torch.full((3,), 2.0)
    assert f(X).tolist() == [1, 3, 5] and f.traces == 3


def test_the_length_of_a_list_and_the_keys_of_a_dict() -> None:
    weights, named = [WEIGHT], {"a": WEIGHT}
    many = {str(i): WEIGHT for i in range(40)}

    def fn(x: Tensor) -> Tensor:
        return sum(weights, x) + sum((len(k) * v for k, v in named.items()), x) + sum(many.values(), x)

    f = mfk.jit(fn)
    assert torch.equal(f(X), fn(X))
    weights.append(WEIGHT)
    assert torch.equal(f(X), fn(X)) and f.traces == 2
    named["bb"] = named.pop("a")
    assert torch.equal(f(X), fn(X)) and f.traces == 3
    del many["3"]
    assert torch.equal(f(X), fn(X)) and f.traces == 4
    assert torch.equal(f(X), fn(X)) and f.traces == 4


def test_a_global_function_that_is_rebound(monkeypatch: pytest.MonkeyPatch) -> None:
    f = mfk.jit(lambda x: helper(x) + 1)
    assert f(X).tolist() == [1, 2, 3]
    monkeypatch.setitem(globals(), "helper", another_helper)
    assert f(X).tolist() == [1, 6, 11] and f.traces == 2


def test_a_function_of_torch_that_is_rebound() -> None:
    activation = torch.sin
    f = mfk.jit(lambda x: activation(x * WEIGHT))
    torch.testing.assert_close(f(X), X.sin())
    activation = torch.cos
    torch.testing.assert_close(f(X), X.cos())


def test_the_same_code_with_another_closure_is_read_through() -> None:
    def scaled(by: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: x * by

    inner = scaled(torch.ones(3))
    f = mfk.jit(lambda x: inner(x))
    assert f(X).tolist() == [0, 1, 2]
    inner = scaled(torch.full((3,), 3.0))
    assert f(X).tolist() == [0, 3, 6] and f.traces == 1


def test_what_the_function_changes_itself_is_not_traced_again() -> None:
    seen, made, kept = [], {}, SimpleNamespace(last=None)

    def fn(x: Tensor) -> Tensor:
        seen.append(float(len(seen)))
        kept.last = made.setdefault("k", torch.ones(3)) * x
        return x * WEIGHT

    f = mfk.jit(fn)
    for _ in range(3):
        assert f(X).tolist() == [0, 1, 2]
    seen.append(1.0)
    f(X)
    assert f.traces == 1 and len(seen) == 2


def test_many_names_are_not_all_looked_at() -> None:
    many, few = dict.fromkeys(range(1000)), [dict.fromkeys(range(10)) for _ in range(100)]
    found = closed_over(lambda: [many, few])
    assert 0 < sum(len(holder.bound) for holder in found.holders) <= 100


# What is stored during a trace


def test_a_tensor_stored_during_an_earlier_trace_is_named_as_such() -> None:
    memo: dict[str, Tensor] = {}
    f = mfk.jit(lambda x: x * memo.setdefault("k", torch.ones(3)))
    assert f(X).tolist() == [0, 1, 2]
    with pytest.raises(
        TraceError, match=r"test_structure\.py:\d+: .*made during an earlier trace was stored"
    ):
        f(X.double())
    with pytest.raises(TraceError, match=r"output: .*made during an earlier trace was stored"):
        mfk.jit(lambda x: memo["k"])(X)


# Dicts among the arguments


@pytest.mark.parametrize("kind", [dict, OrderedDict, lambda items: defaultdict(list, items)])
def test_the_order_of_keys_belongs_to_the_kind(kind: Callable[[Any], Any]) -> None:
    a, b = torch.tensor([1.0]), torch.tensor([2.0])
    first, second = kind([("w", a), ("b", b)]), kind([("b", b), ("w", a)])
    f = mfk.jit(lambda d: torch.cat(list(d.values())))
    assert f(first).tolist() == [1, 2] and f(second).tolist() == [2, 1] and f(first).tolist() == [1, 2]
    assert f.traces == 2
    nested = mfk.jit(lambda rows: torch.cat([x for row in rows["rows"] for x in row.values()]))
    assert nested({"rows": [first, second]}).tolist() == [1, 2, 2, 1]
    assert nested({"rows": [second, first]}).tolist() == [2, 1, 1, 2]


def test_a_result_has_the_order_that_the_function_gave_it() -> None:
    f = mfk.jit(lambda d: {k: 2 * x for k, x in d.items()})
    assert list(f({"w": X, "b": X + 1})) == ["w", "b"]
    result = f({"b": X + 1, "w": X})
    assert list(result) == ["b", "w"] and result["b"].tolist() == [2, 4, 6]
