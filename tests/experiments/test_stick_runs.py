"""Trainings by experiments/stick.py as a user starts them: stages, stops, presets, mistakes."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import stick as script
import stick_runs
import torch
from signalled import signalled
from stick_line import SILENT, TINY, clips_file, refuse, run

from mfk import train
from mfk.core import cli
from mfk.core.types import Params
from mfk.data.stick_files import write_stick
from mfk.data.stick_generate import generate_stick
from mfk.tasks.stick_net import RefineConfig, stick_nets

SCRIPT = Path(script.__file__)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAIN_DATA_PATH", raising=False)


def params(folder: Path) -> Params:
    return stick_runs.trained(stick_runs.settings_of(folder), folder)[1].params["net"]


def figures(folder: Path) -> list[dict[str, float]]:
    """A run's history without what depends on the clock."""
    clock = ("time", "train/samples_per_second")
    return [{k: x for k, x in r.items() if k not in clock} for r in train.read_history(folder)]


def test_pretraining_and_then_fine_tuning(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    first, second = clips_file(Path("pre.pt")), clips_file(Path("sft.pt"), actions=["walk", "wave"])
    words = [*TINY, *SILENT, "--curated-pretrain-data", str(first), "--curated-sft-data", str(second)]
    assert run(*words, "--stage", "pretrain", "--out", "pre") == 0
    assert run(*words, "--stage", "sft", "--init-from", "pre", "--out", "sft", "--lr", "1e-9") == 0
    assert "pre.pt" in Path("pre/data.txt").read_text() and "sft.pt" in Path("sft/data.txt").read_text()
    # It begins where the other ended: a learning rate next to nothing leaves it there.
    before, after = params(Path("pre")), params(Path("sft"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    told = refuse(capsys, *words, "--stage", "sft", "--init-from", "pre", "--width", "32", "--out", "no")
    assert "pre" in told
    assert "stage: sft needs curated_sft_data" in refuse(capsys, *TINY, "--stage", "sft")
    # The variable is read where no file is named.
    monkeypatch.setenv("TRAIN_DATA_PATH", str(first))
    assert run(*TINY, *SILENT, "--out", "by-variable") == 0
    assert Path("by-variable/data.txt").read_text() == Path("pre/data.txt").read_text()


@pytest.mark.slow  # two trainings and a start of Python with torch
def test_a_stopped_run_ends_with_the_same_numbers(tmp_path: Path) -> None:
    clips_file(Path("a.pt"))
    words = [
        *TINY, *SILENT, "--steps", "12", "--validate-every", "6", "--data", "a.pt", "--dropout", "0.1",
        "--enabled", "--refinement", "ddpm", "--channels", "8", "16",
    ]  # fmt: skip
    assert run(*words, "--out", "whole") == 0
    stopped = signalled("SIGTERM", "step 6/12  val", SCRIPT, *words, "--out", "parts")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert not Path("parts/report.json").exists()
    assert run("--resume", "parts") == 0
    assert figures(Path("whole")) == figures(Path("parts"))
    whole, parts = params(Path("whole")), params(Path("parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    a, b = (
        json.loads(Path(f"{name}/report.json").read_text(encoding="utf-8")) for name in ("whole", "parts")
    )
    assert a["results"] == b["results"]


def test_other_data_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    file = clips_file(Path("a.pt"))
    assert run(*TINY, *SILENT, "--data", "a.pt", "--out", "run") == 0
    clips_file(file, actions=["wave"])
    capsys.readouterr()
    assert run("evaluate", "--checkpoint", "run") == 2
    assert "--data: changed since the run began" in capsys.readouterr().err
    assert run("--resume", "run") == 2
    assert "--data: changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--heads", "5"], "expected a multiple of heads, 5, got 16"),
        (["--nhead", "3"], "expected a multiple of heads, 3, got 16"),
        (["--num-actions", "46"], "num_actions: expected at least the 60"),
        (["--members", "2"], "members: stick figures are trained one by one, got 2"),
        (["--temporal", "-1"], "temporal: expected a finite number >= 0"),
        (["--channels", "8"], "channels: (8,) would have no effect"),
        (["--channels", "6", "--enabled"], "channels[0]: expected a multiple of groups, 8, got 6"),
        (["--embedding-dim", "1"], "error: embedding_dim: expected an int >= 2, got 1"),
        (["--encoder", ""], "error: encoder: expected 'hash' or the name of a model, got ''"),
        (["--data", "none.pt"], "error: data: none.pt: there is no such file"),
        (["--data", "."], "error: data: .: expected a file, got a folder"),
        (["--train-data", "none.pt"], "error: train_data: none.pt: there is no such file"),
        (["--stage", "sft", "--curated-sft-data", "a.pt"], "error: curated_sft_data: a.pt: there is no such"),
        (["--init-from", "none"], "error: --init-from: none is not the folder of a run"),
        (["--out", __file__], f"error: --out: {__file__}: expected a folder, got the file"),
        (["--out", f"{__file__}/x"], f"error: --out: {__file__}/x: expected a folder, got the file"),
        (["--held-out", "s1"], "held_out: ('s1',) would have no effect"),
        (["--test-share", "0"], "test_share: expected a share between 0 and 1"),
        (["--clips", "2"], "2 generated clips: 2 clips leave none for training"),
        (
            ["--sample-text", "a person hugs"],
            "error: sample_text: 'a person hugs': expected what the training clips do",
        ),
        (["--sample-text", "..."], "error: sample_text: '...': expected words"),
        (["--encoder", "some-model"], "sentence-transformers is needed: pip install 'mfk[text]'"),
    ],
)
def test_mistakes_are_told_before_a_training(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as where it is not installed
    line = [*TINY, "--clips", "20", *words]
    assert message in refuse(capsys, *line)
    assert not (tmp_path / "outputs").exists()


def test_a_file_that_changes_before_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training has copies of its windows; the report's clips are the file's own."""
    file = clips_file(Path("a.pt"))
    launch = train.launch

    def launched(*arguments, **options):
        result = launch(*arguments, **options)
        clips_file(file, actions=["wave"])
        return result

    monkeypatch.setattr(train, "launch", launched)
    told = refuse(capsys, *TINY, *SILENT, "--data", "a.pt", "--out", "run")
    assert told.startswith("error: a.pt: changed while it was in use")
    assert train.find("run").step == 6 and not Path("run/report.json").exists()


def test_embeddings_of_another_width_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    made = generate_stick(10, seed=0, frames=60)
    write_stick("a.pt", [clip._replace(embedding=torch.ones(64)) for clip in made])
    told = refuse(capsys, *TINY, "--data", "a.pt")
    assert "a.pt: clip 0: embedding: expected 32 numbers (embedding_dim), got (64,)" in told


def test_clips_without_labels_train_and_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "SAMPLE_SECONDS", 1.0)
    made = generate_stick(10, seed=0, frames=60)
    write_stick("a.pt", [clip._replace(actions=None, physics=None, environment_type=None) for clip in made])
    assert run(*TINY, "--data", "a.pt", "--out", "run", "--sample-text", "a person walks") == 0
    assert Path("run/sample.gif").stat().st_size > 0


def test_documented_spellings() -> None:
    words = ["--d-model", "64", "--nhead", "4", "--num-layers", "3", "--max-grad-norm", "2", "--dry-run"]
    given = cli.parse(script.PRESETS, script.COMMANDS, prog="stick.py", description="", argv=words)
    assert isinstance(given, stick_runs.StickRun)
    assert (given.net.width, given.net.heads, given.net.layers, given.train.clip) == (64, 4, 3, 2.0)


@pytest.mark.parametrize(
    ("preset", "documented"), [("small", 7.2482e6), ("medium", 20.5946e6), ("large", 44.6184e6)]
)
def test_presets_are_as_large_as_documented(preset: str, documented: float) -> None:
    settings = script.PRESETS[preset][1]
    nets = stick_nets(settings.net, settings.diffusion, 20)
    with torch.device("meta"):
        counted = sum(p.numel() for p in nets.model.init(0)[0].values())
    assert abs(counted / documented - 1) < 0.01
    assert settings.diffusion == RefineConfig() and settings.net.embedding_dim == 1024
    if preset == "medium":
        assert script.PRESETS["default"][1] == settings


def test_the_presets_sizes() -> None:
    sizes = {"small": (256, 6, 8), "medium": (384, 8, 12), "large": (512, 10, 16)}
    for name, expected in sizes.items():
        net = script.PRESETS[name][1].net
        assert (net.width, net.layers, net.heads) == expected


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for word in ("generate", "evaluate", "import", "make", "validate", "small", "medium", "large"):
        assert word in shown
