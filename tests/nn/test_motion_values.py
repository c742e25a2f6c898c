"""Each network of motions against torch's own modules or a direct computation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_nets import mlp, numbers, randomised, transformer, unet
from torch import Tensor, nn
from torch.func import functional_call, grad

from mfk.nn import MotionMLP, MotionTransformer, UNet1D


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_documented_parameter_counts() -> None:
    with torch.device("meta"):
        assert count(MotionTransformer(455, 455)) == 6_771_655
        assert count(MotionMLP(455, 455)) == 1_516_999
        # The document's U-Net embeds a diffusion time besides; of such a size, as it seems.
        embedding = nn.Sequential(nn.Linear(128, 512), nn.SiLU(), nn.Linear(512, 128))
        assert count(UNet1D(455, 455)) == 542_879
        assert count(UNet1D(455, 455)) + count(embedding) == 674_591


def positions(frames: int, width: int) -> Tensor:
    def one(t: int, i: int) -> float:
        angle = t / 10_000 ** (i // 2 * 2 / width)
        return math.cos(angle) if i % 2 else math.sin(angle)

    return torch.tensor([[one(t, i) for i in range(width)] for t in range(frames)], dtype=torch.float64)


THEIRS = {
    "attention.qkv.": "self_attn.in_proj_",
    "attention.leave": "self_attn.out_proj",
    "expand": "linear1",
}
THEIRS["contract"] = "linear2"


def torchs_layers(net: MotionTransformer, hidden: Tensor, causal: bool) -> Tensor:
    """torch's own encoder layers with the network's weights."""
    later = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).triu(1)
    for layer in net.layers:
        theirs = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "relu", batch_first=True, dtype=torch.float64)
        state = {}
        for name, p in layer.named_parameters():
            for ours, its in THEIRS.items():
                name = name.replace(ours, its)
            state[name] = p.detach()
        theirs.load_state_dict(state)
        hidden = theirs(hidden, src_mask=later if causal else None)
    return hidden


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("condition", ["none", "added", "added to each", "prepended"])
def test_transformer_is_torchs(causal: bool, condition: str) -> None:
    conditioning = "prepend" if condition == "prepended" else "add"
    net = randomised(transformer(condition=4, causal=causal, conditioning=conditioning))
    x = numbers(3, 6, 5)
    c = None if condition == "none" else numbers(3, 6, 4) if condition == "added to each" else numbers(3, 4)
    p = dict(net.named_parameters())
    hidden = x @ p["enter.weight"].T + p["enter.bias"] + positions(6, 8)
    if c is not None:
        token = c @ p["inject.weight"].T
        if condition == "prepended":
            hidden = torch.cat(((token + p["inject.bias"])[:, None], hidden), 1)
        else:
            hidden = hidden + (token if c.ndim == 3 else token[:, None])
    expected = torchs_layers(net, hidden, causal)[:, -6:] @ p["leave.weight"].T + p["leave.bias"]
    torch.testing.assert_close(net(x, c), expected, rtol=1e-6, atol=1e-6)  # positions are kept in fp32
    net.returns = "last"
    torch.testing.assert_close(net(x, c), expected[:, -1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("conditioning", ["add", "prepend"])
def test_later_frames_change_nothing_earlier(conditioning: str) -> None:
    net = transformer(condition=4, conditioning=conditioning, dropout=0.3)
    x, c, key = numbers(2, 7, 5).float(), numbers(2, 4).float(), torch.tensor([3, 4])
    changed = x.clone()
    changed[:, 4:] += 10
    before, after = net(x, c, key), net(changed, c, key)
    assert torch.equal(before[:, :4], after[:, :4])
    assert ((before - after)[:, 4:].abs().sum(-1) > 0).all()
    slope = grad(lambda x: net(x, c, key)[:, :4].square().sum())(x)
    assert (slope[:, 4:] == 0).all()
    assert (slope[:, :4] != 0).all()


def test_positions_do_not_move_with_the_token() -> None:
    """Nor does the token count: as many frames as max_seq_len fit beside it."""
    net = transformer(condition=4, conditioning="prepend")
    x, c = numbers(2, 7, 5).float(), numbers(2, 4).float()
    assert net(x, c).shape == (2, 7, 3)
    with pytest.raises(ValueError, match=r"^max_seq_len: expected at most 7 frames, got 8"):
        net(numbers(2, 8, 5).float())


def direct_mlp(net: MotionMLP, h: Tensor) -> Tensor:
    p = dict(net.named_parameters())
    for i in range(2):
        h = (h @ p[f"hidden.{i}.weight"].T + p[f"hidden.{i}.bias"]).clamp(min=0)
    return h @ p["leave.weight"].T + p["leave.bias"]


def test_mlp_against_a_direct_computation() -> None:
    x, c, of_frames = numbers(2, 4, 5), numbers(2, 3, seed=1), numbers(2, 4, 3, seed=2)
    nothing, spread = torch.zeros(2, 3).double(), c[:, None].expand(2, 4, 3)
    side_by_side = torch.stack([torch.cat(list(row)) for row in x])
    cases: list[tuple[dict[str, Any], Tensor, Tensor | None, Tensor, Tensor]] = [
        ({"frames": 4}, x, c, side_by_side, c),
        ({"frames": 4}, x, None, side_by_side, nothing),
        ({}, x[:, :1], c, x[:, 0], c),
        ({}, x[:, 0], c, x[:, 0], c),
        ({"flatten_sequence": False}, x, c, x[:, 3], c),
        ({"flatten_sequence": False, "pooling": "mean"}, x, None, x.sum(1) / 4, nothing),
        ({"flatten_sequence": False, "pooling": "none"}, x, c, x, spread),
        ({"flatten_sequence": False, "pooling": "none"}, x, of_frames, x, of_frames),
        ({"flatten_sequence": False, "pooling": "none"}, x[:, 0], None, x[:, :1], nothing[:, None]),
    ]
    for options, frames, condition, *expected in cases:
        net = randomised(mlp(condition=3, **options))
        torch.testing.assert_close(net(frames, condition), direct_mlp(net, torch.cat(expected, -1)))


def test_mlp_refusals() -> None:
    with pytest.raises(ValueError, match=r"^x: expected 4 frames, as the network was built with frames=4"):
        mlp(frames=4)(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"^x: expected the shape \[B, T, 5\]"):
        mlp(frames=4)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"^condition: expected the shape \(2, 4\), got \(2, 3, 4\)"):
        mlp(condition=4, flatten_sequence=False)(torch.zeros(2, 3, 5), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"^pooling: expected 'last' with flatten_sequence, got 'mean'"):
        mlp(pooling="mean")
    with pytest.raises(ValueError, match=r"^frames: expected 1 without flatten_sequence, got 2"):
        mlp(frames=2, flatten_sequence=False)
    with pytest.raises(ValueError, match=r"^widths\[1\]: expected an int >= 1, got 0"):
        mlp(widths=(3, 0))


def test_unet_against_a_direct_computation() -> None:
    """Two levels of one block each, from the description, with torch's functions and attention."""
    net = unet(condition=4, returns="sequence")
    p = dict(randomised(net).named_parameters())
    x, c = numbers(2, 5, 5), numbers(2, 4)
    F = nn.functional

    def conv(name: str, h: Tensor, **options: Any) -> Tensor:
        return F.conv1d(h, p[name + ".weight"], p[name + ".bias"], **options)

    def norm(name: str, h: Tensor) -> Tensor:
        grouped = h.reshape(2, 2, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled.reshape(h.shape) * p[name + ".weight"][:, None] + p[name + ".bias"][:, None]

    def block(name: str, h: Tensor, attends: bool) -> Tensor:
        y = norm(f"{name}.norm1", conv(f"{name}.conv1", h, padding=1))
        y = F.silu(y + (c @ p[f"{name}.inject.weight"].T)[..., None])
        y = F.silu(norm(f"{name}.norm2", conv(f"{name}.conv2", y, padding=1)))
        h = (conv(f"{name}.skip", h) if f"{name}.skip.weight" in p else h) + y
        if attends:
            theirs = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
            names = {"in_proj_": "qkv.", "out_proj.": "leave."}
            theirs.load_state_dict(
                {a + w: p[f"{name}.attention.{b}{w}"] for a, b in names.items() for w in ("weight", "bias")}
            )
            y = norm(f"{name}.attention_norm", h).mT
            h = h + theirs(y, y, y)[0].mT
        return h

    first = block("down.0.0", conv("enter", x.mT, padding=1), False)
    h = conv("halve.0", torch.cat((first[..., :1], first), -1), stride=2)
    second = block("down.1.0", h, True)
    h = block("middle.1", block("middle.0", second, True), False)
    h = block("up.1.0", h + conv("skips.1", second), True)
    h = F.conv_transpose1d(h, p["restore.0.weight"], p["restore.0.bias"], stride=2)[..., 1:]
    h = block("up.0.0", h + conv("skips.0", first), False)
    expected = conv("project", h).mT @ p["leave.weight"].T + p["leave.bias"]
    torch.testing.assert_close(net(x, c), expected, rtol=1e-10, atol=1e-11)
    net.returns = "last"
    torch.testing.assert_close(net(x, c), expected[:, -1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("frames", [1, 2, 7, 32])
def test_unet_of_any_length(frames: int) -> None:
    x = numbers(2, frames, 5).float()
    for widths in ((4,), (4, 8), (4, 8, 12, 12)):
        attention = range(1, len(widths))
        assert unet(widths=widths, attention=attention)(x).shape == (2, 3)
        assert unet(widths=widths, attention=attention, returns="sequence")(x).shape == (2, frames, 3)


def test_unet_condition_enters_every_level() -> None:
    net = unet(condition=4)
    x, c = numbers(2, 6, 5).float(), numbers(2, 4).float()
    names = {name for name, _ in net.named_parameters() if "inject" in name}
    assert names == {f"{part}.inject.weight" for part in
                     ("down.0.0", "down.1.0", "middle.0", "middle.1", "up.0.0", "up.1.0")}  # fmt: skip
    params = {name: p.detach() for name, p in net.named_parameters()}
    slopes = grad(lambda p: functional_call(net, p, (x, c)).square().sum())(params)
    assert all(slopes[name].abs().sum() > 0 for name in names)


def test_unet_refusals() -> None:
    with pytest.raises(ValueError, match=r"^widths\[1\]: expected a multiple of groups, 2, got 7"):
        unet(widths=(4, 7))
    with pytest.raises(ValueError, match=r"^widths: expected at least one level"):
        unet(widths=())
    with pytest.raises(ValueError, match=r"^attention: expected levels from 0 to 1, got 2"):
        unet(attention=(2,))
