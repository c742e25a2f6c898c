"""Weights & Biases and MLflow as further places for the metrics, both offline and inside the run's folder.

``logs/wandb`` takes one folder for each start of the run, all under one run id, for ``wandb sync``.
``logs/mlflow/mlflow.db`` is one run in SQLite, for ``mlflow ui --backend-store-uri sqlite:///<path>``. What a
killed run had logged past its last checkpoint stays in both, beside what is logged after the resume:
history.jsonl is the record. MLflow stores an infinity as the largest float64.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from mfk.core.config import flatten
from mfk.core.files import write_atomically
from mfk.train.runs import LOGS
from mfk.train.terminal import Note

Tracker: TypeAlias = Literal["wandb", "mlflow"]

TRACKERS: tuple[Tracker, ...] = get_args(Tracker)


class Track(NamedTuple):
    """One tracker's run."""

    log: Callable[[int, Mapping[str, float]], None]  # (steps made, metrics)
    close: Callable[[], None]


def check_trackers(trackers: Sequence[str]) -> None:
    """ValueError if one of `trackers` is unknown, named twice, or not installed."""
    for name in trackers:
        if name not in TRACKERS or list(trackers).count(name) > 1:
            raise ValueError(f"trackers: expected some of {TRACKERS}, each once, got {tuple(trackers)}")
        missing = [package for package in _PACKAGES[name] if not _is_installed(package)]
        if missing:
            raise ValueError(
                f'trackers: {name} needs {" and ".join(missing)}, not installed; pip install "mfk[{name}]"'
            )


def open_tracker(name: Tracker, run: Path, start: int, record: Mapping[str, Any], note: Note) -> Track:
    """Open or, for a resumed run, reopen the run of a tracker; `record` becomes its config.

    Whatever fails in the tracker, now or later, is told once through `note`, as a warning, and the tracker
    takes nothing from then on: a training does not end because of it.
    """
    tracks: list[Track] = []

    def attempt(action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            note(f"{name} failed and gets no more metrics ({reason}); history.jsonl is complete", "warning")
            if tracks:
                with suppress(Exception):
                    tracks.pop().close()

    def log(step: int, metrics: Mapping[str, float]) -> None:
        if tracks:
            attempt(lambda: tracks[0].log(step, metrics))

    def close() -> None:
        if tracks:
            attempt(lambda: tracks.pop().close())

    attempt(lambda: tracks.append(_OPEN[name](run.absolute(), start, record)))
    return Track(log, close)


def _open_wandb(run: Path, start: int, record: Mapping[str, Any]) -> Track:
    folder = run / LOGS / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    identity = folder / "run_id"
    if not identity.exists():
        write_atomically(identity, uuid.uuid4().hex + "\n")
    # Its process may serve runs that are not ours, and is then left to them.
    is_served = "WANDB_SERVICE" in os.environ
    hooks = sys.exit, sys.excepthook
    # Error reports go over the network even where a run is offline.
    quiet = {
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
        "WANDB_CACHE_DIR": str(folder / "cache"),
    }
    with _environment(quiet):
        import wandb

        def close() -> None:
            try:
                tracked.finish()
            finally:
                if not is_served:
                    wandb.teardown()

        try:
            tracked = wandb.init(
                project="mfk",
                name="/".join(run.parts[-2:]),
                id=identity.read_text(encoding="utf-8").strip(),
                resume="allow",
                config=dict(record),
                reinit="create_new",
                settings=wandb.Settings(
                    mode="offline",
                    root_dir=str(run / LOGS),
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    # Asks cloud providers, over the network, where it runs.
                    x_disable_stats=True,
                    x_disable_meta=True,
                    x_save_requirements=False,
                    # A killed process loses these seconds.
                    x_transaction_log_flush_interval=1.0,
                ),
            )
        except BaseException:
            if not is_served:
                with suppress(Exception):
                    wandb.teardown()
            raise
        finally:
            # It replaces both, and never puts them back.
            sys.exit, sys.excepthook = hooks
    return Track(lambda step, metrics: tracked.log(dict(metrics), step=step), close)


def _open_mlflow(run: Path, start: int, record: Mapping[str, Any]) -> Track:
    folder = run / LOGS / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    store = _sqlite(folder / "mlflow.db")
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
    with _environment(quiet), warnings.catch_warnings():
        # MLflow's own use of SQLAlchemy.
        warnings.simplefilter("ignore", DeprecationWarning)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        client = MlflowClient(store, store)
    experiment = client.get_experiment_by_name("mfk")
    if experiment is None:
        number = client.create_experiment("mfk", (folder / "artifacts").as_uri())
    else:
        number = experiment.experiment_id
    # The store holds no run but this.
    found = client.search_runs([number], max_results=1)
    tracked = found[0] if found else client.create_run(number, run_name="/".join(run.parts[-2:]))
    name = tracked.info.run_id
    client.update_run(name, status="RUNNING")
    settings = {key: str(value) for key, value in flatten(record).items()}
    known = tracked.data.params
    params = [Param(key, value) for key, value in settings.items() if key not in known]
    # A parameter cannot be changed, a tag can be added.
    tags = [
        RunTag(f"resumed/{start}/{key}", value)
        for key, value in settings.items()
        if known.get(key, value) != value
    ]
    for first in range(0, max(len(params), len(tags)), _BATCH):
        some = slice(first, first + _BATCH)
        client.log_batch(name, params=params[some], tags=tags[some], synchronous=True)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        values = [Metric(key, float(x), now, step) for key, x in metrics.items()]
        client.log_batch(name, metrics=values, synchronous=True)

    return Track(log, lambda: client.set_terminated(name))


_OPEN: dict[str, Callable[[Path, int, Mapping[str, Any]], Track]] = {
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
}
_PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
_BATCH = 100  # parameters, or tags, that MLflow takes at once


def _is_installed(package: str) -> bool:
    # A folder of that name, as wandb itself leaves in the working directory, is found without an origin.
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _sqlite(file: Path) -> str:
    from sqlalchemy import make_url

    # MLflow makes the folder of the text itself, SQLAlchemy opens what it makes of it: they have to be one.
    store = f"sqlite:///{file}"
    if make_url(store).database != str(file):
        raise ValueError(f"{file}: MLflow takes no path with a percent sign or a question mark")
    return store


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """`values` in the environment, for packages that read some settings there alone."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
