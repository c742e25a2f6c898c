"""Checkpoints: one folder a step, written by orbax, every leaf checked on the way back.

``<folder>/00001200`` is one checkpoint. Orbax writes beside it and renames it into place; then a
manifest is added, which names every leaf with its shape and dtype and every file with its size and
CRC-32. A folder without a manifest is unfinished and is not listed, so that a killed process leaves
either all of a checkpoint or none. The manifest is checked before orbax reads anything. It also keeps the
settings that the parameters cannot do without, see `mfk.train.changes.check_settings`.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mfk.core import tree
from mfk.core.config import as_json
from mfk.core.files import write_atomically
from mfk.core.types import Tree
from mfk.train.arrays import read_arrays, write_arrays
from mfk.train.interrupt import postponed
from mfk.train.state import MemberBest, TrainState

AnyTree = TypeVar("AnyTree")

FOLDER, MANIFEST = "checkpoints", "manifest.json"

FORMAT = 1
"""Of the manifest. One without a number is older, and read as well; a higher number is refused."""

_RAISING = (signal.SIGINT, signal.SIGCHLD)  # the latter where a worker of a DataLoader has died
_SAVING = ".orbax-checkpoint-tmp"
_DELETING = ".deleted"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: not there, of another model, or damaged."""


class Saved(NamedTuple):
    """One complete checkpoint of a folder."""

    step: int
    path: Path
    metrics: dict[str, float]  # as given to `save`; NaN and infinities included
    best_metric: str | None  # as given to `save`
    leaves: dict[str, dict[str, Any]]  # name -> shape, dtype
    files: dict[str, list[int]]  # path below `path` -> size [bytes], CRC-32
    settings: dict[str, Any]  # as given to `save`; empty where none were


def save(
    folder: Path | str,
    state: TrainState,
    metrics: Mapping[str, float] | None = None,
    *,
    keep_last: int | None = 2,
    best_metric: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write `state` under ``<folder>/<step>``, then delete what need not be kept.

    Kept are the last `keep_last` checkpoints and the one whose `best_metric` is lowest.

    Args:
        folder: made if it is not there.
        state: all tensors; they may be donated as soon as this returns.
        metrics: stored with the checkpoint.
        keep_last: >= 1; None keeps all.
        best_metric: a name in `metrics`, remembered as what "best" means here; None keeps the last ones only.
        settings: plain data by dotted key, stored with the checkpoint.

    Returns:
        Path: the checkpoint's folder.

    Raises:
        ValueError: `keep_last` < 1. FileExistsError: that step was saved before.
        OSError: the folder cannot be written; earlier checkpoints are untouched.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"keep_last: expected at least 1, got {keep_last}")
    folder = Path(folder).absolute()
    path = folder / f"{state.step:08d}"
    if (path / MANIFEST).exists():
        raise FileExistsError(f"{path}: a checkpoint of step {state.step} is already there")
    arrays, leaves = {}, {}
    for name, leaf in tree.named_leaves(state):
        array, dtype = _to_numpy(name, leaf)
        leaves[name] = {"shape": list(array.shape), "dtype": dtype}
        if array.size:
            arrays[name] = array
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    _check_space(path, sum(array.nbytes for array in arrays.values()))
    with postponed(*_RAISING):
        try:
            write_arrays(path, arrays)
            manifest = {
                "step": state.step,
                "metrics": as_json(metrics or {}),
                "settings": as_json(settings or {}),
                "best_metric": best_metric,
                "leaves": leaves,
                "files": {name: _stamp(path / name) for name in _files(path)},
            }
            sealed = {"format": FORMAT, "crc": _seal(manifest), "manifest": manifest}
            write_atomically(path / MANIFEST, json.dumps(sealed))
        except Exception as error:
            raise OSError(
                f"{path}: could not write the checkpoint ({_first_line(error)}). "
                f"Complete checkpoints left as they were: {[c.step for c in saved(folder)]}"
            ) from error
        if keep_last is not None:
            _retain(folder, keep_last, best_metric)
    return path


