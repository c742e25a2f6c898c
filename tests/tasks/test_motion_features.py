"""Frames to features and back, and what no feature may depend on."""

from __future__ import annotations

import pytest
import torch
from motions import NAMES, PARENTS, WORLD, frames

from mfk.data import Skeleton
from mfk.kinematics import (
    local_from_world,
    quaternion_angle,
    quaternion_exp,
    quaternion_multiply,
    quaternion_rotate,
)
from mfk.tasks.motion_features import (
    FeatureConfig,
    from_features,
    joint_rotations,
    keep_lengths,
    mirror_pairs,
    mirrored,
    read_as,
    to_features,
    world_positions,
)
from mfk.tasks.motion_scale import extrapolate, fit_scale

REFERENCE = torch.tensor([[1.0, 0, 0, 0]]).expand(4, 4)
LOCAL = WORLD._replace(space="local")
RAW = WORLD._replace(relative=False)


def windows(count: int = 6, length: int = 9, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.stack([frames(length, seed, dtype) for seed in range(count)])


def moved(x: torch.Tensor, angle: float, shift: tuple[float, float, float]) -> torch.Tensor:
    """The same motion elsewhere, turned about the vertical."""
    turn = quaternion_exp(torch.tensor([0, 0, angle], dtype=x.dtype)).expand_as(x[..., 3:])
    position = quaternion_rotate(turn, x[..., :3].contiguous()) + torch.tensor(shift, dtype=x.dtype)
    return torch.cat((position, quaternion_multiply(turn, x[..., 3:].contiguous())), -1)


@pytest.mark.parametrize("how", [WORLD, LOCAL, RAW], ids=["world", "local", "raw"])
def test_there_and_back(how) -> None:
    x = windows()
    if how is LOCAL:
        x = local_from_world(x, PARENTS)
    features, anchor = to_features(how, x, REFERENCE.double())
    again = from_features(how, features, anchor)
    assert features.shape == (6, 9, 28)
    assert torch.allclose(again[..., :3], x[..., :3], atol=1e-12)
    assert float(quaternion_angle(again[..., 3:], x[..., 3:]).max()) < 1e-7


@pytest.mark.parametrize("how", [WORLD, LOCAL], ids=["world", "local"])
def test_where_a_motion_happens_and_which_way_it_faces_makes_no_difference(how) -> None:
    x = windows()
    other = moved(x, 2.5, (3.0, -7.0, 0.0))
    if how is LOCAL:
        x, other = (local_from_world(y, PARENTS) for y in (x, other))
    a, _ = to_features(how, x, REFERENCE.double())
    b, _ = to_features(how, other, REFERENCE.double())
    assert torch.allclose(a, b, atol=1e-9)
    higher, _ = to_features(how, x + torch.tensor([0, 0, 1.0, 0, 0, 0, 0]) * (torch.arange(4) == 0)[:, None],
                            REFERENCE.double())  # fmt: skip
    assert float((higher - a)[..., 2].min()) > 0.9  # height does


def test_no_feature_depends_on_a_later_frame() -> None:
    x = windows()
    changed = x.clone()
    changed[:, 5:] = moved(changed[:, 5:].flip(0), 1.0, (1.0, 1.0, 1.0))
    a, _ = to_features(WORLD, x, REFERENCE.double())
    b, _ = to_features(WORLD, changed, REFERENCE.double())
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.equal(a[:, 5:], b[:, 5:])


def test_signs_of_quaternions_make_no_difference() -> None:
    x = windows()
    flipped = x.clone()
    flipped[:, ::2, 1, 3:] *= -1
    flipped[:, 3:, 2, 3:] *= -1
    a, _ = to_features(WORLD, x, REFERENCE.double())
    b, _ = to_features(WORLD, flipped, REFERENCE.double())
    assert torch.equal(a, b)


def test_lengths_are_kept() -> None:
    x = windows()
    last, wrong = x[:, 4], x[:, 5].clone()
    wrong[..., 1:, :3] += 0.3
    kept = keep_lengths(WORLD, wrong, last)
    assert torch.allclose(kept, x[:, 5], atol=1e-12)  # the true frame has these lengths
    assert torch.equal(keep_lengths(WORLD._replace(rigid=False), wrong, last), wrong)
    local, local_last = (local_from_world(y, PARENTS) for y in (wrong, last))
    kept = keep_lengths(LOCAL, local, local_last)
    assert torch.allclose(world_positions(LOCAL, kept), x[:, 5, :, :3], atol=1e-12)


def test_positions_and_joints_are_the_same_in_both_spaces() -> None:
    x = windows()
    local = local_from_world(x, PARENTS)
    assert torch.allclose(world_positions(WORLD, x), world_positions(LOCAL, local), atol=1e-12)
    angle = quaternion_angle(joint_rotations(WORLD, x), joint_rotations(LOCAL, local))
    assert float(angle.max()) < 1e-7


def test_what_a_file_does_not_say_is_asked_for() -> None:
    said = Skeleton(NAMES, PARENTS, None, "z")
    with pytest.raises(ValueError, match=r"f\.parquet: the file does not say its 'space'.*--space"):
        read_as(said, FeatureConfig(), "f.parquet")
    with pytest.raises(ValueError, match=r"does not say its 'up'"):
        read_as(said._replace(space="world", up=None), FeatureConfig(), "f.parquet")
    assert not read_as(said, FeatureConfig("raw"), "f.parquet").relative
    with pytest.raises(ValueError, match="frames: expected the shape"):
        to_features(WORLD, windows()[:, :, :3], REFERENCE.double())


def test_scale_standardises_and_its_lags_are_least_squares() -> None:
    x = windows(400, 9)
    scale = fit_scale(WORLD, x, 8)
    features, _ = to_features(WORLD, x, scale["reference"])
    y = (features - scale["mean"]) / scale["std"]
    assert torch.allclose(y.mean((0, 1)), torch.zeros(28, dtype=y.dtype), atol=1e-9)
    moving = scale["std"] != 1
    assert torch.allclose(y.std((0, 1))[moving], torch.ones(28, dtype=y.dtype)[moving], atol=1e-6)
    assert scale["lags"].shape == (6, 28) and moving.sum() >= 20
    # The same extrapolation by hand, at the last frame.
    seen = y[:, :-1]
    a = seen[:, 2:] - 2 * seen[:, 1:-1] + seen[:, :-2]
    by_hand = 2 * seen[:, -1] - seen[:, -2] + (scale["lags"] * a).sum(1)
    assert torch.allclose(extrapolate("linear", scale, seen)[:, -1], by_hand, atol=1e-12)
    # Least squares: no other weights do better, up to the ridge.
    best = (y[:, -1] - by_hand).square().mean()
    for step in (-0.05, 0.05):
        other = dict(scale, lags=scale["lags"] + step)
        assert (y[:, -1] - extrapolate("linear", other, seen)[:, -1]).square().mean() > best
    # What is left, in its units, has the second moments that the root is of.
    left = (y[:, -1] - by_hand) / scale["residual_std"]
    assert torch.allclose(scale["residual_root"] @ scale["residual_root"], left.T @ left / 400, atol=1e-9)
    assert best < (y[:, -1] - extrapolate("velocity", scale, seen)[:, -1]).square().mean()


@pytest.mark.parametrize("base", ["none", "last", "velocity", "linear"])
def test_extrapolation_is_causal_and_short_windows_have_fewer_terms(base) -> None:
    scale = fit_scale(WORLD, windows(50, 9), 8)
    x = torch.randn(2, 8, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = extrapolate(base, scale, x)
    for length in range(1, 9):
        assert torch.allclose(extrapolate(base, scale, x[:, :length]), whole[:, :length], atol=1e-12)


def test_scale_of_what_does_not_move() -> None:
    still = windows(1, 9)[:, :1].expand(5, 9, 4, 7)
    scale = fit_scale(WORLD, still, 8)
    assert all(bool(x.isfinite().all()) for x in scale.values())
    assert torch.equal(scale["std"], torch.ones(28, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least two training windows"):
        fit_scale(WORLD, still[:1], 8)


def test_a_mirror_is_one() -> None:
    """Positions by hand; twice is nothing; and the bodies' lengths stay where the two sides are alike."""
    assert mirror_pairs(("root", "lfoot", "rfoot", "LeftArm", "RightArm", "hand.l", "hand.r"), "f") == (
        0, 2, 1, 4, 3, 6, 5,
    )  # fmt: skip
    assert mirror_pairs(("Hips", "rThigh", "lThigh", "ribs", "lowerback"), "f") == (0, 2, 1, 3, 4)
    with pytest.raises(ValueError, match=r"mirror: f\.h5: expected bones named by their sides"):
        mirror_pairs(("root", "link1"), "f.h5")
    x, pairs = windows(), (0, 3, 2, 1)
    seen = mirrored(WORLD, x, pairs)
    assert torch.equal(mirrored(WORLD, seen, pairs), x)
    expected = x[..., list(pairs), :3] * torch.tensor([-1.0, 1, 1], dtype=x.dtype)
    assert torch.equal(seen[..., :3], expected)
    # A rotation in a mirror is M R M: what it does to a vector is seen in the mirror.
    v = torch.randn(6, 9, 4, 3, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    flip = torch.tensor([-1.0, 1, 1], dtype=x.dtype)
    turned = quaternion_rotate(x[..., 3:][..., list(pairs), :].contiguous(), v) * flip
    assert torch.allclose(quaternion_rotate(seen[..., 3:].contiguous(), v * flip), turned, atol=1e-12)
