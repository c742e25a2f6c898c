"""experiments/stick.py as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stick as script
import stick_runs
import torch
from PIL import Image

from mfk import train
from mfk.core import cli
from mfk.data.stick import ACTIONS, shared_point_gap
from mfk.data.stick_check import check_stick
from mfk.data.stick_files import read_stick, write_stick
from mfk.data.stick_generate import generate_stick
from mfk.tasks.stick_net import RefineConfig, StickNetConfig, stick_nets

SCRIPT = Path(script.__file__)
TINY = [
    "quick", "--steps", "6", "--warmup-steps", "1", "--validate-every", "3", "--batch-size", "4",
    "--width", "16", "--heads", "2", "--layers", "1", "--embedding-dim", "32", "--frames", "20",
    "--threads", "1", "--log-every", "1",
]  # fmt: skip
SILENT = ["--sample-text", ""]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAIN_DATA_PATH", raising=False)


def run(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stick.py", *words])
        try:
            script.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command line with a mistake ends with."""
    capsys.readouterr()
    assert run(*words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and len(told.splitlines()) == 1, told
    return told


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on generated clips, with its sample."""
    out = tmp_path_factory.mktemp("stick") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRAIN_DATA_PATH", raising=False)
        patch.setattr(script, "SAMPLE_SECONDS", 1.0)
        assert run(*TINY, "--clips", "20", "--sample-text", "a person walks", "--out", str(out)) == 0
    yield out


def params(folder: Path) -> dict[str, torch.Tensor]:
    return stick_runs.trained(stick_runs.settings_of(folder), folder)[1].params["net"]


def figures(folder: Path) -> list[dict[str, float]]:
    """A run's history without what depends on the clock."""
    clock = ("time", "train/samples_per_second")
    return [{k: x for k, x in r.items() if k not in clock} for r in train.read_history(folder)]


def clips_file(path: Path, count: int = 10, **more) -> Path:
    write_stick(path, generate_stick(count, seed=1, frames=60, **more))
    return path


def test_a_run_leaves_a_report_and_a_sample(trained: Path) -> None:
    for name in ("report.json", "report.md", "config.yaml", "data.txt", "history.jsonl", "result.json"):
        assert (trained / name).stat().st_size > 0
    assert (trained / "data.txt").read_text(encoding="utf-8") == "generated\n"
    report = json.loads((trained / "report.json").read_text(encoding="utf-8"))
    assert report["results"][-1]["action"] == "all" and report["results"][-1]["frames"] > 100
    assert report["facts"]["data"] == "20 generated clips" and report["facts"]["held-out clips"] == 2
    with Image.open(trained / "sample.gif") as picture:
        assert getattr(picture, "n_frames", 1) > 10
    with Image.open(trained / "sample.png") as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize("suffix", ["gif", "png", "npz"])
def test_generation_by_a_seed(suffix: str, trained: Path, tmp_path: Path) -> None:
    said = "somebody is there, then sits down"
    words = ["generate", "--text", said, "--seconds", "1", "--checkpoint", str(trained)]
    for name, seed in (("a", "4"), ("b", "4"), ("c", "5")):
        assert run(*words, "--seed", seed, "--out", f"{name}.{suffix}") == 0
    a, b, c = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "abc")
    assert a == b and a != c
    if suffix == "npz":
        with np.load("a.npz") as found:
            assert found["motion"].shape == (25, 20) and float(found["fps"]) == 25
            assert set(found["actions"][12:]) == {ACTIONS.index("sit")} and str(found["text"]) == said
            assert float(shared_point_gap(torch.from_numpy(found["motion"])).max()) < 1e-4


def test_generation_by_named_actions_and_of_little_length(trained: Path) -> None:
    words = ["generate", "--text", "somebody", "--checkpoint", str(trained), "--seconds", "0.3", "--actions"]
    assert run(*words, "walk", "run", "--out", "a.npz") == 0
    with np.load("a.npz") as found:
        assert found["actions"].tolist() == [ACTIONS.index("walk")] * 4 + [ACTIONS.index("run")] * 4
    assert run(*words, "walk", "--out", "a.png") == 0 and Path("a.png").stat().st_size > 0


