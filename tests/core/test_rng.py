"""mfk.core.rng: keys are pinned, draws are those of the global batch, distributions are what they say."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfk.core import rng
from mfk.core.types import Rows


@pytest.mark.parametrize(
    ("entries", "digest"),
    # By coreutils' `b2sum -l 128`, of each entry's byte length (8 bytes, little endian) and "type:text".
    [
        ((0,), "ebd7a347af0b76d2884e42c8a8328d95"),
        ((7, 12, "noise"), "4b4720890638a239cc959b4f6e26fcf2"),
        ((-3, "é"), "738fa3b2b959f0ed94e9375db1f23654"),
    ],
)
def test_a_key_is_this_hash_on_every_machine(
    entries: tuple[int, *tuple[int | str, ...]], digest: str
) -> None:
    assert rng.key(*entries) == int.from_bytes(bytes.fromhex(digest), "little")


def test_keys_differ_by_path() -> None:
    entries = [0, 1, 12, 123, 2, 3, 23, -1, "0", "1", "12", "", "a", "ab", "b", "int:1", "str:a"]
    paths = [p for n in range(3) for p in itertools.product(entries, repeat=n)]
    keys = {rng.key(seed, *path) for seed in (0, 1, 2**64, -1) for path in paths}
    assert len(keys) == 4 * len(paths)
    assert all(0 <= key < 2**128 for key in keys)
    assert max(key.bit_length() for key in keys) > 120


@pytest.mark.parametrize("entry", [1.0, True, None, (1,), torch.tensor(1)])
def test_a_key_takes_ints_and_strings_only(entry: Any) -> None:
    with pytest.raises(TypeError, match="key: expected ints and strings, got"):
        rng.key(0, entry)


DRAWS = {
    "normal": rng.normal,
    "uniform": rng.uniform,
    "beta": lambda key, rows, *rest, **more: rng.beta(key, rows, 2.0, 0.5, *rest, **more),
}


@pytest.mark.parametrize("name", DRAWS)
@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(-2, 42), st.integers(-3, 42), st.sampled_from([1, 2, 3, 7, -1, -3]))
def test_any_rows_are_rows_of_the_global_batch(
    name: str, total: int, start: int, stop: int, step: int
) -> None:
    index, key = range(start, stop, step), rng.key(1, name)
    whole = DRAWS[name](key, Rows.all(total), (3,))
    assert whole.shape == (total, 3)
    if all(0 <= i < total for i in index):
        part = DRAWS[name](key, Rows(index, total), (3,))
        assert torch.equal(part, whole[list(index)])
        assert part.is_contiguous()
    else:
        with pytest.raises(ValueError, match=rf"rows: expected positions in \[0, {total}\)"):
            DRAWS[name](key, Rows(index, total), (3,))


@pytest.mark.parametrize("index", [range(0, -1), range(3, -2), range(-3, -5), range(5, 2), range(2, 5, -1)])
def test_no_rows_are_no_rows(index: range) -> None:
    assert rng.normal(rng.key(0), Rows(index, 8), (2,)).shape == (0, 2)


@pytest.mark.parametrize("name", DRAWS)
def test_ranks_and_micro_batches_see_the_same_numbers(name: str) -> None:
    key, total = rng.key(3, 14, "noise"), 24
    whole = DRAWS[name](key, Rows.all(total))
    interleaved = torch.empty(total)
    for rank in range(4):
        interleaved[rank::4] = DRAWS[name](key, Rows(range(rank, total, 4), total))
    micro = torch.cat([DRAWS[name](key, Rows(range(i, i + 6), total)) for i in range(0, total, 6)])
    assert torch.equal(interleaved, whole) and torch.equal(micro, whole)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_repeat_differ_by_key_and_leave_torch_alone(name: str) -> None:
    rows, before = Rows.all(50), torch.get_rng_state()
    first, again = (DRAWS[name](rng.key(0, 1), rows) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, DRAWS[name](rng.key(0, 2), rows))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "mean", "variance", "fourth"),  # fourth: E[(x - mean)^4]
    [("normal", 0.0, 1.0, 3.0), ("uniform", 0.5, 1 / 12, 1 / 80), ("beta", 0.8, 0.16 / 3.5, None)],
)
def test_moments(name: str, mean: float, variance: float, fourth: float | None, dtype: torch.dtype) -> None:
    n = 200_000
    x = DRAWS[name](rng.key(5, name), Rows.all(n), dtype=dtype)
    assert x.dtype == dtype and x.shape == (n,)
    x = x.double()
    # Five standard errors; a Beta's fourth moment is below its bound, the variance times 1.
    assert abs(float(x.mean()) - mean) < 5 * math.sqrt(variance / n)
    spread = math.sqrt(((fourth or variance) - variance**2) / n)
    assert abs(float(x.var()) - variance) < 5 * spread
    if name != "normal":
        assert 0 <= float(x.min()) and float(x.max()) <= 1
    # Neighbouring rows, and streams of neighbouring steps, are not correlated.
    other = DRAWS[name](rng.key(6, name), Rows.all(n), dtype=dtype).double()
    for a, b in ((x[:-1], x[1:]), (x, other)):
        assert abs(float(((a - mean) * (b - mean)).mean())) < 5 * variance / math.sqrt(n)


def test_uniform_stays_below_one() -> None:
    assert float(rng.uniform(rng.key(0), Rows.all(1_000_000)).max()) < 1


def test_dtypes_that_numpy_cannot_draw_are_refused() -> None:
    for draw in DRAWS.values():
        with pytest.raises(TypeError, match=r"dtype: expected torch\.float32 or .*, got torch\.bfloat16"):
            draw(rng.key(0), Rows.all(2), dtype=torch.bfloat16)
