"""Losses that compare one long step with shorter ones, and need no derivative of the field.

The displacement from r to t is the one from r to s and then the one from s to t. α-Flow takes the
first part along the conditional velocity, SplitMeanFlow and shortcut models along the field itself.
All are trained together with flow-matching rows, which anchor the field at t = r.
"""

from __future__ import annotations

import math

from torch import Tensor

from mfk.core.types import Field, Schedule, describe
from mfk.losses.fields import FieldTerms, call_field, check_rows, safe_span, squared_norm


def alpha_flow(u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor, alpha: Tensor | float) -> Tensor:
    """Squared error against a step of flow matching and the rest by the field: ‖Δ‖² / α.

    Δ = u(z, r, t) - sg(α v + (1 - α) u(z + δ v, r + δ, t)),  δ = α (t - r). At α = 1 the target is v,
    for α → 0 the gradient becomes that of `meanflow`: Δ is of the order of α, hence the division. The
    exact average velocity is *not* the minimum for 0 < α: at the minimum the displacement is that of
    Euler steps that each cover a share α of what is left. Anneal α, see `alpha_schedule`. At t = r the
    gradient is that of `flow_matching` for any α.

    Args:
        u: the field, (z[..., D], r[..., 1], t[..., 1]) -> [..., D].
        z: state at time r, [..., D].
        v: conditional velocity z1 - z0, [..., D].
        r: start time, [..., 1], 0 <= r <= t.
        t: end time, [..., 1], t <= 1.
        alpha: share of the interval, in (0, 1]; a number, or a 0-dimensional tensor, whose value is not
            looked at.

    Returns:
        Squared error over α, [...].

    Raises:
        ValueError: shapes that do not agree, or that would broadcast; a number out of range.
        TypeError: dtypes that differ.

    Source: Zhang et al. 2025, arXiv:2510.20771, with the state at the start of the interval. The
    paper's weight of a row is `alpha_weight`.
    """
    return alpha_flow_terms(u, z, v, r, t, alpha).squared_error


def alpha_flow_terms(
    u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor, alpha: Tensor | float
) -> FieldTerms:
    """`alpha_flow` with the field's value. Args and errors are those of `alpha_flow`."""
    check_rows({"z": z, "v": v}, {"r": r, "t": t})
    check_alpha(alpha, z)
    ahead = alpha * (t - r)
    rest = call_field(u, z + ahead * v, r + ahead, t)
    target = (alpha * v + (1 - alpha) * rest).detach()
    value = call_field(u, z, r, t)
    return FieldTerms(squared_norm(value - target) / alpha, value)


def alpha_schedule(start: int, end: int, floor: float = 5e-3) -> Schedule:
    """Step -> α of `alpha_flow`: 1 until `start`, a sigmoid down, `floor` from `end` on.

    α = sigmoid(-25 (step - (start + end)/2) / (end - start)), put to 1 above 1 - `floor` and to `floor`
    below it. The paper puts it to 0 there and goes on with MeanFlow; with the floor the loss stays one
    function without a derivative, at a bias that is of the order of the floor.

    Args:
        start: the last step with α = 1, >= 0.
        end: the first step of the floor, > `start`.
        floor: smallest α, in (0, 0.5).

    Raises:
        ValueError: out of range. TypeError: a step that is not an int.

    Source: Zhang et al. 2025, arXiv:2510.20771: the sigmoid, its slope of 25, the clamp of 5e-3.
    """
    _check_step("start", start)
    _check_step("end", end)
    if end <= start:
        raise ValueError(f"end: expected a step after start {start}, got {end}")
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 < floor < 0.5:
        raise ValueError(f"floor: expected a number in (0, 0.5), got {describe(floor)}")

    def schedule(step: int) -> float:
        _check_step("step", step)
        if step <= start:
            return 1.0
        if step >= end:
            return float(floor)
        alpha = 1 / (1 + math.exp(25 * ((step - start) / (end - start) - 0.5)))
        return 1.0 if alpha > 1 - floor else max(alpha, float(floor))

    return schedule


def split_meanflow(
    u: Field, z: Tensor, r: Tensor, s: Tensor, t: Tensor, teacher: Field | None = None
) -> Tensor:
    """Squared error of one step against two: ‖u(z, r, t) - sg(λ u₁ + (1 - λ) u₂)‖², λ = (s - r)/(t - r).

    u₁ = u(z, r, s), u₂ = u(z + (s - r) u₁, s, t): divided by t - r, the identity
    (t - r) u(z, r, t) = (s - r) u₁ + (t - s) u₂. No conditional velocity enters; the exact average
    velocity scores 0 for any s. At t = r both sides are u(z, r, r).

    Args:
        u: the field, (z[..., D], r[..., 1], t[..., 1]) -> [..., D].
        z: state at time r, [..., D].
        r: start time, [..., 1].
        s: time between, [..., 1], r <= s <= t; see `split_times`.
        t: end time, [..., 1], t <= 1.
        teacher: the field of the right side; None: `u` itself.

    Returns:
        Squared error, [...].

    Raises:
        ValueError: shapes that do not agree, or that would broadcast.
        TypeError: dtypes that differ.

    Source: Guo et al. 2025, arXiv:2507.16884, with the state at the start of the interval.
    """
    return split_meanflow_terms(u, z, r, s, t, teacher).squared_error


def split_meanflow_terms(
    u: Field, z: Tensor, r: Tensor, s: Tensor, t: Tensor, teacher: Field | None = None
) -> FieldTerms:
    """`split_meanflow` with the field's value. Args and errors are those of `split_meanflow`."""
    check_rows({"z": z}, {"r": r, "s": s, "t": t})
    other, name = (u, "u") if teacher is None else (teacher, "teacher")
    first = call_field(other, z, r, s, name)
    second = call_field(other, z + (s - r) * first, s, t, name)
    share = (s - r) / safe_span(t - r)
    target = (share * first + (1 - share) * second).detach()
    value = call_field(u, z, r, t)
    return FieldTerms(squared_norm(value - target), value)


def shortcut(u: Field, z: Tensor, r: Tensor, t: Tensor, teacher: Field | None = None) -> Tensor:
    """Squared error of one step against two halves: `split_meanflow` at s = (r + t)/2.

    The paper's teacher is the field with averaged parameters.

    Args, returns and errors are those of `split_meanflow`.

    Source: Frans et al. 2024, arXiv:2410.12557, eq. 5, with continuous times.
    """
    return shortcut_terms(u, z, r, t, teacher).squared_error


def shortcut_terms(u: Field, z: Tensor, r: Tensor, t: Tensor, teacher: Field | None = None) -> FieldTerms:
    """`shortcut` with the field's value. Args and errors are those of `shortcut`."""
    check_rows({"z": z}, {"r": r, "t": t})
    return split_meanflow_terms(u, z, r, (r + t) / 2, t, teacher)


def check_alpha(alpha: Tensor | float, like: Tensor) -> None:
    """A number in (0, 1] or a 0-dimensional tensor (ValueError), of the same dtype (TypeError)."""
    if isinstance(alpha, Tensor):
        if alpha.ndim != 0:
            raise ValueError(f"alpha: expected a number or a 0-dimensional tensor, got {describe(alpha)}")
        if alpha.dtype != like.dtype:
            raise TypeError(f"alpha: expected the dtype {like.dtype}, got {alpha.dtype}")
    elif isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1:
        raise ValueError(f"alpha: expected a number in (0, 1], got {describe(alpha)}")


def _check_step(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {describe(value)}")
    if value < 0:
        raise ValueError(f"{name}: expected at least 0, got {value}")
