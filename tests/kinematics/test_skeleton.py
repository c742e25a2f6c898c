"""Trees of bones against products of matrices, bone by bone."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from mfk import kinematics as kin

TREE = (-1, 0, 0, 1, 1, 2, 0, 3, 6, 7)  # its depths do not rise with the bones' numbers
TREES = [TREE, (-1,), (-1, 0), (-1, 0, 1, 2, 3), (-1, 0, 0, 0)]
trees = pytest.mark.parametrize("parents", TREES, ids=str)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotations(*shape: int, seed: int = 0) -> Tensor:
    return kin.quaternion_normalize(numbers(*shape, 4, seed=seed))


def poses(*shape: int, seed: int = 0) -> Tensor:
    return torch.cat((numbers(*shape, 3, seed=seed), rotations(*shape, seed=seed + 1)), dim=-1)


def matrices(frames: Tensor) -> np.ndarray:
    """[bones, 4, 4], by SciPy."""
    found = np.tile(np.eye(4), (len(frames), 1, 1))
    found[:, :3, 3] = frames[:, :3]
    found[:, :3, :3] = Rotation.from_quat(frames[:, 3:].numpy(), scalar_first=True).as_matrix()
    return found


@trees
def test_local_poses_are_those_of_matrices(parents: tuple[int, ...]) -> None:
    frames = poses(len(parents))
    world, local = matrices(frames), matrices(kin.local_from_world(frames, parents))
    np.testing.assert_array_equal(local[0], world[0])
    for bone, parent in enumerate(parents[1:], start=1):
        np.testing.assert_allclose(local[bone], np.linalg.inv(world[parent]) @ world[bone], atol=1e-14)


@trees
def test_world_poses_are_those_of_matrices(parents: tuple[int, ...]) -> None:
    frames = poses(len(parents))
    local, world = matrices(frames), matrices(kin.world_from_local(frames, parents))
    np.testing.assert_array_equal(local[0], world[0])
    for bone, parent in enumerate(parents[1:], start=1):
        np.testing.assert_allclose(world[bone], world[parent] @ local[bone], atol=1e-14)


@settings(max_examples=25)
@given(st.data())
def test_round_trips_of_any_tree(data: st.DataObject) -> None:
    bones = data.draw(st.integers(1, 12))
    parents = [-1] + [data.draw(st.integers(0, bone - 1)) for bone in range(1, bones)]
    frames = poses(2, 3, bones)
    local = kin.local_from_world(frames, parents)
    torch.testing.assert_close(kin.world_from_local(local, parents), frames, rtol=0, atol=1e-12)
    back = kin.local_from_world(kin.world_from_local(frames, parents), parents)
    torch.testing.assert_close(back, frames, rtol=0, atol=1e-12)
    offsets = kin.bone_offsets(frames, parents)
    assert not offsets[..., 0, :].any()
    torch.testing.assert_close(offsets[..., 1:, :], local[..., 1:, :3])
    rebuilt = kin.world_from_rotations(frames[..., 0, :3], frames[..., 3:], offsets, parents)
    torch.testing.assert_close(rebuilt, frames, rtol=0, atol=1e-12)


def test_one_set_of_bones_serves_all_frames() -> None:
    offsets = numbers(len(TREE), 3)
    root, turns = numbers(4, 2, 3), rotations(4, 2, len(TREE))
    found = kin.world_from_rotations(root, turns, offsets, TREE)
    many = kin.world_from_rotations(root, turns, offsets.expand(4, 2, -1, -1), TREE)
    assert found.shape == (4, 2, len(TREE), 7) and torch.equal(found, many)
    expected = torch.empty(4, 2, len(TREE), 3, dtype=torch.float64)
    expected[..., 0, :] = root
    for bone, parent in enumerate(TREE[1:], start=1):
        turn = kin.quaternion_to_matrix(turns[..., parent, :])
        expected[..., bone, :] = expected[..., parent, :] + turn @ offsets[bone]
    torch.testing.assert_close(found[..., :3], expected)
    assert torch.equal(found[..., 3:], turns)


def test_derivatives_and_vmap() -> None:
    frames, tangent = poses(3, len(TREE)), numbers(3, len(TREE), 7, seed=5)
    offsets = numbers(3, len(TREE), 3)
    for fn in (kin.local_from_world, kin.world_from_local, kin.bone_offsets):
        of_tree = partial(fn, parents=TREE)
        assert gradcheck(of_tree, frames[0].clone().requires_grad_(), check_forward_ad=True)
        torch.testing.assert_close(vmap(of_tree)(frames), of_tree(frames))
        assert jvp(of_tree, (frames.float(),), (tangent.float(),))[1].dtype == torch.float32
    rebuild = partial(kin.world_from_rotations, parents=TREE)
    parts = (frames[..., 0, :3], frames[..., 3:], offsets)
    assert gradcheck(rebuild, tuple(x[0].clone().requires_grad_() for x in parts), check_forward_ad=True)
    torch.testing.assert_close(vmap(rebuild)(*parts), rebuild(*parts))
    shared = vmap(rebuild, in_dims=(0, 0, None))(*parts[:2], offsets[0])
    torch.testing.assert_close(shared, rebuild(*parts[:2], offsets[0]))


def test_a_trace_grows_with_the_depth_and_not_with_the_bones() -> None:
    def operations(parents: tuple[int, ...]) -> int:
        frames = poses(2, len(parents))
        traced = make_fx(lambda x: kin.world_from_local(x, parents), tracing_mode="real")(frames)
        torch.testing.assert_close(traced(frames), kin.world_from_local(frames, parents))
        return len(traced.graph.nodes)

    assert operations((-1, *[0] * 30)) == operations((-1, 0, 0)) < operations((-1, 0, 1))


@pytest.mark.parametrize(
    ("parents", "match"),
    [
        ((), "expected ints, -1 and then"),
        ((0, 0), "expected ints, -1 and then"),
        ((-1, 0.0), "expected ints, -1 and then"),
        ((-1, False), "expected ints, -1 and then"),
        ((-1, -1), r"bone 1: expected a parent in \[0, 1\), got -1"),
        ((-1, 2, 0), r"bone 1: expected a parent in \[0, 1\), got 2"),
        ((-1, 1), r"bone 1: expected a parent in \[0, 1\), got 1"),
    ],
)
def test_what_is_no_tree(parents: Any, match: str) -> None:
    for fn in (kin.local_from_world, kin.world_from_local, kin.bone_offsets):
        with pytest.raises(ValueError, match=f"^parents: {match}"):
            fn(poses(len(parents)), parents)


def test_shapes_and_dtypes_are_checked() -> None:
    for shape in ((3, 7), (2, 6), (7,)):
        with pytest.raises(ValueError, match=r"frames: expected a shape \[..., 2, 7\]"):
            kin.local_from_world(numbers(*shape), (-1, 0))
    with pytest.raises(TypeError, match="frames: expected a float32 or float64 tensor"):
        kin.world_from_local(torch.zeros(2, 7, dtype=torch.int64), (-1, 0))
    root, turns, offsets = numbers(5, 3), rotations(5, 2), numbers(5, 2, 3)
    with pytest.raises(ValueError, match=r"root_position: expected \(5, 3\)"):
        kin.world_from_rotations(root[0], turns, offsets, (-1, 0))
    with pytest.raises(ValueError, match=r"offsets: expected \(5, 2, 3\) or \(2, 3\)"):
        kin.world_from_rotations(root, turns, offsets[:1], (-1, 0))
    with pytest.raises(TypeError, match="offsets: expected the dtype of quaternion"):
        kin.world_from_rotations(root, turns, offsets.float(), (-1, 0))


def turning(frames: int, bones: int) -> Tensor:
    """Quaternions that turn a little from frame to frame, [frames, bones, 4]."""
    small = kin.quaternion_exp(0.3 * numbers(frames, bones, 3))
    found = [rotations(bones)]
    for step in small[1:]:
        found.append(kin.quaternion_multiply(found[-1], step))
    return torch.stack(found)


def test_signs_follow_each_other() -> None:
    smooth = turning(40, 3)
    flips = torch.where(numbers(40, 3, 1, seed=9) < 0, -1.0, 1.0)
    reference = rotations(3, seed=4)
    found = kin.align_signs(smooth * flips, reference)
    expected = smooth * torch.where((smooth[0] * reference).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    assert torch.equal(found, expected)
    assert torch.equal(kin.align_signs(found, reference), found)
    assert torch.equal(kin.align_signs(smooth, -reference), -found)
    batch = torch.stack((smooth, smooth * flips))
    assert torch.equal(kin.align_signs(batch, reference), torch.stack((found, found)))
    assert torch.equal(vmap(lambda q: kin.align_signs(q, reference))(batch), torch.stack((found, found)))


def test_signs_frame_by_frame() -> None:
    q, reference = rotations(30, 4), rotations(4, seed=1)
    expected, before = [], reference
    for frame in q:
        sign = torch.where((frame * before).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        before = sign * frame
        expected.append(before)
    found = kin.align_signs(q, reference)
    assert torch.equal(found, torch.stack(expected))
    assert gradcheck(lambda q: kin.align_signs(q, reference), q[:5].clone().requires_grad_())
    perpendicular = torch.tensor([[[1.0, 0, 0, 0]], [[0.0, 1, 0, 0]], [[0.0, -1, 0, 0]]])
    kept = kin.align_signs(perpendicular, torch.tensor([[-1.0, 0, 0, 0]]))
    assert kept.tolist() == [[[-1.0, 0, 0, 0]], [[0.0, -1, 0, 0]], [[0.0, -1, 0, 0]]]
    assert kin.align_signs(q[:0], reference).shape == (0, 4, 4)


def test_signs_refuse_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"q: expected a shape \[..., T, bones, 4\]"):
        kin.align_signs(rotations(3), rotations(3))
    with pytest.raises(ValueError, match=r"reference: expected \(3, 4\)"):
        kin.align_signs(rotations(5, 3), rotations())
    with pytest.raises(TypeError, match="reference: expected the dtype of q"):
        kin.align_signs(rotations(5, 3), rotations(3).float())


@pytest.mark.parametrize("up", [0, 1, 2])
def test_yaw_undoes_what_was_turned_about_the_axis(up: int) -> None:
    axis = torch.eye(3, dtype=torch.float64)[up]
    angle = 3.0 * numbers(50, 1, seed=2).tanh()
    level = 2.0 * numbers(50, 3, seed=3).tanh()
    level[:, up] = 0
    turn, swing = kin.quaternion_exp(angle * axis), kin.quaternion_exp(level)
    for q in (kin.quaternion_multiply(turn, swing), kin.quaternion_multiply(swing, turn)):
        found = kin.yaw(q, up)
        torch.testing.assert_close(
            kin.quaternion_angle(found, turn), torch.zeros(50).double(), atol=1e-12, rtol=0
        )
        torch.testing.assert_close(kin.yaw(-q, up), -found)
        rest = kin.quaternion_multiply(kin.quaternion_conjugate(found), q)
        torch.testing.assert_close(rest[:, up + 1], torch.zeros(50).double(), atol=1e-14, rtol=0)
    assert gradcheck(lambda q: kin.yaw(q, up), rotations(5).requires_grad_(), check_forward_ad=True)
    torch.testing.assert_close(vmap(lambda q: kin.yaw(q, up))(rotations(5)), kin.yaw(rotations(5), up))


@pytest.mark.parametrize("near", [0.0, 1e-30, 1e-20, 1e-7, 1e-5])
def test_yaw_where_it_is_not_defined(near: float) -> None:
    q = torch.tensor([near, 1.0, 0.0, near], requires_grad=True)
    found = kin.yaw(q, 2)
    torch.testing.assert_close(found.norm(), torch.tensor(1.0))
    (slope,) = torch.autograd.grad((found * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), q)
    assert slope.isfinite().all()
    assert (found.tolist() == [1.0, 0.0, 0.0, 0.0]) == (near < 1e-6)


def test_yaw_refuses_other_shapes_and_axes() -> None:
    with pytest.raises(ValueError, match=r"q: expected a shape \[..., 4\]"):
        kin.yaw(numbers(3), 2)
    for up in (3, -1, "z", True):
        bad: Any = up
        with pytest.raises(ValueError, match="up: expected the axis 0, 1 or 2"):
            kin.yaw(rotations(2), bad)
    assert math.isclose(float(kin.yaw(rotations(), 1).norm()), 1.0)
