"""Terminal velocity matching: the flow map followed by its end, not by its start."""

from __future__ import annotations

from torch import Tensor

from mfk.core.types import Field
from mfk.losses.fields import FieldTerms, call_field, check_rows, squared_norm, value_and_end_rate


def terminal_velocity(u: Field, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Squared error of the velocity at the end of a step: ‖u + (t - r) ∂_t u - sg(v_t)‖².

    d/dt of the place z + (t - r) u(z, r, t) is u + (t - r) ∂_t u; it has to be the velocity there,
    v_t = u(y, t, t) at y = z + (t - r) u(z, r, t). One forward derivative with tangents (0, 0, 1),
    *through* which the gradient flows; the right side is constant. At t = r both sides are u(z, r, r),
    so that flow-matching rows have to anchor the field. Layer, instance and batch norms in the field are
    written out, as torch's derivative of their forward derivative is wrong (`mfk.core.norms`).

    Args:
        u: the field, (z[..., D], r[..., 1], t[..., 1]) -> [..., D].
        z: state at time r, [..., D].
        r: start time, [..., 1], 0 <= r <= t.
        t: end time, [..., 1], t <= 1.

    Returns:
        Squared error, [...].

    Raises:
        ValueError: shapes that do not agree, or that would broadcast.
        TypeError: dtypes that differ.

    Source: Boffi et al. 2024, arXiv:2406.07507 (Lagrangian map matching), for the average velocity as in
    Zhou et al. 2025, arXiv:2511.19797.
    """
    return terminal_velocity_terms(u, z, r, t).squared_error


def terminal_velocity_terms(u: Field, z: Tensor, r: Tensor, t: Tensor) -> FieldTerms:
    """`terminal_velocity` with the field's value. Args and errors are those of `terminal_velocity`."""
    check_rows({"z": z}, {"r": r, "t": t})
    value, end_rate = value_and_end_rate(u, z, r, t)
    target = call_field(u, z + (t - r) * value.detach(), t, t).detach()
    return FieldTerms(squared_norm(value + (t - r) * end_rate - target), value)
