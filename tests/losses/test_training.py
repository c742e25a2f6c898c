"""A small network trained with the losses finds the closed form; with the wrong sign it does not."""

from __future__ import annotations

import pytest
import torch
from closed_forms import Gaussians
from torch import Tensor, nn
from torch.func import grad

from mfk import losses, optim, sample, stateless
from mfk.core import Rows, rng, tree

CASE = Gaussians(m0=0.0, s0=1.0, m1=2.0, s1=0.5)
ROWS, MEANFLOW_ROWS = 512, 256


def endpoint_identity(u, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """The paper's formula u = v - (t - r) du/dt kept as it is, on a path that runs the other way."""
    terms = losses.meanflow_terms(u, z, v, r, t)
    return (terms.value - (v - (t - r) * terms.rate).detach()).square().sum(-1)


def train(meanflow, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of one-step samples after training with `meanflow`."""
    model = stateless(
        lambda: nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    )
    params, buffers = model.init(0)
    optimizer = optim.adamw((0.9, 0.99), 1e-8, 0.0)
    schedule = optim.warmup_cosine(2e-2, 50, steps, 1e-5)
    state = optimizer.init(params)

    def field(params):
        return lambda z, r, t: model.apply(params, buffers, torch.cat((z, r, t), -1))

    def loss(params, z, v, r, t):
        n, u = MEANFLOW_ROWS, field(params)
        average = meanflow(u, z[:n], v[:n], r[:n], t[:n])
        return torch.cat((average, losses.flow_matching(u, z[n:], v[n:], r[n:]))).mean()

    gradient = grad(loss)
    for step in range(steps):
        noise = rng.normal(rng.key(0, step, "noise"), Rows.all(ROWS), (2, 1))
        z0, z1 = CASE.m0 + CASE.s0 * noise[:, 0], CASE.m1 + CASE.s1 * noise[:, 1]
        pair = rng.uniform(rng.key(0, step, "times"), Rows.all(ROWS), (2,))
        r, t = pair.amin(1, keepdim=True), pair.amax(1, keepdim=True)
        grads, _ = optim.clip_by_global_norm(gradient(params, (1 - r) * z0 + r * z1, z1 - z0, r, t), 1.0)
        params, state = optimizer.update(grads, state, params, schedule(step))
    assert bool(tree.all_finite(params))
    quantiles = torch.special.ndtri((torch.arange(20_000) + 0.5) / 20_000).unsqueeze(-1)
    z0 = CASE.m0 + CASE.s0 * quantiles
    with torch.no_grad():
        z1 = sample(field(params), z0)
    return float(z1.mean()), float(z1.std())


@pytest.mark.slow
def test_one_step_recovers_mean_and_deviation() -> None:
    mean, deviation = train(losses.meanflow, 4000)
    assert mean == pytest.approx(CASE.m1, rel=0.02)
    assert deviation == pytest.approx(CASE.s1, rel=0.02)


def test_the_end_point_identity_does_not() -> None:
    """Its fixed point has mean 2 + 2 (1/s1 - 1) = 4 and deviation |2 - 1/s1| = 0."""
    mean, deviation = train(endpoint_identity, 1000)
    assert abs(mean - CASE.m1) > 0.5 * CASE.m1 or abs(deviation - CASE.s1) > 0.5 * CASE.s1
