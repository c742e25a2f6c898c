from __future__ import annotations

import pytest
import torch

from mfk.core.sums import in_pairs


def written(n: int, first: int = 0) -> str:
    return in_pairs(map(str, range(first, first + n)), lambda a, b: f"({a}+{b})")


def test_the_tree() -> None:
    assert written(1) == "0"
    assert written(4) == "((0+1)+(2+3))"
    assert written(7) == "(((0+1)+(2+3))+((4+5)+6))"


@pytest.mark.parametrize("run", [1, 2, 4, 8])
@pytest.mark.parametrize("runs", range(1, 14))
def test_runs_of_a_power_of_two_are_branches(runs: int, run: int) -> None:
    cut = [written(run, k * run) for k in range(runs)]
    assert in_pairs(cut, lambda a, b: f"({a}+{b})") == written(run * runs)


def test_few_values_are_held_at_once() -> None:
    alive, most = 0, 0

    def made(k: int) -> set[int]:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return {k}

    def add(a: set[int], b: set[int]) -> set[int]:
        nonlocal alive
        alive -= 1
        return a | b

    assert in_pairs(map(made, range(1024)), add) == set(range(1024))
    assert most == 11


def test_it_is_closer_to_the_sum_than_one_after_another() -> None:
    values = torch.rand(4096, generator=torch.Generator().manual_seed(0))
    right = float(values.double().sum())
    plain = torch.zeros(())
    for x in values:
        plain = plain + x
    assert abs(float(in_pairs(values, torch.add)) - right) < 0.1 * abs(float(plain) - right)


def test_nothing_has_no_sum() -> None:
    with pytest.raises(ValueError, match="values: expected at least one, got none"):
        in_pairs([], torch.add)
