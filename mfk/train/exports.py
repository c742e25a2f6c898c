"""A run's history and settings once more, as JSON and under the names that other programs look for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mfk.core.files import read_text, write_atomically
from mfk.train.log import history_records
from mfk.train.runs import CONFIG, HISTORY, read_record


def write_exports(run: Path | str) -> None:
    """Write history.json, training_history.json, config.json and metadata/config.yaml into the run's folder.

    The two histories are one: each metric's name -> {"step": [...], "value": [...]}, in the order of
    history.jsonl, which stays the record. NaN and infinities are the strings "nan", "inf" and "-inf", as
    there. config.json holds the settings of config.yaml, of which metadata/config.yaml is a copy.

    Raises:
        FileNotFoundError: the run has no history.jsonl or no config.yaml. ValueError: one of them cannot be
            read. OSError: the folder cannot be written.
    """
    run = Path(run)
    series: dict[str, dict[str, list[Any]]] = {}
    for record in history_records(run / HISTORY):
        for name, value in record.items():
            if name not in ("step", "time"):
                column = series.setdefault(name, {"step": [], "value": []})
                column["step"].append(record["step"])
                column["value"].append(_strict(value))
    settings = _strict(read_record(run))
    history = json.dumps(series, allow_nan=False) + "\n"
    for name in ("history.json", "training_history.json"):
        write_atomically(run / name, history)
    write_atomically(run / "config.json", json.dumps(settings, indent=2, allow_nan=False) + "\n")
    (run / "metadata").mkdir(exist_ok=True)
    write_atomically(run / "metadata" / CONFIG, read_text(run / CONFIG))


def _strict(value: Any) -> Any:
    """`value` with the numbers that JSON does not have as strings."""
    if isinstance(value, dict):
        return {key: _strict(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_strict(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
