"""Classifier-free guidance: as a transform of a field, and as the velocity of a guided training row."""

from __future__ import annotations

import math

from torch import Tensor

from mfk.core.types import Field, describe
from mfk.losses.fields import call_field, check_rows


def guided(u: Field, unconditional: Field, scale: float) -> Field:
    """The field u_0 + scale (u - u_0), u_0 being `unconditional`.

    At t = r that is the velocity of the guided flow, so `sample_euler` and `sample_midpoint` follow it
    as closely as their steps are short. For t > r a mixture of two average velocities is *not* the
    average velocity of the guided flow, unless the flows are straight: one guided step is an
    approximation that training on `guided_velocity` does without.

    Args:
        u: the conditional field.
        unconditional: the field without the condition.
        scale: 1 is `u`, 0 `unconditional`, beyond 1 extrapolates; finite.

    Returns:
        The field; two evaluations a call.

    Raises:
        ValueError: `scale` is not a finite number.
    """
    _check_number("scale", scale)

    def field(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        without = call_field(unconditional, z, r, t, "unconditional")
        return without + scale * (call_field(u, z, r, t) - without)

    return field


def guided_velocity(
    u: Field, unconditional: Field, z: Tensor, v: Tensor, r: Tensor, scale: float, mix: float = 0.0
) -> Tensor:
    """The velocity that a field learns to be guided with: scale v + mix u_c + (1 - scale - mix) u_0.

    u_c = u(z, r, r), u_0 = unconditional(z, r, r), both without gradient. In place of the conditional
    velocity v in a loss of the family it makes u the average velocity of the flow that is guided at
    scale / (1 - mix): guidance at sampling time costs nothing. Rows whose condition is dropped, which
    train `unconditional`, keep v itself.

    Args:
        u: the field that is trained, with the condition.
        unconditional: the same field without the condition.
        z: state at time r, [..., D].
        v: conditional velocity z1 - z0, [..., D].
        r: start time, [..., 1].
        scale: ω of the paper, finite.
        mix: κ of the paper, in [0, 1); 0 saves the evaluation of u.

    Returns:
        Velocity, [..., D], without gradient.

    Raises:
        ValueError: shapes that do not agree, or that would broadcast; a number out of range.
        TypeError: dtypes that differ.

    Source: Geng et al. 2025, arXiv:2505.13447, section 4.2 and its appendix on improved guidance.
    """
    check_rows({"z": z, "v": v}, {"r": r})
    _check_number("scale", scale)
    _check_number("mix", mix)
    if not 0 <= mix < 1:
        raise ValueError(f"mix: expected a number in [0, 1), got {mix!r}")
    without = call_field(unconditional, z, r, r, "unconditional")
    velocity = scale * v + (1 - scale - mix) * without
    if mix > 0:
        velocity = velocity + mix * call_field(u, z, r, r)
    return velocity.detach()


def _check_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {describe(value)}")
