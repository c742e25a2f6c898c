"""Motion from text, frame by frame: with and without a cache, by a seed, from an opening."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sticks import REFINE, TEXT, G, Made, clips

from mfk.core import rng, tree
from mfk.core.types import Rows
from mfk.data.stick import ACTIONS, shared_point_gap
from mfk.tasks.stick_features import anchored, columns_of, hip_columns, meant
from mfk.tasks.stick_generate import OPENING, from_json, generate, opening, openings, to_json
from mfk.tasks.stick_net import next_frames, outputs
from mfk.tasks.stick_refine import refine

WALK, WAVE = ACTIONS.index("walk"), ACTIONS.index("wave")
SAYING = torch.linspace(-1, 1, TEXT)


def gentle(**more: Any) -> Made:
    """Little off constant velocity, so that a motion stays near the ground for a while."""
    return Made(off=0.01, **more)


def told(*names: str, frames: int = 30) -> torch.Tensor:
    """Actions one after another."""
    starts = torch.arange(frames) * len(names) // frames
    return torch.tensor([ACTIONS.index(name) for name in names])[starts]


def lifted(frames: torch.Tensor, ground: float) -> torch.Tensor:
    """Points (x, y), none of them under the ground."""
    points = frames.reshape(*frames.shape[:-1], -1, 2)
    return torch.where(points < torch.tensor([-torch.inf, ground]), ground, points).reshape(frames.shape)


def first_action(made: Made) -> str:
    return ACTIONS[int(made.openings.action[0])]


@pytest.mark.parametrize("width", [20, 48])
def test_with_a_cache_and_without(width: int) -> None:
    made = gentle(width=width)
    actions = told(first_action(made), "walk")
    a, b = (
        generate(
            made.nets, made.params, made.state, made.openings, SAYING, 30, actions=actions, cached=cached
        )
        for cached in (True, False)
    )
    assert a.motion.shape == (30, width) and bool(a.motion.isfinite().all())
    assert float((a.motion - b.motion).abs().max()) <= 1e-5
    assert torch.equal(a.actions, b.actions) and a.plain is None
    assert float(shared_point_gap(a.motion).max()) < 1e-4


def test_each_frame_is_what_the_network_says_of_those_before() -> None:
    made = gentle()
    found = generate(made.nets, made.params, made.state, made.openings, SAYING, 15, lean=0.25, cached=False)
    net, before = (made.params["net"], made.state["buffers"]["net"]), found.motion[None, :-1]
    seen, raw = outputs(made.nets, *net, made.scale, before, SAYING[None], torch.full((1, 14), -1))
    moved = meant(seen, raw.pose[..., :20])
    there = anchored(made.scale, before, raw.pose[..., 20:])
    expected = lifted((0.75 * moved + 0.25 * there)[0], made.openings.ground)
    torch.testing.assert_close(expected[OPENING - 1 :], found.motion[OPENING:], atol=1e-4, rtol=1e-4)
    out = next_frames(made.nets, *net, made.scale, before, SAYING[None], torch.full((1, 14), -1))
    assert torch.equal(out.pose, moved)
    plain = generate(made.nets, made.params, made.state, made.openings, SAYING, 6, lean=0).motion
    torch.testing.assert_close(plain[5], lifted(moved[0, 4], made.openings.ground), atol=1e-5, rtol=1e-5)
    # Where nothing is told, actions are those that the head says of each frame.
    assert torch.equal(found.actions[1:], out.actions[0, :, :60].argmax(-1)) and int(found.actions[0]) == -1
    assert not torch.allclose(out.pose[0, :3], found.motion[1:4], atol=1e-5)  # given, not said


@pytest.mark.parametrize("refinement", [None, REFINE])
def test_a_foot_stands_where_it_comes_down(refinement: Any) -> None:
    """The ground is higher than where the opening has stood; each frame is told of it."""
    made = gentle(refine=refinement)
    ground = made.openings.ground + 0.3
    known = made.openings._replace(ground=ground)
    found = generate(made.nets, made.params, made.state, known, SAYING, 25, cached=False)
    heights = found.motion[OPENING:, 1::2]
    assert float(heights.min()) == pytest.approx(ground, abs=1e-6)
    assert bool((found.motion[:OPENING, 1::2] < ground).any())  # given, and left alone
    motion = found.motion if found.plain is None else found.plain
    before = motion[None, :-1]
    seen, raw = outputs(
        made.nets, made.params["net"], made.state["buffers"]["net"], made.scale, before, SAYING[None],
        torch.full((1, 24), -1),
    )  # fmt: skip
    moved = meant(seen, raw.pose[..., :20])
    there = anchored(made.scale, before, raw.pose[..., 20:])
    expected = lifted((moved + 0.02 * (there - moved))[0], ground)
    torch.testing.assert_close(expected[OPENING - 1 :], motion[OPENING:], atol=1e-4, rtol=1e-4)


def test_a_pelvis_is_between_hips_that_were_lifted() -> None:
    made = gentle(width=48)
    known = made.openings._replace(ground=1.2)
    found = generate(made.nets, made.params, made.state, known, SAYING, 20).motion[OPENING:]
    hips, pelvis = found[:, columns_of(48, "left_hip", "right_hip")], found[:, columns_of(48, "pelvis")]
    torch.testing.assert_close(pelvis, hips.unflatten(-1, (2, 2)).mean(1))
    assert float(found[:, 1::2].min()) >= 1.2 - 1e-6 and float(shared_point_gap(found).max()) < 1e-6
    assert bool((hips[:, 1] == hips[:, 1].min()).any()) and not torch.equal(hips[:, 1], hips[:, 3])


def test_openings_of_a_run_of_before_have_no_ground(tmp_path: Path) -> None:
    known = gentle().openings
    told = json.loads(to_json(known))
    (tmp_path / "a.json").write_text(json.dumps(told))
    assert from_json(tmp_path / "a.json", 20).ground == pytest.approx(known.ground, abs=1e-5)
    del told["ground"]
    (tmp_path / "a.json").write_text(json.dumps(told))
    assert from_json(tmp_path / "a.json", 20).ground == -math.inf


def test_text_actions_and_seed_matter_and_nothing_else() -> None:
    made = gentle(refine=REFINE)
    first = first_action(made)

    def run(seed: int = 0, text: torch.Tensor = SAYING, **more: Any) -> torch.Tensor:
        return generate(made.nets, made.params, made.state, made.openings, text, 20, seed=seed, **more).motion

    state = torch.get_rng_state()
    before = run()
    torch.manual_seed(5)
    assert torch.equal(before, run())
    torch.set_rng_state(state)
    assert not torch.equal(before, run(seed=1)) and not torch.equal(before, run(text=-SAYING))
    other = next(ACTIONS[a] for a in made.openings.action.tolist() if ACTIONS[a] != first)
    assert not torch.equal(run(actions=told(first, frames=20)), run(actions=told(first, other, frames=20)))
    # One with more frames begins alike, as the noise of the refinement does not.
    plain = gentle()
    longer, shorter = (
        generate(plain.nets, plain.params, plain.state, plain.openings, SAYING, frames).motion
        for frames in (20, 10)
    )
    torch.testing.assert_close(longer[:10], shorter, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("refinement", ["meanflow", "ddpm"])
def test_a_refinement_leaves_the_opening(refinement: Any) -> None:
    steps = {"noise_steps": 20, "sample_steps": 4} if refinement == "ddpm" else {}
    made = gentle(refine=replace(REFINE, refinement=refinement, **steps))
    found = generate(made.nets, made.params, made.state, made.openings, SAYING, 21, seed=3)
    assert found.plain is not None
    assert torch.equal(found.motion[:OPENING], found.plain[:OPENING])
    noise = rng.normal(rng.key(3, "refinement"), Rows.all(1), (20, 20))
    better = refine(made.nets, made.params["refine"], made.state, found.plain[None, 1:], SAYING[None], noise)[
        0
    ]
    expected = lifted(better[OPENING - 1 :], made.openings.ground)
    torch.testing.assert_close(found.motion[OPENING:], expected, atol=1e-6, rtol=0)
    assert not torch.allclose(found.motion, found.plain, atol=1e-6)
    assert bool(found.motion.isfinite().all())


def test_it_begins_as_a_training_clip_of_the_first_action() -> None:
    made = gentle()
    known = made.openings.action
    for action in known.unique().tolist():
        own = made.openings.motion[known == action]
        actions = torch.full((8,), action)
        for seed in range(4):
            found = generate(
                made.nets, made.params, made.state, made.openings, SAYING, 8, seed=seed, actions=actions
            )
            assert any(torch.equal(found.motion[:OPENING], x) for x in own)
            assert torch.equal(found.actions, actions)


def test_openings_by_hand() -> None:
    made = clips(40, 60, actions=["walk", "wave"])
    short = made[0]._replace(motion=made[0].motion[:4])
    found = openings([short, *made], 0)
    assert found.motion.shape == (32, OPENING, 20)  # sixteen of each
    assert found.action.bincount()[[WALK, WAVE]].tolist() == [16, 16]
    assert not found.motion[:, 0, hip_columns(20)[0]].any()
    assert found.ground == min(float(clip.motion[:, 1::2].min()) for clip in [short, *made])
    cuts = [(clip, clip.motion.unfold(0, OPENING, 1).mT.clone()) for clip in made]
    for _, cut in cuts:
        cut[..., 0::2] -= cut[:, :1, 2:3].clone()
    for frames, action in zip(found.motion, found.action, strict=True):
        at = [
            (clip, i) for clip, cut in cuts for i in (cut == frames).all(-1).all(-1).nonzero()[:, 0].tolist()
        ]
        assert at
        for clip, i in at:
            assert bool((torch.as_tensor(clip.actions)[i : i + OPENING] == action).all())
    again, other = openings([short, *made], 0), openings([short, *made], 1)
    assert torch.equal(found.motion, again.motion)
    assert not torch.equal(found.motion, other.motion)
    with pytest.raises(ValueError, match="data: expected a training clip of at least 5 frames"):
        openings([short], 0)


def test_openings_of_another_figure_are_refused() -> None:
    made = gentle()
    wide = made.openings._replace(motion=torch.zeros(1, OPENING, 48), action=torch.tensor([WALK]))
    with pytest.raises(ValueError, match=r"known: expected openings .*, \[N, 5, 20\], got \(1, 5, 48\)"):
        generate(made.nets, made.params, made.state, wide, SAYING, 6)


def test_clips_without_labels_open_any_motion() -> None:
    bare = [clip._replace(actions=None) for clip in clips(3)]
    known = openings(bare, 0)
    assert bool((known.action == -1).all())
    assert any(torch.equal(opening(known, WALK, 0), x) for x in known.motion)


def test_a_network_that_is_not_told_actions() -> None:
    made = gentle(condition_actions=False)
    a, b = (
        generate(made.nets, made.params, made.state, made.openings, SAYING, 12, cached=cached).motion
        for cached in (True, False)
    )
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="actions: the network was built without condition_actions"):
        actions = torch.full((12,), int(made.openings.action[0]))
        generate(made.nets, made.params, made.state, made.openings, SAYING, 12, actions=actions)


def test_classes_without_a_name_are_never_said() -> None:
    """The head may have more classes than there are actions, as the documents' recipes have."""
    made = gentle(num_actions=64)
    params = tree.map(lambda x: x, made.params)
    bias = params["net"]["leave.actions.leave.bias"].clone()
    assert len(bias) == 64
    bias[63] += 1e3
    params["net"]["leave.actions.leave.bias"] = bias
    found = generate(made.nets, params, made.state, made.openings, SAYING, 10)
    assert int(found.actions.max()) < len(ACTIONS) and int(found.actions[1:].min()) >= 0


