"""The processes of one run: what torchrun started side by side, and what they tell each other.

Nothing here may be called inside `torch.func.grad` or `jvp`: forward mode takes a reduced tensor for a
constant, and says nothing. Reduce what they return.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mfk.core import tree
from mfk.core.sums import in_pairs
from mfk.core.types import Tree

T = TypeVar("T")

_AGENT: list[Any] = []  # torchrun's store, which outlives a restart of the processes
_BUFFER = 2**22  # numbers that travel together
_JOINING = 600.0  # seconds that the processes wait for the last of them

_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


class RankLost(RuntimeError):
    """Another process of the run has ended, or cannot be reached; its own message says why."""


class Ranks(NamedTuple):
    """This process among those of its run."""

    rank: int  # 0 <= rank < count; 0 writes
    count: int


def current() -> Ranks:
    """Which process this is; rank 0 of 1 where no other takes part."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks(0, 1)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that torchrun has started; alone, or where they are joined already, nothing.

    They talk over gloo, and about tensors on CUDA over NCCL; each takes the CUDA device of its local rank.
    What any but rank 0 prints to stdout is dropped; errors are not.

    Raises:
        ValueError: torchrun's variables are incomplete, or no numbers.
        RankLost: another process ended, or did not come in ten minutes.
    """
    rank, count = _told_by_torchrun()
    if count == 1 or current().count > 1:
        yield current()
        return
    backend = "gloo"
    # NCCL takes one process a device; more of them than devices still talk over gloo.
    if (
        torch.cuda.is_available()
        and int(os.environ.get("LOCAL_WORLD_SIZE", count)) <= torch.cuda.device_count()
    ):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    # Whatever holds the group past its end holds threads, which abort a process that exits while they let go
    # of a tensor. These functions have the group of the moment as a default: imported by what torch.func
    # needs, they would be such.
    importlib.import_module("torch.distributed.nn.functional")
    with _answered():
        store, _, _ = next(iter(dist.rendezvous("env://", rank, count)))
        _AGENT.append(store)
        own = dist.PrefixStore(_agreed(store, rank, count), store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=count)
    here, printed = current(), sys.stdout
    try:
        if here.rank:
            sys.stdout = open(os.devnull, "w")  # open as long as the process lives
        yield here
    except BaseException as error:
        _let_go(error)
        raise
    finally:
        sys.stdout = printed
        _AGENT.clear()
        if dist.is_initialized():  # see `alone`
            dist.destroy_process_group()


def check_joined() -> None:
    """ValueError if torchrun has started this process with others that it has not joined."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and current().count == 1:
        raise ValueError(
            f"WORLD_SIZE: this is one of {os.environ['WORLD_SIZE']} processes that have not joined: call "
            "within `with mfk.core.ranks.joined():`, or hand the program to `mfk.core.cli.main`"
        )


def remember(name: str, value: str) -> None:
    """Have torchrun keep a word for the processes that it may start in place of these; alone, nothing."""
    if _AGENT:
        _AGENT[0].set(f"mfk {name}", value)


def recalled(name: str) -> str | None:
    """What `remember` was told in this launch of torchrun, maybe by processes that are no more."""
    if not _AGENT or not _AGENT[0].check([f"mfk {name}"]):
        return None
    return _AGENT[0].get(f"mfk {name}").decode()


def alone() -> bool:
    """Part from the other ranks, which must call this too; whether it is this one that has work to do.

    Rank 0 goes on as if it had been started by itself, and so do the processes that it starts.
    """
    here = current()
    if here.count > 1:
        dist.destroy_process_group()
        for name in _VARIABLES:
            os.environ.pop(name, None)
    return here.rank == 0


def first_to_fail() -> bool:
    """Whether no other rank has asked this before: the one that has told the user why all of them end.

    Also where it cannot be known, since the store through which ranks find each other has ended with rank 0;
    torchrun's has not.
    """
    if current().count == 1:
        return True
    try:
        # The store through which they found each other; torch has no public name for it.
        return dist.distributed_c10d._get_default_store().add("mfk: failed", 1) == 1
    except RuntimeError:  # whoever kept it is gone
        return True


