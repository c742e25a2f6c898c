"""Impulse responses against other solvers' values, plain recursions and finite differences."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vmap

import mfk
from mfk.data import worlds
from mfk.data.worlds import WORLDS, Parameters, Shocks, draw_shocks, draw_theta, lss, make_world, nk, var

NK = WORLDS["nk"]
DEFAULTS = torch.tensor(NK.parameters.defaults, dtype=torch.float64)

# Of a rational-expectations solver apart from mfk: theta, and (row, shock, quarter) -> x, 4 pi, 4 i.
NK_THETA = [
    [1.0, 0.99, 0.1, 1.5, 0.125, 0.8, 0.5, 0.5, 0.0025, 0.01, 0.0025, 2.0],
    [
        1.9740698592486166, 0.9864983525231072, 0.41838015317054594, 2.4957307269776963,
        0.6528903494468549, 0.37042548200534964, 0.8788625857769317, 0.35923347078956636,
        0.001469219445246979, 0.011846726350556707, 0.004326367843548727, 1.9255429987480055,
    ],
]  # fmt: skip
NK_IRF = {
    (0, 0, 0): [-0.00681145641265579, -0.006531612122988828, 0.007359370721837773],
    (0, 0, 1): [-0.0040102426317098535, -0.0038454844019459714, 0.004332826993715442],
    (0, 0, 4): [-0.0008183944067251207, -0.0007847712008286732, 0.0008842261435569147],
    (0, 0, 40): [-4.270381635085244e-12, -4.0949357622970284e-12, 4.613891607370139e-12],
    (0, 1, 0): [0.014856858201299533, 0.007837416327716618, 0.0038369107184449388],
    (0, 1, 1): [0.005337633091214607, 0.00191381115878465, 0.0041774352315128065],
    (0, 1, 4): [-0.00042957837280016326, -0.0008124955129770129, 0.001707187219807624],
    (0, 1, 40): [-1.4734761852359834e-11, -1.4135222677278915e-11, 1.593811653913217e-11],
    (0, 2, 0): [-0.0034355457025737578, 0.013334780957501175, 0.0036568797169929763],
    (0, 2, 1): [-0.0037104669951766945, 0.004756564887404725, 0.003981426540298129],
    (0, 2, 4): [-0.0015091289476834397, -0.00040780364140037887, 0.0016270845936582922],
    (0, 2, 40): [-1.4059397566649794e-11, -1.3466652142850718e-11, 1.519028702409957e-11],
    (1, 0, 0): [-0.0005436677831842323, -0.0011357133781814536, 0.0031985062510313427],
    (1, 0, 12): [-2.4510399643794093e-12, -5.120183619671616e-12, 1.4419958088519947e-11],
    (1, 1, 0): [0.004301819489371634, 0.02746197076591804, 0.050222512874665545],
    (1, 1, 12): [0.00037387511750841, 0.004704294748832565, 0.013839400644053508],
    (1, 2, 0): [-0.00368238892261679, 0.015293207786665833, 0.01797494669709959],
    (1, 2, 12): [-3.50388556878623e-08, 3.2968687758565714e-08, 1.8910082920621354e-07],
}

# statsmodels' VAR(2) of US growth, inflation and the bill rate, 1959 to 2009, and its orth_irfs.
VAR_C = [3.1165974465213573, 0.8740576151175824, 0.030237555230856188]
VAR_A = [
    [
        [0.19616591331794017, -0.06571217573055119, 0.6492075530975414],
        [0.0028259693411719633, 0.3256427888474791, 0.7057217350793977],
        [0.023618204797206777, -0.003523480357419284, 0.9727400385207818],
    ],
    [
        [0.1462393614826591, -0.15934143200553325, -0.6831078951626253],
        [-0.06370356791840065, 0.31370187926277887, -0.5621716183253674],
        [0.03147645756779356, 0.06121160546798199, -0.056434410451251],
    ],
]
VAR_SIGMA = [
    [10.21398101351109, 0.7874319498682034, 0.7682908086371283],
    [0.7874319498682034, 5.425480367216093, 0.7773842790190124],
    [0.7682908086371283, 0.7773842790190124, 0.7272239257325033],
]
VAR_IRF = {
    (0, 0): [3.195931947571958, 0.2463857061995448, 0.2403964856701098],
    (0, 1): [0.7668095828092961, 0.2589183591733852, 0.3084573267905506],
    (0, 2): [0.5975554985683922, 0.042722226581801324, 0.4193588109935816],
    (0, 40): [-0.008312372709066138, 0.010712913771324667, 0.022873198941797877],
    (1, 0): [0.0, 2.3161982754066295, 0.31005722988167544],
    (1, 1): [0.04908906743136438, 0.973067392173144, 0.2934440026114642],
    (1, 2): [-0.4446756025154784, 1.0763912912391649, 0.40745586025438923],
    (1, 40): [-0.010794446968800785, 0.013932709238616277, 0.02960986287940079],
    (2, 0): [0.0, 0.0, 0.7571644270619597],
    (2, 1): [0.49155686498539675, 0.5343473932065643, 0.7365241539468165],
    (2, 2): [0.022245617282751276, 0.2695202525184686, 0.6834433339885081],
    (2, 40): [-0.011543425716319198, 0.014881563284469834, 0.031744052909148564],
}


def test_nk_is_the_rational_expectations_solution() -> None:
    irf = nk(torch.tensor(NK_THETA, dtype=torch.float64))
    assert irf.shape == (2, 3, 41, 3)
    for (row, shock, quarter), values in NK_IRF.items():
        expected = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(irf[row, shock, quarter], expected, rtol=0, atol=1e-12)


def test_nk_paths_satisfy_the_three_equations() -> None:
    """With H + 1 quarters known, expectations are the next quarter's values: no shock comes later."""
    theta = draw_theta(NK, 3, range(200))
    x, pi, i = (nk(theta) / torch.tensor([1.0, 4.0, 4.0], dtype=torch.float64)).unbind(-1)
    sigma, beta, kappa, phi_pi, phi_y, rho_i = (theta[:, j, None, None] for j in range(6))
    h = torch.arange(41, dtype=torch.float64)
    m = torch.zeros_like(x)
    m[:, 0, 0] = theta[:, 8]
    r, u = torch.zeros_like(x), torch.zeros_like(x)
    r[:, 1] = theta[:, 9:10] * theta[:, 6:7] ** h
    u[:, 2] = theta[:, 10:11] * theta[:, 7:8] ** h
    now, later = slice(0, 40), slice(1, 41)
    demand = x[..., later] - (i[..., now] - pi[..., later] - r[..., now]) / sigma
    prices = beta * pi[..., later] + kappa * x[..., now] + u[..., now]
    before = torch.nn.functional.pad(i, (1, 0))[..., :-1]
    rule = rho_i * before + (1 - rho_i) * (phi_pi * pi + phi_y * x) + m
    torch.testing.assert_close(demand, x[..., now], rtol=0, atol=1e-14)
    torch.testing.assert_close(prices, pi[..., now], rtol=0, atol=1e-14)
    torch.testing.assert_close(rule, i, rtol=0, atol=1e-14)