def load(
    folder: Path | str,
    like: AnyTree,
    step: int | Literal["latest", "best"] = "latest",
) -> AnyTree:
    """The state saved at `step`, with the structure, devices and memory layouts of `like`.

    Args:
        folder: a run's folder, its folder of checkpoints, or one checkpoint.
        like: a TrainState of the same model, e.g. from `init_state`; its numbers do not matter.
        step: a step, "latest", or "best" (see `find`).

    Raises:
        CheckpointError: no such checkpoint, a leaf that is missing, unknown, or of another shape or
            dtype, or damaged files. The message names folder and leaf, and says what to do.
    """
    return _restore(find(folder, step), like, prefix="")


def load_params(
    folder: Path | str,
    like: AnyTree,
    step: int | Literal["latest", "best"] = "latest",
) -> AnyTree:
    """The parameters for inference: the averaged ones where the run kept an average.

    `like` is a parameter tree of the model; the rest is as in `load`.
    """
    chosen = find(folder, step)
    averaged = any(name == "ema" or name.startswith("ema/") for name in chosen.leaves)
    return _restore(chosen, like, prefix="ema" if averaged else "params")


def load_state(
    folder: Path | str,
    like: AnyTree,
    step: int | Literal["latest", "best"] = "latest",
) -> AnyTree:
    """The task's carried state (codebooks, running statistics); `like` as returned by ``task.init``."""
    return _restore(find(folder, step), like, prefix="state")


def load_members(
    folder: Path | str, params: AnyTree, state: Tree, step: int | Literal["latest", "best"] = "latest"
) -> tuple[AnyTree, Tree, MemberBest]:
    """The members of an ensemble for inference, each as it was at its own best validation up to `step`.

    A member that no validation has seen finite is the one of `step` itself, as `load_params` has it.

    Args:
        folder: as in `load`.
        params: stacked parameters of the model, as ``mfk.train.ensemble(task, k).init`` makes them.
        state: the stacked carried state.
        step: as in `load`; the latest checkpoint knows the best of the whole run.

    Returns:
        (params, state, best): stacked trees, and the values and steps of those validations.

    Raises:
        CheckpointError: as in `load`; a single run's checkpoint lacks the leaves of ``best``.
    """
    chosen = find(folder, step)
    k = len(tree.leaves(params)[0])
    like = MemberBest(torch.zeros(k, dtype=torch.float64), torch.zeros(k, dtype=torch.int64), params, state)
    best = _restore(chosen, like, prefix="best")
    now = (load_params(chosen.path, params), load_state(chosen.path, state))

    def one(kept: Tensor, current: Tensor) -> Tensor:
        return torch.where(tree.along(best.step, kept) < 0, current, kept)

    found = tree.map(one, (best.params, best.state), now)
    return (*found, best)


def saved(folder: Path | str) -> list[Saved]:
    """The complete checkpoints of a folder, by step; an unfinished one is not among them."""
    folder = Path(folder).absolute()
    if not folder.is_dir():
        return []
    found = [
        _manifest(path) for path in folder.iterdir() if path.name.isdigit() and (path / MANIFEST).exists()
    ]
    return sorted(found, key=lambda c: c.step)


def find(folder: Path | str, step: int | Literal["latest", "best"] = "latest") -> Saved:
    """One complete checkpoint; CheckpointError where there is none such.

    `folder` is a run's folder, its folder of checkpoints, or one checkpoint (`step` is then not asked).
    "best" is the one with the lowest value of the metric that the latest was saved with as its
    `best_metric`, and the latest itself where there is none such: a run without validation.
    """
    folder = Path(folder).absolute()
    if (folder / MANIFEST).exists():
        return _manifest(folder)
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    listed = saved(folder)
    if not listed:
        what = "holds no complete checkpoint" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"{folder}: {what}. Give the folder of a run, or train first.")
    if step == "latest":
        return listed[-1]
    if step == "best":
        metric = listed[-1].best_metric
        chosen = listed[-1] if metric is None else _best(listed, metric)
        if chosen is None:
            raise CheckpointError(
                f"{folder}: no checkpoint records a finite {metric!r}. Ask for the latest instead."
            )
        return chosen
    for checkpoint in listed:
        if checkpoint.step == step:
            return checkpoint
    raise CheckpointError(f"{folder}: no checkpoint of step {step!r}; there are {[c.step for c in listed]}")


