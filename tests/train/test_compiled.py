"""Training through `mfk.jit`: the same numbers, one trace, resumable, told to the user."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import make_task
from toy_runs import CONFIG, fit_toy

from mfk import optim
from mfk.core import TraceError, tree
from mfk.core.compiler import jitted
from mfk.train import init_state, make_train_step
from mfk.train import step as step_module


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[jitted.Jitted]:
    """Compiled functions that the step makes; they run their graphs operator by operator."""
    made: list[jitted.Jitted] = []

    def jit(*args, **kwargs):
        made.append(jitted.jit(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(step_module, "jit", jit)
    monkeypatch.setattr(jitted, "compile_graph", lambda graph, fakes: lambda inputs: graph(*inputs))
    return made


COMPILED = replace(CONFIG, jit=True)


def test_a_run_is_traced_once_and_equals_the_eager_one(tmp_path: Path, traced: list[jitted.Jitted]) -> None:
    compiled, eager = fit_toy(tmp_path / "a", COMPILED), fit_toy(tmp_path / "b", CONFIG)
    assert [x.traces for x in traced] == [1]
    for x, y in zip(tree.leaves(compiled.state), tree.leaves(eager.state), strict=True):
        torch.testing.assert_close(torch.as_tensor(x), torch.as_tensor(y), atol=1e-6, rtol=1e-4)


def test_each_shape_of_a_micro_batch_is_one_trace(traced: list[jitted.Jitted]) -> None:
    task, optimizer = make_task(), optim.adamw()
    step = make_train_step(
        task, optimizer, lambda step: 1e-2, seed=0, batch_size=7, accumulate=2, compiled=True
    )
    state = init_state(task, optimizer, 0)
    for _ in range(3):
        state, _ = step(state, {})
    assert [x.traces for x in traced] == [2]  # of 4 rows and of 3


def test_a_step_that_is_not_finite_is_skipped_as_in_eager(traced: list[jitted.Jitted]) -> None:
    task, optimizer = make_task(bad_steps=range(1, 2)), optim.adamw()
    step = make_train_step(task, optimizer, lambda step: 1e-2, seed=0, batch_size=8, compiled=True)
    state = init_state(task, optimizer, 0)
    skipped = []
    for _ in range(3):
        before = tree.clone(state.params)
        state, metrics = step(state, {})
        skipped.append(float(metrics["skipped"]))
    assert skipped == [0, 1, 0] and all(bool(torch.isfinite(x).all()) for x in tree.leaves(state.params))
    assert any(
        not torch.equal(x, y) for x, y in zip(tree.leaves(before), tree.leaves(state.params), strict=True)
    )


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Really compiled; the run dies after step 12, and its last checkpoint is that of step 10."""
    whole = fit_toy(tmp_path / "whole", COMPILED)
    task = make_task()

    def draw(seed, step, *rest):
        if step == 13:
            raise RuntimeError("the power failed")
        return task.draw(seed, step, *rest)

    with pytest.raises(RuntimeError, match="the power failed"):
        fit_toy(tmp_path / "parts", COMPILED, task=task._replace(draw=draw))
    parts = fit_toy(tmp_path / "parts", COMPILED, resume=True)
    assert parts.state.step == 20
    for x, y in zip(tree.leaves(parts.state), tree.leaves(whole.state), strict=True):
        assert torch.equal(torch.as_tensor(x), torch.as_tensor(y))


def test_the_terminal_says_what_is_compiled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit_toy(tmp_path, COMPILED, console=True)
    printed = "".join(capfd.readouterr())
    assert "compiling" in printed and "matrix products" in printed and "traced in" in printed


def test_a_loss_that_cannot_be_traced_is_named(tmp_path: Path, traced: list[jitted.Jitted]) -> None:
    task = make_task()

    def loss(params, state, batch, teacher):
        total, weight, aux = task.loss(params, state, batch, teacher)
        return (total if float(total) > 0 else total * 2), weight, aux

    with pytest.raises(TraceError, match=r"test_compiled\.py:\d+: the value of a tensor is read") as caught:
        fit_toy(tmp_path, COMPILED, task=task._replace(loss=loss))
    assert "--no-jit" in str(caught.value)
    fit_toy(tmp_path / "eager", CONFIG, task=task._replace(loss=loss))
