"""A run's folder: who owns it, and the files that say how it was made."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from mfk.core.config import as_json
from mfk.core.files import read_json, read_text, write_atomically
from mfk.core.types import describe
from mfk.train.checkpoint import FOLDER as CHECKPOINTS
from mfk.train.checkpoint import saved

LOCK = ".lock"
HISTORY, LOGS, CONFIG, VERSIONS = "history.jsonl", "logs", "config.yaml", "versions.json"
RESULT, DATA = "result.json", "data.txt"


def claim_run(out: Path | str | None, name: str, root: Path | str = "outputs") -> Path:
    """A new folder for a run.

    Args:
        out: an explicit folder. None takes a fresh number, ``<root>/<name>/001``, and points the link
            ``<root>/<name>/latest`` at it.
        name: of the experiment.
        root: where numbered runs live.

    Raises:
        FileExistsError: `out` holds a run, or is a file.
        OSError: the folder cannot be made.
    """
    parent = Path(root) / name
    if out is not None:
        out = Path(out)
        refuse_run(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"--out: cannot make the folder {out}: {error.strerror}") from error
        return out
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{parent}: cannot make the folder: {error.strerror}") from error
    number = (_numbers(parent) or [0])[-1]
    while True:
        number += 1
        out = parent / f"{number:03d}"
        # mkdir decides between two runs that start together.
        with suppress(FileExistsError):
            out.mkdir()
            break
    link = parent / f".latest-{os.getpid()}"
    # Some file systems have no links; the number is what counts.
    with suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(out.name)
        link.replace(parent / "latest")
    return out


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run's folder for this process; the lock goes with the process, however it ends.

    Raises:
        FileExistsError: another process is training in it.
    """
    import fcntl

    with (run / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(
                f"{run}: another process is training in this folder. Wait for it, or give another --out."
            ) from None
        _LOCKS.add(file)
        try:
            yield
        finally:
            _LOCKS.discard(file)


_LOCKS: set[IO[str]] = set()


def _let_go() -> None:
    """In a forked process, a data loader's worker say: a lock is the parent's, and goes when it goes."""
    while _LOCKS:
        _LOCKS.pop().close()


os.register_at_fork(after_in_child=_let_go)


def refuse_run(folder: Path) -> None:
    """FileExistsError if `folder` holds a run, is one that another process trains in, or is no folder."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: expected a folder, it is a file")
    if (folder / LOCK).exists():
        with locked(folder):
            pass
    refuse_begun(folder)


def refuse_begun(folder: Path) -> None:
    """FileExistsError if `folder` holds a run, whoever trains in it."""
    found = [name for name in (CONFIG, HISTORY, CHECKPOINTS) if (folder / name).exists()]
    if found and saved(folder / CHECKPOINTS):
        raise FileExistsError(
            f"{folder}: already holds a run. Give --resume to continue it, or another --out."
        )
    if found:
        raise FileExistsError(
            f"{folder}: holds a run without a complete checkpoint ({', '.join(found)}). "
            "Give --resume if it was stopped before its first one, delete it, or give another --out."
        )


def is_unsaved(run: Path) -> bool:
    """Whether `run` was begun and stopped before its first checkpoint, so that nothing is lost."""
    history = run / HISTORY
    if saved(run / CHECKPOINTS) or not (run / CONFIG).is_file():
        return False
    # Before the first checkpoint there is one validation, of step 0.
    return not history.exists() or history.read_bytes().count(b"\n") <= 1


def run_of(checkpoint: Path, flag: str = "--checkpoint") -> Path:
    """The run's folder, given by `flag`: that folder or one of its checkpoints.

    Raises:
        FileNotFoundError: it is neither.
    """
    for folder in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        if (folder / CONFIG).is_file():
            return folder
    raise FileNotFoundError(f"{flag}: {checkpoint} is not the folder of a run: it has no {CONFIG}")


def check_same_data(run: Path, now: str) -> None:
    """ValueError if the run's data.txt, written when it began, says other than `now`; fine if it has none."""
    file = run / DATA
    before = read_text(file) if file.is_file() else now
    if before != now:
        raise ValueError(
            f"--data: changed since the run began: it was\n{before}and is\n{now}"
            "start a new run, or put the file back"
        )


def write_record(run: Path, record: Mapping[str, Any], seed: int) -> None:
    """Write config.yaml (`record`, in its order) and versions.json into the run's folder.

    Raises:
        TypeError: `record` holds something that YAML's plain types do not cover.
    """
    import yaml

    from mfk.core import yaml12

    try:
        text = yaml12.dumps(dict(record))
    except yaml.YAMLError as error:
        raise TypeError(f"record: expected plain dicts, lists, strings and numbers; {error}") from error
    write_atomically(run / CONFIG, text)
    write_atomically(run / VERSIONS, json.dumps(versions(seed), indent=2) + "\n")


def read_record(run: Path) -> dict[str, Any]:
    """The settings that a run was started, or last resumed, with.

    Raises:
        FileNotFoundError: the folder has no config.yaml. ValueError: it cannot be read.
    """
    from mfk.core import yaml12

    settings = yaml12.loads(read_text(run / CONFIG), str(run / CONFIG))
    if not isinstance(settings, dict):
        raise ValueError(f"{run / CONFIG}: expected the settings of a run, got {describe(settings)}")
    return settings


def read_versions(run: Path) -> dict[str, Any]:
    """What a run's numbers depend on beside its config, as it wrote it when it was started, or last resumed.

    Raises:
        FileNotFoundError: the folder has no versions.json. ValueError: it cannot be read.
    """
    found = read_json(run / VERSIONS)
    if not isinstance(found, dict):
        raise ValueError(f"{run / VERSIONS}: expected an object of versions, got {describe(found)}")
    return found


def write_result(run: Path, result: Mapping[str, Any]) -> None:
    """Write result.json, which says that the run is over, and how it ended; NaN and infinities as text."""
    write_atomically(run / RESULT, json.dumps(as_json(result), indent=2, allow_nan=False) + "\n")


def versions(seed: int) -> dict[str, Any]:
    """What a run's numbers depend on beside its config."""
    packages = {
        "torch": "torch",
        "numpy": "numpy",
        "optree": "optree",
        "orbax-checkpoint": "orbax",
        "mfk": "mfk",
    }
    found: dict[str, Any] = {"python": platform.python_version()}
    for package, short in packages.items():
        try:
            found[short] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[short] = "not installed as a package"
    found["torch"] = torch.__version__
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found | {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpus": devices,
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def _numbers(parent: Path) -> list[int]:
    if not parent.is_dir():
        return []
    return sorted(int(p.name) for p in parent.iterdir() if p.name.isdigit() and p.is_dir())


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
