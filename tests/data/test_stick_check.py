"""The validator finds what was put in, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mfk.data import StickClip, StickFinding, StickLimits, check_stick, drop_found, generate_stick


def clip() -> StickClip:
    return generate_stick(1, seed=0, frames=60, actions=["point"], transitions=0.0)[0]


def changed(**fields: object) -> list[StickFinding]:
    return check_stick([clip(), clip()._replace(**fields)])


def only(findings: list[StickFinding]) -> StickFinding:
    assert [finding.rule for finding in findings] == [findings[0].rule]
    assert findings[0].clip == 1
    return findings[0]


def test_a_sound_clip_has_no_findings():
    assert check_stick([clip()]) == []


def test_each_rule():
    assert only(changed(description=" ")).rule == "text"
    assert only(changed(environment_type="nowhere")).detail == "nowhere"
    actions = clip().actions
    assert isinstance(actions, Tensor)
    actions[7] = 60
    assert only(changed(actions=actions))[1:5] == ("actions", 7, 60.0, 59.0)
    actions[5] = -1
    assert only(changed(actions=actions)).frame == 5
    broken = clip().motion.clone()
    broken[9, 3] = torch.inf
    assert only(changed(motion=broken))[1:3] == ("finite", 9)


def test_motion_too_fast_or_jerky():
    x = torch.arange(60.0)[:, None] * torch.tensor([1.0, 0.0] * 10)
    found = only(changed(motion=clip().motion + x, physics=None))
    assert (found.rule, found.limit) == ("speed", 20.0)
    assert found.value == pytest.approx(25.0, rel=1e-3)
    step = (torch.arange(60) >= 30).float()[:, None] * torch.tensor([0.5, 0.0] * 10)
    found = changed(motion=clip().motion + step, physics=None)
    assert [f.rule for f in found] == ["acceleration"]
    assert found[0].value == pytest.approx(0.5 * 625, rel=1e-3)
    assert found[0].frame in (28, 29)
    assert check_stick([clip()._replace(motion=clip().motion + step)], StickLimits(acceleration=400.0))[
        0
    ].rule == ("physics")


def test_a_stretched_limb_a_gap_and_foreign_physics():
    motion = clip().motion.clone()
    neck, foot = motion[20, 4:6].clone(), motion[20, 6:8].clone()
    motion[20, 6:8] = neck + 1.3 * (foot - neck)
    found = only(changed(motion=motion))
    assert (found.rule, found.frame, found.detail) == ("length", 20, "left_leg")
    assert found.value == pytest.approx(0.3, abs=0.01)
    motion = clip().motion.clone()
    motion[11, 8:10] += 1e-4
    assert only(changed(motion=motion))[1:3] == ("gap", 11)
    physics = clip().physics
    assert isinstance(physics, Tensor)
    physics = physics.clone()
    physics[13, 2] += 0.1
    found = only(changed(physics=physics))
    assert (found.rule, found.frame, found.detail) == ("physics", 13, "ax")


def test_padding_is_no_figure_and_figures_are_named():
    one = clip()
    motion = torch.stack((one.motion, torch.zeros(60, 20)), 1)
    actions, physics = one.actions, one.physics
    assert isinstance(actions, Tensor) and isinstance(physics, Tensor)
    padded = one._replace(
        motion=motion,
        actions=torch.stack((actions, 0 * actions), 1),
        physics=torch.stack((physics, 0 * physics), 1),
    )
    assert check_stick([padded]) == []
    motion[30, 1, 2] = 9.0
    assert {finding.detail.partition(" torso")[0] for finding in check_stick([padded])} == {"figure 1"}


@pytest.mark.parametrize("shape", [(60, 20), (60, 2, 20)])
def test_a_clip_of_zeros_is_no_motion(shape: tuple[int, ...]):
    still = only(changed(motion=torch.zeros(shape), physics=None, actions=None))
    assert (still.rule, still.frame) == ("zero", None)
    assert drop_found([clip()], check_stick([clip()._replace(motion=torch.zeros(60, 20))])) == []
    # One number is a motion, odd as it is.
    alone = torch.zeros(60, 20)
    alone[3, 4] = 1e-30
    assert "zero" not in {found.rule for found in changed(motion=alone, physics=None)}


def test_clips_are_dropped_on_request_only():
    clips = [clip(), clip()._replace(description=""), clip()]
    findings = check_stick(clips)
    assert len(clips) == 3
    assert [c.description for c in drop_found(clips, findings)] == [
        clips[0].description,
        clips[2].description,
    ]
    assert drop_found(clips, []) == clips
    with pytest.raises(ValueError, match=r"findings: expected clips in \[0, 1\), got 1"):
        drop_found(clips[:1], findings)


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match=r"clips\[0\]: expected a StickClip"):
        check_stick([{}])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"clips\[0\]: motion: expected .* got \(0, 20\)"):
        check_stick([StickClip("x", torch.zeros(0, 20))])
    for wrong, got in (
        (None, "None"),
        (3, "3"),
        (clip().motion.numpy(), "ndarray"),
        (clip().motion.long(), "int64"),
    ):
        with pytest.raises(TypeError, match=rf"clips\[1\]: motion: expected a tensor of floating .*{got}"):
            changed(motion=wrong)
    for wrong in (None, 3, b"walk"):
        with pytest.raises(TypeError, match=r"clips\[1\]: description: expected text, got"):
            changed(description=wrong)
    assert [(x.rule, x.value) for x in check_stick([StickClip("x", torch.zeros(1, 20))])] == [("short", 1)]
