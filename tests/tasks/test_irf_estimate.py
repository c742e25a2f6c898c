"""Estimation: measured responses against a regression by hand, the optimum against what made the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad

from mfk.data.worlds import WORLDS
from mfk.tasks.irf_estimate import Target, distance, estimate, make_problem, measured_monetary_policy

pytestmark = pytest.mark.fast

NK = WORLDS["nk"]
DEFAULTS = torch.tensor(NK.parameters.defaults, dtype=torch.float64)
FREE = ("sigma", "kappa", "phi_pi", "phi_y", "rho_i", "sigma_m")


def own(theta: Tensor, horizon: int = 20, shock: int = 0) -> Target:
    """The responses of an economy as if they had been measured, each to a twentieth of its largest."""
    response = NK.irf(theta)[shock, : horizon + 1]
    return Target(response, (response.abs().amax(0) / 20).expand_as(response), "made")


def test_measured_responses_are_those_of_a_regression_by_hand() -> None:
    statsmodels = pytest.importorskip("statsmodels.datasets.macrodata")
    hpfilter = pytest.importorskip("statsmodels.tsa.filters.hp_filter").hpfilter
    data = statsmodels.load_pandas().data
    gap = hpfilter(100 * np.log(data["realgdp"].to_numpy()), 1600)[0]
    rows = np.column_stack([gap, data["infl"], data["tbilrate"]])
    rows = rows[(1965 - 1959) * 4 + 2 : (1995 - 1959) * 4 + 3]
    lags, horizon, count = 4, 12, len(rows)
    x = np.column_stack([np.ones(count - lags), *(rows[lags - k : count - k] for k in range(1, lags + 1))])
    y = rows[lags:]
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    left = y - x @ fit
    factor = np.linalg.cholesky(left.T @ left / (len(y) - x.shape[1]))
    powers = [np.eye(3)]
    for h in range(1, horizon + 1):
        steps = [fit[1 + 3 * (k - 1) : 1 + 3 * k].T @ powers[h - k] for k in range(1, lags + 1) if k <= h]
        powers.append(np.sum(steps, 0))
    by_hand = torch.tensor(np.stack([(power @ factor)[:, 2] for power in powers])) / 100
    found = measured_monetary_policy(horizon, lags)
    torch.testing.assert_close(found.response, by_hand, rtol=1e-8, atol=1e-12)
    assert found.response[0, :2].tolist() == [0.0, 0.0] and found.deviation[0, :2].tolist() == [math.inf] * 2
    left_in = found.deviation[found.deviation.isfinite()]
    assert len(left_in) == 13 * 3 - 2 and bool((left_in > 0).all())


def test_distance_is_a_weighted_sum_of_squares() -> None:
    problem = make_problem(NK, own(DEFAULTS, shock=1), "demand", FREE[:-1])
    other = DEFAULTS.clone()
    other[2] = 0.2
    assert float(distance(problem, NK.irf, DEFAULTS)) == 0
    off = (NK.irf(other) - NK.irf(DEFAULTS))[1, :21] / problem.target.deviation
    both = distance(problem, NK.irf, torch.stack((DEFAULTS, other)))
    torch.testing.assert_close(both, torch.stack((torch.zeros(()).double(), off.square().sum())))
    steep = grad(lambda t: distance(problem, NK.irf, t))(other)
    for k in (0, 2, 5):
        step = torch.zeros_like(other)
        step[k] = 1e-6
        values = [float(distance(problem, NK.irf, other + sign * step)) for sign in (1, -1)]
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(steep[k]), rel=1e-5)


def test_numbers_that_were_not_measured_do_not_count() -> None:
    target = own(DEFAULTS)
    response, deviation = target.response.clone(), target.deviation.clone()
    response[0, :2], deviation[0, :2] = 1e3, math.inf
    problem = make_problem(NK, Target(response, deviation, ""), "monetary", FREE)
    assert float(distance(problem, NK.irf, DEFAULTS)) == 0
    assert bool(grad(lambda t: distance(problem, NK.irf, t))(DEFAULTS + 1e-4).isfinite().all())


@pytest.mark.parametrize("respond", ["exact", "single precision"])
def test_the_economy_that_made_the_responses_is_found(respond: str) -> None:
    pytest.importorskip("scipy")
    truth = DEFAULTS.clone()
    truth[0], truth[2], truth[5] = 1.7, 0.06, 0.4
    free = ("sigma", "kappa", "rho_i")
    problem = make_problem(NK, own(truth), "monetary", free)

    def rounded(theta: Tensor) -> Tensor:
        return NK.irf(theta).float()

    call = NK.irf if respond == "exact" else rounded
    found = estimate(problem, call, draws=64, starts=2)
    torch.testing.assert_close(found.theta, truth, rtol=2e-2, atol=1e-4)
    assert found.ends.shape == (2, 12) and torch.equal(found.ends[0], found.theta)
    for end, value in zip(found.ends, found.starts, strict=True):
        assert float(distance(problem, call, end)) == pytest.approx(value, rel=1e-9)
    assert found.distance < 1e-2 and found.starts[0] == found.distance <= found.starts[1]
    assert torch.equal(estimate(problem, call, draws=64, starts=2).theta, found.theta)
    fixed = [NK.parameters.names.index(name) for name in NK.parameters.names if name not in free]
    assert torch.equal(found.theta[fixed], truth[fixed])


def test_an_optimum_at_a_bound_stays_there() -> None:
    pytest.importorskip("scipy")
    beyond = DEFAULTS.clone()
    beyond[0] = 4.0  # sigma is 0.5 to 2.5
    problem = make_problem(NK, own(beyond), "monetary", ("sigma",))
    assert float(estimate(problem, NK.irf, draws=16, starts=1).theta[0]) == 2.5


def test_what_cannot_be_estimated_is_refused() -> None:
    target = own(DEFAULTS)
    with pytest.raises(ValueError, match="shock: expected one of monetary"):
        make_problem(NK, target, "oil", FREE)
    for free in ((), ("sigma", "sigma"), ("rho",)):
        with pytest.raises(ValueError, match="free: expected some of sigma"):
            make_problem(NK, target, "monetary", free)
    with pytest.raises(TypeError, match="response: expected a float64"):
        make_problem(NK, target._replace(response=target.response.float()), "monetary", FREE)
    with pytest.raises(ValueError, match="response: expected \\[1 to 41, 3\\]"):
        make_problem(NK, target._replace(response=torch.zeros(42, 3).double()), "monetary", FREE)
    with pytest.raises(ValueError, match="deviation: expected the response's shape"):
        make_problem(NK, target._replace(deviation=torch.ones(3, 3).double()), "monetary", FREE)
    with pytest.raises(ValueError, match="deviation: expected numbers > 0"):
        make_problem(NK, target._replace(deviation=torch.zeros_like(target.deviation)), "monetary", FREE)
    with pytest.raises(ValueError, match="response: expected finite"):
        make_problem(NK, target._replace(response=target.response * math.nan), "monetary", FREE)
    with pytest.raises(ValueError, match="fixed: expected a shape"):
        make_problem(NK, target, "monetary", FREE, DEFAULTS[:3])
    problem = make_problem(NK, target, "monetary", FREE)
    with pytest.raises(ValueError, match="draws: expected"):
        estimate(problem, NK.irf, draws=0)
    with pytest.raises(ValueError, match="starts: expected an int in \\[1, 16\\]"):
        estimate(problem, NK.irf, draws=16, starts=17)
    pytest.importorskip("scipy")
    with pytest.raises(ValueError, match="respond: expected a finite distance"):
        estimate(problem, lambda theta: NK.irf(theta) * math.nan, draws=16, starts=1)


@pytest.mark.parametrize(("name", "value"), [("horizon", 0), ("lags", 0), ("lags", True)])
def test_measuring_out_of_range_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected an int >= 1"):
        measured_monetary_policy(**{name: value})


def test_more_lags_than_there_are_data_for_are_refused() -> None:
    pytest.importorskip("statsmodels")
    assert bool((measured_monetary_policy(2, 29).deviation > 0).all())
    with pytest.raises(ValueError, match="lags: expected at most 29 with 121 quarters of data, got 30"):
        measured_monetary_policy(2, 30)
