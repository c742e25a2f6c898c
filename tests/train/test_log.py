from __future__ import annotations

import importlib
import json
import math
import struct
import threading
from pathlib import Path

import pytest

from mfk.train import open_sink, read_history

# Generated code, in which a type checker finds no names.
Event = importlib.import_module("tensorboardX.proto.event_pb2").Event


def _scalars(logs: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all event files: records are length, CRC, bytes, CRC."""
    found = []
    for file in sorted(logs.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            at += 16 + length
    return found


def test_history_and_tensorboard(tmp_path, capfd):
    sink = open_sink(tmp_path, 0, 10)
    sink.log(1, {"train/loss": 0.5, "train/lr": 1e-3})
    sink.log(2, {"train/loss": math.nan, "val/val_loss": math.inf})
    # Written and flushed already: a killed process loses nothing.
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    sink.close()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [r.pop("time") > 1.7e9 for r in records] == [True, True]
    assert records[0] == {"step": 1, "train/loss": 0.5, "train/lr": 1e-3}
    assert records[1] == {"step": 2, "train/loss": "nan", "val/val_loss": "inf"}
    back = read_history(tmp_path)
    assert math.isnan(back[1]["train/loss"]) and back[1]["val/val_loss"] == math.inf
    scalars = _scalars(tmp_path / "logs")
    assert [(s, n) for s, n, _ in scalars] == [(1, "train/loss"), (1, "train/lr")]
    assert scalars[0][2] == 0.5
    out, err = capfd.readouterr()
    assert err == "" and "step 1/10  loss 0.5  lr 1.00e-03" in out


def test_resuming_cuts_what_comes_after_the_checkpoint(tmp_path):
    sink = open_sink(tmp_path, 0, 100, console=False)
    for step in (5, 10, 15, 20):
        sink.log(step, {"train/loss": float(step)})
    sink.close()
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 25, "ti')
    sink = open_sink(tmp_path, 10, 100, console=False)
    sink.log(15, {"train/loss": -1.0})
    sink.close()
    records = [(r["step"], r["train/loss"]) for r in read_history(tmp_path)]
    assert records == [(5, 5.0), (10, 10.0), (15, -1.0)]


def test_plain_lines_are_few(tmp_path, capsys):
    sink = open_sink(tmp_path, 0, 1000)
    for step in range(1, 1001):
        sink.log(step, {"train/loss": 0.1})
    sink.log(1000, {"val/val_loss": 0.2})
    sink.note("done [not markup]")
    sink.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 5
    assert lines[-1] == "done [not markup]" and lines[-2].startswith("step 1000/1000  val_loss 0.2")


def test_progress_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    sink = open_sink(tmp_path, 5, 20)
    sink.advance(6)
    sink.log(10, {"train/loss": 0.25, "train/lr": 1e-3, "train/samples_per_second": 1234.0})
    sink.note("text [with brackets]")
    sink.close()
    out = capsys.readouterr().out
    assert "10/20" in out and "loss 0.25" in out and "1234 samples/s" in out and "text [with brackets]" in out


def test_silence(tmp_path, capfd):
    sink = open_sink(tmp_path, 0, 10, console=False)
    sink.log(1, {"train/loss": 0.5})
    sink.note("x")
    sink.close()
    assert capfd.readouterr() == ("", "")
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(timeout=10)
            assert not thread.is_alive(), thread.name
