"""mfk.train.sweep with a quick experiment of its own: what is run, kept, stopped and refused."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweep_toy import Fake, wait_for

from mfk.train import runs
from mfk.train import sweep as engine

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    from matplotlib.figure import Figure

    # Drawing takes longer than the runs; tests/experiments has a plot drawn.
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: Path(file).touch())
    return Fake(tmp_path)


def test_every_combination_runs_with_its_own_values(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    assert fake.sweep("--lr 0.01 0.02 --seed 0 1 2 --steps 3 --betas 0.5 0.6") == 0
    folder = fake.root / "fake" / "001"
    assert (fake.root / "fake" / "latest").resolve() == folder.resolve()
    assert {path.name for path in folder.iterdir()} >= {"sweep.json", "table.md", "table.json", "plot.png"}
    table = fake.table(folder)
    expected = [(lr, seed) for lr in (0.01, 0.02) for seed in (0, 1, 2)]
    assert [row["name"] for row in table["runs"]] == [f"lr={lr},seed={seed}" for lr, seed in expected]
    for row, (lr, seed) in zip(table["runs"], expected, strict=True):
        run = folder / "runs" / row["name"]
        config = json.loads((run / "config.yaml").read_text())
        assert (config["lr"], config["seed"], config["steps"], config["betas"]) == (lr, seed, 3, "0.5 0.6")
        best = 100 * lr + seed + 1 / 4
        assert (row["status"], row["metric"], row["best_step"], row["steps"]) == ("finished", "error", 3, 3)
        assert row["best"] == pytest.approx(best) and row["training"]["loss"] == pytest.approx(best / 2)
        assert row["validation"]["rate"] == pytest.approx(-best)
        assert f"training {{'lr': {lr}, 'steps': 3, 'seed': {seed}," in (run / "console.log").read_text()
    for row, lr in zip(table["summary"], (0.01, 0.02), strict=True):
        values = [100 * lr + seed + 1 / 4 for seed in (0, 1, 2)]
        assert row["values"] == {"lr": str(lr)} and row["runs"] == 3
        assert row["best"]["mean"] == pytest.approx(statistics.mean(values))
        assert row["best"]["sd"] == pytest.approx(statistics.stdev(values)) == 1
        assert row["val_rate"]["mean"] == pytest.approx(-statistics.mean(values))
    assert {"torch", "python", "cpu", "command", "at a time"} <= table["facts"].keys()
    printed = capfd.readouterr().out
    text = (folder / "table.md").read_text()
    run, spread = "| 0.01 |    0 |       1.25 |       3 |     0.625 |     3 |", "| 0.01 |    3 |   2.25 ± 1 |"
    for line in (run, spread):
        assert line in printed and line in text
    assert printed.count("\n") < 40 and "2 left, ETA 0:00:0" in printed


def test_a_dry_run_lists_the_runs(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    assert fake.sweep("--seed 0 1 --lr 0.5 --dry-run") == 0
    printed = capfd.readouterr().out
    assert "2 runs, one after the other" in printed and "seed=1: fake.py --seed=1 --lr=0.5" in printed
    assert not fake.root.exists()


def test_the_same_command_keeps_what_is_finished(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    line = f"--seed 0 1 2 --out {fake.out}"
    fake.marks.mkdir()
    (fake.marks / "break-1").touch()
    (fake.marks / "kill-2").touch()
    assert fake.sweep(line) == 1
    printed = capfd.readouterr().out
    assert "[2/3] seed=1: failed (1)" in printed and "RuntimeError: seed 1 is broken" in printed
    assert "1 of 3 runs finished" in printed and f"sweep.py fake --resume {fake.out}" in printed
    table = fake.table()
    assert [row["status"] for row in table["runs"]] == ["finished", "failed (1)", "failed (SIGKILL)"]
    assert (table["summary"][0]["runs"], table["summary"][0]["of"]) == (1, 3) and "| 1 of 3 |" in printed
    first = fake.starts()
    (fake.marks / "break-1").unlink()
    (fake.marks / "kill-2").unlink()
    assert fake.sweep(line) == 0
    assert "1 of them finished before" in capfd.readouterr().out
    assert fake.starts()["seed=0"] == first["seed=0"]
    assert [len(fake.starts()[f"seed={i}"]) for i in range(3)] == [1, 2, 2]
    # The step at which it broke was not repeated: it went on with --resume.
    assert fake.steps("seed=1") == [1, 2, 3, 4]
    assert [row["status"] for row in fake.table()["runs"]] == ["finished"] * 3
    # Without its grid, and with nothing left to do.
    assert fake.sweep(f"--resume {fake.out}") == 0
    assert sum(map(len, fake.starts().values())) == 5


def test_without_a_folder_a_new_sweep_begins_and_resume_takes_the_newest(fake: Fake) -> None:
    assert fake.sweep("--seed 0 1") == 0
    assert fake.sweep("--seed 0 1") == 0
    folder = fake.root / "fake" / "002"
    (folder / "runs" / "seed=1" / "outcome.json").unlink()
    assert fake.sweep("--resume") == 0
    assert [len(starts) for starts in fake.starts(folder).values()] in ([1, 2], [2, 1])
    assert not (fake.root / "fake" / "003").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_sweep_goes_on(
    fake: Fake, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        wait_for(lambda: set(fake.starts()) == {"seed=0", "seed=1"})
        os.kill(os.getpid(), number)

    # Under nohup and in the background of a shell SIGINT is ignored.
    before = signal.signal(number, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        code = fake.sweep(f"--seed 0 1 2 --steps 100 --pause 0.05 --jobs 2 --out {fake.out}")
    finally:
        thread.join()
        signal.signal(number, before)
    assert code == 128 + number
    printed = capfd.readouterr().out
    assert "stopping 2 running" in printed and f"--resume {fake.out}" in printed
    assert set(fake.starts()) == {"seed=0", "seed=1"}
    assert [row["status"] for row in fake.table()["runs"]] == ["stopped", "stopped", "waiting"]
    assert 0 < len(fake.steps("seed=0")) < 100
    (fake.marks / "fast").touch()
    assert fake.sweep(f"--resume {fake.out}") == 0
    for name in ("seed=0", "seed=1", "seed=2"):
        assert fake.steps(name) == list(range(1, 101))
    assert [len(fake.starts()[f"seed={i}"]) for i in range(3)] == [2, 2, 1]


def test_a_sweep_that_is_killed_takes_its_runs_along(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    driver = fake.script.with_name("driver.py")
    driver.write_text(
        "import sys\nfrom pathlib import Path\nimport fake\nfrom mfk.train.sweep import sweep\n"
        "from mfk.train.sweep_grid import Experiment\n"
        f"sweep(Experiment('fake', Path({str(fake.script)!r}), fake.PRESETS), sys.argv[1:])\n"
    )
    line = f"--seed 0 1 2 --steps 100 --pause 0.05 --last-words 3 --jobs 2 --out {fake.out}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(driver), *line.split()], env=environment, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: set(fake.starts()) == {"seed=0", "seed=1"})
    process.kill()
    process.wait()
    # Its runs are still saving: the same command waits for them, or each would meet itself.
    assert all((fake.out / "runs" / name / "at-work").exists() for name in ("seed=0", "seed=1"))
    (fake.marks / "fast").touch()
    assert fake.sweep(line) == 0
    assert "waiting for runs of an earlier sweep" in capfd.readouterr().out
    for name in ("seed=0", "seed=1", "seed=2"):
        assert fake.steps(name) == list(range(1, 101))
        printed = (fake.out / "runs" / name / "console.log").read_text()
        assert ("stopped and saved" in printed) == (name != "seed=2")
    assert [len(fake.starts()[f"seed={i}"]) for i in range(3)] == [2, 2, 1]


def test_one_sweep_at_a_time(fake: Fake) -> None:
    assert fake.sweep(f"--seed 0 1 --out {fake.out}") == 0
    with runs.locked(fake.out), pytest.raises(FileExistsError, match="another process"):
        fake.sweep(f"--resume {fake.out}")


def test_another_grid_is_refused(fake: Fake) -> None:
    assert fake.sweep(f"--lr 0.1 0.2 --steps 2 --out {fake.out}") == 0
    before = {path: path.read_bytes() for path in fake.out.rglob("*") if path.is_file()}
    for line, what in (
        ("--lr 0.1 0.2 --steps 3", r"train.steps \(2 -> 3\)"),
        ("--lr 0.1 0.2 --steps 2 --no-shuffle", r"shuffle \(True -> False\)"),
        ("--lr 0.1 0.3 --steps 2", r"no longer there: lr=0.2; new: lr=0.3"),
        (
            "--lr 0.1 0.2 0.3 --steps 2",
            r"another sweep: new: lr=0.3\. .*sweep.py fake --lr 0.1 0.2 --steps 2",
        ),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            fake.sweep(f"{line} --out {fake.out}")
        assert str(caught.value).startswith(str(fake.out))
    # The presets changed in the meantime: what is left would run with other settings.
    edited = {"default": ("", replace(fake.experiment.presets["default"][1], batch_size=16))}
    with pytest.raises(ValueError, match=r"batch_size \(8 -> 16\)"):
        engine.sweep(fake.experiment._replace(presets=edited), ["--resume", str(fake.out)], fake.root)
    with pytest.raises(ValueError, match="holds a sweep of fake, not of other"):
        engine.sweep(fake.experiment._replace(name="other"), ["--resume", str(fake.out)], fake.root)
    assert before == {path: path.read_bytes() for path in fake.out.rglob("*") if path.is_file()}


def test_folders(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--resume: .*/fake/latest is not the folder of a sweep"):
        fake.sweep("--resume")
    with pytest.raises(FileNotFoundError, match=r"--resume: .*/nowhere is not the folder of a sweep"):
        fake.sweep(f"--resume {tmp_path}/nowhere")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    with pytest.raises(FileExistsError, match="holds a run"):
        fake.sweep(f"--seed 0 1 --out {run}")
    with pytest.raises(OSError, match="--out: cannot make the folder"):
        fake.sweep(f"--seed 0 1 --out {run}/config.yaml/sweep")
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_damaged_records(fake: Fake) -> None:
    assert fake.sweep(f"--seed 0 1 --out {fake.out}") == 0
    outcome, record = fake.out / "runs" / "seed=0" / "outcome.json", fake.out / "sweep.json"
    whole = record.read_text()
    for file, text in ((outcome, ""), (outcome, "[]"), (record, whole[:50]), (record, "{}")):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"^{file}: expected") as caught:
            fake.sweep(f"--resume {fake.out}")
        assert "\n" not in str(caught.value)


def test_a_run_killed_before_it_wrote_its_settings_begins_again(fake: Fake) -> None:
    folder = fake.out / "runs" / "seed=1"
    folder.mkdir(parents=True)
    (folder / "history.jsonl").touch()
    (folder / "outcome.json").write_text('{"code": null, "seconds": 5.0}')
    (folder / "console.log").touch()
    os.utime(folder / "outcome.json", (1000, 1000))
    os.utime(folder / "console.log", (1030, 1030))
    assert fake.sweep(f"--seed 0 1 --out {fake.out}") == 0
    assert "--resume" not in (folder / "console.log").read_text()
    # Five of an earlier session, thirty of the one that was killed.
    assert 35 <= fake.table()["runs"][1]["seconds"] < 65


def test_jobs_share_the_cores(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def threads(line: str) -> tuple[set[Any], set[Any]]:
        """What --threads and OMP_NUM_THREADS of the runs were."""
        folder = fake.out / str(len(list(fake.out.glob("*"))))
        assert fake.sweep(f"{line} --out {folder}") == 0
        configs = [json.loads(file.read_text()) for file in folder.glob("runs/*/config.yaml")]
        return {x["threads"] for x in configs}, {x[0][2] for x in fake.starts(folder).values()}

    assert threads("--seed 0 1 2 --jobs 3") == ({"2"}, {"2"})
    assert threads("--seed 0 1 --jobs 5") == ({"3"}, {"3"})
    assert threads("--seed 0 1") == ({None}, {None})
    assert threads("--seed 0 1 --jobs 2 --threads 5") == ({"5"}, {None})


def test_as_many_runs_at_a_time_as_jobs(fake: Fake) -> None:
    """Each of four runs takes a while; two at a time are seen together, never three."""
    seen: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.add(len(list(fake.out.glob("runs/*/at-work"))))
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        assert fake.sweep(f"--seed 0 1 2 3 --pause 0.1 --jobs 2 --out {fake.out}") == 0
    finally:
        over.set()
        thread.join()
    assert max(seen) == 2