def _restore(chosen: Saved, like: AnyTree, prefix: str) -> AnyTree:
    named = [("/".join(filter(None, (prefix, name))), leaf) for name, leaf in tree.named_leaves(like)]
    inside = {n for n in chosen.leaves if not prefix or n == prefix or n.startswith(prefix + "/")}
    wanted = {name for name, _ in named}
    missing, unknown = sorted(wanted - inside), sorted(inside - wanted)
    if missing or unknown:
        raise CheckpointError(
            f"{chosen.path}: is of another model or configuration. Leaves that it lacks: {_some(missing)}; "
            f"leaves that this model does not know: {_some(unknown)}. Use the run's own config.yaml."
        )
    for name, leaf in named:
        found = (tuple(chosen.leaves[name]["shape"]), chosen.leaves[name]["dtype"])
        expected = (tuple(leaf.shape) if isinstance(leaf, Tensor) else (), _dtype_name(leaf))
        if found != expected:
            raise CheckpointError(
                f"{chosen.path}: leaf {name!r} should have shape {expected[0]} and dtype {expected[1]}, "
                f"found {found[0]} and {found[1]}. It is of another model: use the run's own config.yaml."
            )
    arrays = _read(chosen, [name for name, _ in named])
    return tree.unflatten(like, [_from_numpy(arrays[name], leaf) for name, leaf in named])


def _read(chosen: Saved, names: list[str]) -> dict[str, np.ndarray]:
    """The arrays by name, after the files have been checked against the manifest."""
    for name, stamp in chosen.files.items():
        path = chosen.path / name
        if not path.is_file():
            raise _damaged(chosen.path, f"file {name} is missing")
        if _stamp(path) != stamp:
            raise _damaged(chosen.path, f"file {name} is not what was written")
    shapes = {name: tuple(chosen.leaves[name]["shape"]) for name in names}
    arrays: dict[str, Any] = {}
    if any(math.prod(shape) for shape in shapes.values()):
        with postponed(*_RAISING):
            try:
                arrays = read_arrays(chosen.path)
            except Exception as error:  # what files whose checksums were forged make of orbax can be anything
                raise _damaged(chosen.path, _first_line(error)) from error
    for name, shape in shapes.items():
        dtype = _STORED.get(chosen.leaves[name]["dtype"], chosen.leaves[name]["dtype"])
        array = arrays.get(name) if math.prod(shape) else np.zeros(shape, dtype)
        if not isinstance(array, np.ndarray) or array.shape != shape or str(array.dtype) != dtype:
            raise _damaged(chosen.path, f"leaf {name!r} is not what {MANIFEST} says")
        arrays[name] = array
    return arrays


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the checkpoint is damaged ({what}). Delete this folder to fall back on another one."
    )


# How dtypes that NumPy lacks, and Python numbers, are stored.
_STORED = {"bfloat16": "uint16", "int": "int64", "float": "float64"}


def _dtype_name(leaf: Any) -> str:
    return str(leaf.dtype).removeprefix("torch.") if isinstance(leaf, Tensor) else type(leaf).__name__


def _to_numpy(name: str, leaf: Any) -> tuple[np.ndarray, str]:
    dtype = _dtype_name(leaf)
    if isinstance(leaf, Tensor):
        x = leaf.detach().cpu().contiguous()
        return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy(), dtype
    if type(leaf) not in (int, float):
        raise TypeError(f"state: leaf {name!r} must be a tensor, int or float, got {dtype}")
    return np.array(leaf, dtype=_STORED[dtype]), dtype


