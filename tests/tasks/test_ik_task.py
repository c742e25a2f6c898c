from __future__ import annotations

import json
import math

import pytest
import torch

from mfk import kinematics, optim, train
from mfk.core import Rows, tree
from mfk.data import AugmentConfig, IKDataConfig, draw_ik
from mfk.losses import TimeConfig, flow_matching, meanflow, meanflow_residual
from mfk.tasks import ik, ik_compare, ik_report, ik_solve

CHAIN = kinematics.panda()
SMALL = ik.NetConfig(width=16, blocks=1)


def small_config(**changes) -> ik.IKConfig:
    return ik.IKConfig(net=SMALL, **changes)


def small_task(**changes):
    return ik.ik_task(CHAIN, small_config(**changes))


def drawn(task, rows: Rows | None = None, step: int = 0):
    params, state = task.init(0)
    return params, state, task.draw(0, step, rows or Rows.all(32), state, {})


def test_an_ensemble_is_its_members_and_one_that_is_nan_disturbs_none() -> None:
    """The JVP, the least-squares step inside the network and the robot's kinematics, all under vmap."""
    task, k, seed = small_task(), 3, 4

    def broken(seed_: int, step: int, rows: Rows, state, batch):
        drawn = task.draw(seed_, step, rows, state, batch)
        bad = seed_ == train.member_seed(seed, 1) and step >= 1
        return drawn | {"v": drawn["v"] + (torch.nan if bad else 0.0)}

    def trained(task, optimizer, seed: int):
        state = train.init_state(task, optimizer, seed)
        step = train.make_train_step(
            task, optimizer, optim.constant(1e-3), seed=seed, batch_size=32, clip=1.0
        )
        for _ in range(3):
            state, _ = step(state, {})
        return state.params

    stacked = optim.stacked(optim.adamw(), k)
    together = trained(train.ensemble(task, k), stacked, seed)
    disturbed = trained(train.ensemble(task._replace(draw=broken), k), stacked, seed)
    for i in range(k):
        alone = trained(task, optim.adamw(), train.member_seed(seed, i))
        torch.testing.assert_close(tree.member(together, i), alone, rtol=1e-3, atol=2e-5)
    for name, p in together.items():
        assert torch.equal(p[[0, 2]], disturbed[name][[0, 2]])
    assert not torch.equal(together["enter.weight"][1], disturbed["enter.weight"][1])


def test_path_and_poses() -> None:
    _, _, batch = drawn(small_task())
    z1 = batch["z"] + (1 - batch["r"]) * batch["v"]
    torch.testing.assert_close(kinematics.forward(CHAIN, z1), batch["pose"], atol=1e-5, rtol=0)
    assert len(batch["t"]) == round(TimeConfig().jvp_share * 32)


def test_loss_is_the_weighted_sum_of_the_two_losses() -> None:
    task = small_task(loss=ik.LossConfig(weighting="distance", weight_c=1e-2, weight_p=0.5))
    params, state, batch = drawn(task)
    total, weight, aux = task.loss(params, state, batch, params)
    model = ik.ik_model(CHAIN, SMALL)
    n = len(batch["t"])
    z, v, r, pose = (batch[k] for k in ("z", "v", "r", "pose"))
    first, second = (ik.ik_field(model, params, state, pose[rows]) for rows in (slice(n), slice(n, None)))
    squared = torch.cat(
        (meanflow(first, z[:n], v[:n], r[:n], batch["t"]), flow_matching(second, z[n:], v[n:], r[n:]))
    )
    w = 1 / (((1 - r) * v).square().sum(-1) + 1e-2).sqrt()
    torch.testing.assert_close(total, (w * squared).sum())
    assert float(weight) == 32
    torch.testing.assert_close(aux.metrics["raw_error"], squared.sum())
    residual = meanflow_residual(first, z[:n], v[:n], r[:n], batch["t"])
    torch.testing.assert_close(aux.metrics["meanflow_residual"] / 32, residual.mean())


def test_uniform_weights_sum_the_raw_error() -> None:
    task = small_task(loss=ik.LossConfig(weighting="uniform"))
    params, state, batch = drawn(task)
    total, _, aux = task.loss(params, state, batch, params)
    torch.testing.assert_close(total, aux.metrics["raw_error"])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_rows_of_one_kind(share: float) -> None:
    task = small_task(times=TimeConfig(jvp_share=share))
    params, state, batch = drawn(task)
    total, _, aux = task.loss(params, state, batch, params)
    assert total.isfinite() and ("meanflow_residual" in aux.metrics) == (share > 0)