def test_evaluation_repeats_the_report(trained: Path, tmp_path: Path) -> None:
    assert run("evaluate", "--checkpoint", str(trained), "--out", "again") == 0
    first, again = (
        json.loads((folder / "report.json").read_text(encoding="utf-8"))
        for folder in (trained, Path("again"))
    )
    assert first["results"] == again["results"] and not (trained / "evaluation").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seconds", "-1"], "seconds: expected at least 0.24, got -1"),
        (["--seconds", "0"], "seconds: expected at least 0.24"),
        (["--seconds", "nan"], "seconds: expected a finite float, got nan"),
        (["--text", " "], "text: expected words, got none"),
        (["--text", "..."], "text: expected words"),
        (["--actions", "walk", "juggle"], "actions: expected some of idle, walk,"),
        (["--text", "a person hugs"], "actions: expected to begin with one that the training data had"),
        (["--out", "a.webm"], ".gif"),
        (["--out", "no/a.gif"], "no"),
        (["--checkpoint", "nowhere"], "nowhere is not the folder of a run"),
    ],
)
def test_mistakes_in_generation_are_told(words, message, trained: Path, tmp_path: Path, capsys) -> None:
    given = {
        "--text": ["a person walks"],
        "--out": ["a.gif"],
        "--checkpoint": [str(trained)],
        words[0]: words[1:],
    }
    line = [word for flag, values in given.items() for word in (flag, *values)]
    assert message in refuse(capsys, "generate", *line)
    assert not list(tmp_path.iterdir())


