"""mfk.core.model: a stateless model is its module, under every transform, and nothing else moves."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import mfk.core as core


class Net(nn.Module):
    gain: Tensor
    shift: Tensor

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.LayerNorm(width))
        self.outer = nn.Linear(width, 2)
        self.register_buffer("shift", torch.tensor([0.5, -0.5]))
        self.register_buffer("gain", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * self.gain * self.outer(self.inner(x)) + self.shift


class Tied(nn.Module):
    """Both layers hold one weight, and the buffer has two names."""

    a: Tensor
    b: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("a", torch.full((3,), 2.0))
        self.register_buffer("b", self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.b * self.second(self.a * self.first(x))


def direct(make: Callable[[], nn.Module], params: dict[str, Tensor], buffers: dict[str, Tensor]) -> nn.Module:
    """The module itself in float64, holding these numbers: what apply is compared with."""
    module = make()
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            tensor.copy_({**params, **buffers}[name])
    return module.double()


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() for name, x in tensors.items()}


X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


@pytest.mark.parametrize("make", [Net, Tied])
def test_apply_is_the_module(make: Callable[[], nn.Module]) -> None:
    model = core.stateless(make)
    params, buffers = model.init(3)
    module = direct(make, params, buffers)
    torch.testing.assert_close(model.apply(double(params), double(buffers), X), module(X), rtol=0, atol=0)


@pytest.mark.parametrize("make", [Net, Tied])
def test_gradients_are_autograds(make: Callable[[], nn.Module]) -> None:
    model = core.stateless(make)
    params, buffers = model.init(3)
    module = direct(make, params, buffers)
    module(X).square().sum().backward()
    expected = {name: p.grad for name, p in module.named_parameters()}
    grads = torch.func.grad(lambda p: model.apply(p, double(buffers), X).square().sum())(double(params))
    assert grads.keys() == expected.keys() and len(grads) > 1
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-12, atol=1e-12)


# torch's own: the first jvp of a process scripts its decompositions.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_jvp_is_a_finite_difference() -> None:
    model = core.stateless(Net)
    params, buffers = map(double, model.init(3))
    tangents = {name: torch.cos(p + 1) for name, p in params.items()}
    dx, eps = torch.sin(3 * X), 1e-6

    def at(t: float) -> Tensor:
        return model.apply({n: p + t * tangents[n] for n, p in params.items()}, buffers, X + t * dx)

    out = torch.func.jvp(lambda p, x: model.apply(p, buffers, x), (params, X), (tangents, dx))[1]
    torch.testing.assert_close(out, (at(eps) - at(-eps)) / (2 * eps), rtol=1e-7, atol=1e-8)


def test_vmap_over_rows_and_over_an_ensemble() -> None:
    model = core.stateless(Net)
    members = [tuple(map(double, model.init(seed))) for seed in range(3)]
    params, buffers = members[0]
    rows = torch.vmap(lambda x: model.apply(params, buffers, x))(X)
    torch.testing.assert_close(rows, model.apply(params, buffers, X))
    stacked = [{n: torch.stack([m[i][n] for m in members]) for n in members[0][i]} for i in (0, 1)]
    out = torch.vmap(lambda p, b: model.apply(p, b, X))(*stacked)
    for i, (p, b) in enumerate(members):
        torch.testing.assert_close(out[i], model.apply(p, b, X))


def test_gradients_reach_buffers_and_inputs() -> None:
    model = core.stateless(Net)
    params, buffers = map(double, model.init(0))
    g = torch.func.grad(lambda b: model.apply(params, b, X).sum())(buffers)
    assert g["shift"].tolist() == [4.0, 4.0]


def test_it_runs_where_no_gradient_is_recorded() -> None:
    model = core.stateless(Net)
    params, buffers = model.init(0)
    expected = model.apply(params, buffers, X.float())
    with torch.no_grad():
        assert torch.equal(model.apply(params, buffers, X.float()), expected)
    with torch.inference_mode():
        assert torch.equal(model.apply(params, buffers, X.float()), expected)


def test_it_compiles_as_one_graph() -> None:
    model = core.stateless(Net)
    params, buffers = model.init(0)
    compiled = torch.compile(lambda p, b, x: model.apply(p, b, x), backend="eager", fullgraph=True)
    assert torch.equal(compiled(params, buffers, X.float()), model.apply(params, buffers, X.float()))


def test_keyword_arguments_reach_the_module() -> None:
    model = core.stateless(Net)
    params, buffers = model.init(0)
    x, shift = X.float(), buffers["shift"]
    three, one = (model.apply(params, buffers, x, scale=s) - shift for s in (3.0, 1.0))
    torch.testing.assert_close(three, 3 * one)
    with pytest.raises(TypeError, match="skale"):
        model.apply(params, buffers, x, skale=3.0)


def test_init_is_the_modules_own_under_a_private_seed() -> None:
    model = core.stateless(Net)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    params, buffers = model.init(1)
    again, other = model.init(1)[0], model.init(2)[0]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(params[n], again[n]) and params[n] is not again[n] for n in params)
    assert all(not torch.equal(params[n], other[n]) for n in ("inner.0.weight", "outer.weight", "outer.bias"))
    assert params["inner.2.weight"].tolist() == [1.0] * 5  # LayerNorm's own initialisation
    assert float(params["outer.weight"].abs().max()) <= 5**-0.5  # Linear's own: uniform in 1 / sqrt(inputs)
    assert list(params) == [n for n, _ in Net().named_parameters()] and set(buffers) == {"shift", "gain"}
    assert not any(x.requires_grad for x in (*params.values(), *buffers.values()))


def test_stateless_and_apply_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    model = core.stateless(Net)
    params, buffers = model.init(0)
    model.apply(params, buffers, X.float())
    assert torch.equal(before, torch.get_rng_state())


def test_tied_weights_are_one_parameter() -> None:
    model = core.stateless(Tied)
    params, buffers = model.init(0)
    assert set(params) == {"first.weight", "first.bias", "second.bias"} and set(buffers) == {"a"}
    twice = {**params, "first.weight": 2 * params["first.weight"]}
    module = direct(Tied, twice, buffers)
    torch.testing.assert_close(model.apply(double(twice), double(buffers), X), module(X))


@pytest.mark.parametrize("argument", ["params", "buffers"])
def test_tensors_that_are_not_the_modules_are_refused(argument: str) -> None:
    model = core.stateless(Net)
    params, buffers = model.init(0)
    both: dict[str, dict[str, Tensor]] = {"params": params, "buffers": buffers}
    less = dict(list(both[argument].items())[1:])
    more = {**both[argument], "extra": torch.ones(1)}
    gone = next(iter(both[argument]))
    with pytest.raises(
        ValueError, match=rf"{argument}: expected exactly the module's .* missing \['{gone}'\]"
    ):
        model.apply(**{**both, argument: less})
    with pytest.raises(ValueError, match=rf"{argument}: .* unknown \['extra'\]"):
        model.apply(**{**both, argument: more})


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


@pytest.mark.parametrize(
    ("make", "name"),
    [(Counter, "count"), (lambda: nn.BatchNorm1d(3), "num_batches_tracked")],
    ids=["own", "batch"],
)
def test_a_module_that_writes_its_buffers_is_refused_and_the_callers_stay(
    make: Callable[[], nn.Module], name: str
) -> None:
    model = core.stateless(make)
    params, buffers = model.init(0)
    kept = copy.deepcopy(buffers)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=rf"buffers: the module wrote to '{name}' while it ran"):
            model.apply(params, buffers, X.float())
    assert all(torch.equal(buffers[n], kept[n]) for n in kept)


def test_batch_norm_in_eval_mode_is_allowed() -> None:
    model = core.stateless(lambda: nn.BatchNorm1d(3).eval())
    params, buffers = model.init(0)
    buffers = {**buffers, "running_mean": torch.tensor([1.0, 2.0, 3.0])}
    torch.testing.assert_close(
        model.apply(params, buffers, X.float()), (X.float() - buffers["running_mean"]) / (1 + 1e-5) ** 0.5
    )


def test_the_skeleton_holds_no_numbers() -> None:
    """What was built to learn the structure is gone; a copy on the meta device stays."""
    made: list[weakref.ref[nn.Module]] = []

    def make() -> nn.Module:
        module = Net()
        made.append(weakref.ref(module))
        return module

    model = core.stateless(make)
    gc.collect()
    assert len(made) == 1 and made[0]() is None
    del model


def test_a_module_that_the_caller_keeps_is_left_alone() -> None:
    kept = nn.Linear(3, 3)
    before = kept.weight.detach().clone()
    model = core.stateless(lambda: kept)
    assert torch.equal(kept.weight, before)
    with pytest.raises(TypeError, match="a new module at each call"):
        model.init(0)


def test_arguments_in_the_wrong_place_are_named() -> None:
    model = core.stateless(lambda: nn.Linear(3, 3))
    params, _ = model.init(0)
    with pytest.raises(TypeError, match=r"^buffers: expected a dict"):
        model.apply(params, torch.ones(3))
    with pytest.raises(TypeError, match=r"^params: expected a dict"):
        model.apply(nn.Linear(3, 3), {}, torch.ones(3))


@pytest.mark.parametrize("make", [Net(), 3, None])
def test_a_module_in_place_of_its_constructor_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match="make: expected a function that builds the module"):
        core.stateless(make)


def test_a_constructor_of_something_else_or_of_lazy_layers_is_refused() -> None:
    three: Any = partial(int, 3)
    with pytest.raises(TypeError, match=r"make: expected it to return a torch.nn.Module, got 3 \(int\)"):
        core.stateless(three)
    with pytest.raises(TypeError, match="make: parameter 'weight' is lazy"):
        core.stateless(lambda: nn.LazyLinear(3))


def test_it_agrees_with_functional_call() -> None:
    model = core.stateless(Net)
    params, buffers = model.init(0)
    expected = functional_call(Net(), {**params, **buffers}, (X.float(),))
    assert torch.equal(model.apply(params, buffers, X.float()), expected)
