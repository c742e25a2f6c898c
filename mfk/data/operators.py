"""Data sets of reaction-diffusion operators and their features: made by blocks, the same bytes for a seed.

The processes that torchrun has started make one file together; see `mfk.data.resumable`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from mfk.core import ranks, rng
from mfk.core.files import read_json, replaced_whole, write_atomically
from mfk.core.types import Rows, describe
from mfk.data.claims import check_alike
from mfk.data.operator_initial import initial_statistics
from mfk.data.operator_layout import PRODUCTS, column_shapes, fill_file
from mfk.data.operator_simulate import FRAME, PARAMETERS, initial_fields, simulate
from mfk.data.operator_statistics import trajectory_statistics
from mfk.data.resumable import LOCK, held, sync_folder, write_resumably
from mfk.data.tensor_writer import lay_out
from mfk.data.tensors import read_tensors

BLOCK = 40
"""Samples made at a time. Their numbers depend on it, so it is no option."""

_RECORD, _ROWS, _FILE = "record.json", "rows.pt", "file.h5"  # what is in the folder of unfinished work

_Progress = Callable[[int, int], None]


def generate_operators(
    path: Path | str,
    samples: int,
    *,
    seed: int = 0,
    realisations: int = 8,
    grid: int = 32,
    steps: int = 150,
    progress: _Progress | None = None,
) -> Path:
    """Draw operators, simulate them, and write their features in the documented layout.

        features/initial/aggregated/features       [N, 42]       of the initial fields
        features/architecture/aggregated/features  [N, 21]       parameters in the unit cube, nine products
        features/summary/aggregated/features       [N, 135]      mean, std, cv over the realisations of
        features/summary/per_trajectory/features   [N, M, 45]    statistics of a trajectory
        features/temporal/features                 [N, T, 31]    of frames, means over the realisations
        parameters/params                          [N, 12]       in the unit cube
        inputs/fields                              [N, 2, n, n]  the initial fields of u and v
        metadata/ic_types, evolution_policies, noise_regimes, grid_sizes  [N]

    What is simulated stands in `mfk.data.operator_simulate`. Sample i depends on the settings, the seed and
    i: a longer file begins with the samples of a shorter one. The file appears complete or not at all.
    Unfinished work lies in the folder ``<path>.parts``; after an error, Ctrl-C or kill -9 the same call goes
    on with it, to the same bytes. These are given by the arguments, the versions of torch, NumPy, h5py and
    HDF5, and the CPU's vector instructions. Under torchrun every rank must make the same call.

    Args:
        path: ends in .h5 or .hdf5; it must not exist, its folder must.
        samples: N.
        seed: of all draws.
        realisations: M >= 2, of the noise. The spread over a few is itself uncertain: see `AGGREGATES`.
        grid: n >= 16 cells along each axis.
        steps: a multiple of 5, at least 50; a frame is kept of each five.
        progress: called on rank 0 with (samples there, samples in all) at the start and after each block.

    Returns:
        The path.

    Raises:
        ValueError: a bad setting, a work folder that is damaged or of other settings, or this rank would make
            other samples than rank 0.
        FileExistsError: `path` exists, or another process is writing it.
        FileNotFoundError, NotADirectoryError: the folder of the file.
        OSError: the disk is full, or the folder cannot be written to; what is done is kept.
    """
    path = Path(os.path.abspath(path))
    _check(path, samples, seed, realisations, grid, steps)
    work = path.with_name(path.name + ".parts")
    config = {"seed": seed, "realisations": realisations, "grid": grid, "steps": steps}
    settings, told = {"samples": samples, **config, **_versions()}, progress or (lambda done, samples: None)
    with ExitStack() as holding:
        kept, left = ranks.first(lambda: _begin(path, work, settings, holding))
        check_alike(path, kept, settings)
        try:
            if left == _ROWS:
                _make_rows(work / _ROWS, samples, config, told)
            elif left == _FILE and ranks.current().rank == 0:
                told(samples, samples)
            ranks.first(lambda: _end(path, work, config, left is None))
        except BaseException:
            # Where nothing was begun that could be gone on with.
            if ranks.current().rank == 0 and work.is_dir() and {*os.listdir(work)} <= {_RECORD, LOCK}:
                _remove(work)
            raise
    return path


def _begin(
    path: Path, work: Path, settings: dict[str, Any], holding: ExitStack
) -> tuple[dict[str, Any], str | None]:
    """Hold the folder of the work while `holding` is open; the settings, and what is to be made next."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    if os.path.lexists(path) and not work.is_dir():
        raise _taken(path)
    _check_folder(work)
    holding.enter_context(held(path, work))
    _keep_record(path, work, settings)
    if os.path.lexists(path):
        return settings, None
    return settings, _ROWS if not any((work / name).exists() for name in (_ROWS, _FILE)) else _FILE


