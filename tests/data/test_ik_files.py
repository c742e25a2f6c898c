"""Inverse-kinematics files of both families, built here by numpy from the robots' published frames."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mfk import kinematics as kin
from mfk.data import IKFile, read_ik

ROWS = 40
Arrays = dict[str, Any]

# xyz and rpy before each joint, all about z, as the generator of the original files has them: without the
# Panda's flange and without the half turn at the UR10's base.
PI = math.pi
PANDA = [
    (0, 0, 0.333, 0, 0, 0),
    (0, 0, 0, -PI / 2, 0, 0),
    (0, -0.316, 0, PI / 2, 0, 0),
    (0.0825, 0, 0, PI / 2, 0, 0),
    (-0.0825, 0.384, 0, -PI / 2, 0, 0),
    (0, 0, 0, PI / 2, 0, 0),
    (0.088, 0, 0, PI / 2, 0, 0),
]
UR10 = [
    (0, 0, 0.1273, 0, 0, 0),
    (0, 0, 0, PI / 2, 0, 0),
    (-0.612, 0, 0, 0, 0, 0),
    (-0.5723, 0, 0.163941, 0, 0, 0),
    (0, -0.1157, 0, PI / 2, 0, 0),
    (0, 0.0922, 0, PI / 2, PI, PI),
]
ORIGINS = {"panda": PANDA, "ur10": UR10}
CONFIG = {"panda": kin.RobotConfig(frame="panda_link7"), "ur10": kin.RobotConfig("ur10", base="base")}
CHAIN = {name: kin.load_robot(config) for name, config in CONFIG.items()}
LINK7 = CHAIN["panda"]


def poses(robot: str, q: np.ndarray) -> np.ndarray:
    """[rows, 7], x y z w qx qy qz, by scipy."""
    position, turn = np.zeros((len(q), 3)), Rotation.identity(len(q))
    for (x, y, z, *rpy), angle in zip(ORIGINS[robot], q.T, strict=True):
        position = position + turn.apply((x, y, z))
        turn = turn * Rotation.from_euler("xyz", rpy) * Rotation.from_euler("z", angle[:, None])
    return np.concatenate((position, turn.as_quat(canonical=True)[:, [3, 0, 1, 2]]), -1)


@cache
def path_data(robot: str) -> Arrays:
    """Straight paths from q_0 to q_1, float64: state and pose at r and at t, and the two ends."""
    random, chain, rows = np.random.default_rng(0), CHAIN[robot], ROWS
    low, high = np.maximum(chain.lower.numpy(), -PI), np.minimum(chain.upper.numpy(), PI)
    q_1 = random.uniform(low, high, (rows, len(low)))
    q_0 = np.clip(q_1 + 0.1 * random.normal(size=q_1.shape), low, high)
    r = random.beta(2, 5, (rows, 1))
    t = r + (1 - r) * random.uniform(0, 0.99, (rows, 1))
    at = {name: (1 - time) * q_0 + time * q_1 for name, time in (("r", r), ("t", t))}
    return {"q_0": q_0, "q_1": q_1, "r": r, "t": t, "q_r": at["r"], "q_t": at["t"], "v": q_1 - q_0,
            "pose": poses(robot, q_1), "pose_t": poses(robot, at["t"])}  # fmt: skip


def single(data: Arrays) -> Arrays:
    return {key: value.astype(np.float32) for key, value in data.items()}


def original(robot: str = "panda", **changes: Any) -> Arrays:
    """What mfik's generator writes, float32; a change to None leaves a key out."""
    x = path_data(robot)
    data = {"q_t": x["q_t"], "v_t": x["v"], "target_pos": x["pose"][:, :3], "target_quat": x["pose"][:, 3:],
            "r": x["r"][:, 0], "t": x["t"][:, 0], "q_star": x["q_1"], "pos_t": x["pose_t"][:, :3],
            "quat_t": x["pose_t"][:, 3:]}  # fmt: skip
    return changed(single(data), changes)


