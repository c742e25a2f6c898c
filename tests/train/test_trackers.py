"""The real packages, offline. What they write is made by processes of their own, and read back here."""

from __future__ import annotations

import importlib
import json
import math
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from mfk.train import trackers
from mfk.train.log import open_sink, read_history

ROOT = Path(__file__).parents[2]
RECORD = {"train": {"lr": 1e-3, "betas": [0.9, 0.999]}, "preset": "quick", "clip": None}

# Stops by SIGINT after step 3 of 6, as the loop does, and resumes with another learning rate.
TRAIN = """
import json, os, signal, sys, threading
from pathlib import Path

reached = []
sys.addaudithook(
    lambda event, args: reached.append([event, str(args)])
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(args[1], tuple)
    else None
)
from mfk.train import open_sink
from mfk.train.interrupt import interruptible

def handlers():
    return [signal.getsignal(number) for number in signal.valid_signals()]

def surroundings():
    packages = {k: v for k, v in os.environ.items() if k.startswith(("WANDB", "MLFLOW", "_MLFLOW"))}
    return [packages, sys.exit, sys.excepthook, sys.stdout, sys.stderr, os.getcwd()]

run, record = Path(sys.argv[1]), json.loads(sys.argv[2])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
before, around = handlers(), surroundings()
report = {"signals": []}
for start, lr in ((0, 1e-3), (3, 1e-2)):
    record["train"]["lr"] = lr
    sink = open_sink(run, start, 6, level="warning", trackers=("wandb", "mlflow"), record=record)
    report["handlers"] = before == handlers()
    with interruptible() as signalled:
        if start == 0:
            sink.log(0, {"val/val_loss": 8.0})
        for step in range(start + 1, 7):
            sink.log(step, {"train/loss": 1 / step, "train/lr": lr})
            if step == 2:
                odd = float("nan"), float("inf"), -float("inf")
                sink.log(2, dict(zip(("train/norm", "val/val_loss", "epoch/loss"), odd)))
            if step == 3 and start == 0:
                os.kill(os.getpid(), signal.SIGINT)
                sink.log(3, {"val/val_loss": 4.0})
                break
        report["signals"].append(signalled())
    sink.close()
report["handlers"] &= before == handlers()
report["around"] = around == surroundings()
try:
    report["children"] = str(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    report["children"] = None
report["threads"] = [t.name for t in threading.enumerate() if not t.daemon]
report["reached"] = reached
print(json.dumps(report))
"""

# Both trackers lose what they need in the middle of a run.
LOSE = """
import os, signal, sys, time
from pathlib import Path
from mfk.train import open_sink

run = Path(sys.argv[1])
sink = open_sink(run, 0, 5, level="warning", trackers=("wandb", "mlflow"), record={"a": 1})
sink.log(1, {"train/loss": 1.0})
for stat in Path("/proc").glob("[0-9]*/stat"):
    try:
        number, name, _, parent, *_ = stat.read_text().split()
    except OSError:
        continue
    if name == "(wandb-core)" and int(parent) == os.getpid():
        os.kill(int(number), signal.SIGKILL)
(run / "logs" / "mlflow" / "mlflow.db").unlink()
time.sleep(0.5)  # until the death has arrived; the first records after it may be taken still
for step in (2, 3, 4, 5):
    sink.log(step, {"train/loss": float(step)})
sink.close()
"""


