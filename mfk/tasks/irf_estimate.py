"""Estimation: parameters of a world fitted to responses that were measured in data, by minimum distance.

J(theta) = Σ_hv ((data_hv - irf_hv(theta)) / deviation_hv)², over the numbers that have a deviation. Whatever
gives the responses, a world's solver or an emulator of it, is a function theta -> irf, and is differentiated.

Source: Rotemberg and Woodford 1997; Christiano, Eichenbaum and Evans 2005, section 3.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from mfk.core import rng
from mfk.core.types import Rows, describe
from mfk.data.worlds import World
from mfk.tasks.irf_identify import unmoving

Respond = Callable[[Tensor], Tensor]
_BLOCK = 1_024  # economies at a time: what fits the cache


class Target(NamedTuple):
    """Measured responses to one shock."""

    response: Tensor  # float64 [H + 1, V], in units of the observables
    deviation: Tensor  # float64 [H + 1, V], of the sampling error; inf: the number is left out
    words: str  # what was measured, and how


class Problem(NamedTuple):
    """What is fitted to what."""

    world: World
    target: Target
    shock: int  # number of the world's shock
    free: tuple[str, ...]  # names of the parameters to estimate, between the world's bounds
    fixed: Tensor  # float64 [P], the others' values


class Estimate(NamedTuple):
    """An optimum."""

    theta: Tensor  # float64 [P]
    distance: float  # J there, by the responses that were minimised
    draws: int  # economies that were tried to begin with
    evaluations: int  # of J with its gradient after that
    seconds_draws: float
    seconds_search: float
    starts: list[float]  # J of each start's optimum, least first
    ends: Tensor  # float64 [starts, P], these optima


def measured_monetary_policy(horizon: int = 20, lags: int = 4) -> Target:
    """Responses to a monetary policy shock in US data, in units of `mfk.data.worlds.OBSERVABLES`.

    A vector autoregression in the output gap (log real GDP, HP-filtered with 1600), inflation and the
    three-month bill rate, both at annual rates, 1965Q3 to 1995Q3; the shock is the last of a Cholesky
    decomposition, of one deviation. Output and inflation do not move in its own quarter by assumption, which
    is no measurement: these two numbers are left out.

    Args:
        horizon: H, the last quarter.
        lags: of the autoregression.

    Raises:
        ModuleNotFoundError: statsmodels is not installed. ValueError: out of range.

    Source: the sample and the order are those of Christiano, Eichenbaum and Evans 2005; the data are
    statsmodels' macrodata (Federal Reserve, Bureau of Labor Statistics; in the public domain).
    """
    for name, value, least in (("horizon", horizon, 1), ("lags", lags, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an int >= {least}, got {describe(value)}")
    macrodata, filters, models = (
        _statsmodels(name) for name in ("datasets.macrodata", "tsa.filters.hp_filter", "tsa.api")
    )
    data = macrodata.load_pandas().data
    gdp = torch.tensor(data["realgdp"].to_numpy()).log().mul(100)
    gap = torch.tensor(filters.hpfilter(gdp.numpy(), 1600)[0])
    rows = torch.stack((gap, *(torch.tensor(data[name].to_numpy()) for name in ("infl", "tbilrate"))), -1)
    quarter = torch.tensor((4 * data["year"] + data["quarter"]).to_numpy())
    rows = rows[(quarter >= 4 * 1965 + 3) & (quarter <= 4 * 1995 + 3)]
    # Each lag takes a quarter, and as many coefficients of each equation as there are equations.
    equations = rows.shape[1]
    most = (len(rows) - 1 - equations) // (1 + equations)
    if lags > most:
        raise ValueError(f"lags: expected at most {most} with {len(rows)} quarters of data, got {lags}")
    responses = models.VAR(rows.numpy()).fit(lags).irf(horizon)
    response, deviation = (
        torch.tensor(x[:, :, 2]) / 100 for x in (responses.orth_irfs, responses.stderr(orth=True))
    )
    deviation[0, :2] = math.inf
    words = f"VAR({lags}) of US data, 1965Q3-1995Q3, HP-filtered output, bill rate last"
    return Target(response, deviation, words)


def distance(problem: Problem, respond: Respond, theta: Tensor) -> Tensor:
    """J of economies theta [..., P], [...]; 0 where they respond as measured."""
    target = problem.target
    made = respond(theta)[..., problem.shock, : len(target.response), :].double()
    return ((made - target.response) / target.deviation).square().sum((-2, -1))


def make_problem(
    world: World,
    target: Target,
    shock: str,
    free: Sequence[str],
    fixed: Tensor | None = None,
) -> Problem:
    """A problem, checked.

    Args:
        world: whose parameters are estimated.
        target: measured responses, of at most the world's horizon.
        shock: name of the shock that they respond to.
        free: names of the parameters to estimate.
        fixed: values of the others, float64 [P]; None: the world's defaults.

    Raises:
        ValueError: unknown names, parameters that do not move what was measured, shapes that do not agree,
            numbers or deviations that cannot be. TypeError: dtypes other than float64.
    """
    names = world.parameters.names
    if shock not in world.shocks.names:
        raise ValueError(f"shock: expected one of {', '.join(world.shocks.names)}, got {describe(shock)}")
    if not free or len(set(free)) < len(free) or any(name not in names for name in free):
        raise ValueError(f"free: expected some of {', '.join(names)}, each once, got {list(free)}")
    fixed = torch.tensor(world.parameters.defaults, dtype=torch.float64) if fixed is None else fixed
    for name, x in (("response", target.response), ("deviation", target.deviation), ("fixed", fixed)):
        if not isinstance(x, Tensor) or x.dtype != torch.float64:
            raise TypeError(f"{name}: expected a float64 tensor, got {describe(x)}")
    if fixed.shape != (len(names),):
        raise ValueError(f"fixed: expected a shape ({len(names)},), got {tuple(fixed.shape)}")
    shape, (periods, variables) = tuple(target.response.shape), world.irf(fixed).shape[-2:]
    if len(shape) != 2 or not 1 <= shape[0] <= periods or shape[1] != variables:
        raise ValueError(f"response: expected [1 to {periods}, {variables}], got {list(shape)}")
    if target.deviation.shape != target.response.shape:
        raise ValueError(f"deviation: expected the response's shape, got {tuple(target.deviation.shape)}")
    if not bool(target.response.isfinite().all()):
        raise ValueError("response: expected finite numbers")
    if not bool((target.deviation > 0).all()):
        raise ValueError("deviation: expected numbers > 0, inf where a response is left out")
    place = world.shocks.names.index(shock)
    if still := unmoving(world, place, free, target.deviation):
        raise ValueError(
            f"free: expected parameters that move the response to {shock!r}, got {', '.join(still)}, which "
            f"{'does' if len(still) == 1 else 'do'} not"
        )
    return Problem(world, target, place, tuple(free), fixed)


def estimate(
    problem: Problem, respond: Respond, *, draws: int = 4_096, starts: int = 8, seed: int = 0
) -> Estimate:
    """The least J between the world's bounds: many draws at once, then L-BFGS-B from the best of them.

    Args:
        problem: as of `make_problem`.
        respond: theta [..., P] -> irf [..., S, H + 1, V], differentiable: `problem.world.irf`, or what
            `mfk.tasks.emulator` returns.
        draws: economies between the bounds, uniform.
        starts: how many of these L-BFGS-B begins from, at most `draws`.
        seed: of the draws.

    Raises:
        ModuleNotFoundError: SciPy is not installed. ValueError: out of range; no draw has a finite J.
    """
    for name, value, most in (("draws", draws, math.inf), ("starts", starts, draws)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{name}: expected an int in [1, {most}], got {describe(value)}")
    minimize = _optimizer()
    world = problem.world
    places = torch.tensor([world.parameters.names.index(name) for name in problem.free])
    low, high = (
        torch.tensor(x, dtype=torch.float64)[places] for x in (world.parameters.lower, world.parameters.upper)
    )

    def economy(u: Tensor) -> Tensor:
        """Parameters [..., P] of numbers in the unit cube, [..., F]."""
        given = problem.fixed.expand(*u.shape[:-1], -1)
        return given.index_copy(-1, places, low + (high - low) * u)

    begun = time.perf_counter()
    u = rng.uniform(rng.key(seed, "estimate"), Rows.all(draws), (len(places),), torch.float64)
    with torch.no_grad():
        found = torch.cat([distance(problem, respond, economy(some)) for some in u.split(_BLOCK)])
    if not bool(found.isfinite().any()):
        raise ValueError(f"respond: expected a finite distance of some of {draws} draws, got none")
    best = found.nan_to_num(math.inf, math.inf).argsort()[:starts]
    drawn = time.perf_counter()
    slope = grad_and_value(lambda x: distance(problem, respond, economy(x)))
    evaluations = 0

    def evaluate(x: Any) -> tuple[float, Any]:
        nonlocal evaluations
        evaluations += 1
        steep, value = slope(torch.from_numpy(x))
        return float(value), steep.numpy()

    ends = [
        minimize(
            evaluate, start.numpy(), jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * len(places),
            options={"maxiter": 500, "ftol": 1e-7, "gtol": 1e-6},
        )
        for start in u[best]
    ]  # fmt: skip
    ends.sort(key=lambda end: float(end.fun))
    return Estimate(
        theta=economy(torch.from_numpy(ends[0].x)),
        distance=float(ends[0].fun),
        draws=draws,
        evaluations=evaluations,
        seconds_draws=drawn - begun,
        seconds_search=time.perf_counter() - drawn,
        starts=[float(end.fun) for end in ends],
        ends=economy(torch.stack([torch.from_numpy(end.x) for end in ends])),
    )


def nearly_as_good(found: Estimate, share: float = 1e-3) -> Tensor:
    """The optima of all starts whose J is within a share of the least, float64 [K, P]."""
    return found.ends[torch.tensor(found.starts) <= (1 + share) * found.distance]


def _optimizer() -> Callable[..., Any]:
    try:
        return importlib.import_module("scipy.optimize").minimize
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'estimate: expected SciPy to be installed; pip install "mfk[estimate]"'
        ) from error


def _statsmodels(name: str) -> Any:
    try:
        return importlib.import_module(f"statsmodels.{name}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'estimate: expected statsmodels to be installed; pip install "mfk[estimate]"'
        ) from error
