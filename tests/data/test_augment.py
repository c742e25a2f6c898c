from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation
from torch import Tensor

from mfk import kinematics
from mfk.core import Rows
from mfk.data import AugmentConfig, IKPaths, augment, check_augment, draw_ik, sampling_range
from mfk.data.ik import IKDataConfig
from mfk.kinematics import Chain, Joint

PANDA, UR10 = kinematics.panda(), kinematics.ur10()
NOISE = AugmentConfig(joint_noise=0.05)
TURNS = AugmentConfig(turns=True)
BASE = AugmentConfig(base_rotation=True)
ALL = AugmentConfig(joint_noise=0.05, turns=True, base_rotation=True)


def made_up(kind: Any = "revolute", axis: tuple[float, float, float] = (-0.3, 0.5, -2.0)) -> Chain:
    """A first axis that is slanted, off the origin, and points away from its coordinate axis."""
    joints = [
        Joint("first", kind, (0.3, -0.2, 0.5), (0.4, -0.7, 1.1), axis, -1.0, 2.5),
        Joint("slide", "prismatic", (0.1, 0.0, 0.2), (0.2, 0.0, 0.0), (0.0, 1.0, 1.0), -0.2, 0.9),
        Joint("last", "revolute", (0.0, 0.4, 0.1), (0.0, 0.3, 0.0), (1.0, 0.0, 0.0), -8.0, 9.0),
    ]
    return kinematics.serial_chain("made up", "base", "tip", joints, tool_offset=TOOL)


TOOL = kinematics.pose_to_matrix(torch.tensor([0.1, 0.2, 0.3, 0.5, 0.5, -0.5, 0.5], dtype=torch.float64))
SLANTED, ENDLESS = made_up(), made_up("continuous")
CHAINS = [PANDA, UR10, SLANTED, ENDLESS]
CASES = [
    (chain, config)
    for chain in CHAINS
    for config in (NOISE, TURNS, BASE, ALL)
    if chain is not PANDA or not config.turns
] + [(PANDA, AugmentConfig(joint_noise=0.05, base_rotation=True))]


def paths(chain: Chain, rows: int, seed: int = 0) -> IKPaths:
    data = draw_ik(chain, IKDataConfig("mixture"), seed, 0, Rows.all(rows))
    r = torch.linspace(0, 1, rows).unsqueeze(1)
    v = data.q_target - data.q_reference
    return IKPaths(data.q_reference + r * v, v, data.q_target, data.pose, r)


def run(chain: Chain, config: AugmentConfig, given: IKPaths, seed: int = 0, step: int = 0) -> IKPaths:
    return augment(chain, config, *given, seed=seed, step=step, rows=Rows.all(len(given.q)))


def reference(x: IKPaths) -> Tensor:
    return x.q.double() - x.r.double() * x.v.double()


