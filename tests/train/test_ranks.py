"""Processes side by side: the numbers of one, whatever happens to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_jobs
import torch
from torch.distributed import TCPStore

from mfk import train
from mfk.core import ranks
from mfk.train import checkpoint

JOBS = Path(__file__).with_name("rank_jobs.py")


def launch(count: int, folder: Path, *words: str, agent: bool = True) -> list[tuple[int, str]]:
    """Exit code and stderr of each process; without an agent rank 0 keeps the store that they share."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    alone = {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(5_000 + os.getpid() % 20_000)}
    started = [
        subprocess.Popen(
            [sys.executable, str(JOBS), str(folder), *words],
            env=os.environ
            | {"OMP_NUM_THREADS": "1"}
            | rank_jobs.variables(store, i, count)
            | ({} if agent else alone),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    ends = [process.communicate(timeout=280)[1] for process in started]
    return [(process.returncode, end) for process, end in zip(started, ends, strict=True)]


def well(ends: list[tuple[int, str]]) -> None:
    assert [code for code, _ in ends] == [0] * len(ends), ends


def values(run: Path, step: int) -> dict[str, Any]:
    saved = checkpoint.find(run, step)
    return {
        name: torch.from_numpy(x.copy()) for name, x in checkpoint._read(saved, list(saved.leaves)).items()
    }


@pytest.fixture(scope="module")
def steps_of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    well(launch(1, folder, "stepped"))
    return folder


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_numbers_of_one_process_after_two_hundred_steps(
    tmp_path: Path, steps_of_one: Path, count: int
) -> None:
    """Clipping, skipped steps, averages, a carried state that the loss sees, 13 rows: none divides evenly."""
    well(launch(count, tmp_path, "stepped"))

    def made(name: str, alone: bool = False) -> Any:
        return torch.load(steps_of_one / f"{name}1.pt" if alone else tmp_path / f"{name}{count}.pt")

    for name in ("drawn", "parts", "shared"):
        one, many = made(name, alone=True), made(name)
        for x, y in zip(one["state"], many["state"], strict=True):
            assert torch.allclose(x, y, rtol=0, atol=1e-12)
        assert one["metrics"].keys() == many["metrics"].keys()
        for key, value in one["metrics"].items():
            assert torch.allclose(value.double(), many["metrics"][key].double(), rtol=1e-11)
    # In fp32 each rank has 1, 2 or 4 of as many micro-batches: to the last bit, shared out or not.
    runs = "twelve" if count == 3 else "four"
    one = made(runs, alone=True)
    for many in (made(runs), made(f"{runs} shared", alone=True), made(f"{runs} shared")):
        assert all(torch.equal(x, y) for x, y in zip(one["state"], many["state"], strict=True))
        assert all(torch.equal(x, many["metrics"][key]) for key, x in one["metrics"].items())
    pairs = zip(made("drawn")["state"], made("shared")["state"], strict=True)
    assert all(torch.allclose(x, y, rtol=0, atol=1e-12) for x, y in pairs)


def test_a_run_goes_on_with_other_ranks_and_shared_out(tmp_path: Path) -> None:
    """Three ranks, one, two that share the model; short batches that leave ranks without rows."""
    well(launch(1, tmp_path, "fitted", "one"))
    well(launch(2, tmp_path, "fitted", "two"))
    for name in ("config.yaml", "history.jsonl", "result.json"):
        assert (tmp_path / "two" / name).is_file()
    whole = values(tmp_path / "one", 12)
    _near(values(tmp_path / "two", 12), whole)
    history = [
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [record["step"] for record in history[0]] == [record["step"] for record in history[1]]
    # Cut back to step 6, and made again by other processes.
    for count, more in ((3, ()), (2, ("shard",)), (1, ())):
        for folder in (tmp_path / "two" / "checkpoints").iterdir():
            if int(folder.name) > 6:
                (folder / "manifest.json").unlink()
        well(launch(count, tmp_path, "fitted", "two", *more))
        _near(values(tmp_path / "two", 12), whole)
        assert checkpoint.find(tmp_path / "two", 12).leaves == checkpoint.find(tmp_path / "one", 12).leaves


def _near(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.allclose(found[name].double(), x.double(), rtol=1e-5, atol=1e-6), name


def test_what_ranks_tell_each_other(tmp_path: Path) -> None:
    well(launch(3, tmp_path, "told"))
    for rank in range(3):
        found = torch.load(tmp_path / f"told{rank}.pt", weights_only=False)
        assert found["sum"]["a"].tolist() == [6.0, 12.0] and int(found["sum"]["b"][0]) == 3
        assert found["first"]["a"].tolist() == [1.0, 2.0] and found["first"]["n"] == 3
        assert found["all"] == [ranks.Ranks(i, 3) for i in range(3)] and found["highest"] == 0
        for name in ("same", "parts", "own"):
            assert found[name] == [True] * 6, name
        assert found["refused"].startswith("tensors: of a dtype that ranks cannot send each other: ")
        assert found["error"] == "rank 0 has no such file"
        assert found["printed"] == (rank == 0)


def test_alone_nothing_is_told() -> None:
    assert ranks.current() == ranks.Ranks(0, 1)
    x = {"a": torch.ones(2)}
    assert ranks.add_up(x) is x and ranks.from_first(x) is x and ranks.highest(4) == 4
    assert ranks.everyone("a") == ["a"] and ranks.first(lambda: 5) == 5


def test_variables_that_no_torchrun_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"WORLD_SIZE.*LOCAL_RANK, MASTER_ADDR, MASTER_PORT"), ranks.joined():
        pass


@pytest.mark.parametrize("job", ["handed on", "later"])
def test_a_state_that_is_handed_on_is_refused(tmp_path: Path, job: str) -> None:
    """At once or later; one that is NaN and stays is none."""
    ends = launch(2, tmp_path, job)
    assert [code for code, _ in ends] == [2, 2], ends
    # Of two that fail alike one says why.
    assert sum("leaf 'calls' of the carried state is handed on" in end for _, end in ends) == 1
    assert sum("error:" in end for _, end in ends) == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("WORLD_SIZE", "0", "expected numbers"), ("WORLD_SIZE", "abc", "expected numbers"),
     ("RANK", "2", "expected numbers"), ("RANK", "x", "expected numbers")],
)  # fmt: skip
def test_variables_that_are_no_numbers(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    given = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for each, own in (given | {name: value}).items():
        monkeypatch.setenv(each, own)
    with pytest.raises(ValueError, match=said), ranks.joined():
        pass


def test_processes_that_have_not_joined_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE: this is one of 2 processes.*ranks\.joined"):
        train.fit(rank_jobs.following(), rank_jobs.CONFIG, run=tmp_path / "run", record={})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("job", ["mistaken", "mistaken late"])
def test_a_mistake_in_the_command_line_is_told_once(tmp_path: Path, job: str) -> None:
    """Also by a process that finds out when the first has ended."""
    ends = launch(2, tmp_path, job)
    assert [code for code, _ in ends] == [2, 2], ends
    assert sorted(end for _, end in ends) == ["", "error: no.yaml: there is no such config file\n"]


def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path: Path) -> None:
    ends = launch(2, tmp_path, "stopped")
    assert [code for code, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    assert checkpoint.find(tmp_path / "stopped").step == 8


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    well(launch(2, folder, "fitted", "whole"))
    return values(folder / "whole", 12)


@pytest.mark.parametrize(("rank", "agent"), [(1, True), (0, False)])
def test_a_rank_that_dies_ends_the_others_and_nothing_is_lost(
    tmp_path: Path, whole_of_two: dict[str, Any], rank: int, agent: bool
) -> None:
    """Also the one that writes, and that keeps what ranks share where no agent does."""
    ends = launch(2, tmp_path, "lost", str(rank), agent=agent)
    assert ends[rank] == (-signal.SIGKILL, "")
    code, end = ends[1 - rank]
    assert code == 2 and f"error: rank {1 - rank}: another process of the run has ended" in end, ends
    assert checkpoint.find(tmp_path / "run").step == 6
    well(launch(2, tmp_path, "fitted", "run"))
    found = values(tmp_path / "run", 12)
    assert all(torch.equal(found[name], x) for name, x in whole_of_two.items())


@pytest.mark.slow
def test_deaths_of_ranks_at_seeded_moments_change_no_bit(tmp_path: Path) -> None:
    """Eight of them; `python tests/train/kill_ranks.py FOLDER 100` for a hundred."""
    done = subprocess.run(
        [sys.executable, str(JOBS.with_name("kill_ranks.py")), str(tmp_path), "8"],
        capture_output=True, text=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    deaths = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(deaths) == 8 and all(death["killed"] for death in deaths)
    assert any(death["then"] != death["ranks"] for death in deaths)
    assert any("write" in death["death"] and death["ranks"] > 1 for death in deaths)
