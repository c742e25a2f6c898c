"""A linear state space with four states, two shocks and three observables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mfk.data.worlds.priors import normals, symmetric_matrices, uniforms
from mfk.data.worlds.world import HORIZON, Parameters, Shocks, check_horizon, check_theta, spectral_radius

_A = [(i, j) for i in range(4) for j in range(4)]
_B = [(i, j) for i in range(4) for j in range(2)]
_C = [(i, j) for i in range(3) for j in range(4)]

PARAMETERS = Parameters(
    names=tuple(
        f"{name}_{i}{j}" for name, entries in zip("ABC", (_A, _B, _C), strict=True) for i, j in entries
    ),
    units=36 * ("-",),
    lower=(*16 * (-2.0,), *8 * (-1.0,), *12 * (-2.0,)),
    upper=(*16 * (2.0,), *8 * (1.0,), *12 * (2.0,)),
    defaults=(*(0.5 * (i == j) for i, j in _A), *8 * (0.1,), *(1.0 * (i == j) for i, j in _C)),
)
SIGMA = 0.01
SHOCKS = Shocks(names=("shock_0", "shock_1"), sigma=(SIGMA, SIGMA))


def lss(theta: Tensor, horizon: int = HORIZON) -> Tensor:
    """Impulse responses of a linear state space.

        s_{t+1} = A s_t + B σ ε_t,    y_t = C s_t,    σ = 0.01
        irf[shock, 0] = 0,    irf[shock, h] = C A^{h-1} B σ e_shock

    A shock moves the state of the next period: its response is 0 in period 0 by the definition of this world.

    Args:
        theta: float64 [..., 36]: A (16), B (8) and C (12), each by rows.
        horizon: H, in periods.

    Returns:
        [..., 2, H + 1, 3]: shock, period, observable. A recursion that is not stable is followed as well,
        see `stable_lss`.

    Raises:
        ValueError: another shape. TypeError: `theta` is not float64.
    """
    matrix, loading, seen = _unpack(theta)
    check_horizon(horizon)
    states = [SIGMA * loading]
    while len(states) < horizon:
        states.append(matrix @ states[-1])
    responses = seen @ torch.cat(states, -1)  # [..., 3, horizon * 2]
    responses = responses.unflatten(-1, (horizon, 2))  # [..., variable, h, shock]
    return pad(responses.movedim(-1, -3).mT, (0, 0, 1, 0))


def stable_lss(theta: Tensor) -> Tensor:
    """Whether every eigenvalue of A is less than 1, [...]; arguments of `lss`."""
    return state_radius(theta) < 1


def state_radius(theta: Tensor) -> Tensor:
    """The largest eigenvalue of A, as a modulus, [...]."""
    return spectral_radius(_unpack(theta)[0])


def lss_volatility(theta: Tensor) -> Tensor:
    """How far a shock moves the observables in the period after it: the largest column of C B, [...]."""
    _, loading, seen = _unpack(theta)
    return (seen @ loading).norm(dim=-2).amax(-1)


def draw_lss(keys: Sequence[int]) -> Tensor:
    """Candidates of the documents' prior, [len(keys), 36].

    A of `symmetric_matrices`, B standard normal times 0.1, rows of C of random direction and length 0.5.
    """
    numbers = normals(keys, 36)
    matrix = symmetric_matrices(uniforms(keys, 2, 2), numbers[:, :16].unflatten(-1, (4, 4)))
    seen = numbers[:, 24:].unflatten(-1, (3, 4))
    seen = 0.5 * seen / seen.norm(dim=-1, keepdim=True)
    return torch.cat((matrix.flatten(1), 0.1 * numbers[:, 16:24], seen.flatten(1)), -1)


def _unpack(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(A [..., 4, 4], B [..., 4, 2], C [..., 3, 4])."""
    check_theta(theta, len(PARAMETERS.names))
    matrix, loading, seen = theta.split((16, 8, 12), -1)
    return matrix.unflatten(-1, (4, 4)), loading.unflatten(-1, (4, 2)), seen.unflatten(-1, (3, 4))
