"""The frames along a serial chain as poses: a robot as a tree of bones."""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.kinematics.chain import Chain
from mfk.kinematics.fk import check_joints, walk_out
from mfk.kinematics.rotations import matrix_to_quaternion, quaternion_multiply


def link_poses(chain: Chain, q: Tensor) -> Tensor:
    """Poses of the base, of each joint's frame after its motion, and of the tip, [..., dof + 2, 7].

    They are x y z [m], qw qx qy qz with qw >= 0, in the base frame. The positions are those of
    `joint_positions`, the last pose is `forward`. A joint's frame has one axis, x, y or z, along the joint's:

        R_i = R_{i-1} C_i J_i(q_i)

    with the constant C_i of `mfk.kinematics.chain`; the frame of the link that a robot description puts there
    differs by a constant rotation.

    `q` is [..., dof] in rad (m for a prismatic joint), in any leading shape; the dtype is kept. Gradients are
    finite everywhere.

    Raises:
        TypeError: `q` is no float32 or float64 tensor.
        ValueError: the last axis of `q` is not the chain's dof.
    """
    check_joints(chain, q)
    if q.ndim == 1:
        # No 0-dimensional tensors, as in `joint_positions`.
        return link_poses(chain, q.unsqueeze(0)).squeeze(0)
    passed = walk_out(chain, q)
    position = torch.stack([point for point, _ in passed]).movedim((0, 1), (-2, -1))
    # [frames, columns, rows, ...]; the tip's frame is turned from the last joint's by a constant.
    frames = torch.stack([torch.stack(frame) for _, frame in passed]).movedim((0, 1, 2), (-3, -1, -2))
    quaternion = matrix_to_quaternion(frames)
    turn = torch.tensor(chain.tip_quaternion, dtype=q.dtype, device=q.device)
    tip = quaternion_multiply(quaternion[..., -1:, :], turn)
    quaternion = torch.cat((quaternion[..., :-1, :], torch.where(tip[..., :1] < 0, -tip, tip)), dim=-2)
    return torch.cat((position, quaternion), dim=-1)
