from __future__ import annotations

import json
import math
import shutil

import pytest

from mfk.train.exports import write_exports
from mfk.train.log import open_sink
from mfk.train.runs import write_record

RECORD = {
    "train": {"lr": 1e-3, "betas": [0.9, 0.999], "clip": None},
    "preset": "é",
    "limit": math.inf,
    "n": 3,
}


@pytest.fixture
def run(tmp_path):
    sink = open_sink(tmp_path, 0, 10, console=False)
    sink.log(0, {"val/val_loss": 2.0})
    sink.log(5, {"train/loss": 0.1, "train/lr": 1e-3})
    sink.log(10, {"train/loss": math.nan, "train/lr": 0.0})
    sink.log(10, {"val/val_loss": -math.inf, "epoch/loss": math.inf})
    sink.close()
    write_record(tmp_path, RECORD, seed=0)
    return tmp_path


def _strict(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path}: {name}"))


def test_the_names_of_the_documents(run):
    before = (run / "history.jsonl").read_bytes()
    write_exports(run)
    assert _strict(run / "history.json") == {
        "val/val_loss": {"step": [0, 10], "value": [2.0, "-inf"]},
        "train/loss": {"step": [5, 10], "value": [0.1, "nan"]},
        "train/lr": {"step": [5, 10], "value": [1e-3, 0.0]},
        "epoch/loss": {"step": [10], "value": ["inf"]},
    }
    assert (run / "training_history.json").read_bytes() == (run / "history.json").read_bytes()
    settings = _strict(run / "config.json")
    assert settings.pop("limit") == "inf"
    assert settings == {k: v for k, v in RECORD.items() if k != "limit"}
    assert (run / "metadata" / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    assert (run / "history.jsonl").read_bytes() == before


def test_written_again_as_a_whole(run):
    write_exports(run)
    (run / "history.json").write_text("cut sho")
    names = sorted(p.relative_to(run) for p in run.rglob("*"))
    write_exports(run)
    assert _strict(run / "history.json")["epoch/loss"]["step"] == [10]
    assert sorted(p.relative_to(run) for p in run.rglob("*")) == names


def test_a_line_cut_short_by_a_kill_is_left_out(run):
    with (run / "history.jsonl").open("ab") as file:
        file.write(b'{"step": 15, "train/loss": "\xc3')
    write_exports(run)
    assert _strict(run / "history.json")["train/loss"]["step"] == [5, 10]


def test_an_empty_history(run):
    (run / "history.jsonl").write_text("")
    write_exports(run)
    assert _strict(run / "history.json") == {}


def test_what_cannot_be_read_is_named_and_nothing_is_written(run, tmp_path):
    (run / "config.yaml").rename(run / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        write_exports(run)
    (run / "elsewhere").rename(run / "config.yaml")
    with (run / "history.jsonl").open("a") as file:
        file.write("not a record\n")
    with pytest.raises(ValueError, match=r"history\.jsonl: expected one record .*'not a record' in line 5"):
        write_exports(run)
    (run / "history.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"history\.jsonl"):
        write_exports(run)
    assert not (run / "history.json").exists() and not (run / "metadata").exists()
    shutil.rmtree(run)
    with pytest.raises(FileNotFoundError):
        write_exports(run)