@pytest.mark.parametrize("accumulate", [2, 3, 64])
def test_accumulation_changes_rounding_only(accumulate: int) -> None:
    results = []
    for parts in (1, accumulate):
        task = small_task()
        optimizer = optim.adamw((0.9, 0.999), 1e-3, 0.0)
        state = train.init_state(task, optimizer, 0)
        step = train.make_train_step(
            task, optimizer, optim.constant(1e-3), seed=0, batch_size=64, accumulate=parts
        )
        state, metrics = step(state, {})
        results.append((state.params, metrics))
    for a, b in zip(*(tree.leaves(params) for params, _ in results), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    for name in ("loss", "raw_error", "grad_norm", "velocity_norm", "meanflow_residual"):
        torch.testing.assert_close(results[0][1][name], results[1][1][name], rtol=1e-4, atol=1e-6)


def test_training_lowers_the_error() -> None:
    task = small_task(times=TimeConfig(jvp_share=0.25))
    optimizer = optim.adamw((0.9, 0.999), 1e-8, 0.0)
    state = train.init_state(task, optimizer, 0)
    validation = ik.validation_batches(CHAIN, small_config(), 0, 512)
    before = train.validation_metrics(task, state, validation, "cpu")
    step = train.make_train_step(task, optimizer, optim.constant(1e-3), seed=0, batch_size=256)
    for _ in range(200):
        state, _ = step(state, {})
    after = train.validation_metrics(task, state, validation, "cpu")
    assert after["position_mm"] < 0.985 * before["position_mm"]


def test_validation_rows_do_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ik.validation_batches(CHAIN, small_config(), 0, 10)
    monkeypatch.setattr(ik, "_VALIDATION_ROWS", 4)
    parts = ik.validation_batches(CHAIN, small_config(), 0, 10)
    assert [len(b["z"]) for b in parts] == [4, 4, 2]
    torch.testing.assert_close(torch.cat([b["pose"] for b in parts]), whole[0]["pose"], atol=1e-6, rtol=0)


def _rows(count: int) -> dict[str, torch.Tensor]:
    """Rows of straight paths, as a data file has them."""
    drawn = draw_ik(CHAIN, IKDataConfig(), 3, 0, Rows.all(count))
    r = torch.linspace(0, 0.9, count).unsqueeze(1)
    v = drawn.q_target - drawn.q_reference
    q = drawn.q_reference + r * v
    return {"q": q, "v": v, "q_target": drawn.q_target, "pose": drawn.pose, "r": r, "t": r + 0.5 * (1 - r)}


def test_rows_of_a_file_are_trained_on_as_they_are() -> None:
    task, given = small_task(times=TimeConfig(jvp_share=0.5)), _rows(8)
    batch = task.draw(0, 0, Rows.all(8), {}, given)
    assert torch.equal(batch["z"], given["q"]) and torch.equal(batch["v"], given["v"])
    assert torch.equal(batch["r"], given["r"]) and torch.equal(batch["t"], given["t"][:4])
    del given["t"]
    batch = task.draw(0, 0, Rows.all(8), {}, given)
    assert bool((batch["t"] >= given["r"][:4]).all()) and bool((batch["t"] <= 1).all())
    # Drawn for the global batch: micro-batch 1 of 2 has the rows 1, 3, 5, 7, of which 1 and 3 have a t.
    half = {name: x[1::2] for name, x in given.items()}
    part = task.draw(0, 0, Rows(range(1, 8, 2), 8), {}, half)
    assert torch.equal(part["t"], batch["t"][1::2])
    assert not torch.equal(task.draw(0, 1, Rows.all(8), {}, given)["t"], batch["t"])


def test_validation_of_a_file_takes_its_first_rows_without_augmentation() -> None:
    config, given = small_config(augment=AugmentConfig(joint_noise=0.5)), _rows(8)
    (batch,) = ik.validation_batches(CHAIN, config, 0, 5, given)
    assert torch.equal(batch["z"], given["q"][:5])
    assert len(ik.validation_batches(CHAIN, config, 0, 100, given)[0]["z"]) == 8
    task = small_task(augment=AugmentConfig(joint_noise=0.5))
    assert not torch.equal(task.draw(0, 0, Rows.all(8), {}, given)["z"], given["q"])


def test_pose_errors_of_a_known_turn() -> None:
    q = torch.zeros(7, dtype=torch.float64)
    pose = kinematics.forward(CHAIN, q)
    turned = q.clone()
    turned[0] = math.radians(3)
    errors = ik.pose_errors(CHAIN, turned, pose)
    assert float(errors.rotation) == pytest.approx(math.radians(3), abs=1e-12)
    assert float(errors.position) == pytest.approx(2 * 0.088 * math.sin(math.radians(1.5)), abs=1e-12)
    assert bool(ik.within(errors, 5.0, 3.1)) and not bool(ik.within(errors, 5.0, 2.9))
    assert not bool(ik.within(ik.pose_errors(CHAIN, turned * math.nan, pose), 5.0, 5.0))


def test_solve_pose_checks_its_input() -> None:
    model = ik.ik_model(CHAIN, SMALL)
    params, buffers = model.init(0)
    good = kinematics.forward(CHAIN, torch.zeros(7))
    q = ik_solve.solve_pose(CHAIN, model, params, buffers, good, torch.full((7,), 0.05))
    assert q.shape == (7,) and (q.double() <= CHAIN.upper).all()
    for value, what in ((good * math.nan, "finite"), (2 * good, "unit"), (good[:6], r"\[..., 7\]")):
        with pytest.raises(ValueError, match=f"^pose: expected .*{what}"):
            ik_solve.solve_pose(CHAIN, model, params, buffers, value, torch.zeros(7))
    with pytest.raises(ValueError, match=r"^q: expected the shape"):
        ik_solve.solve_pose(CHAIN, model, params, buffers, good, torch.zeros(6))


def test_refine_ends_on_the_pose_in_float64() -> None:
    q = torch.linspace(-0.4, 0.4, 7) + torch.tensor([0.0, 0.0, 0.0, -1.5, 0.0, 1.8, 0.0])
    pose = kinematics.forward(CHAIN, q + 0.05)
    refined = ik_solve.refine(CHAIN, q, pose, [ik_solve.DAMPING] * 6)
    errors = ik.pose_errors(CHAIN, refined, pose)
    # The float32 pose itself is off a unit quaternion by 1e-7.
    assert refined.dtype == torch.float64 and float(errors.position) < 1e-9 and float(errors.rotation) < 1e-6
    assert torch.equal(ik_solve.refine(CHAIN, q, pose, []), q.double())


def test_report_files_and_baselines(tmp_path) -> None:
    model = ik.ik_model(CHAIN, SMALL)
    params, buffers = model.init(0)
    named = ik_compare.solvers(CHAIN, model, params, params, buffers)
    problems = ik_compare.held_out(CHAIN, IKDataConfig(), 1000)
    results, errors = ik_compare.compare(CHAIN, problems, named, repeats=1)
    found = {r.solver: r for r in results}
    # SYSTEMS' independent figures for sigma = 0.1: 85.3 mm and 33.4 % after one step.
    assert found["do nothing"].position_mean_mm == pytest.approx(85.3, rel=0.05)
    assert found["1 least-squares step"].within_5mm_5deg == pytest.approx(0.334, abs=0.04)
    assert found["untrained network"].within_5mm_5deg == found["network, 1 step"].within_5mm_5deg
    files = ik_report.write_report(
        tmp_path,
        results,
        errors,
        kinematics.forward(CHAIN, problems.q_target.double()),
        ik_report.Curves([(1, 0.1), (2, 0.05)], []),
        {"robot": "panda"},
    )
    assert sorted(f.name for f in files) == [
        "error_by_steps.png", "error_cdf.png", "loss.png", "report.json", "report.md", "workspace.png"
    ]  # fmt: skip
    assert all(f.stat().st_size > 300 for f in files)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["results"]) == len(named)
    assert report["results"][0]["position_mean_mm"] == found["do nothing"].position_mean_mm


