"""Generated clips: the documented motion, ballistic jumps, continuous switches, labels and texts that fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mfk.data import (
    ACTIONS,
    ENVIRONMENTS,
    FPS,
    GENERATED_ACTIONS,
    GRAVITIES,
    GRAVITY,
    action_schedule,
    check_stick,
    generate_stick,
    schedule_motion,
    segment_lengths,
    shared_point_gap,
    stick_physics,
    stick_points,
    stick_pose,
)

# What SYSTEMS measured of the original: persistence, constant velocity.
ANCHORS = {
    "idle": (8.2e-7, 5.0e-9),
    "wave": (3.5e-4, 5.6e-5),
    "dance": (1.6e-3, 1.8e-4),
    "walk": (4.2e-3, 1.3e-4),
    "fight": (5.0e-3, 1.0e-2),
    "run": (5.7e-2, 5.5e-3),
    "sprint": (0.153, 0.029),
}


@pytest.mark.parametrize("action", ANCHORS)
def test_motion_is_as_predictable_as_the_original(action: str):
    motion, _ = schedule_motion([(action, 0)], 250)
    persistence = float(motion.diff(dim=0).square().mean())
    velocity = float(motion.diff(n=2, dim=0).square().mean())
    assert persistence == pytest.approx(ANCHORS[action][0], rel=0.1)
    assert velocity == pytest.approx(ANCHORS[action][1], rel=0.1)


def test_every_action_moves_and_is_a_connected_figure_on_the_ground():
    for action in GENERATED_ACTIONS:
        for width in (20, 48):
            motion, labels = schedule_motion([(action, 0)], 250, width=width)
            assert set(labels.tolist()) == {ACTIONS.index(action)}
            assert float(shared_point_gap(motion).max()) < 1e-10
            assert float(motion.diff(n=2, dim=0).square().mean()) > 1e-9
            assert float(motion[:, 1::2].min()) > -1e-9


def test_the_bones_of_forty_eight_numbers_keep_their_lengths():
    for action in GENERATED_ACTIONS:
        lengths = segment_lengths(schedule_motion([(action, 0)], 150, width=48)[0])
        assert float((lengths - lengths.mean(0)).abs().max()) < 1e-9


@pytest.mark.parametrize(
    "action", ["point", "throwing", "punch", "kick", "dodge", "sit", "celebrate", "jump"]
)
def test_own_actions_pass_the_documented_validator(action: str):
    (clip,) = generate_stick(1, seed=2, actions=[action], transitions=0.0)
    assert check_stick([clip]) == []


def test_a_jump_falls_freely_from_take_off_to_landing():
    for gravity in (GRAVITY, 0.38 * GRAVITY):
        motion, _ = schedule_motion([("jump", 0)], 250, gravity=gravity)
        points = stick_points(motion)
        flying = points["left_foot"][:, 1] > 1e-9
        assert bool(flying.any())
        # An acceleration is one of three frames.
        inside = flying[:-2] & flying[1:-1] & flying[2:]
        acceleration = stick_physics(motion)[:-2, 2:4][inside]
        assert torch.allclose(acceleration[:, 1], torch.tensor(-gravity, dtype=torch.float64))
        assert torch.allclose(acceleration[:, 0], torch.tensor(0.0, dtype=torch.float64), atol=1e-9)
        # Feet stay where they are otherwise, and the hip's velocity has no jump.
        assert float(points["left_foot"][~flying, 1].abs().max()) < 1e-9
    assert float(stick_physics(schedule_motion([("jump", 0)], 250)[0])[:, 2:4].abs().max()) < 45


def test_a_jump_is_continuous_in_height_and_speed():
    time = torch.linspace(0, 2, 200_001, dtype=torch.float64)
    height = stick_pose("jump", time)[:, 1, 1]
    speed = height.diff() / 1e-5
    assert float(height.abs().max()) == pytest.approx(4.16**2 / (2 * GRAVITY), rel=1e-3)
    assert float(speed.diff().abs().max()) < 45 * 1e-5 + 1e-5


def test_a_jump_is_not_begun_if_it_would_not_end():
    motion, _ = schedule_motion([("jump", 0), ("walk", 60)], 120)
    feet = stick_points(motion)["left_foot"][:, 1]
    assert float(feet[:45].max()) > 0.3
    assert float(feet[45:].abs().max()) < 1e-9


def test_walk_at_0_s_and_run_at_5_s_switch_at_frame_125():
    motion, labels = schedule_motion([("walk", 0), ("run", 125)], 250)
    assert labels.tolist() == [ACTIONS.index("walk")] * 125 + [ACTIONS.index("run")] * 125
    hip = stick_points(motion)["hip"]
    assert float(hip[100, 0] - hip[75, 0]) == pytest.approx(1.9)
    assert float(hip[225, 0] - hip[200, 0]) == pytest.approx(7.4)
    # No teleport: a step is never longer than that of running, and the speed rises over some frames.
    steps = hip[:, 0].diff()
    assert float(steps.max()) < 7.4 / FPS + 1e-9
    assert 1.9 / FPS < float(steps[130]) < 7.4 / FPS
    assert float(motion.diff(dim=0)[120:140].abs().max()) < 1.0


def test_the_pose_goes_over_smoothly():
    motion, _ = schedule_motion([("sit", 0), ("celebrate", 60)], 120)
    assert float(motion[59:62].diff(dim=0).abs().max()) < 0.1
    assert float((motion[80] - motion[59]).abs().max()) > 0.5


@pytest.mark.parametrize("actors", [1, 2])
@pytest.mark.parametrize("width", [20, 48])
def test_clips_are_whole(width: int, actors: int):
    clips = generate_stick(12, seed=3, frames=150, width=width, augment=True, actors=actors)
    leading = (150,) if actors == 1 else (150, actors)
    for number, clip in enumerate(clips):
        assert clip.motion.shape == (*leading, width) and clip.motion.dtype == torch.float32
        assert isinstance(clip.actions, Tensor) and clip.actions.shape == leading
        assert isinstance(clip.physics, Tensor) and clip.physics.shape == (*leading, 6)
        assert isinstance(clip.camera, Tensor) and clip.camera.shape == (150, 3)
        assert clip.environment_type in ENVIRONMENTS
        assert clip.meta is not None and clip.meta["number"] == number
        own = clip.actions.reshape(150, -1)
        for who, schedule in enumerate(clip.meta["schedule"]):
            assert [int(own[first, who]) for _, first in schedule] == [ACTIONS.index(a) for a, _ in schedule]
    bad = {finding.rule for finding in check_stick(clips)}
    assert bad <= {"length", "acceleration"}  # those of the documented formulas


def test_a_clip_depends_on_seed_and_number_only():
    few, many = generate_stick(3, seed=5, augment=True), generate_stick(9, seed=5, augment=True)
    for a, b in zip(few, many[:3], strict=True):
        assert a.description == b.description and torch.equal(a.motion, b.motion)
    others = generate_stick(3, seed=6, augment=True)
    assert not any(torch.equal(a.motion, b.motion) for a, b in zip(few, others, strict=True))
    assert len({clip.description for clip in many}) > 5


def test_progress_counts_clips():
    told: list[tuple[int, int]] = []
    made = generate_stick(3, seed=4, frames=20, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)] and len(made) == 3


def test_texts_say_what_is_done_in_what_order():
    clips = generate_stick(300, seed=8, augment=True)
    several = 0
    for clip in clips:
        assert clip.meta is not None
        done = [ACTIONS.index(action) for action, _ in clip.meta["schedule"][0]]
        assert [action for action, _ in action_schedule(clip.description, 250)] == done, clip.description
        several += len(done) > 1
    assert 100 < several < 200
    drawn = {action for clip in clips if clip.meta for action, _ in clip.meta["schedule"][0]}
    assert drawn == {*GENERATED_ACTIONS}


def test_gravity_holds_under_augmentation():
    clips = generate_stick(40, seed=1, augment=True, actions=["jump"], transitions=0.0)
    seen = set()
    for clip in clips:
        feet = stick_points(clip.motion)["left_foot"][:, 1]
        inside = (feet[:-2] > 1e-3) & (feet[1:-1] > 1e-3) & (feet[2:] > 1e-3)
        assert bool(inside.any()), clip.environment_type
        g = GRAVITY * GRAVITIES.get(str(clip.environment_type), 1.0)
        assert isinstance(clip.physics, Tensor)
        assert torch.allclose(clip.physics[:-2, 3][inside], torch.tensor(-g), rtol=1e-3)
        seen.add(clip.environment_type)
    assert len(seen) > 4


def test_augmentation_stays_within_the_documented_bounds():
    clips = generate_stick(200, seed=4, frames=50, augment=True, transitions=0.0)
    changes = [clip.meta for clip in clips if clip.meta]
    for name, low, high in (("speed", 0.8, 1.2), ("scale", 0.9, 1.1), ("shift", -0.5, 0.5)):
        values = [change[name] for change in changes]
        assert low <= min(values) < low + 0.03 * (high - low)
        assert high - 0.03 * (high - low) < max(values) <= high
    assert 70 < sum(change["mirror"] for change in changes) < 130
    assert all(
        clip.meta and (clip.meta["speed"], clip.meta["mirror"]) == (1.0, False)
        for clip in generate_stick(5, seed=4)
    )


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"count: expected an int >= 0, got -1"):
        generate_stick(-1, seed=0)
    with pytest.raises(ValueError, match=r"transitions: expected a share in \[0, 1\], got 1\.5"):
        generate_stick(1, seed=0, transitions=1.5)
    with pytest.raises(ValueError, match=r"actions: expected some of .*, got 'swimming'"):
        generate_stick(1, seed=0, actions=["walk", "swimming"])
    with pytest.raises(ValueError, match=r"actors: expected 1 to 4, got 5"):
        generate_stick(1, seed=0, actors=5)
    with pytest.raises(ValueError, match=r"frames: expected at least 45 for a jump, got 30"):
        generate_stick(1, seed=0, frames=30, actions=["jump"])
    with pytest.raises(ValueError, match=r"width: expected 20 or 48 numbers in a frame, got 21"):
        generate_stick(1, seed=0, width=21)
    with pytest.raises(ValueError, match=r"schedule: expected first frames from 0 on that rise"):
        schedule_motion([("walk", 0), ("run", 300)], 250)
    with pytest.raises(ValueError, match=r"action: expected one of"):
        schedule_motion([("reading", 0)], 10)
    with pytest.raises(ValueError, match=r"gravity: expected a positive number"):
        schedule_motion([("jump", 0)], 10, gravity=0.0)
