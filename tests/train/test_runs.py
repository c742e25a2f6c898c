from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path

import pytest
import torch
import yaml

from mfk.train import Guard, TrainState, claim_run, save, write_record
from mfk.train.runs import locked

ZERO = torch.tensor(0)


def _checkpoint(run: Path) -> None:
    state = TrainState(1, {"w": torch.ones(1)}, {}, {}, None, Guard(ZERO, ZERO, ZERO, ZERO, ZERO))
    save(run / "checkpoints", state)


def test_numbered_folders(tmp_path):
    root = tmp_path / "outputs"
    assert [claim_run(None, "panda", root) for _ in range(3)] == [
        root / "panda" / f"00{i}" for i in (1, 2, 3)
    ]
    assert (root / "panda" / "latest").resolve() == (root / "panda" / "003").resolve()
    assert claim_run(None, "ur10", root) == root / "ur10" / "001"
    (root / "panda" / "999").mkdir()
    assert claim_run(None, "panda", root).name == "1000"
    assert (root / "panda" / "latest").resolve().name == "1000"
    assert not [p for p in (root / "panda").iterdir() if p.name.startswith(".")]


def test_two_runs_that_start_together_get_two_folders(tmp_path):
    claimed, barrier = [], threading.Barrier(8)

    def claim():
        barrier.wait()
        claimed.append(claim_run(None, "x", tmp_path))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(claimed)) == 8


def test_explicit_folders(tmp_path):
    out = claim_run(tmp_path / "a" / "b", "panda")
    assert out == tmp_path / "a" / "b" and out.is_dir()
    (out / "notes.txt").write_text("mine")
    assert claim_run(str(out), "panda") == out
    (out / "config.yaml").write_text("")
    with pytest.raises(FileExistsError, match=r"before its first one, delete it"):
        claim_run(out, "panda")
    _checkpoint(out)
    with pytest.raises(FileExistsError, match=r"already holds a run.*--resume") as caught:
        claim_run(out, "panda")
    assert str(out) in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="expected a folder"):
        claim_run(tmp_path / "file", "panda")


def test_a_folder_called_latest_is_left_alone(tmp_path):
    (tmp_path / "panda" / "latest").mkdir(parents=True)
    assert claim_run(None, "panda", tmp_path).name == "001"
    assert (tmp_path / "panda" / "latest").is_dir() and not (tmp_path / "panda" / "latest").is_symlink()


def test_records(tmp_path):
    record = {"z": 1, "a": {"lr": 1e-4, "betas": [0.9, 0.999], "name": "Ärm"}, "none": None}
    write_record(tmp_path, record, seed=5)
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == record and text.index("z:") < text.index("a:")
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["torch"] == torch.__version__ and versions["seed"] == 5
    assert versions["threads"] == torch.get_num_threads()
    assert {"python", "numpy", "optree", "orbax", "mfk", "platform", "cpu", "gpus"} <= versions.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "versions.json"]
    with pytest.raises(TypeError, match="record"):
        write_record(tmp_path, {"x": torch.ones(1)}, seed=0)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) == record


def test_one_process_at_a_time(tmp_path):
    """The lock is the process's own file handle: a second one, even here, is refused."""
    with locked(tmp_path):
        with pytest.raises(FileExistsError, match="another process is training"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^--out: cannot make the folder .*file/run"):
        claim_run(tmp_path / "file" / "run", "panda")


def test_a_run_that_another_process_trains_is_not_offered_for_deletion(tmp_path):
    (tmp_path / "history.jsonl").write_text("")
    with locked(tmp_path), pytest.raises(FileExistsError, match="another process is training"):
        claim_run(tmp_path, "panda")
    with pytest.raises(FileExistsError, match="before its first one"):
        claim_run(tmp_path, "panda")


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_forked_worker_does_not_hold_the_lock(tmp_path):
    """It may outlive its parent; the run must be resumable at once."""
    context = multiprocessing.get_context("fork")
    running, release = context.Event(), context.Event()
    with locked(tmp_path):
        worker = context.Process(target=lambda: (running.set(), release.wait(60)))
        worker.start()
        assert running.wait(60)
    try:
        with locked(tmp_path):
            pass
    finally:
        release.set()
        worker.join()