def companion_counts(theta: np.ndarray) -> np.ndarray:
    """How many roots of the homogeneous system, a matrix pencil in (x, pi, i_-1), are inside the circle."""
    counts = []
    for sigma, beta, kappa, phi_pi, phi_y, rho_i in theta[:, :6]:
        later = np.array([[1, 1 / sigma, -1 / sigma], [0, beta, 0], [0, 0, 1.0]])
        rule = np.array([(1 - rho_i) * phi_y, (1 - rho_i) * phi_pi, rho_i])
        now = np.array([[1.0, 0, 0], [-kappa, 1, 0], rule])
        counts.append(int((np.abs(np.linalg.eigvals(np.linalg.solve(later, now))) < 1).sum()))
    return np.array(counts)


def test_determinacy_is_one_stable_root_and_holds_in_all_the_prior() -> None:
    theta = draw_theta(NK, 0, range(20_000))
    drawn = NK.draw([mfk.core.rng.key(0, "theta", "nk", i, 0) for i in range(100)])
    torch.testing.assert_close(theta[:100], drawn, rtol=0, atol=0)  # no candidate was refused
    assert worlds.determinate(theta).all()
    for rows in theta.split(2000):
        assert nk(rows).isfinite().all()
    wide = theta[:500].clone()
    wide[:, 3] = 2 * torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solved = worlds.determinate(wide)
    assert 50 < solved.sum() < 450
    np.testing.assert_array_equal(solved.numpy(), companion_counts(wide.numpy()) == 1)


