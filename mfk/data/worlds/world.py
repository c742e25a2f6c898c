"""What an economy is to the emulator: a function from parameters to impulse responses, with its manifest.

A world is *one function* theta [..., P] -> irf [..., S, H + 1, 3] and a manifest of its parameters and
shocks; `make_world` completes it. An impulse response is what one shock of one standard deviation in period 0
adds to the observables (output, inflation, rate) in the periods 0, ..., H.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mfk.core.types import describe

HORIZON = 40
"""H: the last period of a response."""

OBSERVABLES = ("output", "inflation", "rate")


class Responses(Protocol):
    """theta [..., P] -> irf [..., S, horizon + 1, 3]: pure, float64, batched, differentiable."""

    def __call__(self, theta: Tensor, horizon: int = HORIZON) -> Tensor:
        """The responses to each shock."""
        ...


class Parameters(NamedTuple):
    """What the entries of theta are, in their order."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    defaults: tuple[float, ...]


class Shocks(NamedTuple):
    """What moves the economy."""

    names: tuple[str, ...]
    sigma: tuple[float, ...]  # standard deviation at the default parameters; 1: theta holds the size


class World(NamedTuple):
    """An economy; of `make_world`."""

    name: str
    irf: Responses
    parameters: Parameters
    shocks: Shocks
    draw: Callable[[Sequence[int]], Tensor]  # (one key per row) -> candidates [rows, P] of the prior
    valid: Callable[[Tensor], Tensor]  # theta [..., P] -> bool [...]: determinate, or stable
    simulate: Callable[[Tensor, Tensor], Tensor]  # theta [..., P], shocks [..., T, S] in s.d. -> [..., T, 3]
    persistence: Callable[[Tensor], Tensor]  # theta [..., P] -> [...], how slowly responses die out
    volatility: Callable[[Tensor], Tensor]  # theta [..., P] -> [...], how large they are
    slice: Callable[[Tensor], Tensor]  # theta [..., P] -> [...]: its highest values are held out of training
    held_out: str  # what `slice` is, in words


def make_world(
    name: str,
    irf: Responses,
    parameters: Parameters,
    shocks: Shocks,
    *,
    draw: Callable[[Sequence[int]], Tensor] | None = None,
    valid: Callable[[Tensor], Tensor] | None = None,
    simulate: Callable[[Tensor, Tensor], Tensor] | None = None,
    persistence: Callable[[Tensor], Tensor] | None = None,
    volatility: Callable[[Tensor], Tensor] | None = None,
    slice: Callable[[Tensor], Tensor] | None = None,
    held_out: str = "persistence",
) -> World:
    """A world from its one function and its manifest; what else is not given follows from these two.

    Args:
        name: of its folder in a data set.
        irf: the function. With the other functions it must be importable, for other processes to call it.
        parameters: manifest of theta.
        shocks: manifest of the shocks.
        draw: the prior; uniform between the bounds by default.
        valid: which parameters have a solution; all that are finite by default.
        simulate: trajectories; by default the sum of the responses to all shocks so far.
        persistence: the centre of mass in time of the squared responses by default, in periods.
        volatility: the root mean square of the responses by default.
        slice: what is held out where it is highest; the persistence by default.
        held_out: `slice` in words.

    Raises:
        ValueError: entries of a manifest that are not one for each parameter, bounds out of order, or what
            `check_world` refuses. TypeError: as of `check_world`.
    """
    for field, values in parameters._asdict().items():
        if len(values) != len(parameters.names):
            raise ValueError(
                f"parameters: expected {len(parameters.names)} {field}, one for each name, got {len(values)}"
            )
    for label, low, high in zip(parameters.names, parameters.lower, parameters.upper, strict=True):
        if not low < high:
            raise ValueError(f"parameters: expected lower < upper of {label}, got {low} and {high}")
    if not shocks.names or len(shocks.names) != len(shocks.sigma):
        raise ValueError(f"shocks: expected one sigma for each of {shocks.names}, got {shocks.sigma}")
    persistence = persistence or partial(_centre, irf)
    world = World(
        name=name,
        irf=irf,
        parameters=parameters,
        shocks=shocks,
        draw=draw or partial(_uniform, parameters),
        valid=valid or _finite,
        simulate=simulate or partial(superpose, irf),
        persistence=persistence,
        volatility=volatility or partial(_size, irf),
        slice=slice or persistence,
        held_out=held_out,
    )
    check_world(world)
    return world


def check_world(world: World) -> None:
    """Whether a world can have a folder, and whether its function is what its manifest says it is.

    Raises:
        ValueError: a name with other characters than letters, digits, _ and -; a parameter or a shock that
            comes twice; responses to the defaults that are not [..., S, horizon + 1, 3].
        TypeError: these are not float64.
    """
    if not isinstance(world.name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", world.name):
        raise ValueError(
            "world: expected a name of letters, digits, _ and -, as it is a folder's, "
            f"got {describe(world.name)}"
        )
    for what, names in (("parameter", world.parameters.names), ("shock", world.shocks.names)):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"world {world.name}: expected each {what} once, got {twice!r} twice")
    theta = torch.tensor([world.parameters.defaults] * 2, dtype=torch.float64, device="cpu")
    for horizon in (1, 3):
        irf = world.irf(theta, horizon)
        if not isinstance(irf, Tensor) or irf.dtype != torch.float64:
            raise TypeError(f"world {world.name}: expected responses in float64, got {describe(irf)}")
        expected = (2, len(world.shocks.names), horizon + 1, len(OBSERVABLES))
        if tuple(irf.shape) != expected:
            raise ValueError(
                f"world {world.name}: expected responses {list(expected)} (economies, shocks, periods, "
                f"{', '.join(OBSERVABLES)}) to a horizon of {horizon}, got {list(irf.shape)}"
            )


