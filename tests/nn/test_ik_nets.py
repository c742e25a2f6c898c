from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from mfk import kinematics
from mfk.nn import KinematicNet, MeanFlowNet
from mfk.optim import decays_by_name


def inputs(dof: int, rows: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    q = torch.rand(rows, dof, generator=g, dtype=dtype) - 0.5
    pose = torch.randn(rows, 7, generator=g, dtype=dtype)
    pose[:, 3:] /= pose[:, 3:].norm(dim=-1, keepdim=True)
    r = torch.rand(rows, 1, generator=g, dtype=dtype) * 0.5
    return q, pose, r, r + 0.3


@pytest.mark.parametrize(("dof", "count"), [(7, 17_889_543), (6, 17_757_190)])
def test_documented_parameter_counts(dof: int, count: int) -> None:
    with torch.device("meta"):
        net = MeanFlowNet(dof=dof)
    assert sum(p.numel() for p in net.parameters()) == count


def test_documented_network_against_a_direct_computation() -> None:
    """The forward pass written out once more, from the document's description."""
    torch.manual_seed(0)
    net = MeanFlowNet(2, width=8, blocks=1, condition=4, frequencies=3).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    q, pose, r, t = inputs(2, dtype=torch.float64)
    p = dict(net.named_parameters())
    x = torch.cat((q, pose, r, t), 1)
    frequencies = [10.0, 10.0 * 10_000**-0.5, 10.0 / 10_000]
    encoded = torch.stack(
        [fn(x[:, i] * f) for i in range(11) for fn in (torch.sin, torch.cos) for f in frequencies], 1
    )

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ p[name + ".weight"].T + p[name + ".bias"]

    def norm(name: str, value: Tensor) -> Tensor:
        scaled = (value - value.mean(1, keepdim=True)) / (
            value.var(1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        return scaled * p[name + ".weight"] + p[name + ".bias"]

    def silu(value: Tensor) -> Tensor:
        return value / (1 + (-value).exp())

    condition = silu(linear("condition", x))
    h = silu(linear("enter", encoded))
    y = silu(linear("blocks.0.linear1", norm("blocks.0.norm1", h)))
    film = linear("blocks.0.film", condition)
    y = linear("blocks.0.linear2", norm("blocks.0.norm2", y))
    h = h + silu(y * (1 + film[:, :8]) + film[:, 8:])
    torch.testing.assert_close(net(q, pose, r, t), linear("leave", norm("norm", h)), rtol=1e-6, atol=1e-6)


def test_untrained_kinematic_network_is_the_second_order_step() -> None:
    chain = kinematics.panda()
    net = KinematicNet(chain, damping=0.03).double()
    q = 0.5 * (chain.lower + chain.upper) + 0.3 * torch.sin(torch.arange(35.0).double()).reshape(5, 7)
    target = kinematics.forward(chain, q + 0.05 * torch.cos(torch.arange(35.0).double()).reshape(5, 7))
    zero = torch.zeros(5, 1, dtype=torch.float64)
    u = net(q, target, zero, zero + 1)
    # The same step by linear algebra and by a forward-mode derivative of the Jacobian.
    jacobian = kinematics.jacobian(chain, q)
    inverse = jacobian.mT @ torch.linalg.inv(jacobian @ jacobian.mT + 0.03**2 * torch.eye(6).double())
    error = kinematics.pose_error(kinematics.forward(chain, q), target).unsqueeze(-1)
    step = inverse @ error
    rate = jvp(lambda x: kinematics.jacobian(chain, x), (q,), (step.squeeze(-1),))[1]
    trust = 1 / (1 + step.square().sum(1, keepdim=True) ** 2)
    expected = step - 0.5 * trust * inverse @ (rate @ step)
    torch.testing.assert_close(u, expected.squeeze(-1), rtol=1e-9, atol=1e-12)


def test_second_order_beats_first_order() -> None:
    chain = kinematics.panda()
    net = KinematicNet(chain, damping=0.01).double()
    q = 0.5 * (chain.lower + chain.upper)
    target = kinematics.forward(chain, q + 0.08 * torch.cos(torch.arange(7.0).double()))
    zero = torch.zeros(1, dtype=torch.float64)
    second = q + net(q, target, zero, zero + 1)
    first = kinematics.least_squares_step(chain, q, target, 0.01)
    errors = [
        kinematics.pose_error(kinematics.forward(chain, x), target).norm().item() for x in (first, second)
    ]
    assert errors[1] < 0.3 * errors[0]


def test_base_steps_follow_each_other_inside_the_network() -> None:
    chain = kinematics.panda()
    once = KinematicNet(chain).double()
    q = torch.stack(
        (0.5 * (chain.lower + chain.upper), chain.lower + 0.02)
    )  # the second one meets its limits
    target = kinematics.forward(chain, q + 0.3 * torch.cos(torch.arange(7.0).double()))
    zero = torch.zeros(2, 1, dtype=torch.float64)
    expected = q
    for last in (False, False, True):
        expected = expected + once(expected, target, zero, zero + 1)
        if not last:
            expected = kinematics.clip_to_limits(chain, expected)
    thrice = KinematicNet(chain, base_steps=3).double()
    torch.testing.assert_close(q + thrice(q, target, zero, zero + 1), expected, rtol=0, atol=1e-12)
    # Half of the way left, twice the rate.
    u = thrice(q, target, zero + 0.5, zero + 1)
    torch.testing.assert_close(q + 0.5 * u, expected, rtol=0, atol=1e-12)


def nets() -> list[tuple[torch.nn.Module, int]]:
    torch.manual_seed(0)
    found: list[tuple[torch.nn.Module, int]] = [
        (MeanFlowNet(7, width=16, blocks=1, condition=8, frequencies=4), 7)
    ]
    found.append((KinematicNet(kinematics.panda(), width=16, blocks=1), 7))
    found.append((KinematicNet(kinematics.ur10(), width=16, blocks=1), 6))
    found.append((KinematicNet(kinematics.panda(), width=16, blocks=1, base_steps=2), 7))
    for net, _ in found:
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return [(net.double(), dof) for net, dof in found]


@pytest.mark.parametrize(("net", "dof"), nets())
def test_shapes_vmap_jvp_and_grad(net: torch.nn.Module, dof: int) -> None:
    args = inputs(dof, 6, torch.float64)
    out = net(*args)
    assert out.shape == (6, dof)
    torch.testing.assert_close(vmap(net)(*args), out)
    torch.testing.assert_close(net(*(x.reshape(2, 3, -1) for x in args)).reshape(6, dof), out)
    # Forward mode against central differences, all inputs moving at once.
    directions = tuple(torch.cos(torch.arange(x.numel()).double()).reshape(x.shape) for x in args)
    h = 1e-6
    ahead = net(*(x + h * d for x, d in zip(args, directions, strict=True)))
    behind = net(*(x - h * d for x, d in zip(args, directions, strict=True)))
    rate = jvp(lambda *x: net(*x), args, directions)[1]
    torch.testing.assert_close(rate, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)
    params = {name: p.detach() for name, p in net.named_parameters()}
    gradient = grad(lambda p: functional_call(net, p, args).square().sum())(params)
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradient.values())


@pytest.mark.parametrize(("net", "dof"), nets())
@pytest.mark.parametrize("wrong", range(4))
def test_wrong_shapes_name_the_input(net: torch.nn.Module, dof: int, wrong: int) -> None:
    args = list(inputs(dof, 4, torch.float64))
    args[wrong] = args[wrong][:, :-1] if wrong < 2 else args[wrong][:, 0]
    with pytest.raises(ValueError, match=f"^{('q', 'pose', 'r', 't')[wrong]}: expected the shape"):
        net(*args)


def test_biases_and_norms_are_told_by_their_names() -> None:
    """The train loop decays by name; a norm that carried no such word would be decayed."""
    for net, _ in nets():
        gains = {
            f"{name}.weight" for name, layer in net.named_modules() if isinstance(layer, torch.nn.LayerNorm)
        }
        for name, _ in net.named_parameters():
            assert decays_by_name(name) == (name not in gains and not name.endswith(".bias"))


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match=r"^dof: expected"):
        MeanFlowNet(0)
    with pytest.raises(ValueError, match=r"^blocks: expected"):
        KinematicNet(kinematics.panda(), blocks=0)
    with pytest.raises(ValueError, match=r"^damping: expected"):
        KinematicNet(kinematics.panda(), damping=0.0)
