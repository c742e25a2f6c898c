"""Improved MeanFlow: the MeanFlow identity read as a regression on the instantaneous velocity."""

from __future__ import annotations

from torch import Tensor

from mfk.core.types import Field
from mfk.losses.fields import call_field, check_rows, squared_norm, value_and_rate
from mfk.losses.flow import MeanFlowTerms


def improved_meanflow(u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Squared error of the velocity that the field implies: ‖V - v‖², V = u(z, r, t) - (t - r) sg(Du).

    Du = ∂_r u + w·∇_z u, whose tangent w = sg(u(z, r, r)) is the field's own velocity: V is then a
    function of z alone, and v enters once, as the target. With w = v instead the value and the gradient
    would be those of `meanflow`. At t = r they are those of `flow_matching`.

    One evaluation of the field more than `meanflow`.

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

    Source: Geng et al. 2025, arXiv:2512.02012, with the state at the start of the interval.
    """
    return improved_meanflow_terms(u, z, v, r, t).squared_error


def improved_meanflow_terms(u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> MeanFlowTerms:
    """`improved_meanflow` with the field's value and rate, which it has to compute anyway.

    Args and errors are those of `improved_meanflow`.
    """
    check_rows({"z": z, "v": v}, {"r": r, "t": t})
    tangent = call_field(u, z, r, r).detach()
    value, rate = value_and_rate(u, z, tangent, r, t)
    implied = value - (t - r) * rate.detach()
    return MeanFlowTerms(squared_norm(implied - v), value, rate)
