"""Quantisation and its moving averages against slow loops, resets, and k-means against scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_nets import numbers
from torch import Tensor
from torch.func import grad, jvp, vmap

import mfk
from mfk.nn import CodebookState, init_codebook, kmeans_codebook, look_up, quantize, reset_dead


def codebook(K: int = 5, D: int = 3, seed: int = 7, dtype: torch.dtype = torch.float64) -> CodebookState:
    """With counts that differ, and sums that agree with them."""
    return init_codebook(
        numbers(K, D, seed=seed, dtype=dtype), numbers(K, seed=seed + 1, dtype=dtype).abs() + 0.5
    )


def slow_step(
    state: list[list[Any]], rows: list[list[float]], decay: float
) -> tuple[list[list[Any]], list[int]]:
    """The recursion as the paper writes it, in Python numbers."""
    codes, count, total = state
    chosen = [min(range(len(codes)), key=lambda k: math.dist(row, codes[k])) for row in rows]
    new: list[list[Any]] = [[], [], []]
    for k, code in enumerate(codes):
        mine = [row for row, c in zip(rows, chosen, strict=True) if c == k]
        n = decay * count[k] + (1 - decay) * len(mine)
        m = [decay * t + (1 - decay) * sum(row[d] for row in mine) for d, t in enumerate(total[k])]
        new[0].append([x / n for x in m] if mine else code)
        new[1].append(n)
        new[2].append(m)
    return new, chosen


def test_rows_that_are_not_finite_move_no_code() -> None:
    g = torch.Generator().manual_seed(0)
    book = init_codebook(torch.randn(6, 3, generator=g, dtype=torch.float64))
    z = book.codes.repeat(2, 1) + 0.01
    spoilt = torch.cat((z, torch.tensor([[math.nan, 0, 0], [0, math.inf, 0]], dtype=z.dtype)))
    quantized, _, after, _ = quantize(book, spoilt)
    assert not bool(quantized[-2:].isfinite().all(-1).any()) and bool(quantized[:-2].isfinite().all())
    for ours, theirs in zip(after, quantize(book, z)[2], strict=True):
        assert torch.equal(ours, theirs)


def test_fifty_steps_are_the_textbook_recursion() -> None:
    state = codebook()
    slow = [x.tolist() for x in state]
    for step in range(50):
        # Rows of the first steps stay near one code, so that others go without.
        z = numbers(7, 3, seed=step) * (0.1 if step < 5 else 1.5)
        _, indices, state, _ = quantize(state, z, decay=0.9)
        slow, chosen = slow_step(slow, z.tolist(), 0.9)
        assert indices.tolist() == chosen
        for found, expected in zip(state, slow, strict=True):
            torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_code_without_rows_keeps_every_bit_for_ever() -> None:
    start = state = init_codebook(torch.tensor([[0.1, 0.3], [50.7, 50.3]]), 3.0)
    for step in range(6_000):
        state = quantize(state, numbers(4, 2, seed=step % 5, dtype=torch.float32), decay=0.98)[2]
    assert torch.equal(state.codes[1], start.codes[1])
    assert state.count[1] < 1e-40 and state.count[0] == pytest.approx(4, rel=1e-4)
    after = quantize(state, torch.tensor([[50.0, 51.0]]))[2]
    torch.testing.assert_close(after.codes[1], torch.tensor([50.0, 51.0]))


def test_the_value_is_exactly_the_nearest_code_and_evaluation_changes_nothing() -> None:
    state = codebook(dtype=torch.float32)
    z = numbers(2, 4, 3, dtype=torch.float32)
    quantized, indices, same, metrics = quantize(state, z, train=False)
    assert indices.shape == (2, 4) and indices.dtype == torch.int64
    assert torch.equal(indices, torch.cdist(z, state.codes).argmin(-1))
    assert torch.equal(quantized, state.codes[indices]) and torch.equal(quantized, look_up(state, indices))
    assert all(map(torch.equal, same, state))
    shares = torch.bincount(indices.flatten(), minlength=5) / 8
    entropy = -sum(p * math.log(p) for p in shares.tolist() if p)
    assert metrics["perplexity"].item() == pytest.approx(math.exp(entropy))
    assert metrics["used"].item() == pytest.approx((shares > 0).double().mean().item())
    assert metrics["distance"].item() == pytest.approx((z - quantized).square().mean().item())


def test_one_row_without_an_axis() -> None:
    state = codebook()
    quantized, index, new, _ = quantize(state, state.codes[3])
    assert index == 3 and index.shape == () and torch.equal(quantized, state.codes[3])
    torch.testing.assert_close(new, quantize(state, state.codes[3:4])[2])


def test_rows_far_from_zero_find_their_codes() -> None:
    state = init_codebook(numbers(16, 4, dtype=torch.float32) + 1e4)
    assert quantize(state, state.codes)[1].tolist() == list(range(16))


def test_the_gradient_goes_straight_through_and_none_reaches_the_codes() -> None:
    state = CodebookState(*(x.requires_grad_() for x in codebook()))
    z, weight = numbers(6, 3).requires_grad_(), numbers(6, 3, seed=1)
    quantized, _, new, metrics = quantize(state, z)
    assert not any(x.requires_grad for x in (*new, *metrics.values()))
    (weight * quantized.square()).sum().backward()
    torch.testing.assert_close(z.grad, 2 * weight * quantized.detach())
    assert all(x.grad is None for x in state)
    plain = codebook()
    tangent = jvp(lambda z: quantize(plain, z)[0], (z.detach(),), (weight,))[1]
    torch.testing.assert_close(tangent, weight)

    def loss(state: CodebookState) -> Tensor:
        return quantize(state, z.detach())[0].square().sum()

    assert all(not g.any() for g in grad(loss)(plain))


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `mfk.jit` traced stands for the compiled code."""
    monkeypatch.setattr(
        "mfk.core.compiler.jitted.compile_graph", lambda graph, fakes: lambda inputs: graph(*inputs)
    )


