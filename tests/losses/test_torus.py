"""Angles, paths and fields that wrap: copies, the shorter way, the seam, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from mfk import losses
from mfk.losses import on_torus, sample, torus_path, wrap

PI = math.pi
PERIODIC = (True, False)


def angles(rows: int = 200, dims: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform in [-π, π)."""
    share = torch.rand(rows, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return ((2 * share - 1) * PI).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrap_undoes_whole_turns_and_leaves_the_rest(dtype: torch.dtype) -> None:
    x = angles(dtype=dtype)
    assert torch.equal(wrap(x), x)
    assert torch.equal(wrap(wrap(x + 5.0)), wrap(x + 5.0))
    for turns in (-3, -1, 1, 1000):
        lifted = x + turns * 2 * PI
        found = wrap(lifted)
        assert found.dtype == dtype
        assert (found >= -PI).all() and (found < PI).all()
        resolution = torch.finfo(dtype).eps * (abs(turns) + 1) * 2 * PI
        assert (wrap(found - x)).abs().max() <= 2 * resolution
    assert torch.equal(wrap(lifted, PERIODIC)[:, 1], lifted[:, 1])
    assert torch.equal(wrap(lifted, torch.tensor(PERIODIC)), wrap(lifted, PERIODIC))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_seam_belongs_to_the_negative_end(dtype: torch.dtype) -> None:
    pi = torch.tensor(PI, dtype=dtype)
    infinity = torch.tensor(math.inf, dtype=dtype)
    for turns in range(-50, 51):
        seam = pi * (2 * turns + 1)
        near = torch.stack((seam, seam.nextafter(infinity), seam.nextafter(-infinity)))
        found = wrap(near)
        assert (found >= -PI).all() and (found < PI).all(), turns
    assert float(wrap(torch.tensor(PI, dtype=torch.float64))) == -PI
    assert float(wrap(torch.tensor(-PI, dtype=torch.float64))) == -PI


def test_the_derivative_of_wrap_is_one_everywhere() -> None:
    x = torch.cat((angles(50, 1).flatten(), torch.tensor([-PI, PI, 3 * PI, -3 * PI, 0.0, 40.0]).double()))
    for periodic in (None, (True,)):
        slope = vmap(grad(lambda x, p=periodic: wrap(x.unsqueeze(-1), p).sum()))(x)
        torch.testing.assert_close(slope, torch.ones_like(x), rtol=0, atol=0)
        tangent = jvp(lambda x, p=periodic: wrap(x.unsqueeze(-1), p).squeeze(-1), (x,), (x,))[1]
        torch.testing.assert_close(tangent, x, rtol=0, atol=0)


def test_the_path_is_the_shorter_way() -> None:
    z0, z1 = angles(seed=1), angles(seed=2)
    none, whole = torch.zeros(200, 1).double(), torch.ones(200, 1).double()
    start, v = torus_path(z0, z1, none, PERIODIC)
    end, same = torus_path(z0, z1, whole, PERIODIC)
    assert torch.equal(start, z0) and torch.equal(v, same)
    torch.testing.assert_close(wrap(end - z1, PERIODIC), torch.zeros_like(end), rtol=0, atol=1e-14)
    plain = z1 - z0
    shortest = torch.stack([(plain + k * 2 * PI).abs() for k in (-1, 0, 1)]).amin(0)
    torch.testing.assert_close(v[:, 0].abs(), shortest[:, 0])
    assert torch.equal(v[:, 1], plain[:, 1])
    assert (v[:, 0] != plain[:, 0]).any()
    half = torus_path(z0, z1, 0.5 * whole, PERIODIC)[0]
    for there in (z0, z1):
        distance = wrap(half - there, PERIODIC).abs()
        torch.testing.assert_close(distance, 0.5 * v.abs(), rtol=1e-12, atol=1e-12)


def test_across_the_seam_and_half_a_turn_apart() -> None:
    z0, z1 = torch.tensor([[3.0, 3.0]]).double(), torch.tensor([[-3.0, -3.0]]).double()
    t = torch.tensor([[0.5]]).double()
    z, v = torus_path(z0, z1, t, PERIODIC)
    torch.testing.assert_close(v, torch.tensor([[2 * PI - 6, -6.0]]).double())
    torch.testing.assert_close(z.abs(), torch.tensor([[PI, 0.0]]).double())
    opposite = torus_path(torch.zeros(1, 1).double(), torch.tensor([[PI]], dtype=torch.float64), t, (True,))
    assert float(opposite[1]) == -PI and float(opposite[0]) == -PI / 2


def test_paths_do_not_depend_on_the_copy() -> None:
    z0, z1 = angles(seed=3), angles(seed=4)
    t = torch.rand(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    z, v = torus_path(z0, z1, t, PERIODIC)
    turn = 2 * PI * torch.tensor([1.0, 0.0]).double()
    for left, right in ((1, 0), (0, -2), (3, 3)):
        copy, rate = torus_path(z0 + left * turn, z1 + right * turn, t, PERIODIC)
        torch.testing.assert_close(rate, v, rtol=0, atol=1e-13)
        torch.testing.assert_close(wrap(copy - z, PERIODIC), torch.zeros_like(z), rtol=0, atol=1e-13)
    torch.testing.assert_close(vmap(lambda z0, z1, t: torus_path(z0, z1, t, PERIODIC))(z0, z1, t), (z, v))


def test_a_field_on_the_torus_is_the_same_at_every_copy_and_as_steep() -> None:
    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return z.square() * (1 + r) - t

    field = on_torus(u, PERIODIC)
    z, v = angles(seed=6), angles(seed=7)
    r, t = torch.full((200, 1), 0.2).double(), torch.full((200, 1), 0.9).double()
    turn = 2 * PI * torch.tensor([1.0, 0.0]).double()
    assert torch.equal(field(z, r, t), u(z, r, t))
    for turns in (-2, 1, 7):
        copy = z + turns * turn
        torch.testing.assert_close(field(copy, r, t), u(z, r, t), rtol=1e-12, atol=1e-12)
        for loss in (losses.meanflow, losses.improved_meanflow, losses.meanflow_residual):
            torch.testing.assert_close(loss(field, copy, v, r, t), loss(u, z, v, r, t))
        torch.testing.assert_close(
            wrap(sample(field, copy, 3) - sample(field, z, 3), PERIODIC),
            torch.zeros_like(z),
            rtol=0,
            atol=1e-10,
        )
    # The axis that does not wrap still tells its copies apart.
    assert not torch.allclose(field(z + 2 * PI, r, t), u(z, r, t))


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda x: wrap(x.long()), TypeError, "angle"),
        (lambda x: wrap(1.0), TypeError, "angle"),  # pyright: ignore[reportArgumentType]
        (lambda x: wrap(x, (1, 0, 1)), TypeError, "periodic"),  # pyright: ignore[reportArgumentType]
        (lambda x: wrap(x, 3), TypeError, "periodic"),  # pyright: ignore[reportArgumentType]
        (lambda x: wrap(x, torch.ones(3)), TypeError, "periodic"),
        (lambda x: wrap(x, (True,)), ValueError, "periodic"),
        (lambda x: wrap(x[0, 0], (True,)), ValueError, "periodic"),
        (lambda x: wrap(x, torch.ones(1, 3, dtype=torch.bool)), ValueError, "periodic"),
        (lambda x: torus_path(x, x[:1], x[:, :1], (True,) * 3), ValueError, "z1"),
        (lambda x: torus_path(x, x, x[:, 0], (True,) * 3), ValueError, "t"),
        (lambda x: torus_path(x, x.double(), x[:, :1], (True,) * 3), TypeError, "z1"),
        (lambda x: torus_path(x, x, x[:, :1], (True,)), ValueError, "periodic"),
        (lambda x: on_torus(lambda z, r, t: z, (True,))(x, x[:, :1], x[:, :1]), ValueError, "periodic"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, name) -> None:
    with pytest.raises(error, match=f"^{name}: expected"):
        call(torch.zeros(5, 3))