def draw_operators(seed: int, block: int, realisations: int, grid: int, steps: int) -> dict[str, Tensor]:
    """The samples of a block by column, float32 [BLOCK, ...]; see `generate_operators`.

    Columns: params, fields, kinds (index of `IC_TYPES`), initial, architecture, trajectory, summary,
    temporal.

    Raises:
        ValueError: a number is not finite, which no parameters should lead to.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what a sum is may depend on it
    try:
        cube = rng.uniform(rng.key(seed, "parameters", block), Rows.all(BLOCK), (len(PARAMETERS),))
        fields, kinds = initial_fields(seed, block, BLOCK, grid)
        frames = simulate(seed, block, cube, fields, realisations, steps)
        by_frame, trajectory = trajectory_statistics(frames, fields)
        mean, spread = trajectory.mean(1), trajectory.std(1)
        columns = {
            "params": cube,
            "fields": fields,
            "kinds": kinds.float()[:, None],
            "initial": initial_statistics(fields),
            "architecture": torch.cat([cube, *(cube[:, [i]] * cube[:, [j]] for i, j in PRODUCTS)], -1),
            "trajectory": trajectory,
            "summary": torch.cat([mean, spread, spread / mean.clamp_min(torch.finfo().tiny)], -1),
            "temporal": by_frame.mean(1),
        }
    finally:
        torch.set_num_threads(threads)
    for name, values in columns.items():
        if not bool(values.isfinite().all()):
            row = int((~values.flatten(1).isfinite()).any(-1).nonzero()[0])
            raise ValueError(f"{name} of sample {BLOCK * block + row} is not finite")
    return columns


def _make_rows(rows: Path, samples: int, config: dict[str, int], progress: _Progress) -> None:
    shapes = column_shapes(config)
    layout = lay_out(rows, {name: int(np.prod(shape)) for name, shape in shapes.items()}, samples)

    def draw(block: int) -> dict[str, Tensor]:
        return {name: x.flatten(1) for name, x in draw_operators(block=block, **config).items()}

    write_resumably(rows, layout, {}, BLOCK, draw, progress)


def _end(path: Path, work: Path, config: dict[str, int], complete: bool) -> None:
    """Turn the rows into the file, let it appear, and remove the folder of the work."""
    rows, file, shapes = work / _ROWS, work / _FILE, column_shapes(config)
    if complete:
        _remove(work)
        return
    if not file.exists():
        columns = {name: x.unflatten(1, shapes[name]) for name, x in read_tensors(rows).items()}
        with replaced_whole(file) as part, h5py.File(part, "w") as written:
            fill_file(written, columns, config)
    # From here on nothing is left to be made; a file under the name that is not ours would show beside these.
    rows.unlink(missing_ok=True)
    shutil.rmtree(
        work / f"{_ROWS}.parts", ignore_errors=True
    )  # of a process that was killed as it removed it
    if os.path.lexists(path):
        raise _taken(path)
    file.rename(path)
    sync_folder(path.parent)
    _remove(work)


def _check(path: Path, samples: int, seed: int, realisations: int, grid: int, steps: int) -> None:
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise ValueError(f"{path}: expected a file named .h5 or .hdf5, got {path.suffix!r}")
    least = {
        "samples": (samples, 1),
        "realisations": (realisations, 2),
        "grid": (grid, 16),
        "steps": (steps, 50),
    }
    for name, (value, lowest) in least.items():
        if type(value) is not int or value < lowest:
            raise ValueError(f"{name}: expected an int >= {lowest}, got {describe(value)}")
    if steps % FRAME:
        raise ValueError(f"steps: expected a multiple of {FRAME}, got {steps}")
    if type(seed) is not int:
        raise ValueError(f"seed: expected an int, got {describe(seed)}")


def _versions() -> dict[str, str]:
    """What the bytes depend on beside the arguments."""
    return {
        "block": str(BLOCK),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def _keep_record(path: Path, work: Path, settings: dict[str, Any]) -> None:
    """Write the record of the work, or compare with that of the call which began it."""
    record, exists = work / _RECORD, os.path.lexists(path)
    if not record.exists():
        if exists:
            _remove(work)
            raise _taken(path)
        write_atomically(record, json.dumps(settings, indent=1) + "\n")
        return
    again = f"To begin again, delete the folder {work}."
    try:
        kept = read_json(record)
        if not isinstance(kept, dict):
            raise ValueError(f"{record}: expected settings, got {describe(kept)}")
    except ValueError as error:
        raise ValueError(f"{error}. {again}") from None
    changed = [name for name in {**kept, **settings} if kept.get(name) != settings.get(name)]
    if exists and (changed or set(os.listdir(work)) - {_RECORD, LOCK}):
        raise _taken(path)
    if changed:
        changes = ", ".join(f"{name} {kept.get(name)} -> {settings.get(name)}" for name in changed)
        raise ValueError(
            f"{work}: holds unfinished work of other settings ({changes}). Give the settings that it was "
            f"started with, or another path. {again}"
        )


def _check_folder(work: Path) -> None:
    """Refuse a folder that is somebody else's, before a lock is put into it."""
    ours = (_RECORD, _ROWS, f"{_ROWS}.parts", _FILE, LOCK)
    names: Sequence[str] = sorted(os.listdir(work)) if work.is_dir() else ()
    parts = (f".{_RECORD}.", f".{_FILE}.")
    if strange := [name for name in names if name not in ours and not name.startswith(parts)]:
        raise ValueError(
            f"{work}: expected a folder of unfinished work, got {', '.join(strange[:3])} in it. "
            "Move the folder away, or give another path."
        )


def _remove(work: Path) -> None:
    # The record last: as long as it is there, the same settings find out that the file is complete.
    for left in (*work.glob(f".{_RECORD}.*"), work / LOCK, work / _RECORD):
        left.unlink(missing_ok=True)
    # A second process may have come in; it will find the file complete, and remove the folder.
    with suppress(OSError):
        work.rmdir()


def _taken(path: Path) -> FileExistsError:
    return FileExistsError(f"{path}: exists already. Delete it, or give another path.")
