"""Trees of bones: between poses in the world and in the parent bone's frame, signs along time, heading.

A tree is a sequence of parents: that of each bone, -1 of the first, the root; a parent comes before its
children. Bones of one depth are worked on together, so that the number of operations grows with the depth of
the tree and not with its bones. Poses are x y z [m], qw qx qy qz with unit quaternions, in any leading shape,
float32 or float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.kinematics.rotations import quaternion_conjugate, quaternion_multiply, quaternion_rotate

_UNDEFINED = 1e-12  # below this square of a quaternion's part that turns about an axis, rounding decides it


def local_from_world(frames: Tensor, parents: Sequence[int]) -> Tensor:
    """Poses in the parents' frames: p = R(Q_parent)⁻¹ (P - P_parent), q = Q_parent⁻¹ Q; the root's stays.

    Args:
        frames: poses in the world, [..., bones, 7].
        parents: of the bones, see the module's first lines.

    Returns:
        [..., bones, 7].

    Raises:
        ValueError: no tree, or another number of bones. TypeError: `frames` is no float32 or float64 tensor.
    """
    check_parents(parents)
    _check_bones("frames", frames, len(parents), 7)
    above, bones = _picked(frames, parents[1:]), frames[..., 1:, :]
    back = quaternion_conjugate(above[..., 3:])
    position = quaternion_rotate(back, bones[..., :3] - above[..., :3])
    local = torch.cat((position, quaternion_multiply(back, bones[..., 3:])), dim=-1)
    return torch.cat((frames[..., :1, :], local), dim=-2)


def world_from_local(frames: Tensor, parents: Sequence[int]) -> Tensor:
    """Poses in the world: P = P_parent + R(Q_parent) p, Q = Q_parent q; the inverse of `local_from_world`.

    Args, returns and errors are those of `local_from_world`, with the two kinds of poses exchanged.
    """
    check_parents(parents)
    _check_bones("frames", frames, len(parents), 7)

    def attach(above: Tensor, bones: Tensor) -> Tensor:
        turn = above[..., 3:]
        position = above[..., :3] + quaternion_rotate(turn, bones[..., :3])
        return torch.cat((position, quaternion_multiply(turn, bones[..., 3:])), dim=-1)

    return _descend(frames[..., :1, :], frames, parents, attach)


def bone_offsets(frames: Tensor, parents: Sequence[int]) -> Tensor:
    """Where each bone is in its parent's frame, [..., bones, 3] in m; 0 of the root, which has no parent.

    Constant in time where bones keep their length. Args and errors are those of `local_from_world`.
    """
    offsets = local_from_world(frames, parents)[..., 1:, :3]
    return torch.cat((torch.zeros_like(frames[..., :1, :3]), offsets), dim=-2)


def world_from_rotations(
    root_position: Tensor, quaternion: Tensor, offsets: Tensor, parents: Sequence[int]
) -> Tensor:
    """Poses of a skeleton with given bones from rotations in the world: P = P_parent + R(Q_parent) o.

    Args:
        root_position: of the root in the world, [..., 3] in m.
        quaternion: of each bone in the world, [..., bones, 4], unit.
        offsets: of each bone in its parent's frame, as from `bone_offsets`, [..., bones, 3] in m, or
            [bones, 3] for all; the root's is not used.
        parents: of the bones, see the module's first lines.

    Returns:
        Poses in the world, [..., bones, 7].

    Raises:
        ValueError: no tree, or shapes that do not agree.
        TypeError: not float32 or float64 tensors of one dtype.
    """
    check_parents(parents)
    bones = len(parents)
    _check_bones("quaternion", quaternion, bones, 4)
    _check_bones("offsets", offsets, bones, 3)
    _check("root_position", root_position)
    leading = quaternion.shape[:-2]
    if root_position.shape != (*leading, 3):
        raise ValueError(f"root_position: expected {(*leading, 3)}, got {tuple(root_position.shape)}")
    if offsets.ndim > 2 and offsets.shape[:-2] != leading:
        raise ValueError(
            f"offsets: expected {(*leading, bones, 3)} or {(bones, 3)}, got {tuple(offsets.shape)}"
        )
    for name, x in (("root_position", root_position), ("offsets", offsets)):
        if x.dtype != quaternion.dtype:
            raise TypeError(f"{name}: expected the dtype of quaternion, {quaternion.dtype}, got {x.dtype}")
    above = _picked(quaternion, parents[1:])
    root = root_position.unsqueeze(-2)
    steps = quaternion_rotate(above, offsets[..., 1:, :].expand(*leading, bones - 1, 3))
    position = _descend(root, torch.cat((root, steps), dim=-2), parents, torch.add)
    return torch.cat((position, quaternion), dim=-1)


def align_signs(q: Tensor, reference: Tensor) -> Tensor:
    """Quaternions whose signs follow on each other in time: q_t · q_{t-1} >= 0, and q_0 · reference >= 0.

    q and -q are one rotation; a network that is to predict numbers should not see them jump. Each bone has
    its own signs. A product of exactly 0 keeps the sign of the frame before.

    Args:
        q: [..., T, bones, 4].
        reference: of each bone, [bones, 4].

    Returns:
        q or -q in every place, [..., T, bones, 4].

    Raises:
        ValueError: shapes that do not agree. TypeError: not float32 or float64 tensors of one dtype.
    """
    _check("q", q)
    _check("reference", reference)
    if q.ndim < 3 or q.shape[-1] != 4:
        raise ValueError(f"q: expected a shape [..., T, bones, 4], got {tuple(q.shape)}")
    if reference.shape != q.shape[-2:]:
        raise ValueError(f"reference: expected {tuple(q.shape[-2:])}, got {tuple(reference.shape)}")
    if reference.dtype != q.dtype:
        raise TypeError(f"reference: expected the dtype of q, {q.dtype}, got {reference.dtype}")
    first = (q[..., :1, :, :] * reference).sum(-1, keepdim=True)
    others = (q[..., 1:, :, :] * q[..., :-1, :, :]).sum(-1, keepdim=True)
    flips = torch.cat((first, others), dim=-3) < 0
    # As a sum modulo 2, not a product of signs: the gradient of a product would be computed.
    return torch.where(flips.cumsum(-3) % 2 == 1, -q, q)


def yaw(q: Tensor, up: int) -> Tensor:
    """The part of a rotation that turns about an axis of the world: q = yaw swing, swing about a level axis.

    (w, u_up) of q = (w, u), normalised. Where both are 0, at half turns about a level axis, the heading is
    not defined: within 1e-6 of there the identity is returned, with gradient 0.

    Args:
        q: unit quaternions, [..., 4].
        up: the axis, 0, 1 or 2.

    Returns:
        Unit quaternions, [..., 4]; of -q the negative.

    Raises:
        ValueError: another shape or axis. TypeError: `q` is no float32 or float64 tensor.
    """
    _check("q", q)
    if q.ndim == 0 or q.shape[-1] != 4:
        raise ValueError(f"q: expected a shape [..., 4], got {tuple(q.shape)}")
    if isinstance(up, bool) or not isinstance(up, int) or up not in (0, 1, 2):
        raise ValueError(f"up: expected the axis 0, 1 or 2, got {describe(up)}")
    place = torch.arange(4, device=q.device)
    part = torch.where((place == 0) | (place == up + 1), q, 0.0)
    square = (part * part).sum(-1, keepdim=True)
    undefined = square < _UNDEFINED
    turn = part / torch.where(undefined, 1.0, square).sqrt()
    return torch.where(undefined, (place == 0).to(q.dtype), turn)


def check_parents(parents: Sequence[int], name: str = "parents") -> None:
    """Raise ValueError unless these are the parents of a tree: -1, then for each bone one before it."""
    whole = all(isinstance(parent, int) and not isinstance(parent, bool) for parent in parents)
    if not whole or not parents or parents[0] != -1:
        raise ValueError(
            f"{name}: expected ints, -1 and then the parent of each bone, got {describe(parents)}"
        )
    for bone, parent in enumerate(parents[1:], start=1):
        if not 0 <= parent < bone:
            raise ValueError(f"{name}: bone {bone}: expected a parent in [0, {bone}), got {parent}")


def _descend(
    root: Tensor, own: Tensor, parents: Sequence[int], attach: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """attach(what the parent has got, the bone's own) for every bone, one depth of the tree after the other.

    `root` is [..., 1, k], `own` [..., bones, m], the result [..., bones, k].
    """
    depth = [0]
    for parent in parents[1:]:
        depth.append(depth[parent] + 1)
    order = sorted(range(len(parents)), key=depth.__getitem__)  # stable: by depth, then by bone
    level, levels = [0], [root]
    for d in range(1, max(depth) + 1):
        place = {bone: i for i, bone in enumerate(level)}
        level = [bone for bone in order if depth[bone] == d]
        above = _picked(levels[-1], [place[parents[bone]] for bone in level])
        levels.append(attach(above, _picked(own, level)))
    back = sorted(range(len(order)), key=order.__getitem__)
    return _picked(torch.cat(levels, dim=-2), back)


def _picked(x: Tensor, bones: Sequence[int]) -> Tensor:
    """Those bones of [..., bones, k]; a range of them costs no index."""
    first = bones[0] if bones else 0
    if list(bones) == list(range(first, first + len(bones))):
        return x[..., first : first + len(bones), :]
    return x.index_select(-2, torch.tensor(bones, dtype=torch.int64, device=x.device))


def _check_bones(name: str, x: Tensor, bones: int, size: int) -> None:
    _check(name, x)
    if x.ndim < 2 or x.shape[-2:] != (bones, size):
        raise ValueError(f"{name}: expected a shape [..., {bones}, {size}], got {tuple(x.shape)}")


def _check(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected a float32 or float64 tensor, got {describe(x)}")
