"""The step against gradients that plain torch.autograd takes of the whole batch at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import make_task, model

from mfk.core import Aux, Optimizer, Rows, Task, tree
from mfk.optim import adamw, constant, warmup_cosine
from mfk.train import init_state, make_train_step


def _descent() -> Optimizer:
    """p <- p - lr g: the change of the parameters shows the gradient itself."""

    def update(grads, opt_state, params, lr, found_inf=None):
        assert found_inf is not None
        return tree.map(lambda p, g: torch.where(found_inf > 0, p, p - lr * g), params, grads), opt_state

    return Optimizer(lambda params: {}, update)


def _one_step(accumulate: int, rows: int, dtype: torch.dtype, clip: float | None = None, given: bool = False):
    task = make_task(dtype=dtype)
    state = init_state(task, _descent(), 0)
    step = make_train_step(
        task, _descent(), constant(0.1), seed=1, batch_size=rows, accumulate=accumulate, clip=clip
    )
    batch = {"x": torch.linspace(-1, 2, rows * 3, dtype=dtype).reshape(rows, 3)} if given else {}
    return step(state, batch)


def _by_hand(rows: int, dtype: torch.dtype):
    task = make_task(dtype=dtype)
    params, state = task.init(0)
    params = {k: p.clone().requires_grad_() for k, p in params.items()}
    batch = task.draw(1, 0, Rows.all(rows), state, {})
    e = (model.apply(params, {}, batch["x"]) - batch["y"]).square()[batch["mask"]]
    loss = e.mean()
    loss.backward()
    return (
        loss,
        {k: p.grad for k, p in params.items()},
        {k: p.detach() - 0.1 * p.grad for k, p in params.items()},
    )


@pytest.mark.parametrize(("rows", "accumulate"), [(64, 1), (64, 2), (63, 2), (64, 3), (5, 4), (3, 8), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_micro_batches_change_nothing_but_rounding(rows, accumulate, dtype):
    loss, grads, params = _by_hand(rows, dtype)
    after, metrics = _one_step(accumulate, rows, dtype)
    tolerance: dict[str, Any] = (
        dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=1e-12, atol=1e-13)
    )
    if not math.isfinite(loss.item()):
        assert metrics["skipped"] == 1
        return
    torch.testing.assert_close(after.params, params, **tolerance)
    torch.testing.assert_close(metrics["loss"], loss.detach(), **tolerance)
    norm = torch.cat([g.flatten() for g in grads.values()]).norm()
    torch.testing.assert_close(metrics["grad_norm"], norm, **tolerance)
    assert after.state["calls"] == min(accumulate, rows)


def test_a_mean_of_means_would_be_another_gradient():
    """So that the test above can fail: the masks of the micro-batches hold different numbers of rows."""
    rows, (_, grads, _) = 64, _by_hand(64, torch.float64)
    task = make_task(dtype=torch.float64)
    params, state = task.init(0)
    mean = tree.map(torch.zeros_like, params)
    for k in range(2):
        batch = task.draw(1, 0, Rows(range(k, rows, 2), rows), state, {})
        own = {name: p.clone().requires_grad_() for name, p in params.items()}
        total, weight, _ = task.loss(own, state, batch, params)
        (total / weight).backward()
        mean = {name: mean[name] + own[name].grad / 2 for name in mean}
    error = tree.global_norm({k: mean[k] - grads[k] for k in grads}) / tree.global_norm(grads)
    assert error > 0.01


def test_given_batches_are_interleaved_as_the_rows_are():
    whole, _ = _one_step(1, 63, torch.float64, given=True)
    parts, _ = _one_step(4, 63, torch.float64, given=True)
    torch.testing.assert_close(whole.params, parts.params, rtol=1e-12, atol=1e-13)


def test_clipping_after_the_division():
    free, metrics = _one_step(2, 64, torch.float64)
    clipped, clipped_metrics = _one_step(2, 64, torch.float64, clip=metrics["grad_norm"].item() / 3)
    start = make_task(dtype=torch.float64).init(0)[0]
    assert clipped_metrics["grad_norm"] == metrics["grad_norm"]
    for name, p in start.items():
        torch.testing.assert_close(clipped.params[name] - p, (free.params[name] - p) / 3)


def _fit(task: Task, steps: int, accumulate: int = 1, seed: int = 1):
    optimizer = adamw()
    state = init_state(task, optimizer, 0, ema=True)
    schedule = warmup_cosine(1e-2, 2, 50)
    step = make_train_step(
        task, optimizer, schedule, seed=seed, batch_size=16, accumulate=accumulate, clip=1.0, ema_decay=0.9
    )
    reported = []
    for _ in range(steps):
        state, metrics = step(state, {})
        reported.append({name: float(value) for name, value in metrics.items()})
    return state, reported


def test_metrics_and_learning_rate():
    _, reported = _fit(make_task(), 4)
    schedule = warmup_cosine(1e-2, 2, 50)
    assert [m["lr"] for m in reported] == pytest.approx([schedule(i) for i in range(4)], rel=1e-6)
    assert set(reported[0]) == {"loss", "grad_norm", "lr", "skipped", "weight", "raw_error"}
    assert all(0 < m["raw_error"] ** 2 <= m["loss"] for m in reported)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_bad_steps_change_nothing_but_the_counts(accumulate):
    good, _ = _fit(make_task(), 3, accumulate)
    state, reported = _fit(make_task(bad_steps=range(3, 6)), 6, accumulate)
    assert state.step == 6
    assert (state.guard.skipped.item(), state.guard.consecutive.item()) == (3, 3)
    assert [m["skipped"] for m in reported] == [0, 0, 0, 1, 1, 1]
    for one, other in zip(
        tree.leaves((good.params, good.state, good.opt, good.ema)),
        tree.leaves((state.params, state.state, state.opt, state.ema)),
        strict=True,
    ):
        assert torch.equal(one, other)
    after, reported = _fit(make_task(bad_steps=range(3, 6)), 7, accumulate)
    assert (after.guard.skipped.item(), after.guard.consecutive.item()) == (3, 0)
    assert reported[-1]["skipped"] == 0 and after.opt.step == 4


class _NoHostReads(TorchDispatchMode):
    """Raises where Python would wait for a tensor's value: .item(), float(x), if x."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("host read")
        return func(*args, **(kwargs or {}))