def check_theta(theta: Tensor, size: int) -> None:
    """ValueError unless theta is [..., size], TypeError unless it is a tensor of float64."""
    if not isinstance(theta, Tensor) or theta.dtype != torch.float64:
        raise TypeError(f"theta: expected a float64 tensor, got {describe(theta)}")
    if theta.ndim < 1 or theta.shape[-1] != size:
        raise ValueError(f"theta: expected a shape [..., {size}], got {tuple(theta.shape)}")


def check_horizon(horizon: int) -> None:
    """ValueError unless it is an int >= 1."""
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ValueError(f"horizon: expected an int >= 1, got {describe(horizon)}")


def check_shocks(shocks: Tensor, theta: Tensor, count: int) -> None:
    """Shocks are [..., T, count] with theta's leading axes (ValueError), float64 (TypeError)."""
    if not isinstance(shocks, Tensor) or shocks.dtype != torch.float64:
        raise TypeError(f"shocks: expected a float64 tensor, got {describe(shocks)}")
    shape = tuple(shocks.shape)
    if len(shape) < 2 or shape[-1] != count or shape[-2] < 1 or shape[:-2] != tuple(theta.shape[:-1]):
        raise ValueError(
            f"shocks: expected a shape {(*theta.shape[:-1], 'T', count)} for theta "
            f"{tuple(theta.shape)}, got {shape}"
        )


def superpose(irf: Responses, theta: Tensor, shocks: Tensor) -> Tensor:
    """The path of a linear economy that starts at rest: y_t = Σ_{k <= t} Σ_s irf[s, k] ε_{t-k, s}.

    Args:
        irf: the world's function.
        theta: parameters [..., P].
        shocks: ε in standard deviations, [..., T, S], with theta's leading axes.

    Returns:
        [..., T, 3].

    Raises:
        ValueError, TypeError: other shapes or dtypes.
    """
    if not isinstance(shocks, Tensor) or shocks.ndim < 2:
        raise ValueError(f"shocks: expected a tensor [..., T, S], got {describe(shocks)}")
    periods = shocks.shape[-2]
    responses = irf(theta, max(periods - 1, 1))[..., :periods, :]  # [..., S, T, 3]
    check_shocks(shocks, theta, responses.shape[-3])
    # Twice the length, so that the end of the sum does not come round to its beginning.
    spectrum = torch.fft.rfft(responses, 2 * periods, dim=-2)
    driven = torch.fft.rfft(shocks.mT, 2 * periods, dim=-1).unsqueeze(-1)
    return torch.fft.irfft((spectrum * driven).sum(-3), 2 * periods, dim=-2)[..., :periods, :]


def spectral_radius(matrix: Tensor) -> Tensor:
    """The largest modulus of the eigenvalues of [..., n, n]: below 1 where the recursion is stable."""
    return torch.linalg.eigvals(matrix).abs().amax(-1)


def bounds(parameters: Parameters) -> tuple[Tensor, Tensor]:
    """(lower, upper), float64 [P]."""
    lower = torch.tensor(parameters.lower, dtype=torch.float64, device="cpu")
    return lower, torch.tensor(parameters.upper, dtype=torch.float64, device="cpu")


def _uniform(parameters: Parameters, keys: Sequence[int]) -> Tensor:
    from mfk.data.worlds.priors import uniforms

    lower, upper = bounds(parameters)
    return lower + (upper - lower) * uniforms(keys, len(parameters.names))


def _finite(theta: Tensor) -> Tensor:
    return theta.isfinite().all(-1)


def _centre(irf: Responses, theta: Tensor) -> Tensor:
    energy = irf(theta).square().sum((-3, -1))
    time = torch.arange(energy.shape[-1], dtype=energy.dtype, device=energy.device)
    return (energy * time).sum(-1) / energy.sum(-1)


def _size(irf: Responses, theta: Tensor) -> Tensor:
    return irf(theta).square().mean((-3, -2, -1)).sqrt()


def manifest(world: World) -> dict[str, Any]:
    """Parameters, shocks and observables of a world as the documented JSON has them."""
    parameters = world.parameters
    return {
        "param_manifest": {
            "names": list(parameters.names),
            "units": list(parameters.units),
            "bounds": [list(pair) for pair in zip(parameters.lower, parameters.upper, strict=True)],
            "defaults": list(parameters.defaults),
            "priors": [],
        },
        "shock_manifest": {
            "names": list(world.shocks.names),
            "n_shocks": len(world.shocks.names),
            "sigma": list(world.shocks.sigma),
            "default_size": 1.0,
        },
        "obs_manifest": {
            "canonical_names": list(OBSERVABLES),
            "extra_names": [],
            "n_canonical": len(OBSERVABLES),
            "n_extra": 0,
        },
    }
