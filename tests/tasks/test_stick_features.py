"""Stick figures' frames as a network sees them: by hand, there and back, and never ahead."""

from __future__ import annotations

import math

import pytest
import torch
from sticks import G, Made, motions
from torch import Tensor

from mfk.data.stick import shared_point_gap
from mfk.tasks import stick_features
from mfk.tasks.stick_features import (
    FLOOR,
    anchor_of,
    anchored,
    feature_count,
    fit_stick,
    foot_heights,
    hip_columns,
    joined,
    meant,
    measured,
    see,
)
from mfk.tasks.stick_net import next_frames

WIDTHS = [20, 48]


def fitted(x: Tensor) -> dict[str, Tensor]:
    return fit_stick(x, torch.ones(x.shape[:2], dtype=torch.bool))


@pytest.mark.parametrize("width", WIDTHS)
def test_features_by_a_plain_loop(width: int) -> None:
    x = motions(width=width, dtype=torch.float64)
    scale, hip = fitted(x), hip_columns(width)
    seen = see(scale, x)
    assert seen.features.shape == (3, 30, feature_count(width))
    for b in range(3):
        bends: list[Tensor] = []
        speeds: list[float] = []
        for t in range(30):
            now, velocity = x[b, t], x[b, t] - x[b, max(t - 1, 0)]
            if t:
                speeds.append(float(velocity.square().mean()))
            if t >= 2:
                bends.append(now - 2 * x[b, t - 1] + x[b, t - 2])
            recent = [float(bend.square().mean()) for bend in bends[-stick_features._RECENT :]]
            fast = speeds[-stick_features._RECENT :]
            square = sum(recent) / max(1, len(recent)) + FLOOR**2
            square += stick_features._DRIFT**2 * sum(fast) / max(1, len(fast))
            unit = math.sqrt(square) if t else float(scale["velocity"])
            assert math.isclose(float(seen.unit[b, t, 0]), unit, rel_tol=1e-9)
            assert torch.equal(seen.base[b, t], now + velocity)  # constant velocity
            last = [*([torch.zeros_like(now)] * stick_features._LAGS), *bends][-stick_features._LAGS :]
            expected = [
                (now - now[hip].repeat(width // 2)) / scale["pose"],
                velocity / scale["velocity"],
                *((bend / unit).asinh() for bend in reversed(last)),
                ((now - x[b, 0])[hip[1:]]) / scale["pose"].mean(),
                torch.tensor([math.log(unit / float(scale["acceleration"]))], dtype=torch.float64),
            ]
            torch.testing.assert_close(seen.features[b, t], torch.cat(expected))


def test_where_a_figure_stands_is_not_seen() -> None:
    x = motions(dtype=torch.float64)
    scale = fitted(x)
    moved = x + torch.tensor([7.0, -2.0]).double().repeat(10)
    a, b = see(scale, x), see(scale, moved)
    torch.testing.assert_close(a.features, b.features, atol=1e-9, rtol=1e-9)
    higher = x.clone()
    higher[:, 5:, 1::2] += 0.3  # it rises within the window
    assert float((see(scale, higher).features - a.features)[:, 5:, -2].min()) > 0.2


def test_the_scale_by_hand_and_of_frames_that_count_alone() -> None:
    x = motions(dtype=torch.float64)
    valid = torch.ones(3, 30, dtype=torch.bool)
    valid[1, 20:] = False
    filled = torch.where(valid[..., None], x, 1e6)
    scale = fit_stick(filled, valid)
    pose, velocity, acceleration = [], [], []
    for b, length in enumerate((30, 20, 30)):
        cut = x[b, :length]
        pose.append(cut - cut[:, hip_columns(20)].repeat(1, 10))
        velocity.append(cut.diff(dim=0).flatten())
        acceleration.append(cut.diff(n=2, dim=0).flatten())
    torch.testing.assert_close(scale["velocity"], torch.cat(velocity).square().mean().sqrt())
    torch.testing.assert_close(scale["acceleration"], torch.cat(acceleration).square().mean().sqrt())
    rms = torch.cat(pose).square().mean(0).sqrt()
    moving = rms > 0.1
    torch.testing.assert_close(scale["pose"][moving], rms[moving])
    assert bool((scale["pose"] > 0).all())  # the hip as seen from itself too


@pytest.mark.parametrize("width", WIDTHS)
def test_outputs_and_frames_are_inverses(width: int) -> None:
    x = motions(frames=20, width=width, dtype=torch.float64)
    seen = see(fitted(x), x[:, :-1])
    out = measured(seen, x[:, 1:])
    near = out.abs().amax((1, 2)) < stick_features._MOST
    assert bool(near.any())
    torch.testing.assert_close(meant(seen, out)[near], x[:, 1:][near], atol=1e-5, rtol=0)
    some = joined(torch.randn(out.shape, generator=G(0), dtype=torch.float64))
    torch.testing.assert_close(measured(seen, meant(seen, some.asinh())), some.asinh(), atol=1e-5, rtol=1e-5)
    # Zeros are constant velocity, whatever the unit; the least and largest outputs are finite in units.
    torch.testing.assert_close(meant(seen, torch.zeros_like(out)), seen.base, atol=1e-12, rtol=0)
    assert bool(meant(seen, torch.full_like(out, 1e9)).isfinite().all())
    assert torch.equal(meant(seen, torch.full_like(out, 1e9)), meant(seen, torch.full_like(out, 1e3)))


@pytest.mark.parametrize("width", WIDTHS)
def test_anchors_by_hand_and_back(width: int) -> None:
    x = motions(frames=20, width=width, dtype=torch.float64)
    x[..., 1::2] += 0.4  # whatever the ground's height
    scale, (a, b) = fitted(x), hip_columns(width)
    anchor = anchor_of(scale, x[:, :-1], x[:, 1:])
    torch.testing.assert_close(anchor[..., a], x[..., a].diff(dim=1) / scale["velocity"])
    torch.testing.assert_close(anchor[..., b], (x[:, 1:, b] - x[:, :1, b]) / scale["pose"].mean())
    others = [i for i in range(width) if i not in (a, b)]
    own = (x[:, 1:] - x[:, 1:, [a, b]].repeat(1, 1, width // 2)) / scale["pose"]
    torch.testing.assert_close(anchor[..., others], own[..., others])
    torch.testing.assert_close(anchored(scale, x[:, :-1], anchor), x[:, 1:], atol=1e-6, rtol=0)
    some = anchored(scale, x[:, :-1], torch.randn(anchor.shape, generator=G(0), dtype=torch.float64))
    assert float(shared_point_gap(some).max()) < 1e-12


@pytest.mark.parametrize("width", WIDTHS)
def test_points_that_segments_share_agree(width: int) -> None:
    numbers = torch.randn(4, 6, width, generator=G(0), dtype=torch.float64)
    assert float(shared_point_gap(numbers).min()) > 0.1
    once = joined(numbers)
    assert float(shared_point_gap(once).max()) < 1e-12
    torch.testing.assert_close(joined(once), once)
    x = motions(width=width)
    torch.testing.assert_close(joined(x), x, atol=1e-6, rtol=1e-6)
    out = torch.randn(x.shape, generator=G(1))
    assert float(shared_point_gap(meant(see(fitted(x), x), out)).max()) < 1e-5


def test_the_feet_are_the_lowest_of_a_figure_that_stands() -> None:
    for width in WIDTHS:
        x = motions(count=3, width=width)[2, 0]  # idle
        feet = foot_heights(width)
        assert len(feet) == 2 and float(x[feet].max()) <= float(x[1::2].min()) + 0.05


@pytest.mark.parametrize("width", WIDTHS)
def test_a_later_frame_changes_nothing_earlier(width: int) -> None:
    """By one bit, through the network: poses, labels, physics and all else that is said."""
    made = Made(width=width)
    x, at = made.batch(4)["motion"], 7
    text = made.batch(4)["text"]
    actions = torch.randint(0, 60, x.shape[:2], generator=G(0))

    def said(x: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        net, buffers = made.params["net"], made.state["buffers"]["net"]
        return next_frames(made.nets, net, buffers, made.scale, x, text, actions)

    before = said(x, actions)
    changed = x.clone()
    changed[:, at:] = changed[:, at:].flip(1) * 3 + torch.randn(changed[:, at:].shape, generator=G(1))
    # Output t is of frame t + 1: the label of the frame to predict, `at`, is given as the input of `at`.
    other = actions.clone()
    other[:, at:] = (other[:, at:] + 1) % 60
    for a, b in zip(before, said(changed, other), strict=True):
        assert torch.equal(a[:, :at], b[:, :at]) and not torch.equal(a[:, at:], b[:, at:])
    for a, b in zip(before, said(x, other), strict=True):
        assert torch.equal(a[:, :at], b[:, :at]) and not torch.equal(a[:, at:], b[:, at:])


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_few_frames_are_enough(frames: int) -> None:
    x = motions()
    scale = fitted(x)
    few, many = see(scale, x[:, :frames]), see(scale, x)
    for a, b in zip(few, many, strict=True):
        torch.testing.assert_close(a, b[:, :frames])


def test_what_cannot_be_measured_is_told() -> None:
    x = motions()
    valid = torch.ones(3, 30, dtype=torch.bool)
    with pytest.raises(ValueError, match="motion: expected figures that move"):
        fit_stick(torch.zeros(3, 30, 20), valid)
    with pytest.raises(ValueError, match="motion: expected a training window of at least 3 frames"):
        fit_stick(x, valid & (torch.arange(30) < 2))
    with pytest.raises(ValueError, match="motion: expected a training window of at least 3 frames"):
        fit_stick(x[:, :2], valid[:, :2])
    for wrong in (x[0], x[..., :19]):
        with pytest.raises(ValueError, match=r"motion: expected a tensor \[B, T, D\], D 20 or 48"):
            see(fitted(x), wrong)