def test_members_and_traced_programs_agree_with_plain_calls(graph: None) -> None:
    states = [codebook(seed=s) for s in (1, 2, 3)]
    stacked = CodebookState(*(torch.stack(x) for x in zip(*states, strict=True)))
    z, candidates = numbers(3, 8, 3), numbers(3, 5, 3, seed=4)

    def both(state: CodebookState, z: Tensor, candidates: Tensor) -> Any:
        quantized, indices, new, metrics = quantize(state, z, decay=0.5)
        return quantized, indices, metrics, reset_dead(new, candidates, threshold=60, max_fraction=0.5)

    found = vmap(both)(stacked, z, candidates)
    compiled = mfk.jit(both)
    for i, state in enumerate(states):
        expected = both(state, z[i], candidates[i])
        mine = mfk.core.tree.map(lambda x, i=i: x[i], found)
        for other in (mine, compiled(state, z[i], candidates[i])):
            torch.testing.assert_close(other, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_compiled_code_agrees_with_plain_calls() -> None:
    def step(state: CodebookState, z: Tensor) -> Any:
        quantized, indices, new, metrics = quantize(state, z)
        return indices, quantized, metrics, reset_dead(new, z[:5], threshold=60, max_fraction=0.5)

    state, z = codebook(), numbers(8, 3)
    torch.testing.assert_close(mfk.jit(step)(state, z), step(state, z), rtol=1e-12, atol=1e-13)


def test_autocast_does_not_round_the_averages() -> None:
    state, z = codebook(dtype=torch.float32), numbers(64, 3, dtype=torch.float32)
    expected = quantize(state, z.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = quantize(state, z.bfloat16())
    for a, b in zip(found[2], expected[2], strict=True):
        assert torch.equal(a, b)
    assert found[0].dtype == torch.float32


def test_a_reset_is_consistent_and_stays_put_without_rows() -> None:
    count = torch.tensor([4.0, 0.01, 3.0, 0.2, 0.02, 2.77], dtype=torch.float64)
    state = init_codebook(numbers(6, 3), count)
    candidates = numbers(6, 3, seed=9) + 100
    # The uniform share is 10 / 6; below a fifth of it are codes 1, 4 and 3, and two may go.
    after, replaced = reset_dead(state, candidates, threshold=20.0, max_fraction=0.34)
    assert replaced.tolist() == [False, True, False, False, True, False]
    for found, before in zip(after, state, strict=True):
        assert torch.equal(found[~replaced], before[~replaced])
    assert torch.equal(after.codes[replaced], candidates[replaced])
    torch.testing.assert_close(after.count[replaced], torch.full((2,), 10 / 6, dtype=torch.float64))
    torch.testing.assert_close(after.total, after.count.unsqueeze(-1) * after.codes, rtol=1e-15, atol=0)
    elsewhere = quantize(after, numbers(5, 3))[2]
    assert torch.equal(elsewhere.codes[replaced], candidates[replaced])
    # A row exactly on the new code does not move it either.
    onto = quantize(after, candidates[replaced])[2]
    torch.testing.assert_close(onto.codes[replaced], candidates[replaced], rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("threshold", "fraction", "expected"),
    [(0, 1.0, []), (10, 1.0, [0, 1]), (10, 0.25, [0]), (10, 0.0, []), (100, 1.0, [0, 1, 2]), (10, 0.49, [0])],
)
def test_threshold_and_cap_decide_how_many_go(threshold: float, fraction: float, expected: list[int]) -> None:
    state = init_codebook(numbers(4, 2), torch.tensor([0.0, 0.0, 0.5, 3.5], dtype=torch.float64))
    _, replaced = reset_dead(state, numbers(4, 2, seed=1), threshold=threshold, max_fraction=fraction)
    assert replaced.nonzero().flatten().tolist() == expected


def test_the_cap_is_not_a_rounding_error_short() -> None:
    count = torch.zeros(100, dtype=torch.float64)
    count[0] = 1
    state = init_codebook(numbers(100, 1), count)
    assert reset_dead(state, numbers(100, 1), threshold=50, max_fraction=0.29)[1].sum() == 29


def blobs(N: int = 600, K: int = 12, D: int = 5) -> Tensor:
    centres = 3 * numbers(K, D, seed=3)
    return centres[torch.arange(N) % K] + numbers(N, D, seed=4)


@pytest.mark.parametrize("K", [1, 2, 8, 12, 30])
def test_kmeans_is_as_good_as_scikit_learns(K: int) -> None:
    from sklearn import cluster

    k_means: Any = cluster.k_means
    z = blobs()
    state = kmeans_codebook(z, K, seed=0)
    reference = k_means(z.numpy(), K, n_init=10, random_state=0)[2]
    inertia = torch.cdist(z, state.codes).square().min(-1).values.sum().item()
    assert inertia == pytest.approx(reference, rel=0.04)
    assert inertia >= reference * (1 - 0.02)


def test_kmeans_codes_are_means_of_their_rows_and_counts_are_shares() -> None:
    z = blobs().float()
    state, scaled = kmeans_codebook(z, 9, seed=1), kmeans_codebook(z, 9, seed=1, batch=50)
    nearest = torch.cdist(z, state.codes).argmin(-1)
    means = torch.stack([z[nearest == k].mean(0) for k in range(9)])
    torch.testing.assert_close(state.codes, means, rtol=1e-5, atol=1e-5)
    assert torch.equal(state.count, torch.bincount(nearest, minlength=9).float())
    torch.testing.assert_close(scaled.count, state.count * 50 / 600)
    assert torch.equal(state.total, state.count.unsqueeze(-1) * state.codes)
    # Since the codes are the means already, the same rows do not move them.
    torch.testing.assert_close(quantize(state, z)[2].codes, state.codes, rtol=1e-5, atol=1e-5)


def test_kmeans_repeats_itself_and_depends_on_the_seed_alone() -> None:
    z = blobs()
    torch.manual_seed(1)
    first = kmeans_codebook(z, 30, seed=2)
    before = torch.random.get_rng_state()
    again = kmeans_codebook(z, 30, seed=2)
    assert all(map(torch.equal, first, again)) and torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first.codes, kmeans_codebook(z, 30, seed=3).codes)


def test_kmeans_of_few_different_rows_leaves_codes_that_count_nothing() -> None:
    z = torch.tensor([[0.0], [1.0], [5.0]]).repeat(4, 1)
    state = kmeans_codebook(z, 5, seed=0)
    assert sorted(set(state.codes.flatten().tolist())) == [0.0, 1.0, 5.0]
    assert sorted(state.count.tolist()) == [0, 0, 4, 4, 4]
    assert quantize(state, z)[3]["distance"] == 0


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "codes that are one row": (lambda: init_codebook(torch.zeros(3)), ValueError, r"codes.*\[K, D\].*\(3,\)"),
    "no codes": (lambda: init_codebook(torch.zeros(0, 3)), ValueError, "codes"),
    "whole codes": (lambda: init_codebook(torch.zeros(2, 3).long()), TypeError, "codes.*int64"),
    "no count": (lambda: init_codebook(torch.zeros(2, 3), 0.0), ValueError, "count.*> 0"),
    "a negative count": (
        lambda: init_codebook(torch.zeros(2, 1), torch.tensor([1.0, -1.0])),
        ValueError,
        "count.*>= 0",
    ),
    "codes alone": (lambda: quantize(numbers(4, 3), numbers(4, 3)), TypeError, "codebook.*CodebookState"),  # type: ignore[arg-type]
    "counts of others": (lambda: init_codebook(torch.zeros(2, 3), torch.ones(3)), ValueError, "count"),
    "rows of another width": (lambda: quantize(codebook(), numbers(4, 2)), ValueError, r"z.*\(4, 3\)"),
    "rows of another dtype": (lambda: quantize(codebook(), numbers(4, 3).float()), TypeError, "z.*float64"),
    "no rows": (lambda: quantize(codebook(), numbers(0, 3)), ValueError, "z.*at least one row"),
    "a number for rows": (lambda: quantize(codebook(), 3.0), TypeError, "z: "),  # type: ignore[arg-type]
    "all decayed": (lambda: quantize(codebook(), numbers(4, 3), decay=1.0), ValueError, "decay"),
    "other candidates": (
        lambda: reset_dead(codebook(), numbers(4, 3), threshold=1, max_fraction=1),
        ValueError,
        r"candidates.*\(5, 3\).*\(4, 3\)",
    ),
    "a threshold above all": (
        lambda: reset_dead(codebook(), numbers(5, 3), threshold=101, max_fraction=1),
        ValueError,
        "threshold.*100",
    ),
    "more than all codes": (
        lambda: reset_dead(codebook(), numbers(5, 3), threshold=1, max_fraction=1.5),
        ValueError,
        "max_fraction",
    ),
    "shares for indices": (lambda: look_up(codebook(), numbers(5)), TypeError, "indices.*int64"),
    "more codes than rows": (lambda: kmeans_codebook(numbers(3, 2), 4, seed=0), ValueError, "z.*4, got 3"),
    "a row that is not finite": (
        lambda: kmeans_codebook(torch.tensor([[1.0], [math.nan], [2.0]]), 2, seed=0),
        ValueError,
        "z: expected finite rows, got 1 of 3",
    ),
    "no clusters": (lambda: kmeans_codebook(numbers(3, 2), 0, seed=0), ValueError, "codes"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(case: str) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