def test_held_out_poses_are_the_same_for_every_network() -> None:
    named = {"do nothing": lambda reference, pose: reference}
    runs = [
        ik_compare.compare(CHAIN, ik_compare.held_out(CHAIN, IKDataConfig(), 50), named, repeats=1)[0][0]
        for _ in range(2)
    ]
    assert runs[0].position_mean_mm == runs[1].position_mean_mm
    training = draw_ik(CHAIN, IKDataConfig(), 0, 0, Rows.all(50))
    doing_nothing = ik.pose_errors(CHAIN, training.q_reference, training.pose).position.mean()
    assert float(doing_nothing) * 1e3 != pytest.approx(runs[0].position_mean_mm, rel=1e-6)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"^network: expected"):
        ik.ik_model(CHAIN, ik.NetConfig(network="big"))  # pyright: ignore[reportArgumentType]
    for net, name in ((ik.NetConfig("documented", width=128), "width"),):
        with pytest.raises(ValueError, match=f"^{name}: .* no effect"):
            ik.ik_model(CHAIN, net)
    task = small_task()
    state = task.init(0)[1]
    with pytest.raises(ValueError, match=r"^batch: expected \{\}"):
        task.draw(0, 0, Rows.all(4), state, {"q": torch.zeros(4, 7)})
