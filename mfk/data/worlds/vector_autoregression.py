"""A vector autoregression of three observables and two lags."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfk.data.worlds.priors import normals, symmetric_matrices, uniforms
from mfk.data.worlds.world import (
    HORIZON,
    Parameters,
    Shocks,
    check_horizon,
    check_shocks,
    check_theta,
    spectral_radius,
)

_LOWER = [(i, j) for i in range(3) for j in range(i + 1)]  # entries of a lower triangle, by rows
_LAGS = [f"A{lag}_{i}{j}" for lag in (1, 2) for i in range(3) for j in range(3)]

PARAMETERS = Parameters(
    names=(*(f"c_{i}" for i in range(3)), *_LAGS, *(f"L_{i}{j}" for i, j in _LOWER)),
    units=27 * ("-",),
    lower=(*3 * (-1.0,), *18 * (-2.0,), *(0.001 if i == j else -0.5 for i, j in _LOWER)),
    upper=(*3 * (1.0,), *18 * (2.0,), *6 * (0.5,)),
    defaults=(
        *3 * (0.0,),
        *(0.5 if name in ("A1_00", "A1_11", "A1_22") else 0.0 for name in _LAGS),
        *(0.01 if i == j else 0.0 for i, j in _LOWER),
    ),
)
SHOCKS = Shocks(names=("shock_0", "shock_1", "shock_2"), sigma=(1.0, 1.0, 1.0))


def var(theta: Tensor, horizon: int = HORIZON) -> Tensor:
    """Orthogonalised impulse responses of a VAR(2), to shocks of one standard deviation.

        y_t = c + A1 y_{t-1} + A2 y_{t-2} + L ε_t,
        irf[s, h] = Ψ_h L e_s,    Ψ_h = A1 Ψ_{h-1} + A2 Ψ_{h-2},    Ψ_0 = 1

    L holds the size of the shocks, and it is applied once: the documents' own files, which multiply by a
    further 0.01, hold these responses divided by 100.

    Args:
        theta: float64 [..., 27]: c (3), A1 (9) and A2 (9) by rows, L (6: the lower triangle by rows).
        horizon: H, in periods.

    Returns:
        [..., 3, H + 1, 3]: shock, period, observable. A recursion that is not stable is followed as well,
        see `stable_var`.

    Raises:
        ValueError: another shape. TypeError: `theta` is not float64.

    Source: Lütkepohl 2005, "New Introduction to Multiple Time Series Analysis", section 2.3.2.
    """
    _, first, second, factor = _unpack(theta)
    check_horizon(horizon)
    responses = [factor, first @ factor]
    while len(responses) <= horizon:
        responses.append(first @ responses[-1] + second @ responses[-2])
    return torch.stack(responses, -3).movedim(
        -1, -3
    )  # [..., h, variable, shock] -> [..., shock, h, variable]


def stable_var(theta: Tensor) -> Tensor:
    """Whether every eigenvalue of the companion matrix is less than 1, [...]; arguments of `var`."""
    return companion_radius(theta) < 1


def companion_radius(theta: Tensor) -> Tensor:
    """The largest eigenvalue of the companion matrix [A1 A2; 1 0], as a modulus, [...]."""
    _, first, second, _ = _unpack(theta)
    eye = torch.eye(3, dtype=theta.dtype, device=theta.device).expand_as(first)
    lags = torch.cat((first, second), -1)
    return spectral_radius(torch.cat((lags, torch.cat((eye, torch.zeros_like(eye)), -1)), -2))


def var_volatility(theta: Tensor) -> Tensor:
    """The largest standard deviation of a period's surprise: the longest row of L, [...]."""
    return _unpack(theta)[3].norm(dim=-1).amax(-1)


def simulate_var(theta: Tensor, shocks: Tensor) -> Tensor:
    """The path that starts from y = 0: shocks in standard deviations [..., T, 3] -> y [..., T, 3]."""
    constant, first, second, factor = _unpack(theta)
    check_shocks(shocks, theta, 3)
    surprises = shocks @ factor.mT + constant.unsqueeze(-2)
    before = last = torch.zeros_like(constant).unsqueeze(-1)
    path: list[Tensor] = []
    for surprise in surprises.unbind(-2):
        before, last = last, first @ last + second @ before + surprise.unsqueeze(-1)
        path.append(last.squeeze(-1))
    return torch.stack(path, -2)


def draw_var(keys: Sequence[int]) -> Tensor:
    """Candidates of the documents' prior, [len(keys), 27].

    [A1 A2] are the first rows of a 6 x 6 matrix of `symmetric_matrices`, c is uniform in ± 0.1, L diagonal
    and uniform in 0.001 to 0.01.
    """
    numbers = uniforms(keys, 12)
    lags = symmetric_matrices(numbers[:, :6].unflatten(-1, (3, 2)), normals(keys, 6, 6))[:, :3]
    factor = torch.zeros(len(keys), 6, dtype=torch.float64)
    factor[:, [i == j for i, j in _LOWER]] = 0.001 + 0.009 * numbers[:, 9:]
    constant = 0.2 * numbers[:, 6:9] - 0.1
    return torch.cat((constant, lags[..., :3].flatten(1), lags[..., 3:].flatten(1), factor), -1)


def valid_var(theta: Tensor) -> Tensor:
    """Whether no eigenvalue of the companion matrix is above 0.95, as in the documents, [...]."""
    return companion_radius(theta) <= 0.95


def _unpack(theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(c [..., 3], A1, A2 and L [..., 3, 3])."""
    check_theta(theta, len(PARAMETERS.names))
    first, second = theta[..., 3:12].unflatten(-1, (3, 3)), theta[..., 12:21].unflatten(-1, (3, 3))
    zero = torch.zeros_like(theta[..., 0])
    entries = dict(zip(_LOWER, theta[..., 21:].unbind(-1), strict=True))
    factor = torch.stack([entries.get((i, j), zero) for i in range(3) for j in range(3)], -1)
    return theta[..., :3], first, second, factor.unflatten(-1, (3, 3))