def documented(robot: str = "panda", **changes: Any) -> Arrays:
    """What mfik's document describes, float32."""
    x = path_data(robot)
    data = {"q": x["q_r"], "target_pose": x["pose"], "q_target": x["q_1"], "r": x["r"], "t": x["t"]}
    return changed(single(data), changes)


def changed(data: Arrays, changes: Arrays) -> Arrays:
    return {key: value for key, value in {**data, **changes}.items() if value is not None}


def write(path: Path, data: Arrays, kind: str = "numpy in pt") -> Path:
    if kind == "npz":
        np.savez(path.with_suffix(".npz"), **data)
    elif kind == "npz compressed":
        np.savez_compressed(path.with_suffix(".npz"), **data)
    elif kind == "numpy in pt":
        torch.save(data, path)
    else:
        torch.save({key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in data.items()}, path)
    return path.with_suffix(".npz") if "npz" in kind else path


def read(path: Path, data: Arrays, robot: str = "panda", **options: Any) -> IKFile:
    return read_ik(write(path, data), CHAIN[robot], frames=lambda: kin.frames(CONFIG[robot]), **options)


def refused(path: Path, data: Arrays, words: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read(path, data, **options)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message


def edited(x: np.ndarray, row: int, value: Any, column: Any = slice(None)) -> np.ndarray:
    x = x.copy()
    x[row, column] = value
    return x


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.pt"


def assert_close(got: torch.Tensor | None, expected: np.ndarray, tolerance: float) -> None:
    assert got is not None
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=0, atol=tolerance)


def test_the_frames_built_here_are_those_of_the_original_files() -> None:
    """Published values of the two chains at zero and at the Panda's ready pose."""
    ready = [0, -PI / 4, 0, -3 * PI / 4, 0, PI / 2, PI / 4]
    np.testing.assert_allclose(poses("panda", np.zeros((1, 7)))[0, :3], [0.088, 0, 1.033], atol=1e-9)
    np.testing.assert_allclose(poses("panda", np.array([ready]))[0, :3], [0.306891, 0, 0.697282], atol=1e-6)
    np.testing.assert_allclose(
        poses("ur10", np.zeros((1, 6)))[0, :3], [-1.1843, -0.256141, 0.0116], atol=1e-9
    )


@pytest.mark.parametrize("kind", ["npz", "npz compressed", "numpy in pt", "tensors in pt"])
@pytest.mark.parametrize("robot", ["panda", "ur10"])
def test_original_files(path: Path, robot: str, kind: str) -> None:
    x = path_data(robot)
    rows, notes = read_ik(write(path, original(robot), kind), CHAIN[robot])
    assert_close(rows.q, x["q_t"], 1e-6)
    assert_close(rows.v, x["v"], 1e-6)
    assert_close(rows.q_target, x["q_1"], 1e-6)
    assert_close(rows.pose, x["pose"], 1e-6)
    assert_close(rows.r, x["t"], 1e-6)  # the state is at t, and that is where the row starts
    assert rows.t is None
    assert notes == (
        "q_t is the state at time t: a row starts at its t, and its end time is drawn",
        "not used: r, pos_t, quat_t",
    )


@pytest.mark.parametrize("kind", ["npz", "npz compressed", "numpy in pt", "tensors in pt"])
@pytest.mark.parametrize("robot", ["panda", "ur10"])
def test_documented_files(path: Path, robot: str, kind: str) -> None:
    x = path_data(robot)
    rows, notes = read_ik(write(path, documented(robot), kind), CHAIN[robot])
    assert_close(rows.q, x["q_r"], 1e-6)
    assert_close(rows.v, x["v"], 1e-5)
    assert_close(rows.q_target, x["q_1"], 1e-6)
    assert_close(rows.pose, x["pose"], 1e-6)
    assert_close(rows.r, x["r"], 1e-6)
    assert_close(rows.t, x["t"], 1e-6)
    assert notes == ()