def test_nk_names_the_rows_without_a_solution() -> None:
    theta = DEFAULTS.repeat(4, 1)
    theta[2, 3] = 0.8
    with pytest.raises(ValueError, match=r"^theta: expected .* \(rows 2; 1 of 4\), got .*phi_pi 0.8"):
        nk(theta)
    with pytest.raises(
        ValueError, match=r"^theta: expected parameters with exactly one stable solution, got"
    ):
        nk(theta[2])
    assert vmap(nk)(theta).isnan().all((-3, -2, -1)).tolist() == [False, False, True, False]
    for place, name in enumerate(NK.parameters.names):
        for value in (math.nan, math.inf):
            broken = DEFAULTS.clone()
            broken[place] = value
            assert not worlds.determinate(broken)
            with pytest.raises(ValueError, match=rf"^theta: expected parameters with .* {name} {value}"):
                nk(broken)


def test_var_is_that_of_statsmodels() -> None:
    factor = np.linalg.cholesky(np.array(VAR_SIGMA))
    values = [*VAR_C, *np.array(VAR_A).ravel(), *factor[np.tril_indices(3)]]
    irf = var(torch.tensor(values, dtype=torch.float64))
    assert irf.shape == (3, 41, 3)
    for (shock, period), expected in VAR_IRF.items():
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(irf[shock, period], expected, rtol=0, atol=1e-12)


def test_lss_is_its_recursion() -> None:
    theta = draw_theta(WORLDS["lss"], 7, range(5))
    irf = lss(theta)
    assert irf.shape == (5, 2, 41, 3)
    for row, numbers in enumerate(theta.numpy()):
        a, b, c = numbers[:16].reshape(4, 4), numbers[16:24].reshape(4, 2), numbers[24:].reshape(3, 4)
        for shock in range(2):
            state, path = np.zeros(4), []
            for period in range(41):
                path.append(c @ state)
                state = a @ state + 0.01 * b[:, shock] * (period == 0)
            np.testing.assert_allclose(irf[row, shock], np.array(path), rtol=0, atol=1e-16)
    assert (irf[:, :, 0] == 0).all() and (irf[:, :, 1] != 0).all()


def simulated(name: str, theta: np.ndarray, shocks: np.ndarray) -> np.ndarray:
    """A path of var or lss, period by period."""
    if name == "lss":
        a, b, c = theta[:16].reshape(4, 4), theta[16:24].reshape(4, 2), theta[24:].reshape(3, 4)
        state, path = np.zeros(4), []
        for shock in shocks:
            path.append(c @ state)
            state = a @ state + b @ (0.01 * shock)
        return np.array(path)
    first, second, factor = theta[3:12].reshape(3, 3), theta[12:21].reshape(3, 3), np.zeros((3, 3))
    factor[np.tril_indices(3)] = theta[21:]
    path = [np.zeros(3), np.zeros(3)]
    for shock in shocks:
        path.append(theta[:3] + first @ path[-1] + second @ path[-2] + factor @ shock)
    return np.array(path[2:])