def assert_same_pose(got: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(got[:, :3].double(), expected[:, :3].double(), atol=atol, rtol=0)
    matrices = [kinematics.quaternion_to_matrix(pose[:, 3:].double()) for pose in (got, expected)]
    torch.testing.assert_close(*matrices, atol=2 * atol, rtol=0)


@pytest.mark.parametrize(("chain", "config"), CASES)
def test_paths_stay_straight_inside_the_limits_and_their_poses_true(
    chain: Chain, config: AugmentConfig
) -> None:
    given = paths(chain, 4000)
    got = run(chain, config, given)
    assert all(x.dtype == torch.float32 and bool(torch.isfinite(x).all()) for x in got)
    assert not torch.equal(got.q, given.q)
    rest = (1 - got.r.double()) * got.v.double()
    torch.testing.assert_close(got.q.double() + rest, got.q_target.double(), atol=2e-6, rtol=0)
    stops = ~torch.tensor(chain.continuous)
    for q, slack in ((got.q, 0.0), (got.q_target, 0.0), (reference(got), 2e-6)):
        assert bool(((q.double() >= chain.lower - slack) | ~stops).all())
        assert bool(((q.double() <= chain.upper + slack) | ~stops).all())
    exact = kinematics.forward(chain, got.q_target.double())
    assert_same_pose(got.pose, exact, 3e-6)
    assert bool((got.pose[:, 3] >= 0).all())


def test_in_float64_all_is_exact() -> None:
    for chain in (UR10, SLANTED, ENDLESS):
        single = paths(chain, 1000)
        target = single.q_target.double()
        start = target - single.v.double()
        r = single.r.double()
        given = IKPaths(
            start + r * (target - start), target - start, target, kinematics.forward(chain, target), r
        )
        got = run(chain, ALL, given)
        assert all(x.dtype == torch.float64 for x in got)
        torch.testing.assert_close(got.q + (1 - r) * got.v, got.q_target, atol=1e-14, rtol=0)
        assert_same_pose(got.pose, kinematics.forward(chain, got.q_target), 1e-13)


def test_noise_moves_the_reference_and_nothing_else() -> None:
    given = paths(PANDA, 20_000)
    got = run(PANDA, NOISE, given)
    assert got.q_target is given.q_target and got.pose is given.pose and got.r is given.r
    before = reference(given)
    torch.testing.assert_close(reference(got), given.q_target.double() - got.v.double(), atol=1e-6, rtol=0)
    inside = ((before - PANDA.lower > 0.3) & (PANDA.upper - before > 0.3)).all(-1)
    moved = (reference(got) - before)[inside]
    assert len(moved) > 1000
    assert stats.kstest(moved.flatten().numpy(), stats.norm(scale=0.05).cdf).pvalue > 1e-3
    assert float(torch.corrcoef(moved.T).fill_diagonal_(0).abs().max()) < 0.1
    at_limit = (given.q_target.double() - given.v.double() - PANDA.upper).abs() < 1e-6
    assert at_limit.any()  # clipped references are among them
    assert bool((reference(got) <= PANDA.upper + 1e-6).all())


def allowed_turns(chain: Chain, joint: int, low: float, high: float) -> list[int]:
    return [
        k
        for k in range(-5, 6)
        if chain.lower_limits[joint] <= low + 2 * math.pi * k
        and high + 2 * math.pi * k <= chain.upper_limits[joint]
    ]


@pytest.mark.parametrize(("chain", "joint"), [(UR10, 0), (UR10, 3), (SLANTED, 2)])
def test_every_allowed_number_of_turns_is_equally_likely(chain: Chain, joint: int) -> None:
    given = paths(chain, 30_000)
    got = run(chain, TURNS, given)
    assert got.pose is given.pose and torch.equal(got.v, given.v)
    shift = (got.q_target.double() - given.q_target.double()) / (2 * math.pi)
    turns = shift.round()
    torch.testing.assert_close(shift, turns, atol=1e-6, rtol=0)
    torch.testing.assert_close((got.q.double() - given.q.double()) / (2 * math.pi), turns, atol=1e-6, rtol=0)
    ends = torch.stack((reference(given), given.q_target.double()))[..., joint]
    counts: dict[tuple[int, ...], dict[int, int]] = {}
    for low, high, k in zip(
        *(x.tolist() for x in (ends.amin(0), ends.amax(0), turns[:, joint])), strict=True
    ):
        allowed = tuple(allowed_turns(chain, joint, low, high))
        counts.setdefault(allowed, dict.fromkeys(allowed, 0))[int(k)] += 1
    assert any(len(allowed) > 1 for allowed in counts)
    for found in counts.values():
        if len(found) > 1 and sum(found.values()) > 100:
            assert stats.chisquare(list(found.values())).pvalue > 1e-4


def test_joints_without_room_keep_their_turns() -> None:
    given = paths(UR10, 100)
    elbow = UR10.joint_names.index("elbow_joint")
    assert torch.equal(run(UR10, TURNS, given).q_target[:, elbow], given.q_target[:, elbow])
    given = paths(ENDLESS, 100)
    got = run(ENDLESS, TURNS, given)
    assert torch.equal(got.q_target[:, :2], given.q_target[:, :2])
    assert not torch.equal(got.q_target[:, 2], given.q_target[:, 2])


@pytest.mark.parametrize("chain", [PANDA, UR10, SLANTED])
def test_the_base_angle_is_uniform_over_what_the_first_joint_allows(chain: Chain) -> None:
    given = paths(chain, 10_000)
    got = run(chain, BASE, given)
    for before, after in ((given.q, got.q), (given.q_target, got.q_target)):
        assert torch.equal(before[:, 1:], after[:, 1:])
    assert torch.equal(got.v, given.v)
    angle = got.q_target[:, 0].double() - given.q_target[:, 0].double()
    torch.testing.assert_close(got.q[:, 0].double() - given.q[:, 0].double(), angle, atol=1e-6, rtol=0)
    ends = torch.stack((reference(given), given.q_target.double()))[..., 0]
    lowest, highest = chain.lower[0] - ends.amin(0), chain.upper[0] - ends.amax(0)
    share = ((angle - lowest) / (highest - lowest))[highest - lowest > 0.01]
    assert float(share.min()) > -1e-3 and float(share.max()) < 1 + 1e-3
    assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3


def test_the_base_rotation_is_one_about_the_first_joints_axis_in_space() -> None:
    # Of the description itself: origin, rpy and axis of the first joint; SciPy turns.
    given = paths(SLANTED, 200)
    got = run(SLANTED, BASE, given)
    joint = Rotation.from_euler("xyz", [0.4, -0.7, 1.1])
    axis = joint.apply([-0.3, 0.5, -2.0]) / math.sqrt(0.3**2 + 0.5**2 + 2.0**2)
    origin = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64).numpy()
    angle = (got.q_target[:, :1].double() - given.q_target[:, :1].double()).numpy()
    turn = Rotation.from_rotvec(angle * axis)
    position = origin + turn.apply(given.pose[:, :3].double().numpy() - origin)
    torch.testing.assert_close(got.pose[:, :3].double(), torch.from_numpy(position), atol=1e-6, rtol=0)
    before, after = (
        Rotation.from_quat(kinematics.wxyz_to_xyzw(x.pose[:, 3:].double()).numpy()) for x in (given, got)
    )
    assert float((after * (turn * before).inv()).magnitude().max()) < 1e-6


