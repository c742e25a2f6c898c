"""The three-equation New Keynesian economy, solved: rational expectations in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mfk.data.worlds.world import HORIZON, Parameters, Shocks, check_horizon, check_theta

PARAMETERS = Parameters(
    names=(
        *("sigma", "beta", "kappa", "phi_pi", "phi_y", "rho_i"),
        *("rho_r", "rho_u", "sigma_m", "sigma_r", "sigma_u", "r_ss"),
    ),
    units=(*8 * ("-",), *3 * ("a quarter, 0.01 is 1 %",), "% a year"),
    lower=(0.5, 0.985, 0.01, 1.05, 0.0, 0.0, 0.0, 0.0, 0.001, 0.005, 0.001, 0.5),
    upper=(2.5, 0.995, 0.5, 3.5, 1.0, 0.9, 0.95, 0.9, 0.01, 0.02, 0.01, 4.0),
    defaults=(1.0, 0.99, 0.1, 1.5, 0.125, 0.8, 0.5, 0.5, 0.0025, 0.01, 0.0025, 2.0),
)
SHOCKS = Shocks(names=("monetary", "demand", "cost_push"), sigma=(0.0025, 0.01, 0.0025))

# Newton steps: over the prior 11 reach the last bit, and 16 reach 1e-9 where κ (φ_π - 1) is 1e-8.
_SEARCH = 16
_DECIDING = 8  # the first parameters; sizes and r_ss need only be finite
_DIFFERENTIATED = 2  # further steps, through which derivatives flow


def nk(theta: Tensor, horizon: int = HORIZON) -> Tensor:
    """Impulse responses of the New Keynesian economy under rational expectations.

        x_t = E x_{t+1} - (i_t - E π_{t+1} - r_t) / σ
        π_t = β E π_{t+1} + κ x_t + u_t
        i_t = ρ_i i_{t-1} + (1 - ρ_i) (φ_π π_t + φ_y x_t) + σ_m ε_m
        r_t = ρ_r r_{t-1} + σ_r ε_r,    u_t = ρ_u u_{t-1} + σ_u ε_u

    On the one stable path without shocks the rate shrinks by λ a quarter, the one root in [0, ρ_i] of the
    cubic that the three equations leave,

        (λ - ρ_i) (κ λ - σ (1 - λ) (1 - β λ)) = λ (1 - ρ_i) (κ φ_π + φ_y (1 - β λ)),

    where Newton's method from 0 climbs to it and cannot overshoot: the cubic is convex there. The rest is
    undetermined coefficients, in closed form. The last two Newton steps are differentiated, from a constant:
    that is the implicit function theorem, exact to the third derivative.

    Args:
        theta: float64 [..., 12], in the order of the manifest: sigma, beta, kappa, phi_pi, phi_y, rho_i,
            rho_r, rho_u, sigma_m, sigma_r, sigma_u (a quarter; 0.01 is 1 %), r_ss (which does not enter).
        horizon: H, in quarters.

    Returns:
        [..., 3, H + 1, 3]: the shocks monetary, demand and cost-push, of one standard deviation in quarter 0;
        x, 4 π and 4 i (inflation and rate a year), as fractions.

    Raises:
        ValueError: another shape; or parameters without exactly one stable solution, see `determinate`, by
            row. Where values cannot be read (under vmap or a trace) such rows are NaN instead.
        TypeError: `theta` is not float64.

    Source: Galí 2015, "Monetary Policy, Inflation, and the Business Cycle", chapter 3; the rule with
    smoothing as in Woodford 2003, "Interest and Prices", chapter 4.
    """
    check_theta(theta, len(PARAMETERS.names))
    check_horizon(horizon)
    solved = determinate(theta)
    readable = _readable(theta)
    if readable and not bool(solved.all()):
        raise ValueError(_undetermined(theta.detach(), solved))
    sigma, beta, kappa, phi_pi, phi_y, rho_i = theta[..., :6].unbind(-1)
    root = _stable_root(sigma, beta, kappa, phi_pi, phi_y, rho_i)
    # What last quarter's rate i_{-1} does: x = a i_{-1}, π = b i_{-1}, i = λ i_{-1}.
    discounted = 1 - beta * root
    share = root / (kappa * root - sigma * (1 - root) * discounted)
    a, b = discounted * share, kappa * share
    # What the shocks do: x, π and i for each unit of m, r and u; for all three at once.
    rho = torch.cat((torch.zeros_like(theta[..., :1]), theta[..., 6:8]), -1)  # [..., 3]
    size = theta[..., 8:11]
    to_pi, to_x = (1 - rho_i) * phi_pi, (1 - rho_i) * phi_y
    through_x, through_pi = a - (1 - b) / sigma, beta * b  # of a rate higher by 1, through expectations
    zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
    # The right-hand sides of the first two equations; m moves them through the rate.
    right_x = torch.stack((through_x, 1 / sigma, zero), -1)
    right_pi = torch.stack((through_pi, zero, one), -1)
    on_rate = torch.stack((one, zero, zero), -1)
    xx = 1 - rho - _column(through_x * to_x)
    xp = -rho * _column(1 / sigma) - _column(through_x * to_pi)
    px = -_column(kappa + through_pi * to_x) + torch.zeros_like(rho)
    pp = 1 - _column(beta) * rho - _column(through_pi * to_pi)
    scale = size / (xx * pp - xp * px)
    x = scale * (pp * right_x - xp * right_pi)
    pi = scale * (xx * right_pi - px * right_x)
    rate = _column(to_x) * x + _column(to_pi) * pi + size * on_rate
    # Over the quarters: s_h = ρ^h, and in the rate Σ_k λ^{h-k} ρ^k.
    powers = _powers(torch.cat((rho, _column(root)), -1), horizon + 1)
    decay = powers[..., :3, :]
    i = _column(rate) * _mixed(powers[..., 3:, :], decay)
    before = torch.nn.functional.pad(i[..., :-1], (1, 0))
    x = _column(_column(a)) * before + _column(x) * decay
    pi = _column(_column(b)) * before + _column(pi) * decay
    irf = torch.stack((x, 4 * pi, 4 * i), -1)
    return irf if readable else torch.where(solved[..., None, None, None], irf, torch.nan)


def determinate(theta: Tensor) -> Tensor:
    """Which parameters have exactly one stable solution: float64 [..., 12] -> bool [...].

    With σ > 0, 0 < β <= 1, κ > 0, φ_π >= 0, φ_y >= 0 and 0 <= ρ_i < 1 that is the Taylor principle,

        κ (φ_π - 1) + φ_y (1 - β) > 0

    for then the cubic of `nk` has exactly one root inside the unit circle: it is >= 0 at 0, <= 0 at ρ_i and
    < 0 at 1, so one root λ lies in [0, ρ_i]; the product of the other two is ρ_i / (β λ) >= 1; and it is
    positive at -1, so neither of them is alone inside. Otherwise it is >= 0 at 1, and a second root lies in
    (ρ_i, 1]. |ρ_r| < 1 and |ρ_u| < 1 are asked for too, and that all parameters are finite, r_ss as well,
    which does not enter. Outside these ranges the answer is False.

    Raises:
        ValueError, TypeError: another shape or dtype.

    Source: the condition is that of Woodford 2003, "Interest and Prices", chapter 4.
    """
    check_theta(theta, len(PARAMETERS.names))
    sigma, beta, kappa, phi_pi, phi_y, rho_i, rho_r, rho_u = theta[..., :8].unbind(-1)
    ranges = (sigma > 0) & (beta > 0) & (beta <= 1) & (kappa > 0) & (phi_pi >= 0) & (phi_y >= 0)
    persistent = (rho_i >= 0) & (rho_i < 1) & (rho_r.abs() < 1) & (rho_u.abs() < 1)
    finite = theta.isfinite().all(-1)
    return ranges & persistent & finite & (kappa * (phi_pi - 1) + phi_y * (1 - beta) > 0)


def phi_pi(theta: Tensor) -> Tensor:
    """φ_π, [...]: how hard the rate leans against inflation."""
    return theta[..., 3]


def persistence(theta: Tensor) -> Tensor:
    """The largest of ρ_i, ρ_r and ρ_u, [...]."""
    return theta[..., 5:8].amax(-1)


def volatility(theta: Tensor) -> Tensor:
    """The largest of σ_m, σ_r and σ_u, each as a share of its upper bound, [...].

    As they stand σ_r, which may be twice the others, would nearly always be the largest.
    """
    return (theta[..., 8:11] / theta.new_tensor(PARAMETERS.upper[8:11])).amax(-1)


def _stable_root(
    sigma: Tensor, beta: Tensor, kappa: Tensor, phi_pi: Tensor, phi_y: Tensor, rho_i: Tensor
) -> Tensor:
    """λ; p0 + p1 λ + p2 λ² + p3 λ³ = 0."""
    p3 = -sigma * beta
    p2 = kappa + sigma * (1 + beta) - rho_i * p3 + (1 - rho_i) * phi_y * beta
    p1 = -sigma - rho_i * (kappa + sigma * (1 + beta)) - (1 - rho_i) * (kappa * phi_pi + phi_y)
    p0 = rho_i * sigma

    # addcmul and addcdiv: fewer calls, which is what a single draw costs.
    q0, q1, q2, q3 = p0.detach(), p1.detach(), p2.detach(), p3.detach()
    twice, thrice, root = 2 * q2, 3 * q3, torch.zeros_like(q0)
    for _ in range(_SEARCH):
        value = torch.addcmul(q0, root, torch.addcmul(q1, root, torch.addcmul(q2, root, q3)))
        slope = torch.addcmul(q1, root, torch.addcmul(twice, root, thrice))
        root = torch.addcdiv(root, value, slope, value=-1)
    root = root.detach()
    for _ in range(_DIFFERENTIATED):
        value = ((p3 * root + p2) * root + p1) * root + p0
        root = root - value / ((3 * p3 * root + 2 * p2) * root + p1)
    return root


def _powers(base: Tensor, count: int) -> Tensor:
    """base^0, ..., base^(count - 1): [...] -> [..., count], by doubling."""
    powers, factor = torch.ones_like(base).unsqueeze(-1), base.unsqueeze(-1)
    while powers.shape[-1] < count:
        powers, factor = torch.cat((powers, factor * powers), -1), factor * factor
    return powers[..., :count]


def _mixed(first: Tensor, second: Tensor) -> Tensor:
    """Σ_{k <= h} a^{h-k} b^k for h = 0, ..., count - 1, from the powers of a and of b, [..., count].

    Σ(n + j) = a^{j+1} Σ(n - 1) + b^n Σ(j).
    """
    count = second.shape[-1]
    total, width = torch.ones_like(second[..., :1]), 1
    while width < count:
        more = min(width, count - width)
        late = (
            first[..., 1 : more + 1] * total[..., width - 1 :] + second[..., width, None] * total[..., :more]
        )
        total, width = torch.cat((total, late), -1), width + more
    return total


def _column(x: Tensor) -> Tensor:
    return x.unsqueeze(-1)


def _readable(x: Tensor) -> bool:
    """Whether values can be asked for: not under vmap, nor in a trace."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return False
        x = functorch.get_unwrapped(x)
    return type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()


def _undetermined(theta: Tensor, solved: Tensor) -> str:
    rows = (~solved).nonzero().tolist()
    values = dict(zip(PARAMETERS.names, theta[tuple(rows[0])].tolist(), strict=True))
    # What decides is shown, and whatever else is not finite.
    shown = ", ".join(
        f"{name} {value:g}"
        for k, (name, value) in enumerate(values.items())
        if k < _DECIDING or not math.isfinite(value)
    )
    where = ", ".join(str(row[0] if len(row) == 1 else tuple(row)) for row in rows[:5] if row)
    more = (
        f" (rows {where}{', ...' if len(rows) > 5 else ''}; {len(rows)} of {solved.numel()})" if where else ""
    )
    return (
        f"theta: expected parameters with exactly one stable solution{more}, got {shown}; see "
        "mfk.data.worlds.determinate"
    )
