from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from mfk.core import Batch, Batches
from mfk.data import LoaderConfig, batches_from, batches_of, row_order, split_rows

ROWS = 23
DATA = {"number": torch.arange(ROWS), "point": torch.randn(ROWS, 3, 2)}


def take(batches: Batches, first: int, count: int) -> list[Batch]:
    return list(itertools.islice(batches.start(first), count))


def numbers(taken: Iterable[Batch]) -> list[list[int]]:
    return [batch["number"].tolist() for batch in taken]


def flat(lists: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def test_every_row_once_an_epoch_in_an_order_of_its_own() -> None:
    batches = batches_of(DATA, 5, seed=1)
    assert batches.per_epoch == 5
    taken = take(batches, 0, 15)
    assert [len(batch["number"]) for batch in taken] == [5, 5, 5, 5, 3] * 3
    epochs = [flat(numbers(taken[at : at + 5])) for at in (0, 5, 10)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    assert epochs[0] != epochs[1] != epochs[2] != list(range(ROWS))
    for batch in taken:
        assert torch.equal(batch["point"], DATA["point"][batch["number"]])
    assert numbers(take(batches_of(DATA, 5, seed=1), 0, 15)) == numbers(taken)
    assert numbers(take(batches_of(DATA, 5, seed=2), 0, 15)) != numbers(taken)


def test_unshuffled_rows_come_in_order() -> None:
    taken = numbers(take(batches_of(DATA, 10, seed=0, config=LoaderConfig(shuffle=False)), 0, 4))
    assert taken == [[*range(10)], [*range(10, 20)], [20, 21, 22], [*range(10)]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_only_rows_of_the_index(shuffle: bool) -> None:
    index = torch.tensor([20, 3, 4, 11, 0])
    batches = batches_of(DATA, 2, seed=0, index=index, config=LoaderConfig(shuffle=shuffle))
    assert batches.per_epoch == 3
    taken = flat(numbers(take(batches, 0, 3)))
    assert sorted(taken) == [0, 3, 4, 11, 20]
    assert shuffle or taken == index.tolist()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_any_start_goes_on_as_if_nothing_had_happened(num_workers: int) -> None:
    # From the definition: epoch e takes the index in the order row_order(n, seed, e).
    index = torch.arange(1, ROWS, 2)
    expected = []
    for epoch in range(4):
        order = index[row_order(len(index), 7, epoch)].tolist()
        expected += [order[at : at + 4] for at in range(0, len(index), 4)]
    batches = batches_of(DATA, 4, seed=7, index=index, config=LoaderConfig(num_workers=num_workers))
    for first in (0, 1, 2, 3, 5, 8):
        taken = take(batches, first, 4)
        assert numbers(taken) == expected[first : first + 4]
        assert all(torch.equal(batch["point"], DATA["point"][batch["number"]]) for batch in taken)
    assert not multiprocessing.active_children()


def test_a_late_start_reads_nothing_of_the_batches_before(monkeypatch) -> None:
    calls: list[int] = []
    select = torch.Tensor.index_select
    monkeypatch.setattr(
        torch.Tensor, "index_select", lambda x, axis, rows: calls.append(len(rows)) or select(x, axis, rows)
    )
    next(batches_of(DATA, 2, seed=0).start(1_000_003))
    assert calls == [2] * len(DATA)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_are_never_copied(num_workers: int) -> None:
    # 4 TB: only rows that are taken can be held.
    data = {"x": torch.arange(1000.0).unsqueeze(1).expand(1000, 10**9)[:, :1000].expand(1000, 1000)}
    data["big"] = torch.tensor(2.5).expand(10**6, 10**6)[:1000]
    data["huge"] = torch.tensor(3.5).expand(1000, 10, 10**8)
    assert sum(x.nbytes for x in data.values()) > 4e12
    huge = {name: x for name, x in data.items() if name != "huge"}
    batches = batches_of(huge, 3, seed=0, config=LoaderConfig(num_workers=num_workers))
    first = take(batches, 0, 1)[0]
    assert first["big"].shape == (3, 10**6) and bool((first["big"] == 2.5).all())
    batches_of(data, 3, seed=0, config=LoaderConfig(num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_memory_mapped_tensors(tmp_path, num_workers: int) -> None:
    torch.save(DATA, tmp_path / "data.pt")
    mapped = torch.load(tmp_path / "data.pt", mmap=True)
    config = LoaderConfig(num_workers=num_workers)
    for got, expected in zip(
        take(batches_of(mapped, 4, seed=0, config=config), 3, 6),
        take(batches_of(DATA, 4, seed=0), 3, 6),
        strict=True,
    ):
        assert torch.equal(got["number"], expected["number"]) and torch.equal(got["point"], expected["point"])


def test_a_batch_may_be_overwritten() -> None:
    data = {"x": torch.zeros(4, 2)}
    next(batches_of(data, 4, seed=0, config=LoaderConfig(shuffle=False)).start(0))["x"].fill_(1.0)
    assert not data["x"].any()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_generators_are_neither_used_nor_moved(num_workers: int) -> None:
    before = random_states()
    take(batches_of(DATA, 4, seed=0, config=LoaderConfig(num_workers=num_workers)), 0, 8)
    assert random_states() == before


def test_workers_outlive_signals_from_outside_and_end_with_the_iterator() -> None:
    iterator = batches_of(DATA, 4, seed=0, config=LoaderConfig(num_workers=2)).start(0)
    taken = [next(iterator)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for name in ("INT", "TERM", "HUP"):
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    taken += itertools.islice(iterator, 49)
    assert numbers(taken) == numbers(take(batches_of(DATA, 4, seed=0), 0, 50))
    # The same ones: they go on from epoch to epoch.
    assert {worker.pid for worker in multiprocessing.active_children()} == {worker.pid for worker in workers}
    del iterator
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_while_they_are_ended_is_no_error() -> None:
    """Nobody waits for its batches any longer; what the handler of SIGCHLD raises has nowhere to go."""
    iterator = batches_of(DATA, 4, seed=0, config=LoaderConfig(num_workers=2)).start(0)
    next(iterator)
    pids = sorted(worker.pid for worker in multiprocessing.active_children() if worker.pid is not None)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # or they would have ended before they are killed
    # The last one first: while its end is told, the end of the first one is waited for.
    killers = [threading.Timer(1.0 - 0.5 * k, os.kill, (pids[k], signal.SIGKILL)) for k in (0, 1)]
    for killer in killers:
        killer.start()
    del iterator  # pytest makes an error of an exception that is ignored there
    for killer in killers:
        killer.join()
    assert not multiprocessing.active_children()


SCRIPT = """
import multiprocessing, os, signal, sys, torch
from mfk.data.loader import LoaderConfig, batches_of
signal.signal(signal.SIGINT, signal.default_int_handler)
data = {"x": torch.randn(1000, 3)}
iterator = batches_of(data, 10, seed=0, config=LoaderConfig(num_workers=2)).start(0)
next(iterator)
if sys.argv[1] == "worker killed":
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
elif sys.argv[1] == "ended":
    sys.exit()
print("ready", flush=True)
while True:
    next(iterator)
"""


@pytest.mark.parametrize(
    ("what", "code"),
    [("worker killed", 1), ("ended", 0), ("interrupted", -signal.SIGINT), ("terminated", -15)],
)
def test_no_worker_is_left_behind(what: str, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == ("" if what == "ended" else "ready\n")
    if what == "interrupted":  # as Ctrl-C does: everybody gets the signal
        os.killpg(process.pid, signal.SIGINT)
    elif what == "terminated":
        os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    if what == "worker killed":
        # The signal may come in the step as well as in the wait for a batch.
        assert "worker (pid" in errors.splitlines()[-1], errors
    if what == "ended":
        assert errors == ""
    for _ in range(300):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("workers outlived the training process")


def test_pinned_batches(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^pin_memory: .* needs CUDA"):
        batches_of(DATA, 4, seed=0, config=LoaderConfig(pin_memory=True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    batch = take(batches_of(DATA, 4, seed=0, config=LoaderConfig(pin_memory=True)), 0, 1)[0]
    assert {id(x) for x in pinned} == {id(x) for x in batch.values()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": {}}, ValueError, "data: expected at least one tensor"),
        ({"data": [torch.zeros(3)]}, TypeError, "data: expected a dict of tensors"),
        ({"data": {"x": np.zeros(3)}}, TypeError, "data: x: expected a dense tensor"),
        ({"data": {"x": torch.zeros(3, 3).to_sparse()}}, TypeError, "data: x: expected a dense tensor"),
        ({"data": {"x": torch.tensor(1.0)}}, ValueError, r"data: x: expected a tensor \[rows"),
        ({"data": {"x": torch.zeros(3), "y": torch.zeros(4)}}, ValueError, "data: .*'x': 3, 'y': 4"),
        ({"data": {"x": torch.zeros(0, 2)}}, ValueError, "data: expected at least one row"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an int >= 1, got 0"),
        ({"batch_size": 2.0}, ValueError, "batch_size: expected an int >= 1"),
        ({"index": torch.tensor([0, ROWS])}, ValueError, "index: .* got 0 to 23"),
        ({"index": torch.tensor([-1])}, ValueError, "index: .* got -1"),
        ({"index": torch.tensor([0], dtype=torch.int32)}, TypeError, "index: expected an int64"),
        ({"index": torch.ones(ROWS, dtype=torch.bool)}, TypeError, "index: expected an int64"),
        ({"index": [0, 1]}, TypeError, "index: expected an int64"),
        ({"index": torch.zeros(1, 1, dtype=torch.int64)}, ValueError, r"index: expected a tensor \[n\]"),
        ({"index": torch.zeros(0, dtype=torch.int64)}, ValueError, r"index: expected a tensor \[n\]"),
        ({"config": LoaderConfig(num_workers=-1)}, ValueError, "num_workers: expected an int >= 0"),
        ({"seed": 1.5}, TypeError, "key: expected ints"),
    ],
)
def test_mistakes(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + message):
        batches_of(**({"data": DATA, "batch_size": 4, "seed": 0} | change))


def test_a_step_is_a_number() -> None:
    for batches in (batches_of(DATA, 4, seed=0), batches_from([DATA], 0)):
        for step in (-1, 1.0):
            with pytest.raises(ValueError, match=r"^step: expected an int >= 0"):
                batches.start(step)  # pyright: ignore[reportArgumentType]


def test_row_order_is_a_uniform_permutation() -> None:
    orders = torch.stack([row_order(6, 0, epoch) for epoch in range(7200)])
    assert orders.dtype == torch.int64 and bool((orders.sort(1).values == torch.arange(6)).all())
    # Each of the 720 permutations 10 times in the mean: chi-squared with 719 degrees of freedom.
    _, counts = orders.unique(dim=0, return_counts=True)
    squared = float(((counts - 10.0) ** 2).sum() + (720 - len(counts)) * 100) / 10
    assert abs(squared - 719) < 4 * (2 * 719) ** 0.5
    assert torch.equal(row_order(100, 3, 4), row_order(100, 3, 4))
    assert not torch.equal(row_order(100, 3, 4), row_order(100, 4, 3))
    with pytest.raises(ValueError, match=r"^rows: expected an int >= 1"):
        row_order(0, 0, 0)


def test_split_rows() -> None:
    training, validation = split_rows(1000, 0.1, 5)
    assert len(validation) == 100 and len(training) == 900
    assert torch.equal(torch.cat((training, validation)).sort().values, torch.arange(1000))
    for side in (training, validation):
        assert side.dtype == torch.int64 and bool((side.diff() > 0).all())
    # At random: neither the first nor the last rows.
    assert 350 < float(validation.double().mean()) < 650
    assert torch.equal(validation, split_rows(1000, 0.1, 5)[1])
    assert not torch.equal(validation, split_rows(1000, 0.1, 6)[1])
    assert [len(side) for side in split_rows(2, 0.5, 0)] == [1, 1]


@pytest.mark.parametrize(
    ("rows", "share", "message"),
    [
        (3, 0.1, "share: 0.1 of 3 rows leaves none for validation"),
        (3, 0.9, "share: 0.9 of 3 rows leaves none for training"),
        (1, 0.5, "share: 0.5 of 1 rows leaves none"),
        (10, 0.0, "share: expected a share between"),
        (10, float("nan"), "share: expected a share between"),
        (10, "a", "share: expected a share between"),
        (0, 0.5, "rows: expected an int >= 1"),
    ],
)
def test_splits_with_an_empty_side(rows: int, share: float, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        split_rows(rows, share, 0)


class Numbered(Dataset[Batch]):
    """Its items are dicts; `noise` is drawn when an item is read."""

    def __getitem__(self, i: int) -> Batch:
        return {"number": DATA["number"][i], "noise": torch.rand(())}

    def __len__(self) -> int:
        return ROWS


class Streamed(IterableDataset[Batch]):
    """Without a length, in an order of its own."""

    def __iter__(self) -> Iterator[Batch]:
        for i in torch.randperm(ROWS):
            yield {"number": i}


class PythonShuffled:
    """A sampler as people write them: Python's and NumPy's global functions, drawn as it goes."""

    def __iter__(self) -> Iterator[int]:
        rest = list(range(ROWS))
        while rest:
            random.shuffle(rest)
            np.random.shuffle(rest)
            yield rest.pop()

    def __len__(self) -> int:
        return ROWS


class ByEpoch:
    """A sampler that is told the epoch, as torch's DistributedSampler."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter([(i + 3 * self.epoch) % ROWS for i in range(ROWS)])

    def __len__(self) -> int:
        return ROWS


def collate(items: list[tuple[torch.Tensor, ...]]) -> Batch:
    return {"number": torch.stack([number for number, _ in items]), "sum": sum(p for _, p in items).sum()}  # pyright: ignore[reportAttributeAccessIssue]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def batch_sampler() -> BatchSampler:
    return BatchSampler(
        RandomSampler(range(ROWS), replacement=True, num_samples=70, generator=generator()), 7, True
    )


LOADERS: dict[str, Callable[[], Iterable[Batch]]] = {
    "shuffled": lambda: DataLoader(Numbered(), 5, shuffle=True),
    "weighted": lambda: DataLoader(
        Numbered(), 5, sampler=WeightedRandomSampler([i + 1.0 for i in range(ROWS)], 20)
    ),
    "workers": lambda: DataLoader(Numbered(), 5, shuffle=True, num_workers=2),
    "generator": lambda: DataLoader(Numbered(), 5, shuffle=True, generator=generator()),
    "batch sampler": lambda: DataLoader(Numbered(), batch_sampler=batch_sampler()),
    "collated": lambda: DataLoader(TensorDataset(*DATA.values()), 5, shuffle=True, collate_fn=collate),
    "stream": lambda: DataLoader(Streamed(), 5),
    "python": lambda: DataLoader(Numbered(), 5, sampler=PythonShuffled()),
    "epoch": lambda: DataLoader(Numbered(), 5, sampler=ByEpoch()),
}
MORE_PROCESSES = (
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=MORE_PROCESSES) for name in LOADERS])
def test_a_loader_resumes_as_if_nothing_had_happened(name: str) -> None:
    batches = batches_from(LOADERS[name](), 3)
    assert batches.per_epoch == {"stream": None, "weighted": 4, "batch sampler": 10}.get(name, 5)
    per_epoch = batches.per_epoch or 5
    whole = take(batches, 0, 3 * per_epoch)
    epochs = [numbers(whole[at : at + per_epoch]) for at in range(0, len(whole), per_epoch)]
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != epochs[2]
    noise = [x for batch in whole if "noise" in batch for x in batch["noise"].tolist()]
    assert len(set(noise)) == len(noise)
    for first in (0, 1, per_epoch - 1, per_epoch, 2 * per_epoch + 2):
        torch.rand(first)  # another place in the global stream
        random.random()
        np.random.rand()
        used = LOADERS[name]()
        next(iter(used))
        before = random_states()
        taken = take(batches_from(used, 3), first, per_epoch - 2)
        assert random_states() == before
        for got, expected in zip(taken, whole[first:], strict=False):
            assert got.keys() == expected.keys()
            assert all(torch.equal(got[key], expected[key]) for key in got)
    if name != "epoch":
        assert numbers(take(batches_from(LOADERS[name](), 4), 0, 5)) != numbers(whole[:5])
    assert not multiprocessing.active_children()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_that_persist_change_nothing_in_the_order() -> None:
    def batches() -> Batches:
        return batches_from(
            DataLoader(
                TensorDataset(*DATA.values()),
                5,
                shuffle=True,
                collate_fn=collate,
                num_workers=1,
                persistent_workers=True,
            ),
            0,
        )

    used = batches()
    whole = numbers(take(used, 0, 16))
    assert whole[:5] != whole[5:10]
    for first in (0, 7, 11):
        assert numbers(take(used, first, 5)) == whole[first : first + 5]
        assert numbers(take(batches(), first, 5)) == whole[first : first + 5]


def test_the_caller_may_draw_and_seed_in_between() -> None:
    loader = LOADERS["python"]()
    whole = take(batches_from(loader, 0), 0, 8)
    disturbed = []
    for batch in itertools.islice(batches_from(loader, 0).start(0), 8):
        disturbed.append(batch)
        torch.manual_seed(1)
        random.seed(2)
        np.random.seed(3)
    assert numbers(disturbed) == numbers(whole)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    drawn = [torch.rand(()) for _ in zip(range(3), batches_from(loader, 0).start(0), strict=False)]
    assert torch.equal(torch.stack(drawn), expected)


def test_two_iterators_of_one_loader_do_not_disturb_each_other() -> None:
    batches = batches_from(LOADERS["batch sampler"](), 0)
    whole = numbers(take(batches, 0, 30))
    first, second = batches.start(0), batches.start(13)
    mixed = [(next(first)["number"].tolist(), next(second)["number"].tolist()) for _ in range(15)]
    assert [a for a, _ in mixed] == whole[:15] and [b for _, b in mixed] == whole[13:28]


def test_a_list_of_batches() -> None:
    listed = [{"x": torch.full((2,), float(i))} for i in range(3)]
    taken = take(batches_from(listed, 0), 2, 5)
    assert [float(batch["x"][0]) for batch in taken] == [2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (iter([{"x": torch.zeros(1)}]), ValueError, "can be iterated once"),
        (({"x": x} for x in torch.zeros(3)), ValueError, "can be iterated once"),
        ([], ValueError, "expected at least one batch, got an empty list"),
        (DataLoader(TensorDataset(torch.zeros(3)), 5, drop_last=True), ValueError, "an empty DataLoader"),
        (DataLoader(Numbered(), 5, in_order=False), ValueError, "expected in_order=True"),
        (7, TypeError, "expected a DataLoader or a list of batches .*got 7"),
        (Numbered(), TypeError, "expected a DataLoader"),
        (DATA, TypeError, "expected a DataLoader .*dict with keys"),
    ],
)
def test_loaders_that_cannot_be_used(loader: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^loader: .*" + message):
        batches_from(loader, 0)


class Miscounted:
    """Says three batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.batches):
            yield {"x": torch.zeros(1)}


class OnceOnly:
    """Hides that it can be iterated once only."""

    def __init__(self) -> None:
        self.rest = iter([{"x": torch.zeros(1)}])

    def __iter__(self) -> Iterator[Batch]:
        yield from self.rest


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (DataLoader(TensorDataset(torch.zeros(3)), 2), TypeError, r"expected dicts of tensors, got a list"),
        ([torch.zeros(3)], TypeError, r"expected dicts of tensors, got a tensor of shape \(3,\)"),
        ([{"x": 3.0}], TypeError, r"one with 'x': 3.0 \(float\)"),
        ([{}], TypeError, "expected dicts of tensors"),
        ([None], TypeError, r"expected dicts of tensors, got None"),
        (Miscounted(2), ValueError, "expected 3 batches an epoch, its length, but epoch 0 had 2"),
        (Miscounted(100), ValueError, "expected 3 batches an epoch, its length, but epoch 0 had at least 4"),
        (OnceOnly(), ValueError, "epoch 1 had no batch"),
    ],
)
def test_loaders_that_turn_out_wrong(loader: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^loader: .*" + message):
        take(batches_from(loader, 0), 0, 5)