def test_an_endless_first_joint_turns_anywhere_and_its_solution_is_named_within_one_turn() -> None:
    given = paths(ENDLESS, 10_000)
    shifted = torch.tensor([40.0, 0.0, 0.0])
    far = given._replace(q=given.q + shifted, q_target=given.q_target + shifted)
    far = far._replace(pose=kinematics.forward(ENDLESS, far.q_target))
    for start in (given, far):
        got = run(ENDLESS, BASE, start)
        solution = got.q_target[:, 0].double()
        assert float(solution.abs().max()) <= math.pi + 1e-6
        assert stats.kstest(solution.numpy(), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
        # Independent of where it was.
        assert abs(float(torch.corrcoef(torch.stack((solution, start.q_target[:, 0].double())))[0, 1])) < 0.05
        torch.testing.assert_close(got.v, start.v, atol=0, rtol=0)
        rest = (1 - got.r.double()) * got.v.double()
        torch.testing.assert_close(got.q.double() + rest, got.q_target.double(), atol=2e-5, rtol=0)
        assert_same_pose(got.pose, kinematics.forward(ENDLESS, got.q_target.double()), 2e-5)


@pytest.mark.parametrize(("chain", "config"), [(UR10, ALL), (ENDLESS, ALL)])
def test_numbers_do_not_depend_on_the_split(chain: Chain, config: AugmentConfig) -> None:
    given = paths(chain, 10)
    whole = run(chain, config, given, seed=3, step=4)
    for k in range(3):
        index = range(k, 10, 3)
        micro = [x[k::3] for x in given]
        part = augment(chain, config, *micro, seed=3, step=4, rows=Rows(index, 10))  # pyright: ignore[reportCallIssue]
        for a, b in zip(whole, part, strict=True):
            torch.testing.assert_close(a[k::3], b, rtol=0, atol=1e-6)
    again = run(chain, config, given, seed=3, step=4)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    for seed, step in ((4, 4), (3, 5)):
        assert not torch.equal(run(chain, config, given, seed, step).q, whole.q)


def test_inputs_are_left_alone_and_nothing_returns_them() -> None:
    given = paths(UR10, 50)
    for config in (AugmentConfig(), NOISE, ALL):
        copies = [x.clone() for x in given]
        got = run(UR10, config, given)
        assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))
    nothing = run(UR10, AugmentConfig(), given)
    assert all(a is b for a, b in zip(nothing, given, strict=True))
    double = IKPaths(*(x.double() for x in given))
    copies = [x.clone() for x in double]
    got = run(UR10, ALL, double)
    assert all(torch.equal(a, b) for a, b in zip(double, copies, strict=True))
    assert got.q_target.data_ptr() != double.q_target.data_ptr()


