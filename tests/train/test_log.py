from __future__ import annotations

import importlib
import io
import json
import math
import os
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
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
    before = set(threading.enumerate())  # other tests' compilers
    sink = open_sink(tmp_path, 0, 10, console=False)
    sink.log(1, {"train/loss": 0.5})
    sink.note("x")
    sink.close()
    assert capfd.readouterr() == ("", "")
    for thread in threading.enumerate():
        if thread not in before and not thread.daemon:
            thread.join(timeout=10)
            assert not thread.is_alive(), thread.name


def test_a_line_cut_short_is_no_record_and_a_bad_line_is_named(tmp_path):
    sink = open_sink(tmp_path, 0, 10, console=False)
    sink.log(1, {"train/loss": 0.1 + 0.2})
    sink.close()
    history = tmp_path / "history.jsonl"
    written = history.read_bytes()
    with history.open("ab") as file:
        file.write(b'{"step": 2, "x": "\xc3')
    assert [r["step"] for r in read_history(tmp_path)] == [1]
    open_sink(tmp_path, 1, 10, console=False).close()
    assert history.read_bytes() == written
    for bad in (b"\x00\xff", b"[1]", b'{"steps": 2}', b'{"step": 2.5}', b'{"step": true}'):
        history.write_bytes(written + bad + b"\n" + written)
        for reader in (read_history, lambda run: open_sink(run, 1, 10, console=False)):
            with pytest.raises(
                ValueError,
                match=r"history\.jsonl: expected one record with its step a line, got .* in line 2",
            ):
                reader(tmp_path)
        assert history.read_bytes() == written + bad + b"\n" + written
    history.unlink()
    with pytest.raises(FileNotFoundError, match=r"history\.jsonl"):
        read_history(tmp_path)


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["metrics", "full", "debug", "info", "warning", "error"]),
        ("info", ["metrics", "info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_levels_thin_out_the_terminal_alone(tmp_path, capsys, monkeypatch, level, shown, is_terminal):
    if is_terminal:
        for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "200")):
            monkeypatch.setenv(name, value)
    sink = open_sink(tmp_path, 0, 10, level=level)
    sink.advance(1)
    sink.log(2, {"train/loss": 0.25, "train/grad_norm": math.inf})
    sink.log(10, {"train/loss": 0.125, "val/val_loss": 3.0})
    sink.note("saved [in] 1 s", level="debug")
    sink.note("resumed")
    sink.note("odd", level="warning")
    sink.note("bad", level="error")
    sink.close()
    out, err = capsys.readouterr()
    texts = {
        "metrics": "10/10",
        "full": "step 2: train/loss=0.25 train/grad_norm=inf",
        "debug": "saved [in] 1 s",
        "info": "resumed",
        "warning": "warning: odd",
        "error": "error: bad",
    }
    assert [name for name, text in texts.items() if text in out] == shown and err == ""
    assert ("\x1b" in out) == (is_terminal and level in ("debug", "info"))
    assert [r["step"] for r in read_history(tmp_path)] == [2, 10]
    assert [(s, n) for s, n, _ in _scalars(tmp_path / "logs")] == [
        (2, "train/loss"),
        (10, "train/loss"),
        (10, "val/val_loss"),
    ]


def test_an_unknown_level_changes_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"level: expected one of .*got 'loud'"):
        open_sink(tmp_path, 0, 10, level="loud")  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


@contextmanager
def _lost_terminal():
    """A bar's terminal, and what closes its other side."""
    master, slave = os.openpty()
    file = os.fdopen(slave, "w")
    yield file, lambda: os.close(master)
    with suppress(OSError):
        file.close()


@contextmanager
def _lost_pipe():
    reader, writer = os.pipe()
    file = os.fdopen(writer, "w")
    yield file, lambda: os.close(reader)
    with suppress(OSError):
        file.close()


@contextmanager
def _full_disk():
    file = open("/dev/full", "w")
    yield file, lambda: None
    with suppress(OSError):
        file.close()


@contextmanager
def _closed_file():
    file = io.StringIO()
    yield file, file.close


@contextmanager
def _no_file():
    yield None, lambda: None


@pytest.mark.parametrize("when", ["at the start", "in the middle", "at the end"])
@pytest.mark.parametrize("lost", [_lost_terminal, _lost_pipe, _full_disk, _closed_file, _no_file])
def test_a_training_outlives_what_shows_it(tmp_path, monkeypatch, lost, when):
    monkeypatch.setenv("TERM", "xterm")
    before = sys.stdout, sys.stderr
    with lost() as (file, lose), monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        if when == "at the start":
            lose()
        sink = open_sink(tmp_path, 0, 3, level="debug")
        if when == "in the middle":
            sink.log(1, {"train/loss": 1.0})
            lose()
        for step in (1, 2, 3):
            sink.advance(step)
            sink.log(step, {"train/loss": 1.0, "val/val_loss": 1.0})
            sink.note("text")
        if when == "at the end":
            lose()
        sink.note("SIGHUP: stopped", level="warning")
        sink.close()
        # The bar puts its own stream in front; it is gone again.
        assert sys.stdout is file and sys.stderr is before[1]
    assert [r["step"] for r in read_history(tmp_path)][-3:] == [1, 2, 3]


def test_a_bar_that_fails_leaves_lines(tmp_path, monkeypatch):
    """Lines may fail one by one: a terminal that comes back is written to again."""
    monkeypatch.setenv("TERM", "xterm")
    broken = [False]

    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            if broken[0]:
                raise OSError(5, "Input/output error")
            return super().write(text)

    file = Terminal()
    monkeypatch.setattr(sys, "stdout", file)
    sink = open_sink(tmp_path, 0, 4)
    sink.log(1, {"train/loss": 1.0})
    broken[0] = True
    sink.log(2, {"train/loss": 1.0})
    sink.note("lost")
    broken[0] = False
    sink.note("back")
    sink.log(4, {"train/loss": 4.0})
    sink.close()
    last = file.getvalue().splitlines()[-2:]
    assert last[0].endswith("back") and last[1].startswith("step 4/4  loss 4")


def test_a_name_that_the_terminal_cannot_encode(tmp_path, monkeypatch):
    for encoding, text, shown in (("ascii", "Größe", "Gr\\xf6\\xdfe"), ("utf-8", "a\udcff", "a\\udcff")):
        raw = io.BytesIO()
        file = io.TextIOWrapper(raw, encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", file)
            sink = open_sink(tmp_path, 0, 1)
            sink.note(text)
            sink.close()
        assert raw.getvalue().decode() == shown + "\n"


_NEARLY_FULL = """
import resource, sys
from mfk.train.log import open_sink
from pathlib import Path

run = Path(sys.argv[1])
run.mkdir()
sink = open_sink(run, 0, 9, console=False)
sink.log(1, {"a": 1.0})
room = (run / "history.jsonl").stat().st_size + 20
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
try:
    sink.log(2, {"a": 2.0})
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sink.log(3, {"a": 3.0})
sink.close()
"""


def test_a_disk_that_takes_half_a_line_leaves_no_half_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _NEARLY_FULL, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "cannot write its logs (No space left on device)" in done.stdout, done.stderr
    assert [r["step"] for r in read_history(tmp_path / "run")] == [1, 3]