def test_mixed_names_mean_what_the_state_says(path: Path) -> None:
    x = path_data("panda")
    at_t = read(path, documented(q=None, q_t=x["q_t"].astype(np.float32)))
    assert at_t.rows.t is None
    assert_close(at_t.rows.r, x["t"], 1e-6)
    assert_close(at_t.rows.v, x["v"], 2e-5)  # (q_target - q) / (1 - t)
    at_r = read(path, original(q_t=None, q=x["q_r"].astype(np.float32)))
    assert_close(at_r.rows.r, x["r"], 1e-6)
    assert_close(at_r.rows.t, x["t"], 1e-6)
    assert at_r.notes == ("not used: pos_t, quat_t",)
    both = read(path, documented(r=x["r"][:, 0].astype(np.float32)))
    assert_close(both.rows.r, x["r"], 1e-6)


def test_end_times(path: Path) -> None:
    x = path_data("panda")
    assert_close(read(path, documented(), end_times="file").rows.t, x["t"], 1e-6)
    drawn = read(path, documented(), end_times="redraw")
    assert drawn.rows.t is None
    assert_close(drawn.rows.r, x["r"], 1e-6)
    assert drawn.notes == ("not used: t",)
    assert read(path, documented(t=None), end_times="redraw").rows.t is None
    assert read(path, original(), end_times="redraw").rows.t is None
    assert read(path, original(r=None)).rows.t is None
    refused(path, original(), "q_t is the state at time t, .* end_times auto or redraw", end_times="file")
    refused(path, documented(t=None), r"expected t \(--end-times redraw does without\), got the keys q, tar")
    with pytest.raises(ValueError, match="end_times: expected auto, file or redraw, got 'draw'"):
        read(path, documented(), end_times="draw")
    # The document draws both times from [0, 1], in any order.
    swapped = documented(
        r=x["t"].astype(np.float32), q=x["q_t"].astype(np.float32), t=x["r"].astype(np.float32)
    )
    words = (
        r"t: row 0: expected r <= t \(--end-times redraw ignores the file's end times\), got 0\.\d+, 0\.\d+"
    )
    for end_times in ("auto", "file"):
        refused(path, swapped, words, end_times=end_times)
    assert_close(read(path, swapped, end_times="redraw").rows.r, x["t"], 1e-6)