def test_the_step_never_reads_a_value():
    task, optimizer = make_task(bad_steps=range(1, 2)), adamw(decay=lambda name: "bias" not in name)
    state = init_state(task, optimizer, 0, ema=True)
    step = make_train_step(
        task, optimizer, constant(0.1), seed=0, batch_size=8, accumulate=2, clip=1.0, ema_decay=0.9
    )
    with _NoHostReads():
        for _ in range(3):
            state, _ = step(state, {})
        with pytest.raises(AssertionError, match="host read"):
            float(state.guard.skipped)
    assert state.guard.skipped == 1


def test_a_batch_without_weight_is_skipped():
    def loss(params, state, batch, teacher):
        return params["w"].sum() * 0, torch.tensor(0), Aux(state, {})

    task = Task(lambda seed: ({"w": torch.ones(2)}, {}), lambda *a: {}, loss, lambda *a: ({}, {}))
    optimizer = adamw()
    state = init_state(task, optimizer, 0)
    step = make_train_step(task, optimizer, constant(0.1), seed=0, batch_size=2)
    state, metrics = step(state, {})
    assert metrics["skipped"] == 1 and torch.equal(state.params["w"], torch.ones(2))


@pytest.mark.parametrize("ema", [False, True])
def test_the_teacher_is_the_average_and_gets_no_gradient(ema):
    """loss = (w - teacher)^2 has gradient 2 (w - teacher), and with teacher = w none."""

    def loss(params, state, batch, teacher):
        return (
            (params["w"] - teacher["w"]).square().sum() + params["w"].sum(),
            torch.tensor(1.0),
            Aux(state, {}),
        )

    task = Task(lambda seed: ({"w": torch.ones(1)}, {}), lambda *a: {}, loss, lambda *a: ({}, {}))
    state = init_state(task, _descent(), 0, ema=ema)
    step = make_train_step(
        task, _descent(), constant(0.1), seed=0, batch_size=1, ema_decay=0.5 if ema else None
    )
    w, average = 1.0, 1.0
    for _ in range(3):
        state, _ = step(state, {})
        w -= 0.1 * (1 + (2 * (w - average) if ema else 0))
        average = 0.5 * (average + w)
    assert state.params["w"].item() == pytest.approx(w, rel=1e-6)
    if ema:
        assert state.ema["w"].item() == pytest.approx(average, rel=1e-6)


