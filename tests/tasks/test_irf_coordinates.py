"""Reshaped parameters: what they keep, against closed forms and changes of coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mfk.core import jit
from mfk.data.worlds import WORLDS, draw_theta
from mfk.tasks.irf_coordinates import characteristic, coordinates


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_characteristic_polynomials_are_numpys() -> None:
    matrices = numbers(0, 5, 4, 4)
    signs = torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64)
    theirs = torch.tensor(np.stack([np.poly(m.numpy())[1:] for m in matrices]))
    assert torch.allclose(signs * characteristic(matrices), theirs, atol=1e-12)


def combined(coefficients: Tensor, name: str, theta: Tensor) -> Tensor:
    """The response that coefficients [N, K, H + 1] mean."""
    told = coordinates(WORLDS[name], "world").of(theta)
    assert told.basis is not None
    unit = torch.einsum("nkh,nksv->nshv", coefficients, told.basis)
    return unit * told.size[..., None, None]


def test_responses_of_the_state_space_lie_in_its_basis() -> None:
    """A = λ P + μ (1 - P), so A^h = (μ λ^h - λ μ^h) / (μ - λ) + A (μ^h - λ^h) / (μ - λ)."""
    theta = draw_theta(WORLDS["lss"], 0, range(40))
    eigenvalues = torch.linalg.eigvalsh(theta[:, :16].unflatten(-1, (4, 4)))
    low, high = eigenvalues[:, :1], eigenvalues[:, -1:]
    h = torch.arange(40, dtype=torch.float64)
    gap = high - low
    one = (high * low**h - low * high**h) / gap
    other = (high**h - low**h) / gap
    zero = torch.zeros(40, 2, 1, dtype=torch.float64)
    made = combined(torch.cat((zero, torch.stack((one, other), 1)), -1), "lss", theta)
    assert torch.allclose(made, WORLDS["lss"].irf(theta), rtol=1e-8, atol=1e-11)


def test_first_responses_of_the_autoregression_lie_in_its_basis() -> None:
    theta = draw_theta(WORLDS["var"], 0, range(10))
    theta[:, 21:] = 0.1 + 0.05 * numbers(1, 10, 6).abs()  # a full lower triangle
    coefficients = torch.zeros(10, 7, 3, dtype=torch.float64)
    coefficients[:, 0, 0] = coefficients[:, 1, 1] = 1  # 1, A1
    coefficients[:, 2, 2] = coefficients[:, 3, 2] = 1  # A2 + A1 A1
    made = combined(coefficients, "var", theta)
    assert torch.allclose(made, WORLDS["var"].irf(theta)[:, :, :3], rtol=1e-12, atol=1e-15)


def test_the_new_keynesian_basis_is_free_and_of_the_shocks_size() -> None:
    theta = draw_theta(WORLDS["nk"], 0, range(4))
    told = coordinates(WORLDS["nk"], "world").of(theta)
    assert torch.equal(told.size, theta[:, 8:11]) and told.basis is not None
    assert torch.equal(told.basis[2].flatten(1), torch.eye(9, dtype=torch.float64))
    other = theta.clone()
    other[:, 8:] *= 1.5  # sizes and r_ss
    assert torch.equal(coordinates(WORLDS["nk"], "world").of(other).x, told.x)


@pytest.mark.parametrize("name", ["var", "lss"])
def test_a_change_of_coordinates_changes_no_invariant(name: str) -> None:
    theta, change = draw_theta(WORLDS[name], 0, range(6)), numbers(3, 6, 4, 4)
    if name == "lss":
        parts = zip(theta.split((16, 8, 12), -1), ((4, 4), (4, 2), (3, 4)), strict=True)
        a, b, c = (x.unflatten(-1, shape) for x, shape in parts)
        back = torch.linalg.inv(change)
        moved = torch.cat([y.flatten(1) for y in (change @ a @ back, change @ b, c @ back)], -1)
        own = coordinates(WORLDS[name], "world").of
        assert torch.allclose(own(moved).x, own(theta).x, atol=1e-8)
        # The basis times the sizes is C B, C A B: it does not change either.
        whole = [
            (t.basis * t.size[:, None, :, None]) for t in (own(moved), own(theta)) if t.basis is not None
        ]
        assert torch.allclose(whole[0], whole[1], atol=1e-8)
        return
    q = change[:, :3, :3]
    first, second = theta[:, 3:12].unflatten(-1, (3, 3)), theta[:, 12:21].unflatten(-1, (3, 3))
    moved = theta.clone()
    for start, matrix in ((3, first), (12, second)):
        moved[:, start : start + 9] = (q @ matrix @ torch.linalg.inv(q)).flatten(1)
    x, y = (coordinates(WORLDS[name], "world").of(t).x[:, 54:] for t in (theta, moved))
    assert x.shape[1] == 14 + 6 and torch.allclose(x, y, atol=1e-7)


def test_raw_is_theta_as_it_stands() -> None:
    theta = draw_theta(WORLDS["var"], 0, range(3))
    own = coordinates(WORLDS["var"], "raw")
    told = own.of(theta)
    assert told.x is theta and told.basis is None and own.coefficients is None
    assert torch.equal(told.size, torch.ones(3, 3, dtype=torch.float64))
    # A world of one's own has a free basis, so that it can stand beside others.
    strange = WORLDS["var"]._replace(name="strange")
    assert coordinates(strange, "world").coefficients == 9


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_coordinates_compile(name: str) -> None:
    theta, own = draw_theta(WORLDS[name], 0, range(5)), coordinates(WORLDS[name], "world")
    eager = [x for x in own.of(theta) if x is not None]
    compiled = jit(lambda rows: tuple(x for x in own.of(rows) if x is not None))(theta)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(compiled, eager, strict=True))
