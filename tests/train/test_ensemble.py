"""An ensemble against runs of its members alone, which the single path of step and loop makes."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_step import _NoHostReads
from torch.fx.experimental.proxy_tensor import make_fx
from toy import make_task, model, validation

from mfk.core import Aux, Batch, Rows, Task, rng, tree
from mfk.optim import adamw, stacked, warmup_cosine
from mfk.train import (
    CheckpointError,
    TrainConfig,
    TrainingDiverged,
    ensemble,
    fit,
    init_state,
    load,
    load_members,
    load_params,
    make_train_step,
    member_seed,
    read_history,
    saved,
    validation_metrics,
)
from mfk.train.begin import check_fit
from mfk.train.config import make_optimizer
from mfk.train.estimate import describe_run, memory_estimate

K, SEED = 3, 5
STEP: dict[str, Any] = dict(batch_size=17, clip=0.3, ema_decay=0.9)
CONFIG = TrainConfig(
    steps=12,
    batch_size=16,
    lr=1e-2,
    seed=SEED,
    members=K,
    ema_decay=0.9,
    validate_every=3,
    log_every=2,
    checkpoint_every=4,
    threads=1,
    jit=False,
)


def _task(bad: tuple[int, ...] = (), steps: range = range(3, 4), dtype: torch.dtype = torch.float64) -> Task:
    """The toy task, of which the members `bad` see targets that are NaN in `steps`."""
    task, seeds = make_task(dtype=dtype), [member_seed(SEED, i) for i in bad]

    def draw(seed: int, step: int, rows: Rows, state, batch: Batch) -> Batch:
        drawn = task.draw(seed, step, rows, state, batch)
        return drawn | {"y": drawn["y"] + (torch.nan if seed in seeds and step in steps else 0.0)}

    return task._replace(draw=draw)


def _train(task: Task, seed: int, steps: int, rate: float | tuple[float, ...] = 1.0, **rest):
    optimizer = adamw()
    if task.members is not None:
        optimizer = stacked(optimizer, task.members, rate if isinstance(rate, tuple) else None)
    schedule = warmup_cosine(1e-2 * (rate if isinstance(rate, float) else 1.0), 2, 50)
    state = init_state(task, optimizer, seed, ema=True)
    step = make_train_step(task, optimizer, schedule, seed=seed, **(STEP | rest))
    metrics = {}
    for _ in range(steps):
        state, metrics = step(state, {})
    return state, metrics


def _bits(one, other) -> bool:
    pairs = zip(tree.leaves(one), tree.leaves(other), strict=True)
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in pairs)


def _carried(state) -> Any:
    return state.params, state.state, state.opt, state.ema


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_ensemble_is_its_members_alone(accumulate, dtype):
    """Clipping active, an average, micro-batches, and a step that one member skips."""
    tolerance: dict[str, Any] = (
        dict(rtol=1e-12, atol=1e-13) if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-5)
    )
    task = _task(bad=(1,), dtype=dtype)
    state, metrics = _train(ensemble(task, K), SEED, 10, accumulate=accumulate)
    assert state.guard.skipped.tolist() == [0, 1, 0] and state.opt.step.tolist() == [10, 9, 10]
    for i in range(K):
        alone, own = _train(task, member_seed(SEED, i), 10, accumulate=accumulate)
        torch.testing.assert_close(tree.member(_carried(state), i), _carried(alone), **tolerance)
        assert own["grad_norm"] > STEP["clip"]
        assert own.keys() == metrics.keys()
        for name, x in own.items():
            torch.testing.assert_close(metrics[name] if name == "lr" else metrics[name][i], x, **tolerance)
        for name in ("skipped", "consecutive", "worst", "clean"):
            assert getattr(state.guard, name)[i] == getattr(alone.guard, name)


def test_members_have_rates_and_clips_of_their_own():
    task, rates, clips = _task(), (1.0, 3.0, 0.2), (0.1, 0.3, 100.0)
    state, _ = _train(ensemble(task, K), SEED, 6, rates, clip=clips)
    for i in range(K):
        alone, _ = _train(task, member_seed(SEED, i), 6, rates[i], clip=clips[i])
        torch.testing.assert_close(tree.member(_carried(state), i), _carried(alone), rtol=1e-11, atol=1e-13)


def test_rows_that_are_given_are_the_same_for_all_and_the_noise_is_not():
    task = _task()
    drawn = ensemble(task, K).draw(
        SEED, 0, Rows.all(4), {"calls": torch.zeros(K)}, {"x": torch.arange(12.0).double().reshape(4, 3)}
    )
    assert drawn["x"].shape == (K, 4, 3) and torch.equal(drawn["x"][0], drawn["x"][1])
    assert not torch.equal(drawn["y"][0], drawn["y"][1])


def test_a_member_that_diverges_disturbs_no_other():
    good, _ = _train(ensemble(_task(), K), SEED, 9)
    before, _ = _train(ensemble(_task(), K), SEED, 3)
    state, metrics = _train(ensemble(_task(bad=(1,), steps=range(3, 99)), K), SEED, 9)
    for i in range(K):
        expected = before if i == 1 else good
        assert _bits(tree.member(_carried(state), i), tree.member(_carried(expected), i))
    assert state.guard.skipped.tolist() == state.guard.consecutive.tolist() == [0, 6, 0]
    assert metrics["skipped"].tolist() == [0, 1, 0] and metrics["loss"].isnan().tolist() == [
        False,
        True,
        False,
    ]


def test_the_scale_of_each_member_in_fp16():
    state, metrics = _train(
        ensemble(_task(bad=(2,), dtype=torch.float32), K), SEED, 5, precision="fp16", batch_size=8
    )
    assert metrics["loss_scale"].tolist() == [1024, 1024, 512]
    assert state.guard.clean.tolist() == [5, 5, 1]


def test_the_step_never_reads_a_value():
    task, optimizer = ensemble(_task(bad=(1,)), K), stacked(adamw(), K)
    settings: dict[str, Any] = STEP | {"clip": (1.0, 2.0, 3.0)}
    state = init_state(task, optimizer, SEED, ema=True)
    step = make_train_step(
        task,
        optimizer,
        warmup_cosine(1e-2, 2, 50),
        seed=SEED,
        accumulate=2,
        **settings,
    )
    with _NoHostReads():
        for _ in range(5):
            state, _ = step(state, {})
    assert state.guard.skipped.tolist() == [0, 1, 0]


def test_the_loss_can_be_traced():
    task = ensemble(_task(), K)
    params, state = task.init(SEED)
    batch = task.draw(SEED, 0, Rows.all(8), state, {})

    def gradient(params, state, batch):
        return torch.func.grad(lambda p: task.loss(p, state, batch, p)[0].sum())(params)

    graph = make_fx(gradient)(params, state, batch)
    torch.testing.assert_close(graph(params, state, batch), gradient(params, state, batch))


def _with_strength() -> Task:
    """Regression with a penalty, whose strength the batch has: 0.5 unless somebody says otherwise."""
    base = make_task(dtype=torch.float64)

    def draw(seed: int, step: int, rows: Rows, state, batch: Batch) -> Batch:
        return base.draw(seed, step, rows, state, batch) | {"strength": torch.tensor(0.5)}

    def loss(params, state, batch, teacher):
        total, weight, aux = base.loss(params, state, batch, teacher)
        penalty = sum(p.square().sum() for p in params.values())
        return total + batch["strength"] * weight * penalty, weight, aux

    return base._replace(draw=draw, loss=loss)


def test_a_hyper_parameter_of_each_member():
    task, strengths = _with_strength(), (0.0, 0.5, 4.0)
    state, _ = _train(ensemble(task, K, vary={"strength": strengths}), SEED, 6)
    for i, strength in enumerate(strengths):

        def draw(*args, strength=strength):
            return task.draw(*args) | {"strength": torch.tensor(strength)}

        alone, _ = _train(task._replace(draw=draw), member_seed(SEED, i), 6)
        torch.testing.assert_close(tree.member(_carried(state), i), _carried(alone), rtol=1e-11, atol=1e-13)


def test_no_carried_state_and_a_weight_that_is_a_number():
    def loss(params, state, batch, teacher):
        return (params["w"] * batch["x"]).sum(), 4.0, Aux(state, {})

    task = Task(
        lambda seed: ({"w": torch.ones(2)}, {}),
        lambda seed, step, rows, state, batch: {"x": rng.normal(rng.key(seed, step), rows, (2,))},
        loss,  # pyright: ignore[reportArgumentType]
        lambda params, state, batch: ({"n": params["w"].sum()}, {"n": 2.0}),  # pyright: ignore
    )
    state, metrics = _train(ensemble(task, K), SEED, 2)
    assert state.state == {} and metrics["weight"].tolist() == [4.0] * K
    assert validation_metrics(ensemble(task, K), state, [{}])["n"] == pytest.approx(state.ema["w"].mean())


def _fit(run: Path, task: Task | None = None, config: TrainConfig = CONFIG, **rest):
    settings: dict[str, Any] = dict(run=run, record={}, validation=_validation(), console=False)
    return fit(task or _task(), config, **(settings | rest))


def _validation() -> list[Batch]:
    return [{name: x.double() if x.is_floating_point() else x for name, x in b.items()} for b in validation()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return _fit(tmp_path_factory.mktemp("ensemble") / "run")


def test_each_member_is_kept_at_its_own_best(undisturbed, tmp_path):
    """By runs of the members alone, on the same validation."""
    params, state = ensemble(_task(), K).init(0)
    params, state, best = load_members(undisturbed.run, params, state)
    values = []
    for i in range(K):
        own = replace(CONFIG, members=1, seed=member_seed(SEED, i))
        alone = _fit(tmp_path / f"{i}", config=own)
        kept = load_params(alone.run, alone.state.params, "best")
        torch.testing.assert_close(tree.member(params, i), kept, rtol=1e-11, atol=1e-13)
        assert best.step[i] == alone.best_step and float(best.value[i]) == pytest.approx(alone.best, rel=1e-9)
        assert state["calls"][i] == alone.best_step
        records = {r["step"]: r["val/val_loss"] for r in read_history(alone.run) if "val/val_loss" in r}
        values.append(records)
    for record in read_history(undisturbed.run):
        if "val/val_loss" in record:
            each = torch.tensor([v[record["step"]] for v in values], dtype=torch.float64)
            assert record["val/val_loss"] == pytest.approx(float(each.mean()), rel=1e-9)
            assert record["val/val_loss_spread"] == pytest.approx(float(each.std()), rel=1e-9)
    assert saved(undisturbed.run / "checkpoints")[-1].metrics["val_loss_spread"] > 0
    result = json.loads((undisturbed.run / "result.json").read_text())
    assert result["member_best_step"] == best.step.tolist() and result["best"] == undisturbed.best


def test_a_resumed_ensemble_is_bit_identical(undisturbed, tmp_path):
    task = _task()

    def draw(seed: int, step: int, rows: Rows, state, batch: Batch) -> Batch:
        if step == 6 and seed == member_seed(SEED, 0):  # once: a second signal would end the process
            signal.raise_signal(signal.SIGTERM)
        return task.draw(seed, step, rows, state, batch)

    stopped = _fit(tmp_path / "run", task._replace(draw=draw))
    assert stopped.interrupted and stopped.state.step == 7
    resumed = _fit(tmp_path / "run", resume=True)
    assert _bits(resumed.state, undisturbed.state)
    like = init_state(ensemble(_task(), K), make_optimizer(CONFIG), 0, ema=True)
    assert _bits(load(tmp_path / "run", like), undisturbed.state)


def test_a_run_goes_on_without_a_member_that_diverged(undisturbed, tmp_path):
    config = replace(CONFIG, max_consecutive_skips=3)
    one = _fit(tmp_path / "one", _task(bad=(1,), steps=range(2, 99)), config)
    for i in (0, 2):
        assert _bits(tree.member(_carried(one.state), i), tree.member(_carried(undisturbed.state), i))
    last = [r for r in read_history(one.run) if "train/loss" in r][-1]
    first = [r for r in read_history(undisturbed.run) if "train/loss" in r][-1]
    assert math.isfinite(last["train/loss"]) and last["train/loss"] != first["train/loss"]
    assert last["train/skipped"] == pytest.approx(1 / 3) and last["train/skipped_steps"] == 10
    with pytest.raises(TrainingDiverged, match=r"not finite, \d+ steps in a row"):
        _fit(tmp_path / "all", _task(bad=(0, 1, 2), steps=range(2, 99)), config)


def test_parameters_that_are_no_longer_finite(tmp_path):
    """A rate that is far too large makes them so, in spite of finite gradients."""
    config = replace(CONFIG, member_lr=(1.0, 1e300, 1.0), ema_decay=None)
    task = _task(dtype=torch.float32)
    result = _fit(tmp_path / "one", task, config, validation=validation())
    finite = result.state.params["0.weight"].isfinite().flatten(1).all(1)
    assert finite.tolist() == [True, False, True] and result.state.step == 12
    assert result.state.best is not None and result.state.best.params["0.weight"].isfinite().all()
    with pytest.raises(TrainingDiverged, match=r"parameters .* are not finite"):
        _fit(tmp_path / "all", task, validation=validation(), config=replace(config, member_lr=(1e300,) * 3))


def test_epoch_means_of_an_ensemble(tmp_path):
    config = replace(CONFIG, log_every=1, log_every_epochs=1, steps_per_epoch=6, members=2)
    task = _task(bad=(1,))
    run = _fit(tmp_path / "run", task, config).run
    alone = [
        _fit(tmp_path / f"{i}", task, replace(config, members=1, seed=member_seed(SEED, i))).run
        for i in range(2)
    ]
    records = [[r for r in read_history(x) if "epoch/loss" in r] for x in (run, *alone)]
    for both, one, other in zip(*records, strict=True):
        for name in ("loss", "grad_norm", "raw_error", "weight", "steps", "lr"):
            mean = (one[f"epoch/{name}"] + other[f"epoch/{name}"]) / 2
            assert both[f"epoch/{name}"] == pytest.approx(mean, rel=1e-9)


def test_without_a_validation_the_members_are_the_last(tmp_path):
    result = _fit(tmp_path / "run", validation=())
    params, _, best = load_members(result.run, result.state.params, result.state.state)
    assert best.step.tolist() == [-1] * K and _bits(params, result.state.ema)


def test_a_single_runs_checkpoint_has_the_leaves_that_it_had(tmp_path):
    run = _fit(tmp_path / "run", config=replace(CONFIG, members=1, steps=1)).run
    leaves = saved(run / "checkpoints")[-1].leaves
    assert {name.split("/")[0] for name in leaves} == {"step", "params", "state", "opt", "ema", "guard"}
    assert all(not leaf["shape"] for name, leaf in leaves.items() if name.startswith(("guard", "opt/step")))
    params, state = ensemble(_task(), K).init(0)
    with pytest.raises(CheckpointError, match=r"Leaves that it lacks: .*'best/params"):
        load_members(run, params, state)


def test_the_memory_of_an_ensemble():
    one = memory_estimate(make_task(), replace(CONFIG, members=1))
    three = memory_estimate(make_task(), CONFIG)
    for name in ("parameters", "gradients", "moments", "average", "carried", "batch"):
        assert getattr(three, name) == K * getattr(one, name)
    # The parameters, the carried number, value and step.
    assert three.best == K * (one.parameters + 4 + 8 + 8) and one.best == 0
    text = describe_run(make_task(), CONFIG)
    assert "parameters: 123, 3 members of 41" in text and "each member at its best" in text


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_memory_of_a_large_ensemble_is_that_of_few_members_and_more(accumulate):
    many = 20
    made: list[int] = []
    plain = make_task()

    def init(seed: int):
        made.append(seed)
        return plain.init(seed)

    given = replace(CONFIG, members=many, member_lr=(1.0,) * many, member_clip=(), accumulate=accumulate)
    found = memory_estimate(plain._replace(init=init), given)
    assert len(made) == 5
    # An ensemble that is made already cannot be taken apart, and is measured as it is.
    want = memory_estimate(ensemble(plain, many), given)
    for name in want._fields:
        if name not in ("process", "heap", "activations"):
            assert getattr(found, name) == getattr(want, name), name
    assert found.activations == pytest.approx(want.activations, rel=0.02)
    assert found.heap == pytest.approx(want.heap, rel=0.02)
    text, other = (describe_run(task, given).split("memory of")[0] for task in (plain, ensemble(plain, many)))
    assert text == other


def test_a_dry_run_does_not_make_all_members():
    made: list[int] = []
    plain = make_task()
    task = plain._replace(init=lambda seed: (made.append(seed), plain.init(seed))[1])
    check_fit(task, replace(CONFIG, members=20, member_lr=(), member_clip=()), validation())
    assert len(made) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(k=1), "k: expected an int >= 2, got 1"),
        (dict(k=2.0), "k: expected an int >= 2"),
        (dict(k=3, vary={"strength": (1.0, 2.0)}), "vary: 'strength' must have 3 values"),
        (
            dict(k=3, task=ensemble(make_task(), 2)),
            "task: expected a task of one member, got an ensemble of 2",
        ),
    ],
)
def test_bad_ensembles(arguments, message):
    with pytest.raises(ValueError, match=message):
        ensemble(**({"task": _with_strength()} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(task=None), "task: expected a Task, got None"),
        (dict(vary=["a"]), "vary: expected a mapping of names to 2 numbers each"),
        (dict(vary={"a": "ab"}), "vary: 'a' must have 2 numbers, one for each member, got 'ab'"),
        (dict(vary={"a": 1.0j}), "vary: 'a' must have 2 numbers"),
    ],
)
def test_ensembles_of_the_wrong_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        ensemble(**({"task": _with_strength(), "k": 2} | arguments))


@pytest.mark.parametrize(
    ("name", "message"),
    [("y", r"vary: 'y' must be a 0-dimensional tensor .*got a tensor of shape \(4, 1\)"), ("z", "which has")],
)
def test_a_name_that_the_task_does_not_draw(name, message):
    task = ensemble(_with_strength(), K, vary={name: (1.0, 2.0, 3.0)})
    with pytest.raises(ValueError, match=message):
        task.draw(0, 0, Rows.all(4), {"calls": torch.zeros(K)}, {})


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="members: expected 2, as the task is an ensemble, got 3"):
        _fit(tmp_path / "run", ensemble(_task(), 2))
    with pytest.raises(ValueError, match="member_lr: expected 3 numbers, one for each member"):
        _fit(tmp_path / "run", config=replace(CONFIG, member_lr=(1.0,)))
    with pytest.raises(ValueError, match="member_clip: expected finite numbers > 0"):
        _fit(tmp_path / "run", config=replace(CONFIG, member_clip=(1.0, 0.0, 1.0)))
    with pytest.raises(ValueError, match="member_lr"):
        _fit(tmp_path / "run", config=replace(CONFIG, members=1, member_lr=(1.0,)))
    with pytest.raises(ValueError, match="clip: one for each member needs an ensemble"):
        make_train_step(_task(), adamw(), warmup_cosine(1e-2, 2, 50), seed=0, clip=(1.0, 2.0))
    assert not (tmp_path / "run").exists()


def test_a_total_that_is_not_one_for_each_member():
    task = ensemble(_task(), K)
    task = task._replace(loss=lambda *args: (torch.ones(()), torch.ones(()), Aux({}, {})))
    with pytest.raises(
        ValueError, match=r"task\.loss: an ensemble's total and weight must have shape \(3,\)"
    ):
        _train(task, SEED, 1)


def test_seeds_are_told_apart():
    seeds = {member_seed(s, i) for s in range(20) for i in range(20)}
    assert len(seeds) == 400 and all(0 <= s < 2**63 for s in seeds)
    assert model.init(member_seed(0, 0))[0]["0.bias"].shape == (8,)