def test_make_validate_and_drop(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["make", "--clips", "4", "--seed", "3", "--output"]
    assert run(*words, "a.pt") == 0 and run(*words, "b.pt", "--figure", "48", "--transitions", "0") == 0
    assert "wrote a.pt: 4 clips, 1,000 frames (40 s)" in capsys.readouterr().out
    made, same = read_stick("a.pt"), generate_stick(4, seed=3, transitions=0.4, augment=True)
    assert all(torch.equal(a.motion, b.motion) for a, b in zip(made, same, strict=True))
    assert [clip.motion.shape[-1] for clip in read_stick("b.pt")] == [48] * 4
    odd = made[2].motion.clone()
    odd[100:] += 5.0  # a leap of the whole figure
    write_stick("odd.pt", [*made[:2], made[2]._replace(motion=odd), made[3]._replace(description="")])
    before = Path("odd.pt").read_bytes()
    # Even of those that are as they were made, a sprint's limbs change their length.
    fine = [i for i in (0, 1) if not check_stick(made[i : i + 1])]
    assert run("validate", "--data", "odd.pt", "--shown", "1") == 0
    printed = capsys.readouterr().out
    assert "odd.pt: 4 clips, " in printed and f"findings in {4 - len(fine)} of them" in printed
    assert printed.count("StickFinding") == 1 and "more" in printed and fine
    assert Path("odd.pt").read_bytes() == before  # it reports, and drops nothing
    assert run("validate", "--data", "odd.pt", "--output", "kept.pt") == 0
    kept = read_stick("kept.pt")
    assert [clip.description for clip in kept] == [made[i].description for i in fine]
    assert run("validate", "--data", "kept.pt") == 0
    assert f"{len(fine)} clips, 0 findings in 0 of them" in capsys.readouterr().out
    # A file that is there stays, unless it may be replaced.
    assert "--overwrite replaces it" in refuse(capsys, *words, "a.pt")
    assert "--overwrite replaces it" in refuse(capsys, "validate", "--data", "odd.pt", "--output", "kept.pt")
    only = [made[i]._replace(description="") for i in fine]
    write_stick("bad.pt", only)
    assert "no clip is left" in refuse(capsys, "validate", "--data", "bad.pt", "--output", "none.pt")
    assert run("validate", "--data", "odd.pt", "--output", "odd.pt", "--overwrite") == 0
    assert len(read_stick("odd.pt")) == len(fine)
    assert "expected NAME.pt" in refuse(capsys, *words, "a.zip")
    assert "folder no " in refuse(capsys, *words, "no/a.pt")
    assert "clips: expected at least 1, got 0" in refuse(capsys, *words, "none.pt", "--clips", "0")
    Path("broken.pt").write_bytes(before[: len(before) // 2])
    assert "broken.pt" in refuse(capsys, "validate", "--data", "broken.pt")
    assert "none.pt" in refuse(capsys, "validate", "--data", "none.pt")


def recording(folder: Path) -> list[str]:
    """A BVH file of somebody who walks along x, beside an index and a joint map; the words that import it."""
    places = {"neck": (0, 60, 0), "head": (0, 80, 0), "chest": (0, 35, 0)}
    for side, z in (("l", 10), ("r", -10)):
        for joint, y in (
            ("shoulder", 55),
            ("elbow", 30),
            ("hand", 5),
            ("hip", -5),
            ("knee", -45),
            ("foot", -85),
        ):
            places[f"{side}_{joint}"] = (0, y, z)
    lines = ["HIERARCHY", "ROOT root", "{", "OFFSET 0 0 0"]
    lines.append("CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation")
    for name, (x, y, z) in places.items():
        lines += [f"JOINT {name}", "{", f"OFFSET {x} {y} {z}", "CHANNELS 1 Zrotation"]
        lines += ["End Site", "{", "OFFSET 0 1 0", "}", "}"]
    lines += ["}", "MOTION", "Frames: 61", "Frame Time: 0.0333333"]
    lines += [" ".join(str(n) for n in (3.4 * t, 90, 0, *[0] * (3 + len(places)))) for t in range(61)]
    (folder / "one.bvh").write_text("\n".join(lines) + "\n")
    (folder / "index.csv").write_text(
        "clip,file,skeleton,action,text\none,one.bvh,mine,walk,a person walks\n"
    )
    (folder / "joint_map.json").write_text(
        json.dumps({"skeletons": {"mine": {name: name for name in places}}})
    )
    return ["import", "--bvh", str(folder), "--index", str(folder / "index.csv"),
            "--joint-map", str(folder / "joint_map.json")]  # fmt: skip


def test_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = recording(tmp_path)
    assert run(*words, "--output", "real.pt") == 0 and run(*words, "--output", "b.pt", "--figure", "48") == 0
    (clip,) = read_stick("real.pt")
    assert clip.motion.shape == (51, 20) and clip.description == "a person walks"
    # 3.4 cm in 1 / 30 s are 1.5 units in 1 s.
    assert clip.physics is not None
    assert torch.allclose(clip.physics[:, 0], torch.tensor(1.5), atol=1e-3)
    assert clip.actions is not None and set(clip.actions.tolist()) == {ACTIONS.index("walk")}
    assert read_stick("b.pt")[0].motion.shape == (51, 48)
    (tmp_path / "index.csv").write_text((tmp_path / "index.csv").read_text().replace(",walk,", ",juggle,"))
    assert "expected an action among ACTIONS, got 'juggle'" in refuse(capsys, *words, "--output", "c.pt")
    assert not Path("c.pt").exists()


@pytest.mark.skipif(
    "MFK_DATA" not in os.environ, reason="MFK_DATA does not name the folder of the recordings"
)
def test_real_recordings_train_a_network(tmp_path: Path) -> None:
    data = Path(os.environ["MFK_DATA"]) / "mocap"
    index = (data / "index.csv").read_text(encoding="utf-8").splitlines()
    chosen = [line for line in index[1:] if ",animated_drawings" in line or "/ad_" in line][:6] or index[-6:]
    wanted = {line.split(",")[1] for line in chosen}
    for archive in data.glob("*.tar.gz"):
        with tarfile.open(archive) as file:
            file.extractall(tmp_path, [m for m in file if m.name in wanted], filter="data")
    Path("index.csv").write_text("\n".join([index[0], *chosen]) + "\n", encoding="utf-8")
    words = ["--bvh", ".", "--index", "index.csv", "--joint-map", str(data / "joint_map.json")]
    assert run("import", *words, "--output", "real.pt") == 0
    assert run(*TINY, "--data", "real.pt", *SILENT, "--out", "run") == 0
    report = json.loads(Path("run/report.json").read_text(encoding="utf-8"))
    assert report["facts"]["data"] == "real.pt" and report["results"][-1]["model"] > 0


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


def test_a_stopped_run_ends_with_the_same_numbers(tmp_path: Path) -> None:
    clips_file(Path("a.pt"))
    words = [
        *TINY, *SILENT, "--steps", "12", "--validate-every", "6", "--data", "a.pt", "--dropout", "0.1",
        "--enabled", "--refinement", "ddpm", "--channels", "8", "16",
    ]  # fmt: skip
    assert run(*words, "--out", "whole") == 0
    given = dict(os.environ, PYTHONUNBUFFERED="1")
    command = [sys.executable, str(SCRIPT), *words, "--out", "parts"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=given) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 6/12  val"):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert not Path("parts/report.json").exists()
    assert run("--resume", "parts") == 0
    assert figures(Path("whole")) == figures(Path("parts"))
    whole, parts = params(Path("whole")), params(Path("parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    a, b = (
        json.loads(Path(f"{name}/report.json").read_text(encoding="utf-8")) for name in ("whole", "parts")
    )
    assert a["results"] == b["results"]


def test_other_data_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        (["--data", "none.pt"], "none.pt: there is no such file"),
        (["--held-out", "s1"], "held_out: ('s1',) would have no effect"),
        (["--test-share", "0"], "test_share: expected a share between 0 and 1"),
        (["--clips", "2"], "2 generated clips: 2 clips leave none for training"),
        (["--sample-text", "a person hugs"], "sample_text: 'a person hugs': actions: expected to begin with"),
        (["--sample-text", "..."], "sample_text: '...': text: expected words"),
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
    found = {name: script.PRESETS[name][1].net for name in ("small", "medium", "large")}
    for name, (width, layers, heads) in {
        "small": (256, 6, 8),
        "medium": (384, 8, 12),
        "large": (512, 10, 16),
    }.items():
        assert found[name] == replace(StickNetConfig(), width=width, layers=layers, heads=heads)


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for word in ("generate", "evaluate", "import", "make", "validate", "small", "medium", "large"):
        assert word in shown
