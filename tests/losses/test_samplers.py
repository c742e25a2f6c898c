"""Samplers of the instantaneous velocity: orders of convergence, times, shapes, errors; times of splits."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from closed_forms import Gaussians
from torch import Tensor
from torch.func import vmap

from mfk.core import Rows
from mfk.losses import TimeConfig, draw_times, sample, sample_euler, sample_midpoint, split_times

CASE = Gaussians(m0=-0.3, s0=1.2, m1=2.0, s1=0.6, rho=0.2)
SAMPLERS = (sample, sample_euler, sample_midpoint)


def states(rows: int = 50, dims: int = 2) -> Tensor:
    return torch.randn(rows, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def oscillator(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """z' = z cos(5 r): from z0 to z0 exp(sin(5)/5)."""
    return z * torch.cos(5 * r)


def errors(sampler, u, z0: Tensor, z1: Tensor, counts: tuple[int, ...]) -> list[float]:
    return [float((sampler(u, z0, steps) - z1).abs().max()) for steps in counts]


@pytest.mark.parametrize(("sampler", "general", "gaussian"), [(sample_euler, 1, 1), (sample_midpoint, 2, 3)])
def test_order_of_convergence(sampler, general, gaussian) -> None:
    """Between Gaussians the midpoint rule gains an order: its error is that of σ²'s third derivative, 0."""
    z0 = states()
    for u, z1, order in (
        (oscillator, z0 * math.exp(math.sin(5) / 5), general),
        (lambda z, r, t: CASE.velocity(z, r), CASE.one_step(z0), gaussian),
    ):
        found = errors(sampler, u, z0, z1, (256, 512, 1024))
        orders = [math.log2(coarse / fine) for coarse, fine in pairwise(found)]
        assert orders == pytest.approx([order, order], abs=0.06)


def test_euler_and_midpoint_ask_for_the_velocity_and_at_these_times() -> None:
    asked: list[tuple[float, float]] = []

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        assert r.shape == t.shape == (3, 1) and r.dtype == z.dtype
        asked.append((float(r[0]), float(t[0])))
        return torch.ones_like(z)

    z0 = torch.zeros(3, 2)
    for sampler, expected in (
        (sample, [(0, 0.5), (0.5, 1)]),
        (sample_euler, [(0, 0), (0.5, 0.5)]),
        (sample_midpoint, [(0, 0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75)]),
    ):
        asked.clear()
        assert torch.equal(sampler(u, z0, 2), torch.ones_like(z0))
        assert asked == expected


def test_a_straight_flow_takes_one_step_and_average_velocities_need_no_more() -> None:
    straight = Gaussians(rho=1.0)
    z0 = states()
    for sampler in SAMPLERS:
        torch.testing.assert_close(sampler(straight.u, z0, 1), straight.one_step(z0))
    torch.testing.assert_close(sample(CASE.u, z0, 1), CASE.one_step(z0))
    assert errors(sample_euler, CASE.u, z0, CASE.one_step(z0), (1,))[0] > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_shapes_and_vmap(sampler) -> None:
    z0 = states(6)
    z1 = sampler(CASE.u, z0, 3)
    torch.testing.assert_close(vmap(lambda z: sampler(CASE.u, z, 3))(z0), z1)
    torch.testing.assert_close(sampler(CASE.u, z0.reshape(2, 3, 2), 3).reshape(6, 2), z1)
    assert sampler(CASE.u, z0[:0], 3).shape == (0, 2)
    assert sampler(CASE.u, z0.float(), 3).dtype == torch.float32


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_does_not_fit_is_refused(sampler) -> None:
    z0 = torch.zeros(4, 2)
    for steps in (0, -1, True, 2.0, None, torch.tensor(2)):
        with pytest.raises(ValueError, match=r"^steps: expected an int >= 1"):
            sampler(oscillator, z0, steps)
    for bad in (z0.long(), [0.0], None):
        with pytest.raises(TypeError, match=r"^z0: expected a floating-point tensor"):
            sampler(oscillator, bad, 1)
    with pytest.raises(ValueError, match=r"^z0: expected a shape"):
        sampler(oscillator, torch.tensor(0.0), 1)
    for u in (lambda z, r, t: z[..., :1], lambda z, r, t: z[:1], lambda z, r, t: None):
        with pytest.raises(ValueError, match=r"^u: expected the field to return z's shape"):
            sampler(u, z0, 1)
    with pytest.raises(TypeError, match=r"^u: expected the field to return z's dtype"):
        sampler(lambda z, r, t: z.double(), z0, 1)


def test_split_times_are_uniform_between_their_ends() -> None:
    rows = Rows.all(100_000)
    r, t = draw_times(TimeConfig(jvp_share=0.5), seed=0, step=0, rows=rows)
    s = split_times(r, t, seed=0, step=0, rows=rows)
    n = len(t)
    assert s.shape == (n, 1) and s.dtype == r.dtype
    assert (r[:n] <= s).all() and (s <= t).all()
    long = (t - r[:n]) > 0.05
    share = ((s - r[:n]) / (t - r[:n]))[long]
    assert float(share.mean()) == pytest.approx(0.5, abs=5e-3)
    assert float(share.var()) == pytest.approx(1 / 12, rel=0.02)
    lengths = (t - r[:n])[long]
    assert abs(float(torch.corrcoef(torch.stack((share, lengths)))[0, 1])) < 0.02
    # Each seed and step draws others; the same ones draw the same.
    assert torch.equal(s, split_times(r, t, 0, 0, rows))
    for seed, step in ((1, 0), (0, 1)):
        assert not torch.equal(s, split_times(r, t, seed, step, rows))


def test_split_times_without_room_and_without_rows() -> None:
    rows = Rows.all(1000)
    r = torch.rand(1000, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(split_times(r, r, 0, 0, rows), r)
    narrow = r.nextafter(torch.tensor(2.0))
    s = split_times(r, narrow, 0, 0, rows)
    assert ((s == r) | (s == narrow)).all()
    assert split_times(r, r[:0], 0, 0, rows).shape == (0, 1)
    assert split_times(r.double(), r.double(), 0, 0, rows).dtype == torch.float64


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_split_times_do_not_depend_on_micro_batches(parts: int) -> None:
    total, config = 65, TimeConfig(jvp_share=0.5)
    r, t = draw_times(config, 0, 0, Rows.all(total))
    whole = split_times(r, t, 0, 0, Rows.all(total))
    for k in range(parts):
        rows = Rows(range(k, total, parts), total)
        part_r, part_t = draw_times(config, 0, 0, rows)
        assert torch.equal(split_times(part_r, part_t, 0, 0, rows), whole[k::parts])


def test_split_times_of_another_shape_are_refused() -> None:
    rows, r = Rows.all(4), torch.zeros(4, 1)
    for bad in (torch.zeros(4), torch.zeros(3, 1), torch.zeros(4, 2)):
        with pytest.raises(ValueError, match=r"^r: expected the shape"):
            split_times(bad, r, 0, 0, rows)
    for bad in (torch.zeros(4), torch.zeros(5, 1), torch.zeros(4, 2)):
        with pytest.raises(ValueError, match=r"^t: expected a shape"):
            split_times(r, bad, 0, 0, rows)
