"""Operators whose shapes only seem to depend on values, and reads of numbers past the operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp

import mfk
from mfk.core.compiler import TraceError

ROWS, PAIRS = torch.tensor([0, -1]), torch.tensor([0, 2, 1, 1, 0])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def written(a: Tensor, i: Tensor) -> Tensor:
    z = a.clone()
    z[i] = a[i].sin()
    z[[0, 1], 1] = a.sum()
    return z


INDEXED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "by an argument": lambda a, i: a[i],
    "by a list": lambda a, i: a[:, [0, 1]] * a[[1, 2, 2]][:1, :2],
    "by pairs": lambda a, i: a[torch.arange(5), PAIRS],
    "after an axis": lambda a, i: a[None, :, i][..., None],
    "written to": written,
}


@pytest.mark.parametrize("name", INDEXED)
def test_indexing_by_integers(name: str) -> None:
    index, a = INDEXED[name], numbers(5, 3)

    def loss(a: Tensor, i: Tensor) -> Tensor:
        value, rate = jvp(lambda a: index(a, i), (a,), (a.cos(),))[:2]
        return (value.sin() * rate).sum()

    def all_of(a: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        return index(a, i), grad(loss)(a, i)

    torch.testing.assert_close(mfk.jit(all_of)(a, ROWS), all_of(a, ROWS))


def test_a_known_number_of_repetitions() -> None:
    counts = torch.tensor([2, 1, 0])
    f = mfk.jit(lambda a, n: a.repeat_interleave(n, 0, output_size=3))
    a = numbers(3, 2)
    torch.testing.assert_close(f(a, counts), a[[0, 0, 1]])


A = numbers(5, 3)
REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "mask": (lambda a: a[a > 0], r"shape of the result of aten\.index\.Tensor depends on values"),
    "old mask": (lambda a: a[(a > 0).byte()], r"shape of the result of .* depends on values"),
    "least squares": (lambda a: torch.linalg.lstsq(a, a)[0], r"empty depends on the rank"),
    "tensor": (lambda a: torch.tensor([[a[0, 0], 1.0]]), r"list that holds tensors .* torch\.stack"),
    "tensor of constants": (lambda a: a + torch.tensor([torch.tensor(1.0)]), r"list that holds tensors"),
    "format": (lambda a: a * float(f"{a.sum():.3f}"), r"format of a number reads"),
    "numpy": (lambda a: a * a.numpy().sum(), r"\.numpy\(\) reads"),
    "array": (lambda a: a * np.asarray(a).sum(), r"numpy reads"),
    "address": (lambda a: a * a.data_ptr(), r"\.data_ptr\(\) reads"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("inside", ["plain", "grad"])
def test_what_reads_numbers_is_refused_with_its_line(name: str, inside: str) -> None:
    fn, message = REFUSED[name]

    def loss(a: Tensor) -> Tensor:
        return fn(a).sum()

    with pytest.raises(TraceError, match=rf"test_capture\.py:\d+: .*{message}"):
        mfk.jit(fn if inside == "plain" else grad(loss))(A)


def test_what_only_looks_like_a_read_is_fine() -> None:
    f = mfk.jit(lambda a: (f"{a}", a * torch.tensor([[1.0, 2.0, 3.0]]) * float(f"{2.5:.1f}"))[1])
    torch.testing.assert_close(f(A), A * torch.tensor([2.5, 5.0, 7.5]))
