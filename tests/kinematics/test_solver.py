"""The batched solver: verified solutions, limits, options, refusals."""

from __future__ import annotations

import math
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import ur10_closed_form
from torch import Tensor

import mfk
from mfk import kinematics as kin
from mfk.kinematics import lanes
from mfk.kinematics.levenberg import levenberg_marquardt

PANDA, UR10 = kin.panda(), kin.ur10()


def random_q(chain: kin.Chain, rows: int, seed: int = 0) -> Tensor:
    u = torch.rand(rows, chain.dof, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return chain.lower + u * (chain.upper - chain.lower)


def reachable(chain: kin.Chain, rows: int, seed: int = 0) -> Tensor:
    return kin.forward(chain, random_q(chain, rows, seed)).contiguous()


def matrices(chain: kin.Chain, q: Tensor) -> Tensor:
    return kin.forward_matrix(chain, q.double())


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Greatest difference of joints, full turns left out."""
    return (torch.remainder(a - b + math.pi, 2 * math.pi) - math.pi).abs().amax(-1)


@pytest.mark.parametrize("chain", [PANDA, UR10], ids=["panda", "ur10"])
@pytest.mark.parametrize("seeds", ["table", "random"])
def test_every_reachable_pose_is_solved_inside_the_limits(chain: kin.Chain, seeds: Any) -> None:
    target = reachable(chain, 500)
    found = kin.solve(chain, target, seeds=seeds)
    assert bool(found.converged.all())
    assert bool(((found.q >= chain.lower) & (found.q <= chain.upper)).all())
    # Judged by matrices, which the solver never makes.
    wanted = kin.pose_to_matrix(target)
    got = matrices(chain, found.q)
    assert float((got[:, :3, 3] - wanted[:, :3, 3]).norm(dim=-1).max()) <= 1e-6
    angle = (got[:, :3, :3] - wanted[:, :3, :3]).norm(dim=(-2, -1)) / math.sqrt(2)
    assert float(angle.max()) <= 1e-6
    assert bool((found.iterations > 0).all())


def test_the_same_arguments_give_the_same_result_and_another_seed_another() -> None:
    target = reachable(PANDA, 50)
    first, again = (kin.solve(PANDA, target, seeds="random") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = kin.solve(PANDA, target, seeds="random", seed=1)
    assert bool(other.converged.all())
    assert float((other.q - first.q).abs().amax(-1).median()) > 0.1


def test_looking_seldom_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a GPU, where a look at the lanes waits for it.
    target = reachable(PANDA, 100)
    far = target[:1] * torch.tensor([9.0, 9, 9, 1, 1, 1, 1])
    monkeypatch.setattr(lanes, "_BETWEEN_LOOKS", {"cpu": 4, "cuda": 4})
    found = kin.solve(PANDA, target)
    assert bool(found.converged.all())
    error = kin.pose_error(kin.forward(PANDA, found.q), target)
    assert float(error.abs().max()) <= 1e-6
    lost = kin.solve(PANDA, far, max_starts=5)
    assert not bool(lost.converged) and bool(torch.isfinite(lost.q).all())


def test_a_compiled_step_finds_the_same() -> None:
    target = reachable(PANDA, 20)
    plain, compiled = (kin.solve(PANDA, target, jit=jit) for jit in (False, True))
    assert bool(compiled.converged.all())
    torch.testing.assert_close(compiled.q, plain.q, rtol=0, atol=1e-5)


def test_shapes_and_dtypes_are_the_targets() -> None:
    target = reachable(PANDA, 6)
    one = kin.solve(PANDA, target[0])
    assert one.q.shape == (7,) and one.converged.shape == () and bool(one.converged)
    grid = kin.solve(PANDA, target.reshape(2, 3, 7), num_solutions=4)
    assert grid.q.shape == (2, 3, 4, 7) and grid.iterations.shape == (2, 3, 4)
    none = kin.solve(PANDA, target[:0], num_solutions=2)
    assert none.q.shape == (0, 2, 7) and none.converged.dtype == torch.bool
    single = kin.solve(PANDA, reachable(PANDA, 300).float())
    assert single.q.dtype == torch.float32 and single.position_error.dtype == torch.float64
    assert bool(single.converged.all())
    assert bool((single.q.double() >= PANDA.lower).all() and (single.q.double() <= PANDA.upper).all())


def test_what_is_out_of_reach_comes_back_unconverged_with_the_nearest_found() -> None:
    target = reachable(PANDA, 4)
    target[:, :3] *= 3.0 / target[:, :3].norm(dim=-1, keepdim=True)
    found = kin.solve(PANDA, target, max_starts=10)
    assert not bool(found.converged.any())
    assert bool(torch.isfinite(found.q).all())
    assert float(found.position_error.min()) > 1.5  # the arm is shorter than 1.2 m
    assert bool((found.iterations <= 10 * 40 + 64 * 40).all())
    several = kin.solve(PANDA, target, num_solutions=3, max_starts=5)
    assert not bool(several.converged.any())
    assert bool(torch.isfinite(several.q[:, 0]).all()) and bool(several.q[:, 1:].isnan().all())
    assert bool(several.position_error[:, 1:].isinf().all())


def test_singular_poses_are_solved() -> None:
    # The UR10 stretched out, the Panda with its wrist on the axis of its shoulder, both bent to a limit.
    stretched = torch.zeros(1, 6, dtype=torch.float64)
    assert bool(kin.solve(UR10, kin.forward(UR10, stretched), tol=1e-5).converged.all())
    q = torch.tensor([[0.3, 0.0, 0.0, -1.5, 0.0, 1.5, 0.2]], dtype=torch.float64)
    assert bool(kin.solve(PANDA, kin.forward(PANDA, q)).converged.all())
    for limit in (PANDA.lower, PANDA.upper):
        assert bool(kin.solve(PANDA, kin.forward(PANDA, limit.unsqueeze(0)), tol=1e-5).converged.all())


def test_fifty_distinct_solutions_of_a_redundant_arm() -> None:
    target = reachable(PANDA, 20)
    found = kin.solve(PANDA, target, num_solutions=50)
    assert bool(found.converged.all())
    between = apart(found.q.unsqueeze(-2), found.q.unsqueeze(-3)) + 9 * torch.eye(50)
    assert float(between.min()) >= 0.01
    pose = kin.forward(PANDA, found.q)
    assert float(kin.pose_error(pose, target.unsqueeze(1).expand_as(pose)).abs().max()) <= 1e-6


def test_every_branch_of_the_ur10s_closed_form() -> None:
    chain = kin.ur10(base="base")
    q = (
        torch.rand(100, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
    ) * math.pi
    target = kin.forward(chain, q).contiguous()
    found = kin.solve(chain, target, num_solutions=8)
    assert float(found.q[found.converged].abs().max()) <= math.pi + 1e-6
    complete = 0
    for i, pose in enumerate(matrices(chain, q).numpy()):
        branches = [torch.from_numpy(x) for x in ur10_closed_form.solutions(pose)]
        got = found.q[i][found.converged[i]]
        complete += all(float(apart(got, branch).min()) < 1e-2 for branch in branches)
        for solution in got:  # and nothing else
            assert min(float(apart(solution, branch)) for branch in branches) < 1e-2
    assert complete >= 99
    np.testing.assert_allclose(ur10_closed_form.forward(q[0].numpy()), matrices(chain, q[:1])[0], atol=1e-12)


@pytest.mark.parametrize(
    "weights",
    [(1, 1, 1, 0, 0, 0), (1, 1, 1, 1, 1, 0), (1, 1, 1, 0, 1, 1), (1, 1, 0, 1, 1, 1), (0, 0, 0, 1, 1, 1)],
)
def test_weights_of_zero_leave_directions_free(weights: tuple[float, ...]) -> None:
    target = reachable(PANDA, 100)
    found = kin.solve(PANDA, target, weights=weights)
    assert bool(found.converged.all())
    local = torch.linalg.solve(kin.pose_to_matrix(target), matrices(PANDA, found.q))  # target_T_tip
    counts = torch.tensor(weights) > 0
    position = local[:, :3, 3].abs()
    assert float(position[:, counts[:3]].amax() if counts[:3].any() else 0.0) <= 1e-6
    if not bool(counts[:3].all()):
        assert float(position[:, ~counts[:3]].amax(0).min()) > 0.01
    turned = local[:, :3, :3] - torch.eye(3, dtype=torch.float64)
    free = [i for i in range(3) if not counts[3 + i]]
    if len(free) == 1:
        assert float(turned[:, :, free[0]].norm(dim=-1).max()) <= 1.1e-6  # the axis itself does not move
    if free:
        assert float(turned.abs().amax()) > 0.1
    else:
        assert float(turned.abs().amax()) <= 1.1e-6


def test_the_search_begins_at_q0_and_goes_to_the_nearest_on_request() -> None:
    q = random_q(PANDA, 40)
    target = kin.forward(PANDA, q).contiguous()
    started = kin.solve(PANDA, target, q0=q + 1e-3 * torch.sin(torch.arange(7.0).double()))
    assert float((started.q - q).abs().max()) < 0.1
    q0 = random_q(PANDA, 40, seed=1)
    any_of, nearest = (kin.solve(PANDA, target, q0=q0, nearest=near) for near in (False, True))
    assert bool(nearest.converged.all())
    assert float((nearest.q - q0).norm(dim=-1).mean()) < 0.9 * float((any_of.q - q0).norm(dim=-1).mean())
    # Stationary: where no limit binds, what is left to q0 has no part in the null space.
    inside = ((nearest.q > PANDA.lower + 1e-3) & (nearest.q < PANDA.upper - 1e-3)).all(-1)
    assert int(inside.sum()) >= 5
    j = kin.jacobian(PANDA, nearest.q[inside])
    null = torch.linalg.svd(j, full_matrices=True).Vh[:, 6]
    left = (null * (q0[inside] - nearest.q[inside])).sum(-1).abs()
    assert float(left.median()) < 1e-2
    ordered = kin.solve(PANDA, target, q0=q0[0], nearest=True, num_solutions=5)
    distance = (ordered.q - q0[0]).norm(dim=-1)
    assert bool((distance[:, 1:] >= distance[:, :-1]).all())


def test_what_q0_comes_to_is_the_answer_alone_and_in_a_batch() -> None:
    q = random_q(PANDA, 60)
    target = kin.forward(PANDA, q).contiguous()
    q0 = kin.clip_to_limits(PANDA, q + 0.4 * torch.sin(torch.arange(420.0).double()).reshape(60, 7))
    batch = kin.solve(PANDA, target, q0=q0)
    assert bool(batch.converged.all())
    # By hand: the same step from q0 alone.
    step = levenberg_marquardt(PANDA, None, False)
    lower, upper = (x.unsqueeze(-1) for x in (PANDA.lower, PANDA.upper))
    x, position, rotation = step(q0.T.contiguous(), target, lower, upper)
    for _ in range(9):
        x, position, rotation = step(x, target, lower, upper)
    arrived = (position < 1e-16) & (rotation < 1e-16)
    assert int(arrived.sum()) > 30
    torch.testing.assert_close(batch.q[arrived], x.T[arrived], rtol=0, atol=1e-4)
    for i in range(10):
        alone = kin.solve(PANDA, target[i], q0=q0[i])
        if arrived[i]:
            torch.testing.assert_close(alone.q, batch.q[i], rtol=0, atol=1e-9)


def test_seeds_may_be_configurations_or_made_from_the_poses() -> None:
    q = random_q(PANDA, 30)
    target = kin.forward(PANDA, q).contiguous()
    near = (q + 1e-3).clamp(PANDA.lower, PANDA.upper).unsqueeze(1)
    given = kin.solve(PANDA, target, seeds=near)
    assert float((given.q - q).abs().max()) < 0.1
    asked: list[tuple[int, ...]] = []

    def make(poses: Tensor) -> Tensor:
        asked.append(tuple(poses.shape))
        return near

    made = kin.solve(PANDA, target, seeds=make)
    assert asked == [(30, 7)] and torch.equal(made.q, given.q)
    assert float(given.iterations.double().mean()) < float(
        kin.solve(PANDA, target).iterations.double().mean()
    )


def test_other_robots(tmp_path: Any) -> None:
    arm = tmp_path / "gantry.urdf"
    arm.write_text(GANTRY)
    chain = kin.load_urdf(arm, tip="tool")
    assert chain.kinds == (
        "prismatic",
        "revolute",
        "revolute",
        "continuous",
        "revolute",
        "revolute",
        "revolute",
    )
    target = reachable(chain, 200)
    found = kin.solve(chain, target)
    assert bool(found.converged.all())
    assert bool(((found.q >= chain.lower) & (found.q <= chain.upper)).all())
    few = kin.panda("panda_link4")  # four joints reach few orientations; positions they do
    poses = reachable(few, 50)
    assert bool(kin.solve(few, poses, tol=1e-5).converged.all())
    assert bool(kin.solve(few, poses, weights=(1, 1, 1, 0, 0, 0)).converged.all())


@pytest.mark.parametrize("name", ["ur5_robot", "ur10_robot", "panda"])
def test_urdfs_of_a_package(name: str) -> None:
    chain = kin.load_urdf(example_urdf(name), tip="panda_hand" if name == "panda" else "tool0")
    assert bool(kin.solve(chain, reachable(chain, 200)).converged.all())


def example_urdf(name: str) -> Path:
    try:
        files = metadata.files("example-robot-data")
    except metadata.PackageNotFoundError:
        pytest.skip("example-robot-data, of the extra 'test', is not installed")
    return Path(str(next(f for f in files or () if f.name == f"{name}.urdf").locate()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.zeros(3, 6)}, ValueError, "target: expected shape"),
        ({"target": torch.tensor(1.0)}, ValueError, "target: expected shape"),
        ({"target": [0.0] * 7}, TypeError, "target: expected a tensor"),
        ({"target": torch.zeros(3, 7, dtype=torch.int64)}, TypeError, "target: expected float32 or float64"),
        ({"target": torch.full((3, 7), math.nan)}, ValueError, "target: expected finite numbers.* in row 0"),
        ({"target": torch.ones(3, 7)}, ValueError, "target: expected unit quaternions.* in row 0"),
        ({"q0": torch.zeros(3, 6)}, ValueError, r"q0: expected shape \(4, 7\)"),
        ({"q0": torch.full((7,), math.inf)}, ValueError, "q0: expected finite"),
        ({"q0": torch.zeros(7, dtype=torch.int32)}, TypeError, "q0: expected float32"),
        ({"num_solutions": 0}, ValueError, "num_solutions: expected a whole number >= 1, got 0"),
        ({"num_solutions": True}, ValueError, "num_solutions"),
        ({"tol": 0.0}, ValueError, "tol: expected a positive number"),
        ({"tol": (1e-3, math.nan)}, ValueError, "tol: expected"),
        ({"max_starts": 0}, ValueError, "max_starts"),
        ({"separation": -1.0}, ValueError, "separation"),
        ({"nearest": True}, ValueError, "nearest: expected q0"),
        ({"seeds": "learned"}, ValueError, "seeds: expected 'table'"),
        ({"seeds": torch.zeros(4, 7)}, ValueError, "seeds: expected shape"),
        ({"seeds": lambda poses: torch.zeros(4, 7)}, ValueError, "seeds: expected the function to return"),
        ({"weights": (1, 1, 1)}, ValueError, "weights: expected six"),
        ({"weights": (0, 0, 0, 0, 0, 0)}, ValueError, "weights: expected six finite numbers >= 0, not all 0"),
        ({"weights": (1, 1, 1, 1, 0, 0)}, ValueError, "weights: expected all rotations"),
        ({"weights": (1, 1, -1, 1, 1, 1)}, ValueError, "weights"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"chain": "panda"}, TypeError, "chain: expected a Chain"),
        ({"q0": [0.0] * 7}, TypeError, "q0: expected a tensor"),
        ({"tol": None}, TypeError, "tol: expected a number"),
        ({"tol": True}, TypeError, "tol: expected a number"),
        ({"tol": (1e-6, None)}, TypeError, "tol: expected a number"),
        ({"separation": "x"}, TypeError, "separation: expected a number"),
        ({"nearest": "yes"}, TypeError, "nearest: expected True or False"),
        ({"seeds": None}, ValueError, "seeds: expected 'table'"),
        ({"seeds": lambda poses: torch.zeros(4, 1, 7).long()}, TypeError, "seeds: .* float32 or float64"),
        ({"weights": "111111"}, TypeError, "weights: expected six numbers"),
        ({"weights": (1, 1, 1, 1, 1, None)}, TypeError, "weights: expected six numbers"),
        ({"weights": (1, 1, 1, 1, 1, 1e-9)}, ValueError, "weights: .* a thousandth"),
    ],
)
def test_refusals_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"target": reachable(PANDA, 4), **change}
    with pytest.raises(error, match=message):
        kin.solve(arguments.pop("chain", PANDA), **arguments)


def test_separation_in_float32_is_more_than_rounding() -> None:
    with pytest.raises(ValueError, match=r"separation: .* as the target is float32, got 1e-09"):
        kin.solve(PANDA, reachable(PANDA, 2).float(), separation=1e-9)


def test_weights_matter_by_their_ratios() -> None:
    target = reachable(PANDA, 30)
    plain = kin.solve(PANDA, target, weights=(1,) * 6)
    for w in (1e-5, 1e300):
        scaled = kin.solve(PANDA, target, weights=(w,) * 6)
        assert torch.equal(scaled.q, plain.q) and bool(scaled.converged.all())
    spread = kin.solve(PANDA, target, weights=(1, 1, 1, 1e-2, 1e-3, 1e-2))
    assert bool(spread.converged.all())


def test_a_function_for_seeds_cannot_change_the_targets_and_may_see_the_starts() -> None:
    q = random_q(PANDA, 3)
    target = kin.forward(PANDA, q).contiguous()

    def spoil(poses: Tensor) -> Tensor:
        poses[:, :3] *= 0.5
        return poses.new_zeros(len(poses), 1, 7)

    found = kin.solve(PANDA, target, seeds=spoil)
    error = kin.pose_error(kin.forward(PANDA, found.q), target)
    assert bool(found.converged.all()) and float(error.abs().max()) <= 1e-6
    given: list[Tensor | None] = []

    def see(poses: Tensor, q0: Tensor | None) -> Tensor:
        given.append(q0)
        return poses.new_zeros(len(poses), 1, 7)

    kin.solve(PANDA, target, seeds=kin.SeedsFrom(see))
    kin.solve(PANDA, target, q0=q, seeds=kin.SeedsFrom(see))
    assert given[0] is None and given[1] is not None
    torch.testing.assert_close(given[1], q, rtol=0, atol=0)


def test_turns_of_continuous_joints_are_no_distance(tmp_path: Path) -> None:
    arm = tmp_path / "arm.urdf"
    arm.write_text(kin.urdf_text("ur10").replace('type="revolute"', 'type="continuous"'))
    chain = kin.load_urdf(arm, tip="tool0")
    assert all(chain.continuous)
    q = random_q(chain, 50)
    q[:, 0] = 3.1
    target = kin.forward(chain, q).contiguous()
    q0 = q.clone()
    q0[:, 0] = -3.12
    for start in (q0, q0 + 2 * math.pi):
        found = kin.solve(chain, target, q0=start, nearest=True)
        assert bool(found.converged.all())
        assert float(apart(found.q, q).max()) < 0.1
    four = kin.solve(chain, target, q0=q0, nearest=True, num_solutions=4)
    circular = torch.remainder(four.q - q0.unsqueeze(1) + math.pi, 2 * math.pi) - math.pi
    distance = torch.where(four.converged, circular.norm(dim=-1), torch.inf)
    assert bool((distance[:, 1:] >= distance[:, :-1] - 1e-6).all())


def test_absurd_numbers_end_as_documented() -> None:
    far = torch.tensor([[1e160, 0, 0, 1, 0, 0, 0]], dtype=torch.float64)
    lost = kin.solve(PANDA, far, max_starts=2)
    assert not bool(lost.converged) and bool(torch.isfinite(lost.q).all())
    q = random_q(UR10, 10)
    found = kin.solve(UR10, kin.forward(UR10, q).contiguous(), q0=q + 1e10)
    assert bool(found.converged.all())


def test_the_default_device_is_no_part_of_it() -> None:
    target = reachable(PANDA, 2)
    torch.set_default_device("meta")
    try:
        assert bool(kin.solve(PANDA, target, seeds="random").converged.all())
    finally:
        torch.set_default_device(None)


def test_a_trace_is_refused_with_the_way_out() -> None:
    with pytest.raises(mfk.core.TraceError, match=r"mfk.kinematics.solve: .*least_squares_step"):
        mfk.jit(lambda pose: kin.solve(PANDA, pose).q)(reachable(PANDA, 2))


GANTRY = """<robot name="gantry">
  <link name="rail"/><link name="a"/><link name="b"/><link name="c"/><link name="d"/><link name="e"/>
  <link name="f"/><link name="tool"/>
  <joint name="slide" type="prismatic"><parent link="rail"/><child link="a"/><axis xyz="1 0 0"/>
    <limit lower="-0.5" upper="0.8" velocity="1" effort="1"/></joint>
  <joint name="turn" type="revolute"><parent link="a"/><child link="b"/><origin xyz="0 0 0.4"/>
    <axis xyz="0 0 1"/><limit lower="-2.9" upper="2.9" velocity="2" effort="1"/></joint>
  <joint name="lift" type="revolute"><parent link="b"/><child link="c"/>
    <origin xyz="0.1 0 0.2" rpy="0.1 0 0"/><axis xyz="0 1 0"/>
    <limit lower="-1.9" upper="1.9" velocity="2" effort="1"/></joint>
  <joint name="roll" type="continuous"><parent link="c"/><child link="d"/><origin xyz="0.4 0 0"/>
    <axis xyz="1 0 0"/><limit velocity="3" effort="1"/></joint>
  <joint name="bend" type="revolute"><parent link="d"/><child link="e"/><origin xyz="0.2 0 0"/>
    <axis xyz="0 1 0"/><limit lower="-2.2" upper="2.2" velocity="3" effort="1"/></joint>
  <joint name="wrist" type="revolute"><parent link="e"/><child link="f"/><origin xyz="0.3 0 0"/>
    <axis xyz="0.6 0 0.8"/><limit lower="-2.5" upper="2.5" velocity="3" effort="1"/></joint>
  <joint name="flange" type="revolute"><parent link="f"/><child link="tool"/><origin xyz="0.1 0.02 0"/>
    <axis xyz="0 0 1"/><limit lower="-2.5" upper="2.5" velocity="3" effort="1"/></joint>
</robot>"""
