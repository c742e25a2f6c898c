"""Finite scalars against a loop over their grid, residual quantisation against one over its codebooks."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from small_nets import numbers
from torch.func import vmap

import mfk
from mfk.nn import (
    fsq,
    fsq_codes,
    fsq_levels,
    init_codebook,
    kmeans_codebook,
    kmeans_residual,
    quantize,
    residual,
    residual_codes,
    residual_rows,
)

LEVELS = (5, 4, 3)


def bounded(z: float, L: int) -> float:
    """As the paper has it, in units of the numbers."""
    half, offset = (L - 1) * 1.001 / 2, 0.0 if L % 2 else 0.5
    return math.tanh(z + math.atanh(offset / half)) * half - offset


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `mfk.jit` traced stands for the compiled code."""
    monkeypatch.setattr(
        "mfk.core.compiler.jitted.compile_graph", lambda graph, fakes: lambda inputs: graph(*inputs)
    )


def test_every_number_is_the_nearest_of_its_grid() -> None:
    z = 2 * numbers(200, 3)
    quantized, indices, state, metrics = fsq(LEVELS)((), z)
    assert state == ()
    errors = []
    for row, q, index in zip(z.tolist(), quantized.tolist(), indices.tolist(), strict=True):
        expected, place, step = [], 0, 1
        for x, L in zip(row, LEVELS, strict=True):
            grid = range(-(L // 2), L - L // 2)
            b = bounded(x, L)
            nearest = min(grid, key=lambda g, b=b: abs(b - g))
            expected.append(nearest / (L // 2))
            errors.append(((b - nearest) / (L // 2)) ** 2)
            place += step * (nearest + L // 2)
            step *= L
        assert q == expected and index == place
    assert metrics["distance"].item() == pytest.approx(sum(errors) / len(errors))
    shares = torch.bincount(indices, minlength=60) / 200
    entropy = -sum(p * math.log(p) for p in shares.tolist() if p)
    assert metrics["perplexity"].item() == pytest.approx(math.exp(entropy), rel=1e-5)
    assert metrics["used"].item() == pytest.approx((shares > 0).double().mean().item())


def test_the_table_has_every_code_once_and_answers_indices() -> None:
    table = fsq_codes(LEVELS)
    assert table.shape == (60, 3) and len(table.unique(dim=0)) == 60
    z = 1.5 * numbers(5000, 3, dtype=torch.float32)
    quantized, indices, _, _ = fsq(LEVELS)((), z)
    assert torch.equal(table[indices], quantized)
    assert len(indices.unique()) == 60  # the outermost numbers included
    assert torch.equal(fsq(LEVELS)((), torch.zeros(1, 3))[0], torch.zeros(1, 3))


def test_the_gradient_of_finite_scalars_is_the_bounding_s() -> None:
    z = numbers(6, 3).requires_grad_()
    fsq(LEVELS)((), z)[0].sum().backward()
    assert z.grad is not None
    for row, slopes in zip(z.tolist(), z.grad.tolist(), strict=True):
        for x, slope, L in zip(row, slopes, LEVELS, strict=True):
            expected = (bounded(x + 1e-6, L) - bounded(x - 1e-6, L)) / 2e-6 / (L // 2)
            assert slope == pytest.approx(expected, rel=1e-6)


def test_a_row_that_is_not_a_number_stays_in_the_table_and_is_not_hidden() -> None:
    quantized, indices, _, metrics = fsq(LEVELS)((), torch.full((2, 3), math.nan))
    assert quantized.isnan().all() and metrics["distance"].isnan()
    assert ((indices >= 0) & (indices < 60)).all()


@pytest.mark.parametrize("tokens", [3, 6, 11, 15, 20, 32, 100, 1000])
def test_levels_for_so_many_tokens_are_the_best_there_are(tokens: int) -> None:
    levels = fsq_levels(tokens)
    products = {math.prod(c) for n in range(1, 7) for c in product(range(3, 9), repeat=n)}
    assert math.prod(levels) == max(p for p in products if p <= tokens)
    assert all(3 <= L <= 8 for L in levels)


def test_levels_by_hand() -> None:
    assert fsq_levels(20) == (5, 4) and fsq_levels(256) == (8, 8, 4) and fsq_levels(48) == (8, 6)


def test_residuals_are_what_the_codebooks_before_left_over() -> None:
    books = tuple(init_codebook(numbers(K, 3, seed=K) / (i + 1)) for i, K in enumerate((4, 3, 5)))
    z = numbers(2, 6, 3)
    quantized, indices, after, metrics = residual(books, z, decay=0.8)
    left, seen = z.clone(), residual_rows(books, z)
    perplexities = []
    for i, book in enumerate(books):
        torch.testing.assert_close(seen[i], left)
        nearest = torch.cdist(left, book.codes).argmin(-1)
        assert torch.equal(indices[..., i], nearest)
        _, _, expected, said = quantize(book, left, decay=0.8)
        perplexities.append(said["perplexity"])
        for a, b in zip(after[i], expected, strict=True):
            torch.testing.assert_close(a, b)
        left = left - book.codes[nearest]
    torch.testing.assert_close(quantized, z - left)
    assert torch.equal(quantized, residual_codes(books, indices))
    torch.testing.assert_close(metrics["distance"], left.square().mean())
    torch.testing.assert_close(metrics["perplexity"], torch.stack(perplexities).mean())
    same = residual(books, z, train=False)[2]
    assert all(torch.equal(a, b) for x, y in zip(same, books, strict=True) for a, b in zip(x, y, strict=True))


def test_the_gradient_of_residuals_goes_straight_through() -> None:
    books = tuple(init_codebook(numbers(4, 3, seed=i)) for i in range(3))
    z, weight = numbers(5, 3).requires_grad_(), numbers(5, 3, seed=9)
    quantized, _, after, _ = residual(books, z)
    (quantized * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)
    assert not any(x.requires_grad for book in after for x in book)


def test_two_small_codebooks_say_more_than_one_of_as_many_codes() -> None:
    z = numbers(500, 4)
    books = kmeans_residual(z, (8, 8), seed=0)
    single = kmeans_codebook(z, 16, seed=0)
    two, one = residual(books, z, train=False)[3]["distance"], quantize(single, z, train=False)[3]["distance"]
    assert two < 0.9 * one
    # The second codebook is the k-means of what is left over: its codes are means of their rows.
    rows = residual_rows(books, z)[1]
    nearest = torch.cdist(rows, books[1].codes).argmin(-1)
    for k in range(8):
        torch.testing.assert_close(books[1].codes[k], rows[nearest == k].mean(0))


def test_members_and_traced_programs_agree_with_plain_calls(graph: None) -> None:
    books = tuple(init_codebook(numbers(4, 3, seed=i)) for i in range(2))
    z = numbers(3, 7, 3)
    for fn in (lambda z: residual(books, z), lambda z: fsq(LEVELS)((), z)):
        call: Any = fn
        expected = [call(z[i]) for i in range(3)]
        found, compiled = vmap(call)(z), mfk.jit(call)
        for i in range(3):
            mine = mfk.core.tree.map(lambda x, i=i: x[i], found)
            torch.testing.assert_close(mine, expected[i])
            torch.testing.assert_close(compiled(z[i]), expected[i])


BOOKS = (init_codebook(numbers(4, 3)),)
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no levels": (lambda: fsq(()), ValueError, "levels"),
    "two numbers": (lambda: fsq((5, 2)), ValueError, r"levels\[1\].*>= 3"),
    "another width": (lambda: fsq(LEVELS)((), numbers(4, 2)), ValueError, r"z.*\(4, 3\)"),
    "no rows": (lambda: fsq(LEVELS)((), numbers(0, 3)), ValueError, "z.*at least one row"),
    "whole rows": (lambda: fsq(LEVELS)((), torch.ones(2, 3).long()), TypeError, "z: "),
    "two tokens": (lambda: fsq_levels(2), ValueError, "tokens.*>= 3"),
    "no codebook": (lambda: residual((), numbers(4, 3)), ValueError, "codebooks"),
    "one codebook by itself": (lambda: residual(BOOKS[0], numbers(4, 3)), ValueError, "codebooks"),  # type: ignore[arg-type]
    "rows of another width": (lambda: residual(BOOKS, numbers(4, 2)), ValueError, "z"),
    "other indices": (lambda: residual_codes(BOOKS, torch.zeros(2, 2).long()), ValueError, "indices"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(case: str) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