def test_the_state_shares_no_memory_with_the_task():
    held = {"w": torch.ones(3)}
    task = Task(lambda seed: (held, {}), lambda *a: {}, lambda *a: None, lambda *a: ({}, {}))  # pyright: ignore
    state = init_state(task, adamw(), 0, ema=True)
    assert len({held["w"].data_ptr(), state.params["w"].data_ptr(), state.ema["w"].data_ptr()}) == 3


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.ones(4, 3), "y": torch.ones(5)}, "'y' has 5 rows, 'x' has 4"),
        ({"x": torch.ones(())}, "'x' must be a tensor with rows"),
        ({"x": [1.0]}, "'x' must be a tensor with rows"),
        ({"x": torch.ones(0, 3)}, "'x': expected at least one row"),
        ({}, "batch_size: expected at least one row, got None"),
    ],
)
def test_bad_batches(batch, message):
    task = make_task()
    step = make_train_step(task, adamw(), constant(0.1), seed=0)
    with pytest.raises(ValueError, match=message):
        step(init_state(task, adamw(), 0), batch)


def test_a_changed_carried_state_is_refused_before_anything_is_donated():
    def loss(params, state, batch, teacher):
        return params["w"].sum(), torch.tensor(1.0), Aux({"n": torch.ones(2)}, {})

    task = Task(
        lambda seed: ({"w": torch.ones(1)}, {"n": torch.ones(1)}), lambda *a: {}, loss, lambda *a: ({}, {})
    )
    state = init_state(task, adamw(), 0)
    with pytest.raises(ValueError, match=r"state: a leaf was .*\(1,\).*\(2,\)"):
        make_train_step(task, adamw(), constant(0.1), seed=0, batch_size=1)(state, {})
    assert state.params["w"].item() == 1 and state.opt.step == 0


@pytest.mark.parametrize("accumulate", [0, -1, 1.5, True])
def test_bad_accumulate(accumulate):
    with pytest.raises(ValueError, match="accumulate"):
        make_train_step(make_task(), adamw(), constant(0.1), seed=0, accumulate=accumulate)


def test_ema_settings_must_agree():
    task = make_task()
    step = make_train_step(task, adamw(), constant(0.1), seed=0, batch_size=4, ema_decay=0.9)
    with pytest.raises(ValueError, match=r"ema_decay: 0\.9, but the state holds no average"):
        step(init_state(task, adamw(), 0), {})
    step = make_train_step(task, adamw(), constant(0.1), seed=0, batch_size=4)
    with pytest.raises(ValueError, match="ema_decay: None, but the state holds an average"):
        step(init_state(task, adamw(), 0, ema=True), {})


def test_names_that_the_step_uses():
    def loss(params, state, batch, teacher):
        return params["w"].sum(), torch.tensor(1.0), Aux(state, {"lr": torch.ones(())})

    task = Task(lambda seed: ({"w": torch.ones(1)}, {}), lambda *a: {}, loss, lambda *a: ({}, {}))
    with pytest.raises(ValueError, match=r"\['lr'\]"):
        make_train_step(task, adamw(), constant(0.1), seed=0, batch_size=1)(init_state(task, adamw(), 0), {})