def _child(code: str, folder: Path, *arguments: str, strict: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `code` where the working directory, the home and the temporary folder are new and empty."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW", "XDG", "PYTEST"))
    }
    for name, variable in (("home", "HOME"), ("tmp", "TMPDIR"), ("cwd", "PWD")):
        (folder / name).mkdir()
        environment[variable] = str(folder / name)
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        *(["-W", "error"] if strict else []),
        "-c",
        code,
        str(folder / "run"),
        *arguments,
    ]
    (folder / "run").mkdir()
    return subprocess.run(
        command, cwd=folder / "cwd", env=environment, capture_output=True, text=True, timeout=200
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trackers")
    done = _child(TRAIN, folder, json.dumps(RECORD))
    assert (done.returncode, done.stderr) == (0, "")
    return folder, json.loads(done.stdout)


def _logged(run: Path) -> dict[tuple[int, str], str]:
    """(step, metric) -> value, as text because NaN is not equal to itself."""
    return {
        (r["step"], name): str(float(x))
        for r in read_history(run)
        for name, x in r.items()
        if name not in ("step", "time")
    }


def _wandb_records(file: Path) -> list[Any]:
    """The records of an offline file: LevelDB's log format behind a header of seven bytes."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    content, at, whole, found = file.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            found.append(record.FromString(whole))
            whole = b""
    return found


@pytest.mark.slow  # like all that need `trained`, or import MLflow: seconds of imports and a new database
def test_wandb_holds_what_was_logged(trained):
    run = trained[0] / "run"
    segments = [
        _wandb_records(file) for file in sorted((run / "logs" / "wandb").glob("offline-run-*/*.wandb"))
    ]
    found = {}
    for records in segments:
        for record in records:
            if record.WhichOneof("record_type") == "history":
                row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                values = {k: str(float(x)) for k, x in row.items() if not k.startswith("_")}
                found |= {(row["_step"], name): x for name, x in values.items()}
    assert found == _logged(run) and len(found) == 17
    starts = [record.run for records in segments for record in records if record.HasField("run")]
    assert len(starts) == 2 and starts[0].run_id == starts[1].run_id and all(start.resume for start in starts)
    assert starts[0].display_name == f"{trained[0].name}/run"
    for start, lr in zip(starts, (1e-3, 1e-2), strict=True):
        config = {x.key: json.loads(x.value_json) for x in start.config.update}
        assert config == RECORD | {"train": RECORD["train"] | {"lr": lr}, "_wandb": {}}


@pytest.mark.slow
def test_mlflow_holds_what_was_logged(trained):
    run = trained[0] / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{run}/logs/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'mfk'")
    (entry,) = client.search_runs([experiment.experiment_id])
    assert entry.info.status == "FINISHED" and entry.info.run_name == f"{trained[0].name}/run"
    found = {}
    for name in entry.data.metrics:
        for metric in client.get_metric_history(entry.info.run_id, name):
            assert (metric.step, name) not in found and metric.timestamp > 1.7e12
            found[metric.step, name] = str(metric.value)
    largest = {"inf": str(sys.float_info.max), "-inf": str(-sys.float_info.max)}
    assert found == {key: largest.get(x, x) for key, x in _logged(run).items()} and len(found) == 17
    params = {"train.lr": "0.001", "train.betas": "[0.9, 0.999]", "preset": "quick", "clip": "None"}
    assert entry.data.params == params
    assert entry.data.tags["resumed/3/train.lr"] == "0.01"
    assert [tag for tag in entry.data.tags if tag.startswith("resumed")] == ["resumed/3/train.lr"]


@pytest.mark.slow
def test_nothing_lands_outside_the_run(trained):
    folder, _ = trained
    for name in ("home", "tmp", "cwd"):
        assert list((folder / name).rglob("*")) == []
    assert sorted(p.name for p in (folder / "run").iterdir()) == ["history.jsonl", "logs"]


@pytest.mark.slow
def test_nothing_reaches_the_network(trained):
    folder, report = trained
    assert report["reached"] == []
    # W&B's own process says of itself whether it reports errors, all that it would send for a run offline.
    logs = list((folder / "run" / "logs" / "wandb" / "cache").rglob("core-debug*.log"))
    first = [json.loads(log.read_text().splitlines()[0]) for log in logs]
    assert len(first) == 2 and all(line["disable-analytics"] is True for line in first)


@pytest.mark.slow
def test_signals_and_the_process_are_left_as_they_were(trained):
    _, report = trained
    assert report["signals"] == [2, None]
    assert report["handlers"] and report["around"]
    assert report["children"] is None and report["threads"] == ["MainThread"]


@pytest.mark.slow
def test_a_tracker_that_fails_is_told_once_and_the_training_goes_on(tmp_path):
    done = _child(LOSE, tmp_path, strict=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["warning:", "wandb"], ["warning:", "mlflow"]]
    assert all("history.jsonl is complete" in line for line in lines)
    assert [r["step"] for r in read_history(tmp_path / "run")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_tracker_that_cannot_start_is_told_too(tmp_path, capfd, name):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / name).write_text("a file, where the folder belongs")
    sink = open_sink(tmp_path, 0, 2, trackers=(name,), level="warning")
    sink.log(1, {"train/loss": math.nan})
    sink.close()
    out, err = capfd.readouterr()
    assert (
        out.startswith(f"warning: {name} failed and gets no more metrics (FileExistsError")
        and out.count("\n") == 1
    )
    assert err == "" and len(read_history(tmp_path)) == 1


@pytest.mark.slow
def test_a_store_that_is_none(tmp_path, capfd):
    (tmp_path / "logs" / "mlflow").mkdir(parents=True)
    (tmp_path / "logs" / "mlflow" / "mlflow.db").write_bytes(b"junk" * 1000)
    open_sink(tmp_path, 0, 2, trackers=("mlflow",)).close()
    odd = tmp_path / "50%25?"
    odd.mkdir()
    open_sink(odd, 0, 2, trackers=("mlflow",)).close()
    out, err = capfd.readouterr()
    first, second = out.splitlines()
    assert "not a database" in first and "no path with a percent sign" in second and err == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["50%25?", "history.jsonl", "logs"]


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=rf'trackers: {name} needs {name}.*pip install "mfk\[{name}\]"'):
        open_sink(tmp_path, 0, 10, trackers=(name,))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb_offline_files").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(trackers._PACKAGES, "wandb", ("wandb_offline_files",))
    with pytest.raises(ValueError, match="needs wandb_offline_files, not installed"):
        trackers.check_trackers(("wandb",))


@pytest.mark.parametrize("names", [("tensorboard",), ("wandb", "wandb"), ("wandb", "")])
def test_unknown_and_repeated_names(tmp_path, names):
    with pytest.raises(ValueError, match=r"trackers: expected some of \('wandb', 'mlflow'\), each once, got"):
        open_sink(tmp_path, 0, 10, trackers=names)
    assert list(tmp_path.iterdir()) == []
