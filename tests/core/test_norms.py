"""Derivatives of the forward derivative of every norm, against float64 central differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vmap

from mfk.core.norms import WrittenNorms

SHAPE = (3, 4, 6)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


GAIN, OFFSET = numbers(4, seed=1), numbers(4, seed=2)
MEAN, VARIANCE = numbers(4, seed=3), numbers(4, seed=4).square() + 0.5

WRONG_IN_TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "layer": lambda h: F.layer_norm(h, (6,)),
    "layer of two axes, affine": lambda h: F.layer_norm(h, [4, 6], h[0].cos(), h[1], 1e-2),
    "layer by its other name": lambda h: torch.layer_norm(h, (6,), h[0, 0], None),
    "instance": lambda h: F.instance_norm(h, eps=1e-3),
    "instance, affine": lambda h: F.instance_norm(h, None, None, GAIN * h[0, :, 0], OFFSET),
    "batch in training": lambda h: F.batch_norm(h, None, None, GAIN * h[0, :, 0], OFFSET, True),
}
RIGHT_IN_TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "group": lambda h: F.group_norm(h, 2, GAIN * h[0, :, 0], OFFSET),
    "rms": lambda h: F.rms_norm(h, (6,), h[0, 0]),
    "instance with given statistics": lambda h: F.instance_norm(h, MEAN, VARIANCE, GAIN, OFFSET, False),
    "batch in evaluation": lambda h: F.batch_norm(h, MEAN, VARIANCE, GAIN * h[0, :, 0], OFFSET),
}


def loss(x: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the derivative of norm along a line, which depends on x in many ways."""

    def line(s: Tensor) -> Tensor:
        with WrittenNorms():
            return norm((x + s * x.cos() * numbers(*SHAPE, seed=5)).sin())

    start = torch.zeros((), dtype=x.dtype)
    rate = jvp(line, (start,), (torch.ones_like(start),))[1]
    return (rate.sin() * torch.linspace(-1, 1, rate.numel(), dtype=x.dtype).view_as(rate)).sum()


@pytest.mark.parametrize("name", [*WRONG_IN_TORCH, *RIGHT_IN_TORCH])
def test_the_derivative_of_the_derivative(name: str) -> None:
    norm = {**WRONG_IN_TORCH, **RIGHT_IN_TORCH}[name]
    x, eps = numbers(*SHAPE), 1e-5
    found = grad(loss)(x, norm)
    for place in ((0, 0, 0), (1, 2, 3), (2, 3, 5)):
        change = torch.zeros_like(x)
        change[place] = eps
        want = (loss(x + change, norm) - loss(x - change, norm)) / (2 * eps)
        torch.testing.assert_close(found[place], want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", WRONG_IN_TORCH)
def test_the_value_is_torchs(name: str) -> None:
    norm, x = WRONG_IN_TORCH[name], numbers(*SHAPE)
    with WrittenNorms():
        written, many = norm(x), vmap(norm)(x.expand(2, *SHAPE))
    torch.testing.assert_close(written, norm(x))
    torch.testing.assert_close(many[1], norm(x))


def test_halves_stay_halves_and_are_computed_in_float32() -> None:
    x, gain = numbers(5, 300).bfloat16() + 8, numbers(300, seed=1).float()
    for norm in (lambda: F.layer_norm(x, (300,), gain), lambda: F.layer_norm(x, (300,), gain.bfloat16())):
        with WrittenNorms():
            written = norm()
        assert written.dtype == torch.bfloat16
        torch.testing.assert_close(written, norm(), rtol=2e-2, atol=2e-2)


def test_running_statistics_are_updated_once() -> None:
    found = []
    for written in (True, False):
        net = torch.nn.BatchNorm1d(4).double()
        if written:
            with WrittenNorms():
                net(numbers(*SHAPE))
        else:
            net(numbers(*SHAPE))
        found.append(net.running_mean)
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[0], found[1])


def test_torch_still_refuses_what_does_not_fit() -> None:
    x = numbers(3, 6)
    for norm in (
        lambda: F.layer_norm(x, (5,)),
        lambda: F.layer_norm(x, (6,), numbers(1)),
        lambda: F.layer_norm(x, (6,), numbers(6).float()),
        lambda: F.instance_norm(x[:, :, None]),
        lambda: F.batch_norm(x, None, None, numbers(5), None, True),
    ):
        with WrittenNorms(), pytest.raises((RuntimeError, ValueError)):
            norm()
