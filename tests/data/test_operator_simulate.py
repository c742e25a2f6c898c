"""The operators: each part of a step against another way to compute it, and bounds for all parameters."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from mfk.data.operator_simulate import (
    IC_TYPES,
    PARAMETERS,
    STEP,
    initial_fields,
    physical,
    rng_of,
    simulate,
)

N = 16


def cube(**given: float) -> torch.Tensor:
    """A point of the unit cube, the middle where nothing else is given."""
    return torch.tensor([[given.get(name, 0.5) for name in PARAMETERS]])


def test_the_cube_is_mapped_to_the_ranges() -> None:
    low, middle, high = (physical(torch.full((1, 12), x, dtype=torch.float64)) for x in (0.0, 0.5, 1.0))
    assert len(PARAMETERS) == 12 and list(low) == list(PARAMETERS)
    for name, parameter in PARAMETERS.items():
        assert float(low[name]) == pytest.approx(parameter.low)
        assert float(high[name]) == pytest.approx(parameter.high)
        mean = (
            math.sqrt(parameter.low * parameter.high)
            if parameter.geometric
            else (parameter.low + parameter.high) / 2
        )
        assert float(middle[name]) == pytest.approx(mean)


def generator(diffusion: float, advection: float) -> np.ndarray:
    """Of a walk on a ring: d(field)/dt = generator @ field, built entry by entry."""
    matrix = np.zeros((N, N))
    for i in range(N):
        matrix[i, (i + 1) % N] += diffusion
        matrix[i, (i - 1) % N] += diffusion + advection
        matrix[i, i] -= 2 * diffusion + advection
    return matrix


def test_steps_are_those_of_a_loop_in_double_precision() -> None:
    point, realisations, seed, block = cube(noise=1.0, advection=0.8, diffusion_u=0.7), 2, 3, 1
    given = {name: float(value) for name, value in physical(point.double()).items()}
    start, _ = initial_fields(seed, block, 1, N)
    frames = list(simulate(seed, block, point, start, realisations, 10))
    assert [frame.shape for frame in frames] == 2 * [(2, 1, realisations, N, N)]

    def noise(step: int | str) -> np.ndarray:  # [y, realisation, x] in the numbers that are drawn
        drawn = rng_of(seed, step, block, (1, N, realisations * N))[0].double().numpy()
        return (drawn.reshape(N, realisations, N) - 0.5) * math.sqrt(12)

    along = scipy.linalg.expm(STEP * generator(given["diffusion_u"], 0.0))
    across = scipy.linalg.expm(STEP * generator(given["diffusion_u"], given["advection"]))
    spread = scipy.linalg.expm(STEP * generator(given["diffusion_v"], 0.0))
    keep = math.exp(-STEP / given["noise_time"])
    for r in range(realisations):
        u, v = start[0].double().numpy()
        eta = noise("start")[:, r]
        for step in range(10):
            u, v = along @ u @ across.T, spread @ v @ spread.T
            eta = keep * eta + math.sqrt(1 - keep**2) * noise(step)[:, r]
            inside = given["steepness"] * (u - given["threshold"]) - given["inhibition"] * v
            production = given["gain"] / (1 + np.exp(-inside))
            v = v + STEP * given["decay_v"] * (given["drive"] * u - v)
            u = np.abs(u + STEP * given["decay_u"] * (production - u) + STEP * given["noise"] * eta)
            if (step + 1) % 5 == 0:
                found = frames[step // 5][:, 0, r].double().numpy()
                np.testing.assert_allclose(found, np.stack([u, v]), rtol=2e-5, atol=2e-6)


def test_noise_has_its_variance_and_correlation_time() -> None:
    # Quiet kinetics: production hardly depends on u, whose fluctuations follow a linear equation.
    quiet = dict.fromkeys(("noise", "steepness", "diffusion_u", "advection", "inhibition"), 0.0)
    point = cube(noise_time=0.6, gain=1.0, **quiet)
    given = {name: float(value) for name, value in physical(point.double()).items()}
    start = torch.full((1, 2, 32, 32), 1.9)
    frames = [frame[0, 0] for frame in simulate(0, 0, point, start, 16, 200)]
    late = torch.stack(frames[20:]).double()
    # The same equation linearised at the mean, as a Gaussian process on the ring: waves are independent.
    mean, rate = float(late.mean()), given["decay_u"]
    inside = given["steepness"] * (mean - given["threshold"])
    slope = given["steepness"] * given["gain"] * math.exp(-inside) / (1 + math.exp(-inside)) ** 2
    keep, damp = math.exp(-STEP / given["noise_time"]), 1 - STEP * rate * (1 - slope)
    angle = 2 * math.pi * np.arange(32) / 32
    hop = np.exp(STEP * given["diffusion_u"] * (2 * np.cos(angle) - 2))
    gain = damp * hop[:, None] * hop
    variance = (STEP * given["noise"]) ** 2 * (1 + gain * keep) / ((1 - gain * keep) * (1 - gain**2))
    assert float(late.var()) == pytest.approx(variance.mean(), rel=0.02)


@pytest.mark.parametrize("high", [0.0, 1.0])
def test_every_corner_of_the_cube_stays_bounded(high: float) -> None:
    corners = torch.tensor([(*x, high) for x in itertools.product((0.0, 1.0), repeat=11)])
    start = initial_fields(0, 0, len(corners), N)[0]
    given = {name: value[:, None, None, None] for name, value in physical(corners).items()}
    for frame in simulate(0, 0, corners, start, 1, 50):
        u, v = frame
        assert bool(frame.isfinite().all()) and float(frame.min()) >= 0
    # Noise of unit variance is at most sqrt(12) / 2 = 1.73 times a sum that keep bounds.
    keep = torch.exp(-STEP / given["noise_time"])
    largest = given["noise"] * math.sqrt(3) * (1 - keep**2).sqrt() / (1 - keep)
    bound = torch.maximum(
        start[:, :1].amax((-2, -1), keepdim=True), given["gain"] + largest / given["decay_u"]
    )
    assert bool((u <= bound).all())
    assert bool((v <= torch.maximum(start[:, 1:].amax((-2, -1), keepdim=True), given["drive"] * bound)).all())


def test_initial_fields_are_of_their_kinds() -> None:
    fields, kinds = initial_fields(0, 0, 400, 32)
    assert fields.shape == (400, 2, 32, 32) and fields.dtype == torch.float32 and float(fields.min()) > 0
    assert sorted(set(kinds.tolist())) == [0, 1, 2, 3] and len(IC_TYPES) == 4
    again, _ = initial_fields(0, 0, 400, 32)
    assert torch.equal(fields, again)
    for other in (initial_fields(1, 0, 400, 32), initial_fields(0, 1, 400, 32)):
        assert not torch.equal(fields, other[0])
    spectrum = (
        torch.fft.rfft2(fields[:, 0] - fields[:, 0].mean((-2, -1), keepdim=True)).abs().square().flatten(1)
    )
    dominant = spectrum.amax(1) / spectrum.sum(1)
    by_kind = [float(dominant[kinds == k].median()) for k in range(4)]
    assert min(by_kind[2:]) > 2 * max(by_kind[:2])  # stripes and fronts are one wave for the most part
    logs = fields[kinds == 0, 0].log()
    logs = logs - logs.mean((-2, -1), keepdim=True)
    assert float((logs / logs.std((-2, -1), keepdim=True)).pow(3).mean().abs()) < 0.1  # log-normal