def test_a_nan_stays_in_its_row() -> None:
    given = paths(UR10, 6)
    given.q[2, 1] = math.nan
    got = run(UR10, ALL, given)
    clean = torch.arange(6) != 2
    assert bool(torch.isnan(got.q[2, 1])) and all(bool(torch.isfinite(x[clean]).all()) for x in got)


@pytest.mark.parametrize(
    ("chain", "config", "message"),
    [
        (PANDA, AugmentConfig(joint_noise=-0.1), "joint_noise: expected a number"),
        (PANDA, AugmentConfig(joint_noise=math.nan), "joint_noise: expected a number"),
        (PANDA, AugmentConfig(joint_noise=math.inf), "joint_noise: expected a number"),
        (PANDA, AugmentConfig(joint_noise=True), "joint_noise: expected a number"),
        (PANDA, TURNS, "turns: True would have no effect: no joint of panda"),
        (made_up("prismatic"), BASE, "base_rotation: expected a first joint that turns, but 'first'"),
    ],
)
def test_bad_settings(chain: Chain, config: AugmentConfig, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        check_augment(chain, config)
    with pytest.raises(ValueError, match="^" + message):
        run(chain, config, paths(chain, 4))


def test_a_first_joint_that_stands_still() -> None:
    joint = Joint("fixed", "revolute", (0, 0, 0), (0, 0, 0), lower=0.5, upper=0.5)
    with pytest.raises(ValueError, match=r"^base_rotation: .* no effect"):
        check_augment(kinematics.serial_chain("still", "base", "tip", [joint]), BASE)


@pytest.mark.parametrize("config", [AugmentConfig(), ALL])
def test_bad_inputs(config: AugmentConfig) -> None:
    given = paths(UR10, 4)
    for name, change, error in (
        ("q", torch.zeros(4, 7), ValueError),
        ("q", torch.zeros(4, 6, dtype=torch.int64), TypeError),
        ("v", torch.zeros(4, 1), ValueError),
        ("v", given.v.double(), TypeError),
        ("q_target", given.q_target[0], ValueError),
        ("pose", given.pose[:, :6], ValueError),
        ("pose", given.pose.numpy(), TypeError),
        ("r", given.r[:, 0], ValueError),
        ("r", given.r[:1], ValueError),
    ):
        with pytest.raises(error, match=f"^{name}: expected"):
            run(UR10, config, given._replace(**{name: change}))
    with pytest.raises(ValueError, match=r"^q: expected shape \(2, 6\)"):
        augment(UR10, config, *given, seed=0, step=0, rows=Rows(range(2), 4))


def test_rows_outside_the_limits_are_named() -> None:
    given = paths(PANDA, 4)
    given.q_target[2, 3] = 0.5
    with pytest.raises(ValueError, match=r"^q_target: expected 'panda_joint4' of panda .* got 0.5 in row 2"):
        run(PANDA, NOISE, given)
    # Rounding to float32 may leave a limit by half a unit.
    lower, upper = sampling_range(PANDA)
    at_limit = torch.nextafter(upper.float(), torch.tensor(math.inf)).expand(4, 7)
    start = lower.float().expand(4, 7)
    r = torch.ones(4, 1)
    pose = kinematics.forward(PANDA, at_limit)
    got = run(PANDA, BASE, IKPaths(at_limit, at_limit - start, at_limit, pose, r))
    assert all(bool((q.double() <= PANDA.upper).all()) for q in (got.q, got.q_target))
