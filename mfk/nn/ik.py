"""Networks for inverse kinematics: an average velocity in joint space, conditioned on a pose.

Both are called as ``net(q, pose, r, t)`` with q [..., dof] in rad (m for a prismatic joint), pose
[..., 7] = x y z [m], qw qx qy qz in the base frame, and times r, t [..., 1]; both return [..., dof].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mfk.kinematics import (
    Chain,
    clip_to_limits,
    damped_inverse,
    pose_and_jacobian,
    pose_error,
    quaternion_to_matrix,
    velocity_product,
)
from mfk.nn.checks import check_sizes

# Typical sizes at a reference 0.1 rad away: what divides them is of order one.
_LINEAR, _ANGULAR, _JOINT, _BEND = 0.08, 0.2, 0.1, 0.03
# At time r the way left is (1 - r) long, so that rates are divided by it; not past this.
_LEAST_REMAINING = 0.05
# What a least-squares step leaves of an error, about.
_AFTER = 0.2


class MeanFlowNet(nn.Module):
    """The residual FiLM network of the mfik document.

    Each of the dof + 9 inputs becomes `frequencies` sines and as many cosines; six blocks
    LN-Linear-SiLU-LN-Linear-FiLM-SiLU with a skip follow, modulated by the raw inputs.
    17,889,543 parameters at dof = 7, 17,757,190 at dof = 6.

    Source: mfik, "MeanFlow IK Training - Version 1".
    """

    def __init__(
        self, dof: int, width: int = 1024, blocks: int = 6, condition: int = 256, frequencies: int = 64
    ) -> None:
        """Build it for `dof` joints; all sizes must be positive (ValueError)."""
        super().__init__()
        check_sizes(dof=dof, width=width, blocks=blocks, condition=condition, frequencies=frequencies)
        inputs = dof + 9
        self.dof = dof
        exponent = torch.arange(frequencies) / max(frequencies - 1, 1)
        self.register_buffer("frequencies", 10.0 * 10_000.0**-exponent)
        self.enter = nn.Linear(inputs * 2 * frequencies, width)
        self.condition = nn.Linear(inputs, condition)
        self.blocks = nn.ModuleList(FilmBlock(width, condition) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, dof)
        _xavier(self)

    def forward(self, q: Tensor, pose: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Average velocity [..., dof] in rad (or m) per unit of time."""
        _check_inputs(self.dof, q, pose, r, t)
        x = torch.cat((q, pose, r, t), dim=-1)
        angle = x.unsqueeze(-1) * self.get_buffer("frequencies")
        encoded = torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(-2)
        condition = nn.functional.silu(self.condition(x))
        h = nn.functional.silu(self.enter(encoded))
        for block in self.blocks:
            h = block(h, condition)
        return self.leave(self.norm(h))


