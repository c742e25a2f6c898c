"""bf16 and fp16 steps against plain torch.autograd under torch.autocast, and the loss scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import make_task, model

from mfk.core import Aux, Optimizer, Rows, Task, tree
from mfk.optim import constant
from mfk.train import init_state, make_train_step, step
from mfk.train.state import FIRST_SCALE


def _descent() -> Optimizer:
    """p <- p - g: the change of the parameters shows the gradient itself."""

    def update(grads, opt_state, params, lr, found_inf=None):
        assert found_inf is not None
        return tree.map(lambda p, g: torch.where(found_inf > 0, p, p - g), params, grads), opt_state

    return Optimizer(lambda params: {}, update)


def _steps(task: Task, precision: Any, steps: int = 1, rows: int = 64, accumulate: int = 1):
    state = init_state(task, _descent(), 0)
    make = make_train_step(
        task,
        _descent(),
        constant(0.1),
        seed=1,
        batch_size=rows,
        accumulate=accumulate,
        precision=precision,
    )
    history = []
    for _ in range(steps):
        state, metrics = make(state, {})
        history.append({name: float(x) for name, x in metrics.items()})
    return state, history


def _gradient(state, task: Task):
    before, _ = task.init(0)
    return {name: before[name] - p for name, p in state.params.items()}


def _by_hand(dtype: torch.dtype):
    task = make_task()
    params, state = task.init(0)
    params = {k: p.clone().requires_grad_() for k, p in params.items()}
    batch = task.draw(1, 0, Rows.all(64), state, {})
    with torch.autocast("cpu", dtype=dtype):
        e = (model.apply(params, {}, batch["x"]) - batch["y"]).square()[batch["mask"]]
        loss = e.mean()
    loss.backward()
    return loss, {k: p.grad for k, p in params.items()}


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_is_autocasts(precision, dtype, accumulate):
    task = make_task()
    state, (metrics,) = _steps(task, precision, accumulate=accumulate)
    loss, grads = _by_hand(dtype)
    exact = _gradient(_steps(task, "fp32")[0], task)
    step_size = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=4 * step_size)
    for name, g in _gradient(state, task).items():
        other = grads[name]
        assert other is not None and g.dtype == torch.float32
        assert torch.allclose(g, other, rtol=8 * step_size, atol=8 * step_size * float(other.abs().max()))
        # It is rounded indeed.
        assert not torch.equal(g, exact[name])
    assert ("loss_scale" in metrics) == (precision == "fp16")


def _scaled_task(factor: float) -> Task:
    """w x with a product in half precision whose gradient is about `factor`."""

    def init(seed: int):
        return {"w": torch.ones(4, 1)}, {}

    def draw(seed, number, rows: Rows, state, batch):
        return {"x": torch.full((len(rows.index), 4), 1.0)}

    def loss(params, state, batch, teacher):
        y = (batch["x"] @ params["w"]).float() * factor
        return y.sum(), y.new_full((), len(y)), Aux(state, {})

    return Task(init, draw, loss, lambda params, state, batch: ({}, {}))


def test_small_gradients_survive_by_the_scale(monkeypatch):
    # 2^-26 is below fp16's least number, 2^-24; times the scale 2^10 it is not.
    _, (metrics,) = _steps(_scaled_task(2.0**-26), "fp16", rows=2)
    assert metrics["grad_norm"] == pytest.approx(2.0 * 2.0**-26)
    monkeypatch.setattr("mfk.train.state.FIRST_SCALE", 1.0)
    _, (metrics,) = _steps(_scaled_task(2.0**-26), "fp16", rows=2)
    assert metrics["grad_norm"] == 0.0


def test_an_overflow_skips_the_step_and_halves_the_scale():
    # 200 * 1024 is past fp16's 65504; 50 * 1024 is not.
    state, history = _steps(_scaled_task(200.0), "fp16", steps=3, rows=1)
    assert [metrics["skipped"] for metrics in history] == [1.0, 1.0, 0.0]
    assert [metrics["loss_scale"] for metrics in history] == [FIRST_SCALE, FIRST_SCALE / 2, FIRST_SCALE / 4]
    assert float(state.guard.scale) == FIRST_SCALE / 4 and int(state.guard.clean) == 1
    assert int(state.guard.skipped) == 2 and int(state.guard.consecutive) == 0
    assert torch.allclose(state.params["w"], torch.full((4, 1), 1.0 - 200.0), rtol=1e-3)


def test_the_scale_grows_after_clean_steps(monkeypatch):
    monkeypatch.setattr(step, "_SCALE_EVERY", 3)
    _, history = _steps(_scaled_task(1e-3), "fp16", steps=8, rows=1)
    assert [metrics["loss_scale"] / FIRST_SCALE for metrics in history] == [1, 1, 1, 2, 2, 2, 4, 4]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_scale_rests_in_other_precisions(precision):
    state, _ = _steps(make_task(bad_steps=range(1, 2)), precision, steps=3)
    assert float(state.guard.scale) == FIRST_SCALE and int(state.guard.clean) == 0


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision: expected fp32, bf16 or fp16, got 'fp8'"):
        _steps(make_task(), "fp8")


def test_the_search_for_a_scale_is_no_divergence():
    """A gradient of 5e6 needs the scale 2^-7: seventeen overflows in a row, none by the loss itself."""
    state, history = _steps(_scaled_task(5e6), "fp16", steps=18, rows=1)
    assert int(state.guard.skipped) == 17 and int(state.guard.worst) == 0
    assert history[-1]["skipped"] == 0
    # A loss that is not finite itself is counted.
    state, _ = _steps(make_task(bad_steps=range(0, 3)), "fp16", steps=4)
    assert int(state.guard.worst) == 3 and int(state.guard.consecutive) == 0


def test_clipping_acts_on_the_gradient_without_its_scale():
    for precision in ("fp32", "fp16"):
        task = _scaled_task(2.0)
        state = init_state(task, _descent(), 0)
        make = make_train_step(
            task, _descent(), constant(0.1), seed=1, batch_size=4, accumulate=2, clip=1.0, precision=precision
        )
        state, metrics = make(state, {})
        assert float(metrics["grad_norm"]) == pytest.approx(4.0)
        assert float((1.0 - state.params["w"]).norm()) == pytest.approx(1.0, rel=1e-5)
