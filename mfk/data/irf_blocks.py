"""Blocks of a data set of impulse responses: made, written, and found again by a later call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mfk.core.files import read_json, write_atomically
from mfk.core.types import describe
from mfk.data.irf_layout import PERIODS, chunk_files, sync_file
from mfk.data.resumable import sync_folder
from mfk.data.worlds import World, draw_shocks, draw_theta

DATA, DONE = "data", "done"
"""In the folder of unfinished work: the data set to be, and a mark of each block that is in it."""


class Block(NamedTuple):
    """Some samples of a world, for a process to make."""

    work: Path
    world: World
    number: int
    rows: int  # that are kept
    size: int  # that are drawn
    seed: int


def make_samples(world: World, seed: int, rows: range) -> dict[str, np.ndarray]:
    """The arrays of some samples by name, float32; see `mfk.data.irf_layout`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a sum is may depend on it
    try:
        theta = draw_theta(world, seed, rows).float().double()
        shocks = draw_shocks(world, seed, rows, PERIODS).float().double()
        arrays = {
            "theta": theta,
            "irfs": world.irf(theta),
            "trajectories": world.simulate(theta, shocks),
            "shocks": shocks,
        }
    finally:
        torch.set_num_threads(threads)
    for name, values in arrays.items():
        if not bool(values.isfinite().all()):
            bad = int((~values.flatten(1).isfinite()).any(-1).nonzero()[0])
            raise ValueError(f"world {world.name}: {name} of sample {rows[bad]} is not finite")
    return {name: values.float().numpy() for name, values in arrays.items()}


def make_block(block: Block) -> int:
    """Make and write a block; it counts once its files are on the disk and its mark is set."""
    import zarr

    first = block.number * block.size
    folder = block.work / DATA / block.world.name
    for name, values in make_samples(block.world, block.seed, range(first, first + block.size)).items():
        array: Any = zarr.open_array(folder / f"{name}.zarr", mode="r+")
        # A chunk of zeros has a file too: none is the mark of one that was lost.
        array.with_config({"write_empty_chunks": True})[first : first + block.rows] = values[: block.rows]
    sizes = []
    for path in chunk_files(folder, block.number):
        sync_file(path)
        sizes.append(path.stat().st_size)
    mark = _mark(block)
    mark.parent.mkdir(exist_ok=True)
    write_atomically(mark, json.dumps(sizes) + "\n")
    sync_folder(mark.parent)
    return block.rows


def block_marked(block: Block) -> bool:
    """Whether this block is on the disk as a whole, made by whichever process."""
    return _mark(block).exists()


def block_found(block: Block) -> bool:
    """Whether an earlier call made this block, whose files are as it left them."""
    mark = _mark(block)
    if not mark.exists():
        return False
    again = f"To begin again, delete the folder {block.work}."
    paths = list(chunk_files(block.work / DATA / block.world.name, block.number))
    try:
        sizes = read_json(mark)
    except ValueError as error:
        raise ValueError(f"{error}. {again}") from None
    if not isinstance(sizes, list) or len(sizes) != len(paths):
        raise ValueError(f"{mark}: expected the sizes of {len(paths)} files, got {describe(sizes)}. {again}")
    for path, size in zip(paths, sizes, strict=True):
        if not path.exists():
            raise ValueError(f"{path}: was made before and is gone. {again}")
        if path.stat().st_size != size:
            raise ValueError(
                f"{path}: was made before with {size} bytes, and has {path.stat().st_size}. {again}"
            )
    return True


def _mark(block: Block) -> Path:
    return block.work / DONE / f"{block.world.name}.{block.number}"
