"""Frames, points, physics and augmentations of stick figures against what is worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mfk.data import (
    ACTIONS,
    ENVIRONMENTS,
    SEGMENTS,
    five_segments,
    mirror_stick,
    resample_labels,
    resample_stick,
    scale_stick,
    schedule_motion,
    segment_lengths,
    shared_point_gap,
    shift_stick,
    stick_frames,
    stick_physics,
    stick_points,
)
from mfk.data.stick import DOCUMENTED_ACTIONS


def walking(width: int) -> torch.Tensor:
    return schedule_motion([("walk", 0), ("kick", 30)], 60, width=width)[0]


def test_there_are_sixty_actions_and_thirty_two_environments_in_the_documented_order():
    assert len(ACTIONS) == len({*ACTIONS}) == 60
    assert len(ENVIRONMENTS) == len({*ENVIRONMENTS}) == 32
    places = {"idle": 0, "jump": 4, "wave": 5, "clap": 11, "throwing": 17, "fight": 21, "dance": 39}
    assert all(ACTIONS.index(action) == place for action, place in places.items())
    assert ACTIONS[DOCUMENTED_ACTIONS - 1] == "fight_stance"


@pytest.mark.parametrize("width", [20, 48])
def test_points_and_frames_are_each_others_inverse(width: int):
    motion = walking(width)
    points = stick_points(motion)
    assert torch.equal(stick_frames(points, width), motion)
    assert {*points} == {name for _, *ends in SEGMENTS[width] for name in ends}
    assert float(shared_point_gap(motion).max()) < 1e-12


def test_a_gap_is_found_at_a_shared_point_and_at_the_pelvis():
    motion = walking(20)
    motion[7, 4] += 0.25  # where the left leg begins
    assert float(shared_point_gap(motion)[7]) == pytest.approx(0.25)
    motion = walking(48)
    motion[9, 11] += 0.5  # the pelvis, which no other segment shares
    gap = shared_point_gap(motion)
    assert float(gap[9]) == pytest.approx(0.5)
    assert float(gap[8]) < 1e-12


def test_five_segments_of_twelve_have_pelvis_ankles_and_wrists():
    motion = walking(48)
    points, five = stick_points(motion), stick_points(five_segments(motion))
    for name, other in (("hip", "pelvis"), ("left_foot", "left_ankle"), ("right_hand", "right_wrist")):
        assert torch.equal(five[name], points[other])


def test_physics_of_a_parabola():
    t = torch.arange(40, dtype=torch.float64) / 25
    neck = torch.stack((3 * t, 2 * t - 7 * t * t), -1)
    motion = torch.cat((neck, neck.new_zeros(40, 18)), -1)
    found = stick_physics(motion)
    assert found.shape == (40, 6)
    assert torch.allclose(found[:-2, 0], torch.tensor(3.0, dtype=torch.float64))
    assert torch.allclose(found[:-2, 3], torch.tensor(-14.0, dtype=torch.float64))
    assert torch.allclose(found[:-1, 1], 2 - 14 * (t[:-1] + 0.02))
    assert torch.equal(found[-1, :2], found[-2, :2])
    assert torch.equal(found[:, :2], found[:, 4:])
    assert torch.allclose(found[1:, :2], found[:-1, :2] + found[:-1, 2:4] / 25)


def test_physics_take_several_figures():
    motion = torch.stack((walking(20), 2 * walking(20)), 1)
    found = stick_physics(motion.transpose(0, 1)).transpose(0, 1)
    assert torch.allclose(found[:, 1], 2 * found[:, 0])


@pytest.mark.parametrize("width", [20, 48])
def test_a_mirror_keeps_bones_changes_sides_and_undoes_itself(width: int):
    motion = walking(width)
    found = mirror_stick(motion)
    assert torch.equal(mirror_stick(found), motion)
    assert float(shared_point_gap(found).max()) < 1e-12
    before, after = stick_points(motion), stick_points(found)
    sign = torch.tensor((-1.0, 1.0), dtype=motion.dtype)
    hand = "hand" if width == 20 else "wrist"
    assert torch.equal(after[f"left_{hand}"], before[f"right_{hand}"] * sign)
    assert torch.equal(after["neck"], before["neck"] * sign)
    both = segment_lengths(found).sort(-1).values, segment_lengths(motion).sort(-1).values
    assert torch.allclose(*both)


def test_shift_and_size():
    motion = walking(20)
    assert torch.allclose(segment_lengths(shift_stick(motion, 2.0, -1.0)), segment_lengths(motion))
    assert torch.allclose(shift_stick(motion, 2.0, -1.0)[:, 0], motion[:, 0] + 2)
    assert torch.allclose(shift_stick(motion, 2.0, -1.0)[:, 3], motion[:, 3] - 1)
    assert torch.allclose(segment_lengths(scale_stick(motion, 1.1)), 1.1 * segment_lengths(motion))


def test_another_speed_interpolates_and_never_pads():
    motion = torch.arange(11, dtype=torch.float64)[:, None].expand(11, 20)
    assert torch.allclose(resample_stick(motion, 0.8)[:, 0], torch.arange(13, dtype=torch.float64) * 0.8)
    assert torch.allclose(resample_stick(motion, 1.25, 9)[:, 0], torch.arange(9, dtype=torch.float64) * 1.25)
    assert torch.equal(resample_stick(motion, 1.0), motion)
    assert resample_labels(torch.arange(11), 1.25, 9).tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10]
    with pytest.raises(ValueError, match=r"frames: expected 1 to 9 of 11 frames at speed 1\.25, got 10"):
        resample_stick(motion, 1.25, 10)
    with pytest.raises(ValueError, match=r"frames: expected at least 1 that 11 labels"):
        resample_labels(torch.arange(11), 1.25, 10)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"motion: expected a last axis of 20 or 48"):
        stick_points(torch.zeros(3, 21))
    with pytest.raises(TypeError, match=r"motion: expected a tensor of floating point"):
        stick_physics(torch.zeros(3, 20, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"two frames or more"):
        stick_physics(torch.zeros(1, 20))
    with pytest.raises(ValueError, match=r"fps: expected a positive number, got 0"):
        stick_physics(torch.zeros(3, 20), 0)
    with pytest.raises(ValueError, match=r"points: expected 'hip' for frames of 20"):
        stick_frames({"neck": torch.zeros(2)}, 20)
    with pytest.raises(ValueError, match=r"width: expected 20 or 48"):
        stick_frames({}, 24)
    with pytest.raises(ValueError, match=r"motion: expected frames of 48"):
        five_segments(torch.zeros(20))
    for change, name in ((scale_stick, "scale"), (resample_stick, "speed")):
        with pytest.raises(ValueError, match=rf"{name}: expected a positive number"):
            change(torch.zeros(3, 20), -1.0)