def in_file(path: Path, x: torch.Tensor | None) -> bool:
    """Whether a tensor's memory is that of the file."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [line[0].split("-") for line in maps if line[-1] == str(path)]
    return x is not None and any(int(a, 16) <= x.data_ptr() < int(b, 16) for a, b in ranges)


def test_what_is_right_is_not_copied(path: Path) -> None:
    chain = LINK7
    x = path_data("panda")
    q = {
        key: np.clip(x[key], chain.lower_float32, chain.upper_float32).astype(np.float32)
        for key in ("q_r", "q_1")
    }
    data = documented(q=q["q_r"], q_target=q["q_1"], v_t=x["v"].astype(np.float32))
    rows, _ = read_ik(write(path, data, "tensors in pt"), chain)
    assert [in_file(path, value) for value in rows] == [True] * 6
    flipped = {
        **data,
        "target_pose": edited(data["target_pose"], 3, -data["target_pose"][3, 3:], slice(3, 7)),
    }
    rows, _ = read_ik(write(path, flipped, "tensors in pt"), chain)
    assert [in_file(path, value) for value in rows] == [True, True, True, False, True, True]
    np.testing.assert_array_equal(rows.pose.numpy(), data["target_pose"])


def test_double_precision_is_checked_as_such_and_rounded(path: Path) -> None:
    x = path_data("panda")
    data = {
        "q": x["q_r"],
        "q_target": x["q_1"],
        "target_pose": x["pose"],
        "r": x["r"],
        "t": x["t"].astype(np.float32),
    }
    rows, notes = read(path, data)
    assert notes == ("rounded from float64 to float32: q, r, q_target, target_pose",)
    for value, expected in zip(rows, ("q_r", "v", "q_1", "pose", "r", "t"), strict=True):
        assert_close(value, x[expected], 2e-6)
    np.testing.assert_array_equal(rows.v.numpy(), ((x["q_1"] - x["q_r"]) / (1 - x["r"])).astype(np.float32))
    # A float64 time may exceed 1 by less than float32 can tell.
    refused(path, {**data, "r": edited(x["r"], 5, 1 + 1e-12)}, "r: row 5: expected a time in")
    refused(path, {**data, "q": edited(x["q_r"], 7, 1e39, 2)}, "q: row 7: expected finite float32 numbers")


def test_joint_limits(path: Path) -> None:
    low, high = LINK7.lower.numpy(), LINK7.upper.numpy()
    start = original()
    q = edited(edited(start["q_t"].astype(np.float64), 4, high + 5e-6), 9, low - 5e-6)
    rows = read(path, {**start, "q_t": q}).rows
    assert bool((rows.q.double() >= LINK7.lower).all())
    assert bool((rows.q.double() <= LINK7.upper).all())
    np.testing.assert_allclose(rows.q[4].double().numpy(), high, rtol=0, atol=1e-6)
    q = edited(start["q_t"].astype(np.float64), 2, low[3] - 2e-5, 3)
    refused(path, {**start, "q_t": q}, r"q_t: row 2: expected joint 'panda_joint4' .* got -3\.07182$")
    q = edited(edited(start["q_t"], 30, 9.0, 0), 20, -0.05, 3)
    words = r"q_t: row 20: expected joint 'panda_joint4' in \[-3.0718, -0.0698\], got -0.05"
    refused(path, {**start, "q_t": q}, words)
    far = edited(start["q_star"], 11, -3, 6)
    refused(path, {**start, "q_star": far}, r"q_star: row 11: expected joint 'panda_joint7' .* got -3")


def test_quaternions(path: Path) -> None:
    data, x = original(), path_data("panda")
    signs = np.where(np.arange(ROWS) % 2, -1, 1)[:, None].astype(np.float32)
    rows = read(path, {**data, "target_quat": signs * data["target_quat"]}).rows
    assert_close(rows.pose, x["pose"], 1e-6)
    assert bool((rows.pose[:, 3] >= 0).all())
    rows = read(path, {**data, "target_quat": 1.0009 * data["target_quat"]}).rows
    assert_close(rows.pose, x["pose"], 1e-6)
    long = edited(data["target_quat"], 6, 1.002 * data["target_quat"][6])
    refused(
        path, {**data, "target_quat": long}, r"target_quat: row 6: expected a unit quaternion, got 1\.002"
    )
    zero = edited(documented()["target_pose"], 8, 0, slice(3, 7))
    refused(path, documented(target_pose=zero), "target_pose: row 8: expected a unit quaternion, got 0$")
    words = r"40 of 40 rows are wrong: their quaternions are in the order x y z w, expected w x y z"
    refused(path, {**data, "target_quat": data["target_quat"][:, [1, 2, 3, 0]]}, words)


HINTS = [
    (
        "panda",
        kin.RobotConfig(),
        r"every row is that of panda_link7 \(base panda_link0\): give --frame panda_link7",
    ),
    ("ur10", kin.RobotConfig("ur10"), r"that of tool0 \(base base\): give --base base"),
    ("ur10", kin.RobotConfig("ur10", frame="ee_link"), "give --frame tool0 --base base"),
]


@pytest.mark.parametrize(("robot", "config", "words"), HINTS)
def test_the_frame_of_the_file_is_named(path: Path, robot: str, config: kin.RobotConfig, words: str) -> None:
    for data, key in ((documented(robot), "target_pose"), (original(robot), "target_pos")):
        write(path, data)
        with pytest.raises(
            ValueError, match=rf"{key}: row 0: .* 40 of 40 rows are wrong; .*{words}$"
        ) as error:
            read_ik(path, kin.load_robot(config), frames=lambda: kin.frames(config))
        assert str(error.value).startswith(str(path))
        with pytest.raises(ValueError, match=r"40 of 40 rows are wrong$"):
            read_ik(path, kin.load_robot(config))


def test_the_errors_of_the_first_wrong_row_are_given(path: Path) -> None:
    """The hand is 0.107 m and an eighth of a turn away from the last link."""
    words = (
        "expected the pose of panda_hand in panda_link0 at the solution, got one 0.107 m and 0.785 rad away"
    )
    write(path, documented())
    with pytest.raises(ValueError, match=re.escape(words)):
        read_ik(path, kin.panda())


def test_some_wrong_rows(path: Path) -> None:
    pose = documented()["target_pose"]
    near, far = pose.copy(), pose.copy()
    near[12, 0] += 0.9e-4
    read(path, documented(target_pose=near))
    far[12, 0] += 1.1e-4
    words = "row 12: .* 0.00011 m and .*; 1 of 40 rows are wrong, and no other frame of this robot fits them"
    refused(path, documented(target_pose=far), words)
    turned = pose.copy()
    turn = Rotation.from_rotvec([0, 0, 1.1e-3]) * Rotation.from_quat(pose[5:6, [4, 5, 6, 3]])
    turned[5, 3:] = turn.as_quat()[0, [3, 0, 1, 2]]
    refused(path, documented(target_pose=turned), "row 5: .* and 0.0011 rad away; 1 of 40 rows are wrong")
    # Two files in one: the last ten rows are poses of the hand.
    q = torch.from_numpy(documented()["q_target"])
    mixed = np.concatenate((pose[:30], kin.forward(kin.panda(), q).numpy()[30:]))
    words = (
        "row 30: .* 10 of 40 rows are wrong; 10 of all rows are that of panda_hand .base panda_link0.: for"
    )
    refused(path, documented(target_pose=mixed), words)


def test_a_file_of_another_robot(path: Path) -> None:
    words = r"q: expected \[rows, 7\] for the 7 joints of panda, got \(40, 6\), a robot with 6"
    refused(path, documented("ur10"), words)
    write(path, original())
    with pytest.raises(
        ValueError, match=r"q_t: expected \[rows, 6\] for the 6 joints of ur10, got \(40, 7\)"
    ):
        read_ik(path, CHAIN["ur10"])


KEYS = [
    (
        documented(q=None),
        r"expected either q or q_t \(the state at time r, or that at time t\), got the keys tar",
    ),
    (documented(q_t=documented()["q"]), "expected either q or q_t"),
    (documented(q_target=None), "expected either q_target or q_star, got the keys q, target_pose, r, t"),
    (documented(q_star=documented()["q"]), "expected either q_target or q_star"),
    (documented(target_pose=None), "expected either target_pose or target_pos and target_quat"),
    (original(target_quat=None), "expected either target_pose or target_pos and target_quat"),
    (documented(target_pos=original()["target_pos"]), "expected either target_pose or target_pos"),
    (documented(r=None), "expected r, got the keys"),
    (original(t=None), "expected t, got the keys"),
    (documented(pose=documented()["q"]), "unknown keys 'pose'; the known ones are q, q_t, q_target"),
    (
        changed(documented(), {f"x{i}": np.zeros(1) for i in range(9)}),
        r"unknown keys 'x0', .*'x7', \.\.\.; the",
    ),
]


@pytest.mark.parametrize(("data", "words"), KEYS, ids=[words for _, words in KEYS])
def test_keys(path: Path, data: Arrays, words: str) -> None:
    refused(path, data, words)


D = documented()
VALUES = [
    (
        documented(q=D["q"][:, :, None]),
        r"q: expected \[rows, 7\] for the 7 joints of panda, got \(40, 7, 1\)$",
    ),
    (documented(q=np.array(1, np.float32)), r"q: expected \[rows, 7\] .* got \(\)$"),
    (documented(r=D["r"][:, :, None]), r"r: expected \[rows, 1\], got \(40, 1, 1\)"),
    (documented(r=np.zeros((40, 2), np.float32)), r"r: expected \[rows, 1\], got \(40, 2\)"),
    (documented(target_pose=D["target_pose"][:, :6]), r"target_pose: expected \[rows, 7\], got \(40, 6\)"),
    (original(target_quat=D["q"]), r"target_quat: expected \[rows, 4\], got \(40, 7\)"),
    (documented(v_t=D["r"]), r"v_t: expected \[rows, 7\] for the 7 joints of panda, got \(40, 1\)"),
    (documented(t=D["t"][:39]), "t: expected 40 rows, as q has, got 39"),
    (documented(q=D["q"][:1]), "r: expected 1 rows, as q has, got 40"),
    ({key: x[:0] for key, x in D.items()}, "q: expected at least one row, got none"),
    (documented(q=D["q"].astype(np.float16)), "q: expected float32 or float64, got torch.float16"),
    (documented(r=np.zeros(40, np.int64)), "r: expected float32 or float64, got torch.int64"),
    (documented(q=edited(D["q"], 5, np.nan, 1)), "q: row 5: expected finite float32 numbers, got .*nan"),
    (documented(v_t=edited(D["q"], 0, np.inf, 1)), "v_t: row 0: expected finite float32 numbers, got .*inf"),
    (documented(t=edited(D["t"], 39, np.nan)), "t: row 39: expected finite float32 numbers, got nan"),
    (documented(r=edited(D["r"], 6, -0.01)), r"r: row 6: expected a time in \[0, 1\], got -0.01"),
    (documented(t=edited(D["t"], 6, 1.01)), r"t: row 6: expected a time in \[0, 1\], got 1.01"),
    (original(t=edited(D["t"], 6, 1.01)), r"t: row 6: expected a time in \[0, 1\], got 1.01"),
    (documented(t=edited(D["t"], 6, 0.01)), r"t: row 6: expected r <= t \(.*\), got 0\.\d+, 0\.01$"),
    (
        documented(r=edited(D["r"], 6, 0.9995), t=edited(D["t"], 6, 1)),
        "r: row 6: expected 1 - r >= 0.001 where there is no v_t, got 0.9995",
    ),
    (original(v_t=None, t=edited(D["t"], 6, 1)), "t: row 6: expected 1 - t >= 0.001 where .*, got 1$"),
]


@pytest.mark.parametrize(("data", "words"), VALUES, ids=[words for _, words in VALUES])
def test_shapes_types_and_numbers(path: Path, data: Arrays, words: str) -> None:
    refused(path, data, words)


def test_a_row_at_its_solution_needs_its_velocity(path: Path) -> None:
    data = original(t=edited(D["t"], 6, 1)[:, 0], q_t=edited(original()["q_t"], 6, original()["q_star"][6]))
    assert float(read(path, data).rows.r[6]) == 1.0


def test_velocities_that_lead_elsewhere(path: Path) -> None:
    data, x = original(), path_data("panda")
    bent = edited(data["v_t"], 7, data["v_t"][7] + 5)
    notes = read(path, {**data, "v_t": bent}).notes
    off = 5 * (1 - x["t"][7, 0])
    assert notes[-1] == (
        "v_t does not lead straight from q_t at time t to q_star in 1 of 40 rows; "
        f"row 7 misses it by {off:.3g}"
    )
    # A q_t that is the state at r after all.
    notes = read(path, {**data, "q_t": x["q_r"].astype(np.float32)}).notes
    assert notes[-1].startswith("v_t does not lead straight from q_t at time t to q_star in ")
    assert notes[-1].endswith("; from time r it does")
    odd = {**data, "q_t": x["q_r"].astype(np.float32), "r": np.zeros((3, 5))}
    assert "from time" not in read(path, odd).notes[-1]


def test_other_kinds_of_joints(path: Path) -> None:
    urdf = """<robot name="spinner"><link name="base"/><link name="arm"/><link name="tip"/>
      <joint name="turn" type="continuous"><parent link="base"/><child link="arm"/><axis xyz="0 0 1"/></joint>
      <joint name="slide" type="prismatic"><parent link="arm"/><child link="tip"/><axis xyz="1 0 0"/>
        <limit lower="0" upper="9" velocity="1"/></joint></robot>"""
    chain = kin.load_urdf(urdf, "tip")
    q = np.array([[10.0, 2.0], [-50.0, 9.0]])
    half = q[:, 0] / 2
    pose = np.stack((2 * 0 + q[:, 1] * np.cos(q[:, 0]), q[:, 1] * np.sin(q[:, 0]), 0 * half,
                     np.cos(half), 0 * half, 0 * half, np.sin(half)), -1)  # fmt: skip
    data = {"q": q - [[1, 1], [2, 3]], "q_target": q, "target_pose": pose, "r": np.zeros(2), "t": np.ones(2)}
    rows = read_ik(write(path, data), chain).rows
    assert_close(rows.q_target, q, 1e-5)
    assert_close(rows.v, np.array([[1, 1], [2, 3]]), 1e-5)
    assert bool((rows.pose[:, 3] >= 0).all())
    with pytest.raises(ValueError, match=r"q: row 1: expected joint 'slide' in \[0, 9\], got -1"):
        read_ik(write(path, {**data, "q": edited(data["q"], 1, -1, 1)}), chain)


def test_many_rows_go_through_in_chunks(path: Path) -> None:
    """More than one chunk of kinematics; the only wrong row is in the second."""
    data = {key: np.tile(x, (70_000 // ROWS, 1)) for key, x in documented().items()}
    assert len(read(path, data).rows.q) == 70_000
    wrong = {**data, "target_pose": edited(data["target_pose"], 69_000, 0.0, 1)}
    refused(path, wrong, "row 69000: .* 1 of 70000 rows are wrong, and no other frame")


EVERY = {**documented(), **original(), "r": D["r"], "t": D["t"], "other": D["r"]}
MAKE = {
    "as it is": lambda x: x,
    "double": lambda x: x.astype(np.float64),
    "half": lambda x: x.astype(np.float16),
    "int": lambda x: x.astype(np.int64),
    "columns first": np.asfortranarray,
    "flat": np.ravel,
    "short": lambda x: x[:-1],
    "none": lambda x: x[:0],
    "wide": lambda x: np.concatenate((x, x), -1),
    "deep": lambda x: x[..., None],
    "number": lambda x: np.array(x.ravel()[0]),
    "nan": lambda x: edited(x.reshape(ROWS, -1), 3, np.nan),
    "zero": np.zeros_like,
    "bool": lambda x: x > 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@settings(max_examples=200)
@given(
    base=st.sampled_from(["documented", "original"]),
    without=st.sets(st.sampled_from(sorted(EVERY)), max_size=2),
    extra=st.sets(st.sampled_from(sorted(EVERY)), max_size=1),
    changes=st.dictionaries(st.sampled_from(sorted(EVERY)), st.sampled_from(sorted(MAKE)), max_size=2),
    end_times=st.sampled_from(["auto", "file", "redraw"]),
    npz=st.booleans(),
)
def test_any_combination_is_read_rightly_or_refused(
    folder: Path,
    base: str,
    without: set[str],
    extra: set[str],
    changes: dict[str, str],
    end_times: Any,
    npz: bool,
) -> None:
    start = documented() if base == "documented" else original()
    keys = (start.keys() | extra) - without
    data = {key: MAKE[changes.get(key, "as it is")](EVERY[key]) for key in sorted(keys)}
    path = write(folder / "data.pt", data, "npz" if npz else "numpy in pt")
    try:
        rows = read_ik(path, LINK7, frames=lambda: kin.frames(CONFIG["panda"]), end_times=end_times).rows
    except ValueError as error:
        assert str(error).startswith(str(path))
        return
    x = path_data("panda")
    state = "r" if "q" in data else "t"
    assert_close(rows.q_target, x["q_1"], 1e-6)
    assert_close(rows.pose, x["pose"], 1e-6)
    zeroed = {key for key, change in changes.items() if change == "zero"}
    if not zeroed & {"q", "q_t", "r", "t", "v_t"}:
        assert_close(rows.q, x[f"q_{state}"], 1e-6)
        assert_close(rows.r, x[state], 1e-6)
        assert_close(rows.v, x["v"], 2e-5)
    assert (rows.t is None) == (state == "t" or end_times == "redraw")
