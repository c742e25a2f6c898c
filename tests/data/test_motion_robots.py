"""Generated motion against the limits of its joints, and sources in memory."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mfk import kinematics as kin
from mfk.data import joint_motion, motion_source, robot_motion
from mfk.data.motion import Clip, MotionInfo, MotionRows, Skeleton, clip_starts

CHAINS = [kin.panda(), kin.ur10()]
each = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)
FPS = 30.0


def clip(chain: kin.Chain, number: int = 0, **options: Any) -> Tensor:
    return joint_motion(chain, **{"frames": 300, "fps": FPS, "seed": 0, "clip": number, **options})


@each
def test_limits_are_kept_and_used(chain: kin.Chain) -> None:
    q = torch.stack([clip(chain, number) for number in range(40)])
    assert bool((q >= chain.lower).all() and (q <= chain.upper).all())
    assert bool((q.amax((0, 1)) - q.amin((0, 1)) <= 2 * math.pi).all())
    speed = q.diff(dim=1).abs() * FPS
    assert bool((speed <= 0.9 * chain.velocity + 1e-9).all())
    turn = 2 * math.pi * 0.6
    assert bool((q.diff(n=2, dim=1).abs() * FPS**2 <= 0.9 * chain.velocity * turn + 1e-6).all())
    # Neither still nor stuck to one place.
    assert bool((speed.amax(1) > 0.05).all()) and bool(
        (speed.mean((0, 1)) > 0.1 * chain.velocity.min()).all()
    )
    covered = (q.amax((0, 1)) - q.amin((0, 1))) / (chain.upper - chain.lower).clamp(max=2 * math.pi)
    assert bool((covered > 0.7).all())


def test_a_joint_without_a_speed_limit_and_one_without_room() -> None:
    free = dataclasses.replace(CHAINS[0], velocity_limits=(math.inf,) * 7)
    q = clip(free)
    assert bool(q.isfinite().all())
    assert bool((q.diff(dim=0).abs() * FPS <= 0.6 * math.pi * 0.6 * (free.upper - free.lower)).all())
    held = dataclasses.replace(CHAINS[0], lower_limits=(0.5,) * 7, upper_limits=(0.5,) * 7)
    assert bool((clip(held) == 0.5).all())


@each
def test_frames_are_those_of_the_joints(chain: kin.Chain) -> None:
    source = robot_motion(chain, clips=4, frames=50, seed=3)
    q = torch.cat([clip(chain, number, frames=50, seed=3) for number in range(4)])
    frames = source.read(0, 200).frames
    assert frames.dtype == torch.float32 and frames.shape == (200, chain.dof + 2, 7)
    expected = kin.link_poses(chain, q)
    torch.testing.assert_close(frames[..., :3].double(), expected[..., :3], rtol=0, atol=1e-6)
    angle = kin.quaternion_angle(frames[..., 3:].double(), expected[..., 3:])
    assert float(angle.max()) < 1e-6
    torch.testing.assert_close(frames[:, -1, :3].double(), kin.forward(chain, q)[:, :3], rtol=0, atol=1e-6)


@each
def test_signs_are_continuous_within_a_clip(chain: kin.Chain) -> None:
    turns = robot_motion(chain, clips=20, frames=300).read(0, 6000).frames.unflatten(0, (20, 300))[..., 3:]
    assert float((turns[:, 1:] * turns[:, :-1]).sum(-1).min()) > 0.9
    assert float(turns[..., 0].min()) < -0.05  # qw >= 0 would not have been enough


def test_numbers_depend_on_the_seed_and_the_clip_alone() -> None:
    chain = CHAINS[0]
    many, few = robot_motion(chain, clips=5, frames=40), robot_motion(chain, clips=2, frames=40)
    frames = many.read(0, 200).frames
    assert torch.equal(few.read(0, 80).frames, frames[:80])
    assert torch.equal(robot_motion(chain, clips=5, frames=40).read(0, 200).frames, frames)
    assert not torch.equal(robot_motion(chain, clips=5, frames=40, seed=1).read(0, 200).frames, frames)
    assert not torch.equal(frames[:40], frames[40:80])
    torch.testing.assert_close(clip(chain, frames=20), clip(chain)[:20])
    torch.testing.assert_close(clip(chain, frames=20, fps=15), clip(chain)[:40:2])


@pytest.mark.parametrize(("clips", "held"), [(2, 1), (6, 1), (7, 2), (20, 3), (40, 6), (41, 7)])
def test_the_last_clips_are_held_out(clips: int, held: int) -> None:
    source = robot_motion(CHAINS[1], clips=clips, frames=3, action="wave")
    rows = source.read(0, 3 * clips)
    expected = [False] * (3 * (clips - held)) + [True] * (3 * held)
    assert rows.splits["val"].tolist() == expected
    assert torch.equal(rows.splits["train"], ~rows.splits["val"])
    assert source.info.splits == ("train", "val") and source.edges == tuple(range(0, 3 * clips + 1, 3))
    assert {clip.action for clip in source.info.clips} == {"wave"}
    assert clip_starts(source.info) == list(source.edges)


def test_bones_are_a_chain_with_names_of_their_own() -> None:
    info = robot_motion(CHAINS[0], clips=2, frames=2, fps=60).info
    joints = tuple(f"panda_joint{i}" for i in range(1, 8))
    assert info.skeleton == Skeleton(
        ("panda_link0", *joints, "panda_hand"), (-1, 0, 1, 2, 3, 4, 5, 6, 7), "world", "z"
    )
    assert info.fps == 60.0 and info.label_names is None
    same = dataclasses.replace(CHAINS[0], tip="panda_joint7")
    assert robot_motion(same, clips=2, frames=2).info.skeleton.bone_names[-1] == "panda_joint7 (link)"
    twice = dataclasses.replace(CHAINS[0], joint_names=("a",) * 7)
    with pytest.raises(ValueError, match="chain: expected joints with names of their own"):
        robot_motion(twice, clips=2, frames=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clips", 1),
        ("clips", 2.0),
        ("frames", 0),
        ("frames", True),
        ("fps", 0),
        ("fps", math.inf),
        ("fps", "1"),
    ],
)
def test_numbers_out_of_range(name: str, value: Any) -> None:
    options: dict[str, Any] = {"clips": 2, "frames": 2, name: value}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        robot_motion(CHAINS[0], **options)


def test_a_joint_without_limits_is_refused() -> None:
    endless = dataclasses.replace(CHAINS[0], upper_limits=(math.inf,) * 7)
    with pytest.raises(ValueError, match="has no finite limits"):
        robot_motion(endless)


INFO = MotionInfo(
    fps=30.0,
    skeleton=Skeleton(("a", "b"), (-1, 0), "world", "z"),
    clips=(Clip("one", 3), Clip("none", 0), Clip("two", 2)),
    label_names=("x",),
    splits=("train",),
    metadata={},
)


def rows(**changes: Any) -> MotionRows:
    frames = torch.arange(70.0).view(5, 2, 7)
    frames[..., 3:] = torch.tensor([0.0, 0.6, 0.8, 0.0])
    found = MotionRows(frames, frames + 1, torch.arange(5.0).view(5, 1), {"train": torch.arange(5) < 3})
    return found._replace(**changes)


def test_a_source_in_memory_reads_ranges() -> None:
    source = motion_source("here", INFO, rows())
    assert (source.name, source.edges, source.info) == ("here", (0, 3, 5), INFO)
    found, whole = source.read(1, 4), rows()
    assert whole.velocities is not None and whole.labels is not None
    assert torch.equal(found.frames, whole.frames[1:4])
    assert found.velocities is not None and torch.equal(found.velocities, whole.velocities[1:4])
    assert found.labels is not None and found.labels.tolist() == [[1.0], [2.0], [3.0]]
    assert found.splits["train"].tolist() == [True, True, False]
    assert len(source.read(5, 5).frames) == 0 and motion_source("here", INFO, rows(), (0, 1, 5)).edges == (
        0,
        1,
        5,
    )
    without = motion_source("here", INFO._replace(label_names=None), rows(velocities=None, labels=None))
    assert without.read(0, 5).velocities is None and without.read(0, 5).labels is None
    for first, end in ((-1, 2), (3, 2), (0, 6), (6, 6)):
        with pytest.raises(ValueError, match="here: expected 0 <= first <= end <= 5"):
            source.read(first, end)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"frames": torch.zeros(4, 2, 7)}, ValueError, r"frames: expected the shape \(5, 2, 7\)"),
        (
            {"frames": torch.zeros(5, 2, 7)},
            ValueError,
            "frames: row 0, bone 'a': expected a unit quaternion",
        ),
        ({"frames": rows().frames.double()}, TypeError, "frames: expected a float32 tensor"),
        (
            {"frames": rows().frames.index_fill(0, torch.tensor(2), math.nan)},
            ValueError,
            "frames: row 2: exp",
        ),
        ({"velocities": torch.zeros(5, 2, 6)}, ValueError, "velocities: expected the shape"),
        ({"labels": torch.zeros(5, 2)}, ValueError, "labels: expected the shape"),
        ({"labels": torch.full((5, 1), math.inf)}, ValueError, "labels: row 0: expected finite numbers"),
        ({"labels": None}, ValueError, "labels: expected both"),
        ({"splits": {}}, ValueError, "splits: expected"),
        ({"splits": {"train": torch.zeros(5)}}, ValueError, "split 'train': expected"),
        ({"splits": {"train": torch.ones(4).bool()}}, ValueError, "split 'train': expected"),
    ],
)
def test_a_source_in_memory_is_what_it_says(changes: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=f"^here: {match}"):
        motion_source("here", INFO, rows(**changes))


@pytest.mark.parametrize("edges", [(), (0,), (0, 4), (1, 5), (0, 3, 3, 5), (0, 4, 3, 5)])
def test_edges_rise_from_the_first_row_to_the_last(edges: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="here: edges: expected to rise from 0 to 5"):
        motion_source("here", INFO, rows(), edges)
