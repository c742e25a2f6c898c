"""Paths followed within joint speeds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mfk import kinematics as kin

PANDA = kin.panda()


def path(count: int = 60) -> tuple[Tensor, Tensor]:
    """Configurations along a smooth motion, and their poses."""
    s = torch.linspace(0, 1, count, dtype=torch.float64).unsqueeze(-1)
    middle = (PANDA.lower + PANDA.upper) / 2
    q = middle + 0.4 * torch.sin(2 * s + torch.arange(7.0).double())
    return q, kin.forward(PANDA, q).contiguous()


@pytest.mark.parametrize("jit", [False, True])
def test_a_slow_path_is_followed(jit: bool) -> None:
    q, poses = path()
    got = kin.track(PANDA, poses, q[0], dt=0.05, jit=jit)
    assert bool(got.reached.all()) and not bool(got.at_velocity_limit.any() or got.at_joint_limit.any())
    assert float(kin.pose_error(kin.forward(PANDA, got.q), poses).abs().max()) <= 1e-6
    assert float((got.q - q).abs().max()) < 0.8  # the same branch, by the smallest motions


def test_speeds_bind_and_are_said_and_the_path_is_caught_up_with() -> None:
    q, poses = path()
    poses = torch.cat((poses, poses[-1:].expand(200, 7)))
    dt = 0.004
    got = kin.track(PANDA, poses, q[0], dt, jit=False)
    before = torch.cat((q[:1], got.q[:-1]))
    speed = (got.q - before).abs() / dt
    assert bool((speed <= PANDA.velocity * (1 + 1e-9)).all())
    binding = speed >= PANDA.velocity * (1 - 1e-9)
    assert torch.equal(got.at_velocity_limit, binding) and bool(binding.any())
    assert not bool(got.reached.all()) and bool(got.reached[-1])
    slower = kin.track(PANDA, poses[:60], q[0], dt, velocity=PANDA.velocity / 2, jit=False)
    assert float((slower.q[1:] - slower.q[:-1]).abs().max()) <= float(PANDA.velocity.max()) / 2 * dt + 1e-12


def test_a_path_out_of_reach_stays_inside_the_limits() -> None:
    q, poses = path(20)
    poses[:, :3] *= 3
    got = kin.track(PANDA, poses, q[0], dt=0.1, jit=False)
    assert not bool(got.reached.any()) and bool(torch.isfinite(got.q).all())
    assert bool(((got.q >= PANDA.lower) & (got.q <= PANDA.upper)).all())
    on_limit = (got.q <= PANDA.lower) | (got.q >= PANDA.upper)
    assert torch.equal(got.at_joint_limit, on_limit)


def test_many_paths_at_once_and_short_ones() -> None:
    q, poses = path(20)
    both = kin.track(PANDA, poses.reshape(2, 10, 7), q[::10], dt=0.05, jit=False)
    assert both.q.shape == (2, 10, 7) and both.reached.shape == (2, 10)
    first = kin.track(PANDA, poses[:10], q[0], dt=0.05, jit=False)
    torch.testing.assert_close(both.q[0], first.q, rtol=0, atol=1e-5)
    none = kin.track(PANDA, poses[:0], q[0], dt=0.05)
    assert none.q.shape == (0, 7) and none.at_joint_limit.dtype == torch.bool
    nobody = kin.track(PANDA, poses.reshape(1, 20, 7)[:0], q[:0], dt=0.05)
    assert nobody.q.shape == (0, 20, 7)
    single = kin.track(PANDA, poses.float(), q[0].float(), dt=0.05, tol=1e-5, jit=False)
    assert single.q.dtype == torch.float32 and bool(single.reached.all())
    free = kin.track(PANDA, poses, q[0], dt=0.05, weights=(1, 1, 1, 0, 0, 0), jit=False)
    assert bool(free.reached.all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": 0.0}, "dt: expected a positive number, got 0.0"),
        ({"dt": math.nan}, "dt"),
        ({"dt": True}, "dt"),
        ({"tol": -1.0}, "tol"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"poses": torch.zeros(7)}, "poses"),
        ({"poses": torch.full((3, 7), math.nan)}, "poses: expected finite"),
        ({"q0": torch.zeros(2, 7)}, r"q0: expected shape \(7,\)"),
        ({"q0": torch.full((7,), 9.0)}, "q0: expected panda_joint1 within"),
        ({"velocity": torch.ones(6)}, r"velocity: expected shape \[7\]"),
        ({"velocity": -torch.ones(7)}, "velocity: expected positive"),
    ],
)
def test_refusals_name_the_argument(change: dict[str, Any], message: str) -> None:
    q, poses = path(3)
    arguments: dict[str, Any] = {"poses": poses, "q0": q[0], "dt": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        kin.track(PANDA, **arguments)


def test_refusals_of_types() -> None:
    q, poses = path(3)
    with pytest.raises(TypeError, match="chain: expected a Chain"):
        kin.track("panda", poses, q[0], 0.1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="velocity: expected a tensor of floats"):
        kin.track(PANDA, poses, q[0], 0.1, velocity=torch.ones(7, dtype=torch.int64))
