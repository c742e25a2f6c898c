"""Networks of impulse responses: sizes, what they compute, and that padding is nothing to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from mfk.core import stateless, tree
from mfk.nn import PooledResponseMLP, ResponseGRU, ResponseMLP, ResponseNet, UniversalResponseNet

SIZES = {"nk": 12, "var": 27, "lss": 36}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def awake(net: nn.Module) -> nn.Module:
    """With numbers where layers start at zero."""
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.add_(0.05 * numbers(i, *p.shape).to(p.dtype))
    return net


def test_the_documents_numbers_of_parameters() -> None:
    assert [count(ResponseMLP(p)) for p in SIZES.values()] == [52_475, 56_315, 58_619]
    assert sum(count(ResponseGRU(p)) for p in SIZES.values()) == 213_897
    assert count(PooledResponseMLP(3, 36)) == 207_275


def test_the_perceptron_is_torchs() -> None:
    net = ResponseMLP(5, shocks=2, horizon=3, widths=(7, 6))
    theirs = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 24))
    theirs.load_state_dict(dict(zip(theirs.state_dict(), net.state_dict().values(), strict=True)))
    x = numbers(0, 4, 5)
    assert torch.equal(net(x), theirs(x).view(4, 2, 4, 3))
    assert ResponseMLP(5, horizon=3)(x).shape == (4, 4, 3)


def test_the_gru_is_torchs() -> None:
    net = ResponseGRU(5, shocks=2, horizon=3, hidden=8)
    cell = nn.GRUCell(6, 8)
    cell.load_state_dict({name: getattr(net, name) for name in cell.state_dict()})
    x = numbers(0, 4, 5)
    h, y, path = net.enter[1](torch.relu(net.enter[0](x))), torch.zeros(4, 6), []
    for _ in range(4):
        h = cell(y, h)
        y = net.leave(h)
        path.append(y)
    theirs = torch.stack(path, 1).view(4, 4, 2, 3).transpose(1, 2)
    assert torch.allclose(net(x), theirs, atol=1e-6)
    one = ResponseGRU(5, horizon=3, hidden=8)
    assert one(x).shape == (4, 4, 3)


def test_the_pooled_perceptron_reads_tokens_and_fills_with_zeros() -> None:
    net = PooledResponseMLP(2, 6, shocks=2, horizon=3, widths=(7,))
    x, world = numbers(0, 4, 5), torch.tensor([0, 1, 1, 0])
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 3:] = False
    filled = torch.cat((torch.where(mask, x, 0.0), torch.zeros(4, 1)), 1)
    hidden = torch.relu(net.layers[0](torch.cat((net.tokens(world), filled), 1)))
    assert torch.equal(net(x, world, mask), net.layers[1](hidden).view(4, 2, 4, 3))
    assert not torch.equal(net(x, world, mask), net(x, 1 - world, mask))


def test_the_residual_net_by_hand() -> None:
    net = awake(ResponseNet(5, 2, 3, width=8, blocks=2))
    x, silu = numbers(0, 4, 5), nn.functional.silu
    h = silu(net.enter(x))  # pyright: ignore[reportCallIssue]
    for block in net.blocks:  # pyright: ignore[reportGeneralTypeIssues]
        h = h + block.leave(silu(block.enter(h)))
    assert torch.allclose(net(x), net.leave(h).view(4, 2, 4, 3))  # pyright: ignore[reportCallIssue]


def universal(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    net = UniversalResponseNet((3, 5), (1, 4), 6, 2, theta_dim=16, width=16, blocks=2, head=8)
    return awake(net).to(dtype)


def test_the_universal_net_by_hand() -> None:
    net = universal(torch.float64)
    x = numbers(0, 5, dtype=torch.float64)
    made = net(x[None], torch.tensor([1]), torch.ones(1, 5, dtype=torch.bool))[0]
    silu = nn.functional.silu
    told = net.enter_world(net.worlds.weight[1]) + sum(x[p] * net.identities[3 + p] for p in range(5))
    h = silu(net.enter(silu(told)))
    steer = net.steer(net.worlds.weight[1]).view(2, 2, 16)
    for i, block in enumerate(net.blocks):
        h = h + block.leave(silu((1 + steer[i, 0]) * block.enter(h) + steer[i, 1]))
    for k in range(4):
        scale, shift = net.tell(net.tokens.weight[1 + k]).chunk(2)
        y = net.leave(silu((1 + scale) * net.head(h) + shift))
        assert torch.allclose(made[k], y.view(7, 2), rtol=1e-12)


def test_parameters_are_told_apart() -> None:
    net = universal()
    x, mask = numbers(0, 1, 5), torch.ones(1, 5, dtype=torch.bool)
    world = torch.tensor([1])
    swapped = x[:, [1, 0, 2, 3, 4]]
    assert float((net(x, world, mask) - net(swapped, world, mask)).detach().abs().max()) > 1e-3


def test_padding_changes_nothing_to_the_last_bit() -> None:
    net = universal()
    buffers = dict(net.named_buffers())
    params = {name: p.detach() for name, p in net.named_parameters()}
    rows = 4
    x, world = numbers(0, rows, 3), torch.zeros(rows, dtype=torch.int64)
    own = torch.ones(rows, 3, dtype=torch.bool)
    wide = torch.cat((x, torch.full((rows, 2), torch.nan)), 1)
    mask = torch.cat((own, torch.zeros(rows, 2, dtype=torch.bool)), 1)

    def value(params: Any, x: Tensor, mask: Tensor, responses: int) -> Tensor:
        y = functional_call(net, {**params, **buffers}, (x, world, mask, responses))
        return y[:, 0].square().sum()

    first = functional_call(net, {**params, **buffers}, (x, world, own, 1))
    padded = functional_call(net, {**params, **buffers}, (wide, world, mask, 4))
    assert torch.equal(first[:, 0], padded[:, 0]) and not padded[:, 1:].any()
    a = grad(value, argnums=(0, 1))(params, x, own, 1)
    b = grad(value, argnums=(0, 1))(params, wide, mask, 4)
    assert all(torch.equal(p, q) for p, q in zip(tree.leaves(a[0]), tree.leaves(b[0]), strict=True))
    assert torch.equal(a[1], b[1][:, :3]) and not b[1][:, 3:].any()


@pytest.mark.parametrize("kind", ["mlp", "gru", "pooled", "net", "universal"])
def test_forward_mode_and_vmap(kind: str) -> None:
    """Against differences in float64; vmap over one row each."""
    make = {
        "mlp": lambda: ResponseMLP(5, 2, 3, widths=(8,)),
        "gru": lambda: ResponseGRU(5, 2, 3, hidden=8),
        "pooled": lambda: PooledResponseMLP(2, 5, 2, 3, widths=(8,)),
        "net": lambda: ResponseNet(5, 2, 3, width=8, blocks=1),
        "universal": lambda: UniversalResponseNet((3, 5), (1, 2), 3, theta_dim=8, width=8, blocks=1, head=8),
    }[kind]
    model = stateless(lambda: awake(make()).double())
    params, buffers = model.init(0)
    rest: tuple[Tensor, ...] = ()
    if kind in ("pooled", "universal"):
        rest = (torch.tensor([1, 1, 0]), torch.tensor([[True] * 5, [True] * 5, [True] * 3 + [False] * 2]))
    x, v = (numbers(seed, 3, 5, dtype=torch.float64) for seed in (1, 2))
    out, tangent = jvp(lambda x: model.apply(params, buffers, x, *rest), (x,), (v,))[:2]
    assert out.shape == (3, 2, 4, 3)
    step = 1e-6
    ahead, behind = (model.apply(params, buffers, x + s * step * v, *rest) for s in (1, -1))
    assert torch.allclose(tangent, (ahead - behind) / (2 * step), atol=1e-7)
    one = vmap(lambda x, *rest: model.apply(params, buffers, x[None], *(r[None] for r in rest))[0])
    assert torch.allclose(one(x, *rest), out, atol=1e-12)


def test_what_networks_refuse() -> None:
    with pytest.raises(ValueError, match=r"x: expected the shape \(4, 5\), got \(4, 6\)"):
        ResponseMLP(5)(numbers(0, 4, 6))
    with pytest.raises(TypeError, match="x: expected the network's dtype"):
        ResponseNet(5, 2)(numbers(0, 4, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="widths"):
        ResponseMLP(5, widths=(0,))
    with pytest.raises(ValueError, match="blocks"):
        ResponseNet(5, 2, blocks=0)
    with pytest.raises(ValueError, match="parameters: expected a number for each of the worlds"):
        UniversalResponseNet((3,), (1, 2))
    net, mask = universal(), torch.ones(2, 3, dtype=torch.bool)
    world = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="responses: expected None or 1 to 4"):
        net(numbers(0, 2, 3), world, mask, 5)
    with pytest.raises(TypeError, match="world"):
        net(numbers(0, 2, 3), world.int(), mask)
    with pytest.raises(TypeError, match="mask"):
        net(numbers(0, 2, 3), world, mask.float())
