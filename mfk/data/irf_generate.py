"""Data sets of impulse responses, made block by block in a folder beside them: the same bytes for a seed.

The processes that torchrun has started make one data set together; see `mfk.data.resumable`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mfk.core import ranks
from mfk.core.files import read_json, write_atomically
from mfk.core.types import describe
from mfk.data.claims import any_at_work, changes, check_alike, make_by_all
from mfk.data.irf_blocks import DATA, DONE, Block, block_found, block_marked, make_block
from mfk.data.irf_layout import NO_DATE, describe_data_set, lay_out_arrays
from mfk.data.irf_splits import LEAST, split_samples
from mfk.data.resumable import LOCK, busy, explained, held, sync_folder
from mfk.data.worlds import WORLDS, World, check_world, manifest

BLOCK = 1000
"""Samples made at a time, and in a chunk. The last bits of some worlds depend on it, so it is no option."""

# In the folder of unfinished work, beside `DATA` and `DONE`; by locks on the second ranks claim their blocks.
_RECORD, _CLAIMS = "record.json", ".claims"


class GeneratedIRF(NamedTuple):
    """A finished data set."""

    root: Path
    samples: int  # of all worlds
    found: int  # samples that an earlier, unfinished call had left


def generate_irf(
    root: Path | str,
    worlds: Sequence[str | World] = ("nk", "var", "lss"),
    *,
    samples: int = 10_000,
    seed: int = 42,
    workers: int = 1,
    version: str = "1.0.0",
    created_at: str = NO_DATE,
    git_hash: str = "unknown",
    progress: Callable[[int, int], None] = lambda done, samples: None,
) -> GeneratedIRF:
    """Draw parameters from each world's prior, solve it, simulate it, and write what comes out.

    Sample i of a world depends on (seed, world, i) alone, whatever the number of samples, worlds, workers or
    ranks. Under torchrun every rank must make the same call.
    Its responses are those of the parameters as stored, in float32, computed in float64.

    The data set appears complete or not at all. Unfinished work lies in the folder ``<root>.parts``; after an
    error, Ctrl-C or kill -9 the same call goes on with it, to the same bytes. These are given by the
    arguments, the versions of torch, NumPy and zarr, and the CPU's vector instructions.

    Args:
        root: folder of the data set; it must not exist. Those above it are made.
        worlds: names of `WORLDS`, or worlds of your own.
        samples: of each world, N >= 6.
        seed: of all draws and of the splits.
        workers: processes; with more than one, a script must guard its start by ``__name__``. With several
            ranks these are the processes, and each has one worker.
        version: of the data set, three numbers with points.
        created_at: date for the manifest, ISO 8601.
        git_hash: for the manifest.
        progress: called on rank 0 with (samples there, samples in all) at the start and after each block.

    Raises:
        ValueError: a bad setting, an unknown world, a work folder that is damaged or of other settings, or
            this rank would make other samples than rank 0.
        FileExistsError: `root` exists, or another process is writing it.
        OSError: the disk is full, or the folder cannot be written to; what is done is kept.
    """
    chosen = _check(worlds, samples, seed, workers, version)
    root = Path(os.path.abspath(root))
    work = root.with_name(root.name + ".parts")
    settings = _settings(chosen, samples, seed)
    record = {"settings": settings, "version": version, "created_at": created_at, "git_hash": git_hash}
    blocks = [
        Block(work, world, number, min(BLOCK, samples - first), BLOCK, seed)
        for world in chosen
        for number, first in enumerate(range(0, samples, BLOCK))
    ]
    total = samples * len(chosen)
    with ExitStack() as holding:
        begun = ranks.first(lambda: _begin(root, work, record, blocks, holding))
        check_alike(root, begun.record["settings"], settings)
        found = total - sum(blocks[i].rows for i in begun.missing)
        if not begun.complete:
            done = found

            def told(block: int) -> None:
                nonlocal done
                done += blocks[block].rows
                if ranks.current().rank == 0:
                    progress(done, total)

            if ranks.current().rank == 0:
                progress(done, total)
            _make(root, blocks, begun.missing, workers, told)
        ranks.first(lambda: _end(root, work, chosen, samples, seed, begun))
    return GeneratedIRF(root, total, found)


class _Begun(NamedTuple):
    """What rank 0 tells the others before the first block."""

    record: dict[str, Any]
    missing: list[int]  # which blocks
    complete: bool  # the data set is there: only the folder is left to be removed


def _begin(root: Path, work: Path, record: dict[str, Any], blocks: list[Block], holding: ExitStack) -> _Begun:
    """Hold the folder of the work while `holding` is open, and make ready what will be filled."""
    if os.path.lexists(root) and not work.is_dir():
        raise _taken(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    _check_folder(work)
    holding.enter_context(held(root, work))
    record = _keep_record(root, work, record)
    if os.path.lexists(root):
        return _Begun(record, [], True)
    with (work / _CLAIMS).open("ab") as claims:
        if any_at_work(claims):
            raise busy(root)
    missing = [i for i, block in enumerate(blocks) if not block_found(block)]
    for world in {block.world.name: block.world for block in blocks}.values():
        samples = sum(block.rows for block in blocks if block.world.name == world.name)
        lay_out_arrays(work / DATA / world.name, world, samples, BLOCK)
    return _Begun(record, missing, False)


def _check(worlds: Sequence[str | World], samples: int, seed: int, workers: int, version: str) -> list[World]:
    for name, value, least in (("samples", samples, LEAST), ("workers", workers, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an int >= {least}, got {describe(value)}")
    if workers > 1 and ranks.current().count > 1:
        raise ValueError(
            f"workers: expected 1 on each of several ranks, got {workers}; start more ranks instead"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed: expected an int, got {describe(seed)}")
    if not (isinstance(version, str) and [part.isdecimal() for part in version.split(".")] == 3 * [True]):
        raise ValueError(
            f"version: expected three numbers with points, such as 1.0.0, got {describe(version)}"
        )
    if isinstance(worlds, str) or not worlds:
        raise ValueError(f"worlds: expected at least one world in a list, got {describe(worlds)}")
    chosen = []
    for world in worlds:
        if not isinstance(world, World) and world not in WORLDS:
            raise ValueError(
                f"worlds: expected worlds or names of {', '.join(WORLDS)}, got {describe(world)}"
            )
        chosen.append(world if isinstance(world, World) else WORLDS[world])
        check_world(chosen[-1])
    names = [world.name for world in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"worlds: expected each world once, got {', '.join(names)}")
    return chosen


def _settings(worlds: list[World], samples: int, seed: int) -> dict[str, Any]:
    """What the numbers depend on, by the names under which a user knows it."""
    import zarr

    return {
        "worlds": ", ".join(world.name for world in worlds),
        "samples": samples,
        "seed": seed,
        "block": BLOCK,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "zarr": zarr.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def _keep_record(root: Path, work: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record of the work: that of the call which began it, if its settings are ours."""
    path = work / _RECORD
    if not path.exists():
        if os.path.lexists(root):
            _remove(work)
            raise _taken(root)
        # Of a call that was killed before it had a record. The folder of the data is there from now on until
        # it becomes `root`.
        shutil.rmtree(work / DATA, ignore_errors=True)
        (work / DATA).mkdir()
        write_atomically(path, json.dumps(record, indent=1) + "\n")
        return record
    try:
        kept = read_json(path)
        settings = kept.get("settings") if isinstance(kept, dict) else None
        if not (isinstance(settings, dict) and kept.keys() == record.keys()):
            raise ValueError(f"{path}: expected {', '.join(record)}, got {describe(kept)}")
    except ValueError as error:
        raise ValueError(f"{error}. To begin again, delete the folder {work}.") from None
    ours = record["settings"]
    changed = changes(settings, ours)
    if os.path.lexists(root) and (changed or (work / DATA).exists()):
        raise _taken(root)
    if changed:
        raise ValueError(
            f"{work}: holds unfinished work of other settings ({changed}). Give the settings that it was "
            f"started with, or another root. To begin again, delete the folder {work}."
        )
    return kept