def test_progress_is_told() -> None:
    made, seen = gentle(), []
    generate(made.nets, made.params, made.state, made.openings, SAYING, 9, progress=lambda *x: seen.append(x))
    assert seen == [(t, 9) for t in range(2, 10)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": OPENING}, "frames: expected an int > 5, got 5"),
        ({"frames": -30}, "frames: expected an int > 5"),
        ({"frames": 30.0}, "frames: expected an int > 5"),
        ({"lean": 1.5}, r"lean: expected a share in \[0, 1\], got 1.5"),
        ({"text": torch.zeros(7)}, r"text: expected the shape \(16,\), got \(7,\)"),
        ({"actions": torch.zeros(29).long()}, r"actions: expected int64 of the shape \(30,\)"),
        ({"actions": torch.zeros(30)}, r"actions: expected int64 of the shape \(30,\)"),
        ({"actions": torch.full((30,), 60)}, r"actions: expected places in ACTIONS, 0 to 59, or -1"),
        ({"actions": torch.full((30,), -2)}, r"actions: expected places in ACTIONS"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    made = gentle()
    arguments = {"text": SAYING, "frames": 30, **change}
    with pytest.raises(ValueError, match=message):
        generate(made.nets, made.params, made.state, made.openings, **arguments)


def test_an_action_without_an_opening_is_named() -> None:
    made = gentle()
    known = {ACTIONS[a] for a in made.openings.action.tolist()}
    other = next(name for name in ACTIONS if name not in known)
    with pytest.raises(
        ValueError, match=f"actions: expected what the training clips do, .*{first_action(made)}.* '{other}'"
    ):
        generate(made.nets, made.params, made.state, made.openings, SAYING, 30, actions=told(other))


def test_a_network_with_random_numbers_stays_finite() -> None:
    """Whatever it says: a frame is never further off than the unit allows, and the unit has a floor."""
    made = Made(off=0.3)
    found = generate(made.nets, made.params, made.state, made.openings, torch.randn(TEXT, generator=G(0)), 12)
    assert bool(found.motion.isfinite().all())