@pytest.mark.parametrize("name", ["var", "lss"])
def test_trajectories_are_the_recursion(name: str) -> None:
    world = WORLDS[name]
    theta, shocks = draw_theta(world, 1, range(4)), draw_shocks(world, 1, range(4), 200)
    path = world.simulate(theta, shocks)
    for row in range(4):
        expected = simulated(name, theta[row].numpy(), shocks[row].numpy())
        np.testing.assert_allclose(path[row], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", list(WORLDS))
def test_a_response_is_the_trajectory_of_one_shock_less_that_of_none(name: str) -> None:
    world = WORLDS[name]
    theta, count = draw_theta(world, 2, range(6)), len(world.shocks.names)
    none = torch.zeros(6, 41, count, dtype=torch.float64)
    for shock in range(count):
        one = none.clone()
        one[:, 0, shock] = 1.0
        response = world.simulate(theta, one) - world.simulate(theta, none)
        torch.testing.assert_close(response, world.irf(theta)[:, shock], rtol=0, atol=1e-16)
        late = torch.zeros_like(one)
        late[:, 5, shock] = -2.0
        response = world.simulate(theta, late) - world.simulate(theta, none)
        torch.testing.assert_close(response[:, 5:], -2 * world.irf(theta)[:, shock, :36], rtol=0, atol=1e-16)
        assert response[:, :5].abs().max() < 1e-16


@pytest.mark.parametrize(
    ("name", "sizes"), [("nk", range(8, 11)), ("var", range(21, 27)), ("lss", range(16, 24))]
)
def test_responses_are_linear_in_the_size_of_the_shocks(name: str, sizes: range) -> None:
    theta = draw_theta(WORLDS[name], 5, range(10))
    larger = theta.clone()
    larger[:, list(sizes)] *= -3.0
    torch.testing.assert_close(
        WORLDS[name].irf(larger), -3.0 * WORLDS[name].irf(theta), rtol=1e-13, atol=1e-18
    )


@pytest.mark.parametrize("name", list(WORLDS))
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    world = WORLDS[name]
    theta = draw_theta(world, 11, range(2)).requires_grad_()
    assert torch.autograd.gradcheck(partial(world.irf, horizon=5), theta, atol=1e-9, rtol=1e-6)
    slopes = vmap(jacrev(world.irf))(theta.detach())
    torch.testing.assert_close(vmap(jacfwd(world.irf))(theta.detach()), slopes, rtol=1e-9, atol=1e-12)


def test_second_and_third_derivatives_pass_through_the_solver() -> None:
    theta = DEFAULTS.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(partial(nk, horizon=3), theta, atol=1e-8, rtol=1e-5)

    def rate(phi_pi: Tensor) -> Tensor:
        return nk(torch.cat((DEFAULTS[:3], phi_pi, DEFAULTS[4:])))[0, 3, 2]

    def second(phi_pi: Tensor) -> Tensor:
        return jacfwd(jacfwd(rate))(phi_pi)[0, 0]

    at, step = DEFAULTS[3:4], 1e-4
    difference = (second(at + step) - second(at - step)) / (2 * step)
    torch.testing.assert_close(jacfwd(second)(at)[0], difference, rtol=1e-5, atol=0)


def test_the_steady_state_rate_does_not_enter() -> None:
    slopes = jacrev(nk)(DEFAULTS).abs().amax((0, 1, 2))
    assert slopes[11] == 0 and (slopes[:11] > 1e-6).all()


def test_rate_without_smoothing_has_finite_derivatives() -> None:
    theta = DEFAULTS.clone()
    theta[5:8] = 0.0
    assert nk(theta)[:, 1:].abs().max() == 0
    assert jacrev(nk)(theta).isfinite().all()


@pytest.mark.parametrize("name", list(WORLDS))
def test_worlds_take_any_leading_axes_and_horizon(name: str) -> None:
    irf = WORLDS[name].irf
    theta = draw_theta(WORLDS[name], 1, range(6))
    expected = irf(theta)
    torch.testing.assert_close(irf(theta.unflatten(0, (2, 3))), expected.unflatten(0, (2, 3)))
    torch.testing.assert_close(irf(theta[4]), expected[4])
    torch.testing.assert_close(irf(theta, 50)[..., :41, :], expected)
    torch.testing.assert_close(irf(theta, 1), expected[..., :2, :])


def test_nk_is_traced_with_its_derivative() -> None:
    theta = DEFAULTS.repeat(3, 1)
    theta[1, 3] = 0.9

    def slope(theta: Tensor) -> Tensor:
        return jvp(partial(nk, horizon=1), (theta,), (torch.ones_like(theta),))[1]

    traced = mfk.jit(slope).graph(theta)
    (derivative,) = traced(theta)
    torch.testing.assert_close(derivative[0], slope(theta[0]))
    (irf,) = mfk.jit(partial(nk, horizon=1)).graph(theta)(theta)
    assert irf.isnan().all((-3, -2, -1)).tolist() == [False, True, False]


@pytest.mark.parametrize("name", list(WORLDS))
def test_rows_depend_on_the_seed_and_their_number_alone(name: str) -> None:
    world = WORLDS[name]
    theta = draw_theta(world, 42, range(60))
    assert torch.equal(draw_theta(world, 42, range(10, 60, 7)), theta[10::7])
    assert not (theta == draw_theta(world, 43, range(60))).all(-1).any()
    assert len({tuple(row) for row in theta.tolist()}) == 60
    lower, upper = worlds.bounds(world.parameters)
    assert ((theta >= lower) & (theta <= upper)).all() and world.valid(theta).all()
    shocks = draw_shocks(world, 42, range(60), 200)
    assert torch.equal(draw_shocks(world, 42, range(3, 5), 200), shocks[3:5])
    assert shocks.mean().abs() < 0.03 and abs(shocks.std() - 1) < 0.03


def test_priors_are_the_documented() -> None:
    theta = draw_theta(WORLDS["lss"], 0, range(2000))
    matrix, seen = theta[:, :16].unflatten(-1, (4, 4)), theta[:, 24:].unflatten(-1, (3, 4))
    torch.testing.assert_close(matrix, matrix.mT)
    radius = np.abs(np.linalg.eigvals(matrix.numpy())).max(-1)
    assert radius.max() < 0.95 and 0.5 < np.median(radius) < 0.6
    torch.testing.assert_close(seen.norm(dim=-1), torch.full((2000, 3), 0.5, dtype=torch.float64))
    assert abs(theta[:, 16:24].std() - 0.1) < 2e-3
    theta = draw_theta(WORLDS["var"], 0, range(2000))
    diagonal, rest = theta[:, [21, 23, 26]], theta[:, [22, 24, 25]]
    assert (rest == 0).all() and diagonal.min() >= 0.001 and diagonal.max() <= 0.01
    assert abs(diagonal.mean() - 0.0055) < 1e-4 and theta[:, :3].abs().max() <= 0.1
    companion = torch.zeros(2000, 6, 6, dtype=torch.float64)
    companion[:, :3] = torch.cat((theta[:, 3:12].view(-1, 3, 3), theta[:, 12:21].view(-1, 3, 3)), -1)
    companion[:, 3:, :3] = torch.eye(3, dtype=torch.float64)
    radius = np.abs(np.linalg.eigvals(companion.numpy())).max(-1)
    assert radius.max() <= 0.95
    np.testing.assert_allclose(WORLDS["var"].persistence(theta), radius, rtol=1e-9)


def decay(theta: Tensor, horizon: int = 40) -> Tensor:
    """A further world is one function."""
    path = theta[..., 1:] * theta[..., :1] ** torch.arange(horizon + 1, dtype=theta.dtype)
    return path[..., None, :, None].expand(*theta.shape[:-1], 1, horizon + 1, 3)


def test_a_further_world_is_one_function() -> None:
    parameters = Parameters(("rho", "size"), ("-", "-"), (0.0, 1.0), (0.9, 2.0), (0.5, 1.0))
    world = make_world("decay", decay, parameters, Shocks(("shock",), (1.0,)))
    theta = draw_theta(world, 0, range(100))
    assert ((theta >= torch.tensor([0.0, 1.0])) & (theta <= torch.tensor([0.9, 2.0]))).all()
    at = torch.tensor([[0.5, 1.0], [0.8, 1.0], [0.8, 2.0]], dtype=torch.float64)
    assert world.persistence(at)[0] < world.persistence(at)[1] == pytest.approx(world.persistence(at)[2])
    assert world.volatility(at)[2] == pytest.approx(2 * world.volatility(at)[1])
    path = world.simulate(at, torch.ones(3, 5, 1, dtype=torch.float64))
    expected = [sum(0.5**k for k in range(t + 1)) for t in range(5)]
    np.testing.assert_allclose(path[0, :, 0], expected, rtol=1e-14)
    with pytest.raises(ValueError, match=r"^parameters: expected 2 units"):
        make_world("x", decay, parameters._replace(units=("-",)), world.shocks)
    with pytest.raises(ValueError, match=r"^parameters: expected lower < upper of size"):
        make_world("x", decay, parameters._replace(upper=(0.9, 1.0)), world.shocks)
    for name in ("../evil", "", "a b", "a.b"):
        with pytest.raises(ValueError, match=r"^world: expected a name of letters, digits, _ and -"):
            make_world(name, decay, parameters, world.shocks)
    with pytest.raises(ValueError, match=r"^world x: expected each parameter once, got 'p' twice"):
        make_world("x", decay, parameters._replace(names=("p", "p")), world.shocks)
    with pytest.raises(ValueError, match=r"^world x: expected each shock once, got 's' twice"):
        make_world("x", decay, parameters, Shocks(("s", "s"), (1.0, 1.0)))
    with pytest.raises(
        ValueError, match=r"^world x: expected responses \[2, 2, 2, 3\] .* got \[2, 1, 2, 3\]"
    ):
        make_world("x", decay, parameters, Shocks(("s", "t"), (1.0, 1.0)))
    with pytest.raises(ValueError, match=r"^world x: expected responses .* got \[2, 1, 2, 2\]"):
        make_world("x", lambda theta, horizon=40: decay(theta, horizon)[..., :2], parameters, world.shocks)
    with pytest.raises(
        ValueError, match=r"^world x: expected responses .* horizon of 1, got \[2, 1, 41, 3\]"
    ):
        make_world("x", lambda theta, horizon=40: decay(theta, 40), parameters, world.shocks)
    with pytest.raises(TypeError, match=r"^world x: expected responses in float64, got .*float32"):
        make_world("x", lambda theta, horizon=40: decay(theta, horizon).float(), parameters, world.shocks)
    with pytest.raises(ValueError, match=r"^world decay: no valid parameters for row 3"):
        draw_theta(world._replace(valid=lambda theta: theta[..., 0] > 1), 0, range(3, 5))


@pytest.mark.parametrize("name", list(WORLDS))
def test_mistakes_are_named(name: str) -> None:
    world, size = WORLDS[name], len(WORLDS[name].parameters.names)
    theta = torch.tensor(world.parameters.defaults, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"^theta: expected a float64 tensor, got .*float32"):
        world.irf(theta.float())
    with pytest.raises(
        ValueError, match=rf"^theta: expected a shape \[\.\.\., {size}\], got \({size - 1},\)"
    ):
        world.irf(theta[:-1])
    with pytest.raises(ValueError, match=r"^horizon: expected an int >= 1, got 0"):
        world.irf(theta, 0)
    with pytest.raises(ValueError, match=r"^shocks: expected a shape"):
        world.simulate(theta, torch.zeros(10, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^rows: expected a range"):
        draw_theta(world, 0, range(-1, 3))
