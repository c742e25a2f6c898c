"""The denoiser: what it depends on, any length, derivatives in times and motions, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_nets import numbers, randomised
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from mfk.losses import meanflow
from mfk.nn import StickDenoiser


def small(**options: Any) -> StickDenoiser:
    sizes: dict[str, Any] = {"widths": (8, 16), "times": 8, "condition": 4}
    return StickDenoiser(5, 6, **{**sizes, **options})


def inputs(frames: int = 5) -> dict[str, Tensor]:
    times = torch.tensor([[0.2], [0.5]], dtype=torch.float64)
    rows = {"z": numbers(2, frames, 5), "given": numbers(2, frames, 5, seed=1)}
    return {**rows, "r": times, "t": times + 0.3, "text": numbers(2, 6, seed=2)}


def test_every_input_counts_and_it_is_not_causal() -> None:
    net, given = small().double(), inputs()
    before = net(**given)
    assert before.shape == (2, 5, 5)
    for name in given:
        assert not torch.allclose(net(**{**given, name: given[name] + 0.1}), before), name
    late = given["z"].clone()
    late[:, -1] += 1
    assert not torch.allclose(net(**{**given, "z": late})[:, 0], before[:, 0])
    torch.testing.assert_close(
        net(**{**given, "text": None}), net(**{**given, "text": torch.zeros(2, 6).double()})
    )


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 10])
def test_any_number_of_frames(frames: int) -> None:
    assert small().double()(**inputs(frames)).shape == (2, frames, 5)


def test_parameters() -> None:
    """By hand: convolutions (kernel 3), norms, skips and conditions of eight blocks, the rest one by one."""
    condition = 256

    def block(before: int, after: int) -> int:
        convs = 3 * before * after + 3 * after * after + 2 * after
        return convs + 4 * after + condition * after + (before * after + after if before != after else 0)

    down = block(64, 64) + block(64, 128) + block(128, 256)
    up = block(256, 256) + block(256, 128) + block(128, 64)
    attention = 2 * 256 + 4 * (256 * 256 + 256)
    middle = 2 * block(256, 256) + attention
    halve = 2 * 64 * 64 + 64 + 2 * 128 * 128 + 128
    restore = 2 * 128 * 128 + 128 + 2 * 256 * 256 + 256
    skips = 64 * 128 + 128 + 128 * 256 + 256 + 256 * 256 + 256
    ends = 3 * 40 * 64 + 64 + 64 * 20 + 20 + 20 * 20 + 20
    times_and_text = 2 * (128 * 128 + 128) + 1024 * 128
    total = down + up + middle + halve + restore + skips + ends + times_and_text
    with torch.device("meta"):
        net = StickDenoiser()
    assert sum(p.numel() for p in net.parameters()) == total == 2_958_328


def test_rate_along_the_step_against_finite_differences() -> None:
    net, given, h = randomised(small()), inputs(), 1e-6
    v, one = numbers(2, 5, 5, seed=7), torch.ones(2, 1, dtype=torch.float64)

    def field(z: Tensor, r: Tensor) -> Tensor:
        return net(z, given["given"], r, given["t"], given["text"])

    z, r = given["z"], given["r"]
    rate = jvp(field, (z, r), (v, one))[1]
    expected = (field(z + h * v, r + h) - field(z - h * v, r - h)) / (2 * h)
    torch.testing.assert_close(rate, expected, rtol=1e-5, atol=1e-5)


def test_meanflow_trains_it() -> None:
    """As a field of rows that are whole motions; its gradient reaches every parameter that it should."""
    net, given = small(), {n: x.float() for n, x in inputs().items()}
    params = {n: p.detach() for n, p in net.named_parameters()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        def field(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
            args = (z.unflatten(-1, (5, 5)), given["given"], r, t, given["text"])
            return functional_call(net, params, args).flatten(1)

        z = given["z"].flatten(1)
        return meanflow(field, z, z.flip(0), given["r"], given["t"]).sum()

    gradient = grad(loss)(params)
    assert all(g.isfinite().all() and g.any() for g in gradient.values())


def test_vmap_over_samples() -> None:
    net, given = small().double(), inputs()

    def one(row: dict[str, Tensor]) -> Tensor:
        return net(**{n: x[None] for n, x in row.items()})[0]

    torch.testing.assert_close(vmap(one)(given), net(**given), rtol=1e-10, atol=1e-12)


def test_autocast() -> None:
    net, given = small(), {n: x.float() for n, x in inputs().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(**given)
    torch.testing.assert_close(out.float(), net(**given), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"z": torch.zeros(2, 5, 4)}, ValueError, r"^z: expected the shape \[B, T, 5\]"),
        ({"z": torch.zeros(2, 5, 5).double()}, TypeError, r"^z: expected the network's dtype"),
        ({"given": torch.zeros(2, 4, 5)}, ValueError, r"^given: expected the shape \(2, 5, 5\)"),
        ({"r": torch.zeros(2)}, ValueError, r"^r: expected the shape \(2, 1\)"),
        ({"t": torch.zeros(1, 1)}, ValueError, r"^t: expected the shape \(2, 1\)"),
        ({"t": torch.zeros(2, 1).double()}, TypeError, r"^t: expected z's dtype"),
        ({"text": torch.zeros(2, 9)}, ValueError, r"^text: expected the shape \(2, 6\), got \(2, 9\)"),
    ],
)
def test_errors_name_the_argument(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    right = {n: x.float() for n, x in inputs().items()}
    with pytest.raises(error, match=message):
        small()(**{**right, **wrong})


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"^times: expected a multiple of 4"):
        small(times=6)
    with pytest.raises(ValueError, match=r"^inputs: expected an int >= 1"):
        StickDenoiser(0)
    given = {n: x.float() for n, x in inputs().items()}
    textless = StickDenoiser(5, 0, widths=(8, 16), times=8)
    assert textless(**{**given, "text": None}).shape == (2, 5, 5)
    with pytest.raises(ValueError, match=r"^text: expected None, as the network was built with text=0"):
        textless(**given)