def add_up(values: Tree) -> Tree:
    """The sum over all ranks of a tree of tensors, the same bits on each; itself where there is one.

    Ranks are added in pairs (`mfk.core.sums.in_pairs`), which an all_reduce of more than two does in an order
    of its own: where a rank's tensors are sums of 2^k, the bits are those of one rank that adds all of them.
    """
    count = current().count
    if count == 1:
        return values
    summed: list[Tensor] = []
    for run in _runs(tree.leaves(values)):
        sizes = [x.numel() for x in run]
        flat = run[0].new_zeros(count, -(-sum(sizes) // count))
        flat.view(-1)[: sum(sizes)] = torch.cat([x.detach().reshape(-1) for x in run])
        with _answered():
            if count == 2:
                dist.all_reduce(flat)  # there is one order only
            else:
                dist.all_gather(list(flat.unbind()), _own_row(flat))
        parts = flat.view(-1)[: sum(sizes)].split(sizes)
        summed += [part.view(x.shape) for part, x in zip(parts, run, strict=True)]
    return tree.unflatten(values, summed)


def all_parts(own: Iterable[Tensor]) -> Iterator[Tensor]:
    """Every rank's tensors of these shapes, [N, *shape] each."""
    count = current().count
    for run in _runs(own):
        if count == 1:
            yield from (x.detach().unsqueeze(0) for x in run)
            continue
        flat = torch.cat([x.detach().reshape(-1) for x in run])
        every = flat.new_empty(count, len(flat))
        with _answered():
            dist.all_gather(list(every.unbind()), flat)
        parts = every.split([x.numel() for x in run], dim=1)
        del every
        yield from (part.reshape(count, *x.shape) for part, x in zip(parts, run, strict=True))


def own_parts(each: Iterable[Tensor]) -> Iterator[Tensor]:
    """Of tensors [N, ...] this rank's row of their sums over the ranks, added as by `add_up`."""
    count = current().count
    for run in _runs(each):
        if count == 1:
            yield from (x.detach()[0] for x in run)
            continue
        with _answered():
            own = _own_row(torch.cat([x.detach().reshape(count, -1) for x in run], dim=1))
        parts = own.split([x[0].numel() for x in run])
        yield from (part.view(x.shape[1:]) for part, x in zip(parts, run, strict=True))


def highest(value: int) -> int:
    """The largest of the ranks' numbers."""
    if current().count == 1:
        return value
    number = torch.tensor(value, dtype=torch.int64, device="cpu")
    with _answered():
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def everyone(value: T) -> list[T]:
    """The ranks' values, in their order, on every rank; small Python objects."""
    count = current().count
    if count == 1:
        return [value]
    found: list[Any] = [None] * count
    with _answered():
        dist.all_gather_object(found, value)
    return found


def first(fn: Callable[[], T]) -> T:
    """What `fn` returns on rank 0, the only one that calls it; the others wait for it.

    What it raises is raised on every rank. The result must be a small Python object; for tensors there is
    `from_first`.
    """
    if current().count == 1:
        return fn()
    told: list[Any] = [None, None]
    if current().rank == 0:
        try:
            told[0] = fn()
        except Exception as error:
            dist.broadcast_object_list([None, _told(error)], device=torch.device("cpu"))
            raise
    with _answered():
        dist.broadcast_object_list(told, device=torch.device("cpu"))
    if told[1] is not None:
        raise told[1]
    return told[0]


def from_first(values: Tree) -> Tree:
    """A tree of tensors and Python numbers as rank 0 has it; trees may differ in their numbers only."""
    if current().count == 1:
        return values

    def one(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return first(lambda: x)
        sent = x.detach().contiguous()
        with _answered():
            dist.broadcast(sent, 0)
        return x if sent is x else torch.empty_like(x, requires_grad=False).copy_(sent)

    return tree.map(one, values)


def _told_by_torchrun() -> tuple[int, int]:
    """Rank and number of the processes, as torchrun's variables say; 0 of 1 without them."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    missing = [
        name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE: expected torchrun's variables beside it, got {os.environ['WORLD_SIZE']!r} and "
            f"no {', '.join(missing)}; start with torchrun, or unset WORLD_SIZE"
        )
    said = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    if not all(value.isdecimal() for value in said.values()) or not int(said["RANK"]) < int(
        said["WORLD_SIZE"]
    ):
        raise ValueError(f"WORLD_SIZE, RANK, LOCAL_RANK: expected numbers as torchrun sets them, got {said}")
    return int(said["RANK"]), int(said["WORLD_SIZE"])


def _agreed(store: Any, rank: int, count: int) -> str:
    """A word that the processes of this start have in common, and those of an earlier one had not.

    torchrun's store lasts over restarts, so that what a dead process has left there is met again: its address
    would be called, and nobody answers. Each rank says hello with a word of its own; rank 0 answers every
    word that it sees, until all ranks have shown that they know its own.
    """
    own, until = uuid.uuid4().hex, time.monotonic() + _JOINING
    if rank:
        store.set(f"mfk hello {rank}", own)
        agreed = _waited(store, f"mfk answer {own}", until).decode()
        store.set(f"mfk here {agreed} {rank}", "1")
        return agreed
    left = set(range(1, count))
    while left:
        for other in sorted(left):
            if store.check([f"mfk here {own} {other}"]):
                left.discard(other)
            elif store.check([f"mfk hello {other}"]):
                store.set(f"mfk answer {store.get(f'mfk hello {other}').decode()}", own)
        if left:
            _pause(until)
    return own


def _waited(store: Any, key: str, until: float) -> bytes:
    while not store.check([key]):
        _pause(until)
    return store.get(key)


def _pause(until: float) -> None:
    if time.monotonic() > until:
        raise RuntimeError(f"not all processes came within {_JOINING:.0f} s")
    time.sleep(0.02)


def _runs(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype and device, that travel in one buffer: as few numbers as cost no time."""
    run: list[Tensor] = []
    held = 0
    for x in tensors:
        if run and (held >= _BUFFER or (x.dtype, x.device) != (run[0].dtype, run[0].device)):
            yield run
            run, held = [], 0
        run.append(x)
        held += x.numel()
    if run:
        yield run


def _own_row(each: Tensor) -> Tensor:
    """Of the ranks' tensors [N, n] the sum of the rows with this rank's number, added in pairs."""
    received = torch.empty_like(each)
    dist.all_to_all_single(received, each)
    return in_pairs(received.unbind(), Tensor.add_)


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "scalar type" in str(error):
            raise ValueError(f"tensors: of a dtype that ranks cannot send each other: {error}") from error
        # gloo names its source file, and goes on about where to look.
        reason = re.sub(r"^\[[^]]*\] *", "", str(error).strip()).splitlines()[0].split(". ")[0]
        rank = os.environ.get("RANK", "0")
        raise RankLost(f"rank {rank}: another process of the run has ended ({reason})") from error


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold, such as the group that something was to travel through."""
    seen: list[BaseException] = []
    while error is not None and not any(error is other for other in seen):
        seen.append(error)
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _told(error: Exception) -> Exception:
    """The error, or one with its text where it does not come back from pickling as it was."""
    try:
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    except Exception:  # a foreign exception's constructor may ask for anything
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