class FilmBlock(nn.Module):
    """h + SiLU(FiLM(Linear(LN(SiLU(Linear(LN(h))))))) with FiLM(x) = x (1 + scale) + shift."""

    def __init__(self, width: int, condition: int) -> None:
        """`condition` is the width of the vector that scale and shift are computed from."""
        super().__init__()
        self.norm1, self.linear1 = nn.LayerNorm(width), nn.Linear(width, width)
        self.norm2, self.linear2 = nn.LayerNorm(width), nn.Linear(width, width)
        self.film = nn.Linear(condition, 2 * width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """[..., width] and [..., condition] -> [..., width]."""
        x = nn.functional.silu(self.linear1(self.norm1(h)))
        scale, shift = self.film(condition).chunk(2, dim=-1)
        return h + nn.functional.silu(self.linear2(self.norm2(x)) * (1 + scale) + shift)


class _Base(NamedTuple):
    """A least-squares step to second order, and what it was made of."""

    jacobian: Tensor  # [..., 6, dof]
    inverse: Tensor  # [..., dof, 6], damped
    error: Tensor  # [..., 6], m and rad
    step: Tensor  # [..., dof], to first order
    bend: Tensor  # [..., dof], its correction


class KinematicNet(nn.Module):
    """A small network that knows the robot: it corrects a damped least-squares step in task space.

    At q it sees the pose error e (a twist), the damped step d = J⁺ e, what the step misses to second
    order, and the distance to the joint limits. Its two heads are a twist, mapped to the joints by the
    damped pseudo-inverse J⁺, and a joint velocity, of which J⁺J is taken out::

        u = J⁺ (e - ½ J̇d) / (1 - r)  +  J⁺ twist  +  (I - J⁺J) w

    A redundant arm's solutions fill a curve; the spread of the training targets along it is noise
    that J⁺ does not pass to the twist head, so that millimetres are learned from rows that differ by
    decimetres. Zero heads at the start: the untrained network is the second-order step.

    Args:
        chain: the robot; its numbers become constants.
        width: of the residual stream.
        blocks: LN-Linear-SiLU-Linear, twice as wide inside.
        damping: λ of J⁺ = Jᵀ(JJᵀ + λ²)⁻¹, in m and rad; it keeps the step bounded near singular poses
            and costs accuracy at regular ones, which the network has to give back.
        base_steps: how many such steps (clipped to the limits but for the last) it takes before it corrects;
            it sees the last of them, and how far the others have gone.
    """

    def __init__(
        self, chain: Chain, width: int = 256, blocks: int = 2, damping: float = 0.07, base_steps: int = 1
    ) -> None:
        """See the class."""
        super().__init__()
        check_sizes(width=width, blocks=blocks, base_steps=base_steps)
        if not (math.isfinite(damping) and damping > 0):
            raise ValueError(f"damping: expected a positive number, got {damping!r}")
        self.chain, self.damping, self.base_steps = chain, damping, base_steps
        dof = chain.dof
        twist = torch.tensor([_LINEAR] * 3 + [_ANGULAR] * 3)
        self.register_buffer("twist_scale", twist)
        self.register_buffer("lower", torch.tensor(chain.lower_limits))
        self.register_buffer("upper", torch.tensor(chain.upper_limits))
        features = (6 if base_steps == 1 else 7) * dof + 3 + 9 + 6 + 3
        self.enter = nn.Linear(features, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, 6 + dof)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, q: Tensor, pose: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Average velocity [..., dof] in rad (or m) per unit of time."""
        _check_inputs(self.chain.dof, q, pose, r, t)
        here, moved = q, torch.zeros_like(q)
        for _ in range(self.base_steps - 1):
            base = self._base(here, pose)
            here = clip_to_limits(self.chain, here + base.step + base.bend)
            moved = here - q
        jacobian, inverse, error, step, bend = self._base(here, pose)
        rate = 1 / (1 - r).clamp(min=_LEAST_REMAINING)
        # After a step the error is smaller by what divides a reference by such an error.
        scale = _AFTER ** (self.base_steps - 1)
        features = torch.cat(
            (
                torch.tanh((here - self.get_buffer("lower")) * 5),
                torch.tanh((self.get_buffer("upper") - here) * 5),
                here.sin(),
                here.cos(),
                2 * pose[..., :3],
                quaternion_to_matrix(pose[..., 3:]).flatten(-2),
                error * rate / (scale * self.get_buffer("twist_scale")),
                step * rate / (scale * _JOINT),
                bend * rate / (scale * _BEND),
                *((moved * rate / _JOINT,) if self.base_steps > 1 else ()),
                r,
                t,
                t - r,
            ),
            dim=-1,
        )
        h = self.enter(features)
        for block in self.blocks:
            h = block(h)
        twist, free = self.leave(self.norm(h)).split((6, self.chain.dof), dim=-1)
        free = _JOINT * free
        passed = 0.25 * scale * self.get_buffer("twist_scale") * twist - _apply(jacobian, free)
        return (moved + step + bend) * rate + _apply(inverse, passed) + free

    def _base(self, q: Tensor, pose: Tensor) -> _Base:
        here, jacobian = pose_and_jacobian(self.chain, q)
        inverse = damped_inverse(jacobian, self.damping)
        error = pose_error(here, pose)
        step = _apply(inverse, error)
        # Far from the target the quadratic term is no longer a correction: fade it out beyond 1 rad.
        trust = 1 / (1 + step.square().sum(-1, keepdim=True).square())
        bend = -0.5 * trust * _apply(inverse, velocity_product(jacobian, step))
        return _Base(jacobian, inverse, error, step, bend)


class ResidualBlock(nn.Module):
    """h + Linear(SiLU(Linear(LN(h)))), twice as wide inside."""

    def __init__(self, width: int) -> None:
        """`width` is that of the residual stream."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return h + self.contract(nn.functional.silu(self.expand(self.norm(h))))


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """[..., m, n] times [..., n] -> [..., m]."""
    return (matrix * vector.unsqueeze(-2)).sum(-1)


def _xavier(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def _check_inputs(dof: int, q: Tensor, pose: Tensor, r: Tensor, t: Tensor) -> None:
    lead = q.shape[:-1]
    for name, x, last in (("q", q, dof), ("pose", pose, 7), ("r", r, 1), ("t", t, 1)):
        if x.shape != (*lead, last):
            raise ValueError(
                f"{name}: expected the shape {(*lead, last)}, got {tuple(x.shape)}; q is {tuple(q.shape)}"
            )
