"""The gradient that flows through the derivative of a field, against float64 central differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

import mfk
from mfk.core.types import Field, Params
from mfk.kinematics import forward, panda
from mfk.nn import KinematicNet

Norm = Callable[[int], nn.Module]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Normed(nn.Module):
    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), norm(8), nn.SiLU(), nn.Linear(8, 2))

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat((z, r, t), -1))


def close(found: Params, params: Params, loss: Callable[[Params], Tensor]) -> None:
    """`found` is the gradient of `loss`: along one direction for each leaf."""
    eps = 1e-5
    for i, (name, x) in enumerate(params.items()):
        v = numbers(*x.shape, seed=100 + i)
        ahead, behind = (loss({**params, name: x + s * eps * v}) for s in (1, -1))
        want = (ahead - behind) / (2 * eps)
        torch.testing.assert_close((found[name] * v).sum(), want, rtol=1e-5, atol=1e-8)


def terminal(field: Callable[[Params], Field], at: Params, *rows: Tensor) -> Callable[[Params], Tensor]:
    """terminal_velocity, summed, its right side held at the parameters `at`."""
    z, r, t = rows
    target = field(at)(z + (t - r) * field(at)(z, r, t), t, t)

    def loss(params: Params) -> Tensor:
        value, rate = jvp(lambda t: field(params)(z, r, t), (t,), (torch.ones_like(t),))[:2]
        return (value + (t - r) * rate - target).square().sum()

    return loss


NORMS: dict[str, Norm] = {
    "layer": nn.LayerNorm,
    "layer without gain": lambda width: nn.LayerNorm(width, elementwise_affine=False),
    "group": lambda width: nn.GroupNorm(2, width),
    "rms": nn.RMSNorm,
    "instance": lambda width: nn.Sequential(
        nn.Unflatten(-1, (2, -1)), nn.InstanceNorm1d(2, affine=True), nn.Flatten(-2)
    ),
}


def rows() -> tuple[Tensor, Tensor, Tensor]:
    return numbers(3, 2, seed=1), torch.full((3, 1), 0.2).double(), torch.full((3, 1), 0.9).double()


def normed(norm: Norm) -> tuple[Callable[[Params], Field], Params]:
    model = mfk.stateless(lambda: Normed(norm).double())
    params, buffers = model.init(0)
    params = {name: x + 0.3 * numbers(*x.shape, seed=i) for i, (name, x) in enumerate(params.items())}
    return lambda params: lambda z, r, t: model.apply(params, buffers, z, r, t), params


@pytest.mark.parametrize("name", NORMS)
def test_a_field_with_a_norm(name: str) -> None:
    field, params = normed(NORMS[name])
    z, r, t = rows()

    def loss(params: Params) -> Tensor:
        return mfk.losses.terminal_velocity(field(params), z, r, t).sum()

    want = terminal(field, params, z, r, t)
    torch.testing.assert_close(loss(params), want(params))
    close(grad(loss)(params), params, want)


def test_a_field_with_a_norm_compiled_and_under_vmap() -> None:
    field, params = normed(nn.LayerNorm)
    z, r, t = rows()

    def loss(params: Params) -> Tensor:
        return vmap(lambda z, r, t: mfk.losses.terminal_velocity(field(params), z, r, t))(z, r, t).sum()

    want = terminal(field, params, z, r, t)
    close(grad(loss)(params), params, want)
    close(mfk.jit(grad(loss))(params), params, want)


def test_the_residual_of_a_field_with_a_norm() -> None:
    field, params = normed(nn.LayerNorm)
    z, r, t = rows()

    def loss(params: Params) -> Tensor:
        return mfk.losses.meanflow_residual(field(params), z, z.sin(), r, t).sum()

    close(grad(loss)(params), params, loss)


def test_the_kinematic_network() -> None:
    chain = panda()
    model = mfk.stateless(lambda: KinematicNet(chain, width=8, blocks=1).double())
    params, buffers = model.init(0)
    params = {name: x + 0.2 * numbers(*x.shape, seed=i) for i, (name, x) in enumerate(params.items())}
    middle = (chain.lower + chain.upper) / 2
    q = middle + 0.2 * numbers(3, chain.dof, seed=1)
    pose = forward(chain, middle + 0.2 * numbers(3, chain.dof, seed=2))

    def field(params: Params) -> Field:
        return lambda z, r, t: model.apply(params, buffers, z, pose, r, t)

    def loss(params: Params) -> Tensor:
        return mfk.losses.terminal_velocity(field(params), q, *rows()[1:]).sum()

    close(grad(loss)(params), params, terminal(field, params, q, *rows()[1:]))
