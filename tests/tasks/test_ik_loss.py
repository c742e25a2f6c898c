"""Every objective in the inverse-kinematics task, against its loss composed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch.func import grad

import mfk
from mfk import kinematics, losses, optim
from mfk.core import Rows, tree
from mfk.core.compiler import jitted
from mfk.tasks.ik import IKConfig, NetConfig, ik_field, ik_model, ik_task, validation_batches
from mfk.tasks.ik_loss import LossConfig, Objective
from mfk.train import init_state, make_train_step, validation_metrics

PANDA = kinematics.panda()
SMALL = IKConfig(net=NetConfig(width=16, blocks=1))
OBJECTIVES = get_args(Objective)
ROWS = 32


def config(objective: str, **settings: Any) -> IKConfig:
    if objective == "alpha_flow":
        settings.setdefault("alpha_steps", (0, 2_000))
    return replace(SMALL, loss=LossConfig(objective=objective, weighting="uniform", **settings))  # type: ignore[arg-type]


def perturbed(seed: int = 0) -> Any:
    """Parameters with heads that are not zero, so that every objective has an error."""
    params, _ = ik_task(PANDA, SMALL).init(seed)
    generator = torch.Generator().manual_seed(seed)
    return tree.map(lambda p: p + 0.1 * torch.randn(p.shape, generator=generator), params)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_the_named_one_plus_flow_matching(objective: str) -> None:
    setting = config(objective)
    task, model = ik_task(PANDA, setting), ik_model(PANDA, setting.net)
    params, teacher, state = perturbed(0), perturbed(1), task.init(0)[1]
    batch = task.draw(0, 700, Rows.all(ROWS), state, {})
    total, weight, aux = task.loss(params, state, batch, teacher)

    n = len(batch["t"])
    z, v, r, t = batch["z"][:n], batch["v"][:n], batch["r"][:n], batch["t"]
    u, other = (ik_field(model, p, state, batch["pose"][:n]) for p in (params, teacher))
    expected = {
        "meanflow": lambda: losses.meanflow(u, z, v, r, t),
        "improved_meanflow": lambda: losses.improved_meanflow(u, z, v, r, t),
        "alpha_flow": lambda: losses.alpha_flow(u, z, v, r, t, losses.alpha_schedule(0, 2_000)(700)),
        "split_meanflow": lambda: losses.split_meanflow(u, z, r, batch["s"], t),
        "shortcut": lambda: losses.shortcut(u, z, r, t, other),
        "terminal_velocity": lambda: losses.terminal_velocity(u, z, r, t),
        "finite_difference": lambda: losses.meanflow_finite_difference(u, z, v, r, t, 5e-3),
    }[objective]()
    rest = ik_field(model, params, state, batch["pose"][n:])
    boundary = losses.flow_matching(rest, batch["z"][n:], batch["v"][n:], batch["r"][n:])
    torch.testing.assert_close(total, expected.sum() + boundary.sum(), rtol=1e-5, atol=1e-5)
    assert float(weight) == ROWS and n == ROWS // 4 and float(expected.detach().min()) > 0
    rates = {"meanflow", "improved_meanflow", "finite_difference"}
    assert ("meanflow_residual" in aux.metrics) == (objective in rates)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_is_traceable_and_reaches_every_parameter(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jitted, "compile_graph", lambda graph, fakes: lambda inputs: graph(*inputs))
    task = ik_task(PANDA, config(objective))
    params, state = perturbed(), task.init(0)[1]
    batch = task.draw(0, 700, Rows.all(ROWS), state, {})

    def total(params, batch):
        return task.loss(params, state, batch, params)[0]

    eager = grad(total)(params, batch)
    traced = mfk.jit(grad(total))(params, batch)
    for x, y in zip(tree.leaves(traced), tree.leaves(eager), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=1e-3 * float(y.abs().max()))
        assert bool(y.abs().max() > 0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_metrics_do_not_depend_on_whether_there_are_such_rows(objective: str) -> None:
    task = ik_task(PANDA, config(objective))
    params, state = task.init(0)
    names = [
        set(task.loss(params, state, task.draw(0, 0, Rows(index, 16), state, {}), params)[2].metrics)
        for index in (range(0, 4), range(12, 16))
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("objective", ["improved_meanflow", "alpha_flow", "shortcut", "terminal_velocity"])
def test_a_short_training_improves_the_step(objective: str) -> None:
    small = IKConfig(net=NetConfig(width=32, blocks=1))
    steps = (0, 60) if objective == "alpha_flow" else None
    setting = replace(small, loss=LossConfig(objective=objective, alpha_steps=steps))  # type: ignore[arg-type]
    task, optimizer = ik_task(PANDA, setting), optim.adamw(weight_decay=0.0)
    step = make_train_step(
        task, optimizer, lambda step: 2e-3 * (1 - step / 100), seed=0, batch_size=128, clip=1.0
    )
    state = init_state(task, optimizer, 0)
    held_out = validation_batches(PANDA, setting, 0, 512)
    before = validation_metrics(task, state, held_out)["position_mm"]
    for _ in range(100):
        state, _ = step(state, {})
    assert validation_metrics(task, state, held_out)["position_mm"] < 0.97 * before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "magic"}, "objective: expected one of"),
        ({"objective": "alpha_flow"}, "alpha_steps: alpha_flow needs"),
        ({"alpha_steps": (0, 10)}, "alpha_steps: .* no effect"),
        ({"objective": "alpha_flow", "alpha_steps": (10, 10)}, "alpha_steps: end: expected a step after"),
        ({"epsilon": 0.1}, "epsilon: .* no effect"),
        ({"objective": "finite_difference", "epsilon": 0.0}, "epsilon: expected a positive number"),
        ({"weighting": "uniform", "weight_c": 1.0}, "weight_c: .* no effect"),
        ({"weighting": "none"}, "weighting: expected adaptive"),
    ],
)
def test_settings_are_checked_before_anything_is_built(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ik_task(PANDA, replace(SMALL, loss=LossConfig(**settings)))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_validated_by_the_meanflow_loss(objective: str) -> None:
    params = perturbed()
    values = []
    for setting in (config(objective), config("meanflow")):
        task = ik_task(PANDA, setting)
        batch = ik_task(PANDA, config("meanflow")).draw(0, 0, Rows.all(ROWS), task.init(0)[1], {})
        values.append(float(task.evaluate(params, task.init(0)[1], batch)[0]["val_loss"]))
    assert values[0] == values[1]


def test_an_objective_without_rows_is_refused() -> None:
    setting = replace(config("shortcut"), times=losses.TimeConfig(jvp_share=0.0))
    with pytest.raises(ValueError, match=r"objective: .* no effect"):
        ik_task(PANDA, setting)


def test_alpha_falls_with_the_step_and_weighs_its_rows_as_the_paper_does() -> None:
    setting = replace(SMALL, loss=LossConfig(objective="alpha_flow", alpha_steps=(0, 100)))
    task = ik_task(PANDA, setting)
    state = task.init(0)[1]
    batches = [task.draw(0, step, Rows.all(ROWS), state, {}) for step in (0, 50, 100)]
    assert [round(float(b["alpha"]), 3) for b in batches] == [1.0, 0.5, 0.005]
    total, _, _ = task.loss(perturbed(), state, batches[1], perturbed())
    # At p = 1 a weighted row is below one, with the loss's own division by alpha taken out.
    assert 0 < float(total) < ROWS