def _from_numpy(array: np.ndarray, like: Any) -> Any:
    if not isinstance(like, Tensor):
        return type(like)(array.item())
    x = torch.from_numpy(np.array(array))
    x = x.view(torch.bfloat16) if like.dtype == torch.bfloat16 else x
    return torch.empty_like(like, requires_grad=False).copy_(x)


def _manifest(path: Path) -> Saved:
    try:
        sealed = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        written_as = int(sealed.get("format", 0))
        if written_as > FORMAT:
            # Before anything else is asked of it: what follows may be laid out in another way.
            raise CheckpointError(
                f"{path}: was written by a newer mfk: its manifest has format {written_as}, and this one "
                f"reads up to {FORMAT}. Use that version of mfk; the checkpoint is left as it is."
            )
        record = sealed["manifest"]
        if sealed["crc"] != _seal(record):
            raise ValueError("is not what was written")
        metrics = {name: float(value) for name, value in record["metrics"].items()}
        found = Saved(
            record["step"],
            path,
            metrics,
            record["best_metric"],
            record["leaves"],
            record["files"],
            record.get("settings", {}),
        )
        _check_manifest(found)
        return found
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(path, f"{MANIFEST}: {_first_line(error)}") from error


def _check_manifest(found: Saved) -> None:
    """ValueError unless everything is of its type, and the files are the checkpoint's own."""
    if type(found.step) is not int or not isinstance(found.best_metric, str | None):
        raise ValueError(
            f"expected a step and a metric's name, got {found.step!r:.40}, {found.best_metric!r:.40}"
        )
    if not isinstance(found.settings, dict):
        raise ValueError(f"expected settings by name, got {found.settings!r:.80}")
    for name, leaf in found.leaves.items():
        shape = leaf["shape"]
        if not isinstance(leaf["dtype"], str) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"leaf {name!r:.80}: expected a shape and a dtype, got {leaf!r:.80}")
    for name, stamp in found.files.items():
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/") or "\0" in name or not parts:
            raise ValueError(f"expected files in the checkpoint's folder, got {name!r:.80}")
        if len(stamp) != 2:
            raise ValueError(f"file {name!r:.80}: expected size and checksum, got {stamp!r:.80}")


def _seal(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest).encode())


def _files(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def _stamp(path: Path) -> list[int]:
    content = path.read_bytes()
    return [len(content), zlib.crc32(content)]


def _best(listed: list[Saved], metric: str | None) -> Saved | None:
    """The checkpoint with the lowest finite value; the earliest among equals."""
    scored = [c for c in listed if metric is not None and math.isfinite(c.metrics.get(metric, math.nan))]
    return min(scored, key=lambda c: c.metrics[str(metric)], default=None)


def _retain(folder: Path, keep_last: int, best_metric: str | None) -> None:
    listed = saved(folder)
    best = _best(listed, best_metric)
    for checkpoint in listed[:-keep_last]:
        if best is None or checkpoint.step != best.step:
            # Renamed first: a process killed half-way leaves nothing that looks complete.
            rubbish = checkpoint.path.with_name(checkpoint.path.name + _DELETING)
            checkpoint.path.rename(rubbish)
            shutil.rmtree(rubbish)


def _check_space(path: Path, size: int) -> None:
    """OSError if the disk cannot take `size` bytes and a little more."""
    free = shutil.disk_usage(path.parent).free
    needed = size + 2**20
    if free < needed:
        raise OSError(
            f"{path}: the checkpoint needs {needed / 1e6:.1f} MB and the disk has {free / 1e6:.1f} MB left. "
            f"Complete checkpoints left as they were: {[c.step for c in saved(path.parent)]}"
        )


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half-written or half-deleted."""
    for path in folder.iterdir():
        unfinished = path.name.isdigit() and not (path / MANIFEST).exists()
        if path.is_dir() and (unfinished or _SAVING in path.name or path.name.endswith(_DELETING)):
            shutil.rmtree(path, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def _some(names: list[str]) -> str:
    return f"{names[:4]}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
