"""What the soak makes of series: slopes, throughput, verdicts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import soak
import soak_series
import torch
from soak_series import Sample


def samples(growth: float = 0.0, more: int = 0, slower: float = 0.0) -> list[Sample]:
    """An hour, every 10 s: MB an hour more, descriptors more at the end, and a share slower."""
    hours = np.linspace(0, 1, 361)
    noise = np.random.default_rng(0).normal(size=361)
    return [
        Sample(
            time=3600 * h,
            cpu=1800 * (h + slower * h**2 / 2),
            rss=500 + growth * h + noise[k],
            private=300.0,
            anonymous=300 + growth * h,
            descriptors=9 + (more if h > 0.7 else 0),
            threads=4,
            children=0,
            zombies=0,
        )
        for k, h in enumerate(hours)
    ]


def records() -> list[dict[str, Any]]:
    """Ten steps a second, logged every two seconds."""
    return [{"time": 2.0 * k, "step": 20 * k, "train/samples_per_second": 1.0} for k in range(1, 1801)]


def results(**kwargs: Any) -> dict[str, Any]:
    control = [(s.time, 0.1) for s in samples()]
    own = soak_series.long_run(samples(**kwargs), records(), 5, control) | {"left": 0, "wrong": 0}
    return {"long": own, "systems": {}}


def fallen(found: dict[str, Any]) -> set[str]:
    return {check.what for check in soak_series.claims(found) if not check.holds}


def test_a_slope_is_found_in_noise_and_outliers() -> None:
    times = np.linspace(0, 7200, 400)
    values = 100 + 30 * times / 3600 + np.random.default_rng(1).normal(size=400)
    values[50:60] += 500
    found = soak_series.trend(times, values)
    assert found.low < 30 < found.high and abs(found.slope - 30) < 0.5 and found.high - found.low < 5
    assert found.first == pytest.approx(107.5, abs=1) and found.last == pytest.approx(152.5, abs=1)
    assert found.ratio == found.last / found.first and found.highest > 600


def test_too_few_samples_are_named() -> None:
    with pytest.raises(ValueError, match="expected 8 samples"):
        soak_series.trend([0.0, 1.0], [1.0, 1.0])


def test_flat_series_hold_and_others_do_not() -> None:
    assert fallen(results()) == set()
    grown = fallen(results(growth=40))
    assert grown == {f"long run: {name}, MB more an hour" for name in ("rss", "anonymous")}
    assert fallen(results(more=1)) == {"long run: descriptors, last quarter - first quarter"}
    assert fallen(results(slower=0.2)) == {"long run: rows a second of CPU, last quarter / first quarter"}


def test_throughput_is_of_both_clocks() -> None:
    _, wall, cpu = soak_series.throughput(samples(), records(), 5)
    np.testing.assert_allclose(wall, 50)
    np.testing.assert_allclose(cpu, 100)
    assert len(wall) <= soak_series.BINS + 1


def test_loops_tell_what_each_training_left() -> None:
    rows = [
        {"minutes": k, "rss": 100.0, "anonymous": 90.0 + 2 * k, "in_use": 50.0 + k, "descriptors": 5 + k,
         "threads": 3, "objects": 1000, "zombies": int(k == 30)}
        for k in range(40)
    ]  # fmt: skip
    found = soak_series.loops(rows)
    assert found["loops"] == 40 and found["zombies"] == 1
    system = {"loops": found, "left": 1, "wrong": 0}
    assert fallen({"long": {}, "systems": {"toy": system}}) == {
        "toy, in one process: MB more",
        "toy, in one process: MB in use more",
        "toy, in one process: descriptors more",
        "zombies, processes and temporary files left, all runs",
    }
    assert soak_series.loops([])["loops"] == 0


def test_what_is_in_use_is_what_was_taken() -> None:
    before = soak_series.in_use()
    held = torch.ones(10_000, 1_000)
    taken = soak_series.in_use() - before
    del held
    assert taken == pytest.approx(40, abs=2) and soak_series.in_use() - before == pytest.approx(0, abs=2)


def test_a_process_is_sampled() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = soak_series.sample(os.getpid(), time.time())
        assert found is not None and found.children >= 1 and found.threads >= 1
        assert found.rss > found.private > found.anonymous / 2 > 1 and found.cpu > 0
        with open(os.devnull):
            more = soak_series.sample(os.getpid(), time.time())
        assert more is not None and more.descriptors == found.descriptors + 1
        child.communicate(b"\n")
    assert soak_series.sample(child.pid, time.time()) is None


def test_records_that_are_missing_or_twice_there_are_counted() -> None:
    made = [{"step": 10 * k, "train/samples_per_second": 1.0} for k in range(1, 5)]
    assert soak.disorder(made, 10, 40) == 0 and soak.disorder(made, 10) == 0
    assert soak.disorder(made + made[-1:], 10, 40) == 1
    assert soak.disorder(made[1:], 10, 50) == 2