def _make(
    root: Path, blocks: list[Block], missing: list[int], workers: int, told: Callable[[int], None]
) -> None:
    """Make the missing blocks, together with the other ranks, and tell of each once it is there."""
    work = blocks[0].work

    def make(i: int) -> None:
        with explained(root, work):
            make_block(blocks[i])

    if workers == 1 or len(missing) < 2:
        with (work / _CLAIMS).open("r+b") as claims:
            make_by_all(claims, missing, lambda i: block_marked(blocks[i]), make, told)
        return
    # Not forked: zarr and torch have threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(missing)), mp_context=context)
    try:
        made = {pool.submit(make_block, blocks[i]): i for i in missing}
        for future in as_completed(made):
            with explained(root, work):
                future.result()
            told(made[future])
    finally:
        pool.shutdown(cancel_futures=True)


def _end(root: Path, work: Path, worlds: list[World], samples: int, seed: int, begun: _Begun) -> None:
    """Write splits and manifest, let the data set appear, and remove the folder of the work."""
    import zarr

    if begun.complete:
        _remove(work)
        return
    for left in (work / DATA).rglob("*.partial"):  # of a process that was killed while zarr wrote a chunk
        left.unlink()
    simulators = {}
    for world in worlds:
        folder = work / DATA / world.name
        theta = np.asarray(zarr.open_array(folder / "theta.zarr", mode="r")[:])
        split = split_samples(world, torch.from_numpy(theta).double(), seed)
        write_atomically(folder / "splits.json", json.dumps(split.samples) + "\n")
        simulators[world.name] = {"n_samples": samples, **manifest(world), "held_out": split.held_out}
    made_by = {name: value for name, value in begun.record["settings"].items() if name != "worlds"}
    text = describe_data_set(simulators, begun.record, seed, made_by)
    write_atomically(work / DATA / "manifest.json", text)
    if os.path.lexists(root):
        raise _taken(root)
    (work / DATA).rename(root)
    sync_folder(root.parent)
    _remove(work)


def _check_folder(work: Path) -> None:
    """Refuse a folder that is somebody else's, before a lock is put into it."""
    names = set(os.listdir(work)) if work.is_dir() else set()
    strange = [
        name
        for name in sorted(names - {_RECORD, _CLAIMS, DATA, DONE, LOCK})
        if not name.startswith(f".{_RECORD}.")
    ]
    if strange:
        raise ValueError(
            f"{work}: expected a folder of unfinished work, got {', '.join(strange[:3])} in it. "
            "Move the folder away, or give another root."
        )


def _remove(work: Path) -> None:
    shutil.rmtree(work / DONE, ignore_errors=True)
    # The record last: as long as it is there, the same settings find out that the data set is complete.
    for name in (LOCK, _CLAIMS, _RECORD):
        (work / name).unlink(missing_ok=True)
    # A second process may have come in; it will find the data set complete, and remove the folder.
    with suppress(OSError):
        work.rmdir()


def _taken(root: Path) -> FileExistsError:
    return FileExistsError(f"{root}: exists already. Delete it, or give another root.")
