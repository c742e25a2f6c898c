"""Identification: standard errors against differences and against parameters that are identified alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mfk.data.worlds import WORLDS
from mfk.tasks.irf_estimate import Estimate, Target, make_problem, nearly_as_good
from mfk.tasks.irf_identify import identify, jacobian, unmoving

pytestmark = pytest.mark.fast

NK = WORLDS["nk"]
NAMES = NK.parameters.names
FREE = ("sigma", "kappa", "phi_pi", "phi_y", "rho_i", "sigma_m")


def economy(**values: float) -> Tensor:
    theta = torch.tensor(NK.parameters.defaults, dtype=torch.float64)
    for name, value in values.items():
        theta[NAMES.index(name)] = value
    return theta


def deviation() -> Tensor:
    """Of 21 quarters, another for each; the first quarter's output and inflation were not measured."""
    found = 1e-3 * (1 + torch.arange(63, dtype=torch.float64).reshape(21, 3) % 7)
    found[0, :2] = math.inf
    return found


def test_standard_errors_by_differences() -> None:
    theta, free, sd = economy(sigma=1.4, kappa=0.07), ("sigma", "kappa", "rho_i"), deviation()
    columns = []
    for name in free:
        step = torch.zeros_like(theta)
        step[NAMES.index(name)] = 1e-5
        ahead, behind = (NK.irf(theta + s * step)[0, :21] / sd for s in (1, -1))
        columns.append(((ahead - behind) / 2e-5).numpy().ravel()[2:])
    slope = np.stack(columns, -1)
    found = identify(NK, 0, free, theta, sd)
    by_hand = np.sqrt(np.diag(np.linalg.inv(slope.T @ slope)))
    assert found.at_bound == found.unidentified == () and found.combinations == 0
    assert list(found.deviation) == list(free)
    np.testing.assert_allclose(list(found.deviation.values()), by_hand, rtol=1e-6)
    np.testing.assert_allclose(jacobian(NK, 0, free, theta, sd).numpy(), slope, rtol=1e-5, atol=1e-6)


def test_standard_errors_are_those_of_many_estimates() -> None:
    """Least squares of perturbed responses, linear in the parameters: their deviation over many draws."""
    theta, free, sd = economy(), ("kappa", "sigma_m"), deviation()
    slope = jacobian(NK, 0, free, theta, sd)
    noise = torch.randn(len(slope), 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted = torch.linalg.lstsq(slope, noise).solution
    found = identify(NK, 0, free, theta, sd)
    np.testing.assert_allclose(list(found.deviation.values()), fitted.std(1).numpy(), rtol=0.03)


def test_what_only_combinations_tell_is_not_identified() -> None:
    """The response to policy, (x, pi, i) λ^h, is four numbers: sigma, kappa, and two of the rule."""
    theta, sd = economy(), deviation()
    found = identify(NK, 0, FREE, theta, sd)
    assert found.unidentified == ("phi_pi", "phi_y", "rho_i", "sigma_m") and found.combinations == 2
    # What is identified has the error that it has beside any two of the rule's.
    for rule in (("rho_i", "sigma_m"), ("phi_pi", "sigma_m"), ("phi_y", "rho_i")):
        alone = identify(NK, 0, ("sigma", "kappa", *rule), theta, sd)
        assert alone.unidentified == () and list(alone.deviation) == ["sigma", "kappa", *rule]
        for name in ("sigma", "kappa"):
            assert found.deviation[name] == pytest.approx(alone.deviation[name], rel=1e-6)
    three = identify(NK, 0, ("phi_pi", "rho_i", "sigma_m"), theta, sd)
    assert three.unidentified == ("phi_pi", "rho_i", "sigma_m") and three.combinations == 2
    # Along the ridge no response moves, to the first order.
    slope = jacobian(NK, 0, three.unidentified, theta, sd)
    flat = torch.linalg.svd(slope / slope.norm(dim=0)).Vh[-1] / slope.norm(dim=0)
    step = torch.zeros_like(theta)
    for name, value in zip(three.unidentified, flat.tolist(), strict=True):
        step[NAMES.index(name)] = value
    moved = (NK.irf(theta + 1e-4 * step / step.abs().max()) - NK.irf(theta))[0]
    assert float(moved.abs().max()) < 1e-6 * float(NK.irf(theta)[0].abs().max())


def test_a_parameter_without_any_effect_is_not_identified() -> None:
    found = identify(NK, 0, ("sigma", "rho_u", "r_ss"), economy(), deviation())
    assert found.unidentified == ("rho_u", "r_ss") and found.combinations == 0
    assert found.deviation == identify(NK, 0, ("sigma",), economy(), deviation()).deviation
    none = identify(NK, 0, ("r_ss",), economy(), deviation())
    assert none.unidentified == ("r_ss",) and none.deviation == {}


def test_what_is_at_a_bound_counts_as_fixed() -> None:
    theta = economy(sigma=2.5, kappa=0.01)
    found = identify(NK, 0, ("sigma", "kappa", "rho_i"), theta, deviation())
    assert found.at_bound == ("sigma", "kappa") and found.unidentified == ()
    assert found.deviation == identify(NK, 0, ("rho_i",), theta, deviation()).deviation
    everything = identify(NK, 0, ("sigma", "kappa"), theta, deviation())
    assert everything == (("sigma", "kappa"), (), 0, {})


def test_parameters_that_move_nothing_are_refused_by_name() -> None:
    sd = deviation()
    assert unmoving(NK, 0, NAMES, sd) == ["rho_r", "rho_u", "sigma_r", "sigma_u", "r_ss"]
    assert unmoving(NK, 2, NAMES, sd) == ["rho_r", "sigma_m", "sigma_r", "r_ss"]
    var = WORLDS["var"]
    assert unmoving(var, 0, var.parameters.names, sd) == ["c_0", "c_1", "c_2", "L_11", "L_21", "L_22"]
    target = Target(torch.zeros(21, 3, dtype=torch.float64), sd, "")
    for free, message in (
        (("sigma", "r_ss", "rho_u"), "got r_ss, rho_u, which do not"),
        (("r_ss",), "got r_ss, which does not"),
    ):
        with pytest.raises(ValueError, match=f"^free: expected .* response to 'monetary', {message}$"):
            make_problem(NK, target, "monetary", free)


def test_optima_that_are_nearly_as_good() -> None:
    ends = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    found = Estimate(ends[0], 10.0, 8, 9, 0.0, 0.0, [10.0, 10.009, 10.011, 20.0], ends)
    assert torch.equal(nearly_as_good(found), ends[:2])
