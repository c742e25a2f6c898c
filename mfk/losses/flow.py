"""Losses that train an average velocity u(z, r, t), in forward time.

Convention (everywhere in mfk): time 0 is the reference sample z0, time 1 the solution z1; the path
is z_t = (1 - t) z0 + t z1 with conditional velocity v = z1 - z0. ``u(z, r, t)`` is the displacement
of the flow from `z` *at time r* to time t, divided by t - r. The MeanFlow paper (Geng et al. 2025,
arXiv:2505.13447) runs time the other way and indexes u by its end; turning its formula round
without changing the sign gives a wrong target, not a worse one.

Every loss takes the field as a function, returns one squared error per row (the sum over the last
axis and nothing else), and agrees with its own ``vmap`` over single rows. Weights, masks and the
reduction belong to the caller.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mfk.core.types import Field
from mfk.losses.fields import call_field, check_rows, squared_norm, value_and_rate


class MeanFlowTerms(NamedTuple):
    """The parts of the MeanFlow loss, for whoever reports them too."""

    squared_error: Tensor  # [...], the loss
    value: Tensor  # [..., D], u(z, r, t)
    rate: Tensor  # [..., D], Du = ∂_r u + v·∇_z u


def flow_matching(u: Field, z: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """Squared error of the instantaneous velocity: ‖u(z, r, r) - v‖².

    These rows anchor every member of the family at t = r, where u equals the marginal velocity.

    Args:
        u: the field, (z[..., D], r[..., 1], t[..., 1]) -> [..., D].
        z: state at time r, [..., D].
        v: conditional velocity z1 - z0, [..., D], in z's unit per unit of time.
        r: time in [0, 1], [..., 1].

    Returns:
        Squared error, [...].

    Raises:
        ValueError: shapes that do not agree, or that would broadcast.
        TypeError: dtypes that differ.

    Source: Lipman et al. 2023, arXiv:2210.02747, eq. 9, in mfk's time convention.
    """
    check_rows({"z": z, "v": v}, {"r": r})
    return squared_norm(call_field(u, z, r, r) - v)


def meanflow(u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Squared error against the MeanFlow identity: ‖u(z, r, t) - sg(v + (t - r) Du)‖².

    Du = ∂_r u + v·∇_z u is one forward-mode derivative with tangents (v, 1, 0). It follows from
    d/dr of (t - r) u(z_r, r, t) = ∫_r^t v: differentiating at the *start* of the interval gives the
    plus sign. The stop-gradient makes the conditional velocity unbiased for the marginal one.
    At t = r the value is that of `flow_matching`.

    Args:
        u: the field, (z[..., D], r[..., 1], t[..., 1]) -> [..., D].
        z: state at time r, [..., D].
        v: conditional velocity z1 - z0, [..., D].
        r: start time, [..., 1], 0 <= r <= t.
        t: end time, [..., 1], t <= 1.

    Returns:
        Squared error, [...].

    Raises:
        ValueError: shapes that do not agree, or that would broadcast.
        TypeError: dtypes that differ.

    Source: Geng et al. 2025, arXiv:2505.13447, eq. 6-11, with the state at the start of the interval.
    """
    return meanflow_terms(u, z, v, r, t).squared_error


def meanflow_terms(u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> MeanFlowTerms:
    """`meanflow` with the field's value and rate, which it has to compute anyway.

    Args and errors are those of `meanflow`.
    """
    check_rows({"z": z, "v": v}, {"r": r, "t": t})
    value, rate = value_and_rate(u, z, v, r, t)
    target = (v + (t - r) * rate).detach()
    return MeanFlowTerms(squared_norm(value - target), value, rate)


def meanflow_residual(u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Squared norm of the field's rate of change along the path: ‖∂_r u + v·∇_z u‖².

    A diagnostic, not a loss to train on: u = 0, every constant, and every function that is constant
    along trajectories score 0, whereas the true average velocity scores 0 only where the flow is
    straight. Logs report its root mean square.

    Args, returns and errors are those of `meanflow`.
    """
    check_rows({"z": z, "v": v}, {"r": r, "t": t})
    _, rate = value_and_rate(u, z, v, r, t, through=True)
    return squared_norm(rate)
