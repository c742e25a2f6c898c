"""experiments/motion.py as a user runs it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import motion as script
import motion_runs
import pytest
import torch
from motions import data, source
from signalled import signalled

from mfk.core import config, tree
from mfk.data import open_motion, read_windows, write_motion
from mfk.tasks import motion, motion_data, motion_export
from mfk.tasks.motion_net import MotionNetConfig

SCRIPT = Path(script.__file__)
TINY = [
    "quick", "--width", "16", "--feedforward", "32", "--heads", "2", "--layers", "1", "--steps", "8",
    "--warmup-steps", "2", "--validate-every", "4", "--validation-windows", "4", "--rollout", "10",
    "--horizon", "4", "--threads", "1",
]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["motion.py", *words])
    try:
        script.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A file with clips, splits and labels."""
    made = source((80, 80, 60), labels=2)
    rows = made.read(0, 220)
    clips, first = [], 0
    for clip in made.info.clips:
        clips.append(made.read(first, first + clip.frames))
        first += clip.frames
    assert rows.labels is not None
    path = tmp_path / "labeled.parquet"
    write_motion(path, made.info, clips)
    return path


def test_from_a_file_to_a_report_an_animation_and_exports(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    data = ["--data", str(labelled)]
    assert run(monkeypatch, *TINY, *data, "--out", str(out), "--export-ts", "encoder.ts") == 0
    printed = capsys.readouterr().out
    assert "persistence" in printed and "constant velocity" in printed and "read back" in printed
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    names = [r["name"] for r in report["results"]]
    assert names == ["persistence", "constant velocity", "linear prediction", "transformer, regression"]
    assert all(len(r["drift_cm"]) == 10 for r in report["results"])
    assert report["results"][0]["by_action"].keys() == {"walk"}
    for name in ("report.md", "drift.png", "animation.gif", "data.txt", "config.yaml"):
        assert (out / name).stat().st_size > 0
    # The exports stand alone, for any number of windows, in the file's layout.
    frames = torch.rand(5, 4, 28)
    frames.unflatten(-1, (4, 7))[..., 3:] += 1
    label = torch.zeros(5, 2)
    with pytest.warns(DeprecationWarning):
        first = torch.jit.load("encoder.ts")(frames, label)
    program = torch.export.load("encoder.pt2").module()(frames, label)
    assert first.shape == (5, 28) and torch.allclose(first, program, atol=1e-5)
    assert run(monkeypatch, "evaluate", "--checkpoint", str(out), "--out", "encoder.ts") == 2
    assert "--out: encoder.ts: expected a folder, got the file" in capsys.readouterr().err
    # Evaluated again to the same figures; a clip's end ends the animation, however many frames are asked for.
    assert run(monkeypatch, "evaluate", "--checkpoint", str(out)) == 0
    again = json.loads((out / "evaluation" / "report.json").read_text(encoding="utf-8"))
    for a, b in zip(report["results"], again["results"], strict=True):
        assert {**a, "microseconds": 0} == {**b, "microseconds": 0}
    assert run(monkeypatch, "animate", "--checkpoint", str(out), "--out", "a.gif", "--frames", "99999") == 0
    assert Path("a.gif").stat().st_size > 0
    assert run(monkeypatch, "animate", "--checkpoint", str(out), "--out", "a.gif", "--clip", "no") == 2
    assert "clip: expected one that is held out, clip2" in capsys.readouterr().err


def test_a_generative_model_on_the_embedded_robot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["meanflow", "--hidden", "16", "--steps", "4", "--warmup-steps", "1", "--validation-windows", "2"]
    words += [
        "--rollout",
        "6",
        "--report-windows",
        "8",
        "--no-animation",
        "--robot",
        "ur10",
        "--threads",
        "1",
    ]
    assert run(monkeypatch, *words) == 0
    assert "8 samples:" in capsys.readouterr().out
    report = json.loads(Path("outputs/motion/latest/report.json").read_text(encoding="utf-8"))
    assert report["results"][-1]["diversity_cm"] > 0 and report["facts"]["data"].endswith("ur10")


def test_a_stopped_run_ends_with_the_same_parameters(labelled: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "--data", str(labelled), "--no-animation", "--rollout-steps", "2", "--noise", "0.1"]
    assert run(monkeypatch, *words, "--out", "whole") == 0
    killed = signalled("SIGKILL", "step 4/8  val", SCRIPT, *words, "--out", "parts", "--log-every", "1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert run(monkeypatch, "--resume", "parts") == 0
    whole, parts = (
        json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))
        for name in ("whole", "parts")
    )
    for a, b in zip(whole["results"], parts["results"], strict=True):
        assert {**a, "microseconds": 0} == {**b, "microseconds": 0}
    changed = labelled.with_name("other.parquet")
    changed.write_bytes(labelled.read_bytes())
    assert run(monkeypatch, "--resume", "whole", "--data", str(changed)) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--horizon", "65"], "max_seq_len, 64"),
        (["--horizon", "78"], "max_seq_len"),
        (["--conditioning-dim", "3"], "conditioning_dim: expected the width of the data's labels, 2"),
        (["--input-dim", "455"], "input_dim: expected the 28 numbers"),
        (["--val-split", "test"], "there is no split 'test'"),
        (["--features", "raw", "--space", "local"], "space"),
        (["--rollout", "0"], "rollout: expected at least 1"),
        (["--rollout", "400"], "longest held-out clip has, 60; expected a rollout of at most 52 frames"),
        (["--report-windows", "0"], "report_windows: expected at least 1"),
        (["--members", "2"], "members: motion models are trained one by one"),
        (["--export-ts", "a.onnx"], "export_ts: expected a file's name that ends in .ts or .pt"),
        (["--export-ts", "no/a.ts"], "there is no folder no"),
        (["--robot", "ur10"], "robot"),
    ],
)
def test_mistakes_are_told(words, message, labelled, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "quick", "--data", str(labelled), *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_bad_frames_are_told_with_their_row(labelled: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    made = open_motion(labelled)
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(labelled)
    for row, bone, value, message in ((17, 2, float("nan"), "row 17"), (5, 1, 0.0, "row 5")):
        frames = table["frames"].to_pylist()
        start = 7 * bone + 3
        frames[row][start : start + 4] = [value] * 4
        column = pa.array(frames, table.schema.field("frames").type)
        bad = table.set_column(0, table.schema.field("frames"), column)
        pq.write_table(bad, "bad.parquet")
        assert run(monkeypatch, "quick", "--data", "bad.parquet") == 2
        told = capsys.readouterr().err
        assert "bad.parquet" in told and message in told and made.info.skeleton.bone_names[bone] in told


@pytest.mark.parametrize("name", ["transformer", "mlp", "unet1d"])
def test_the_configurations_are_the_presets(name: str) -> None:
    """As their headers say: in place of the default preset."""
    file = SCRIPT.parent / "configs" / f"model_{name}.yaml"
    loaded = config.load_yaml(motion_runs.MotionRun, file, base=script.PRESETS["default"][1])
    assert loaded == script.PRESETS[name][1]


@pytest.mark.parametrize(("labels", "objective"), [(0, "regression"), (2, "meanflow")])
def test_exports_of_every_kind_take_any_number_of_windows(
    labels: int, objective: str, tmp_path: Path
) -> None:
    made = data(labels=labels)
    settings = motion_runs.MotionRun(
        net=MotionNetConfig("mlp", horizon=4, hidden=(8,)),
        motion=motion.MotionConfig(motion.MotionLossConfig(objective)),  # pyright: ignore[reportArgumentType]
    )
    net = motion_runs.network_of(settings, made)
    task = motion.motion_task(net, made.how, motion_data.measure_scale(made, 4), settings.motion)
    params, state = task.init(0)
    params = tree.map(lambda x: x + 0.1, params)
    windows = read_windows(made.source, motion_data.some_windows(made, 4, 5), 4)
    label = windows["labels"][:, -1] if labels else None
    done = motion_export.export_motion(
        net, made.how, params, state, windows["frames"], label, tmp_path / "a.ts"
    )
    assert sorted(done) == [str(tmp_path / "a.pt2"), str(tmp_path / "a.ts")]
    program = torch.export.load(str(tmp_path / "a.pt2")).module()
    frames = windows["frames"]
    flat = torch.cat((frames[..., :3], frames[..., [4, 5, 6, 3]]), -1).flatten(-2)
    more = ([label] if label is not None else []) + ([torch.zeros(5, 28)] if objective == "meanflow" else [])
    for rows in (1, 2, 5):
        assert program(flat[:rows], *(x[:rows] for x in more)).shape == (rows, 28)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_evaluate_refuses_other_data(labelled: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *TINY, "--data", str(labelled), "--out", "run", "--no-animation") == 0
    labelled.write_bytes(labelled.read_bytes() + b"x")
    capsys.readouterr()
    for word in ("evaluate", "animate", "export"):
        more = {"animate": ["--out", "a.gif"], "export": ["--export-ts", "a.ts"]}.get(word, [])
        assert run(monkeypatch, word, "--checkpoint", "run", *more) == 2
        assert "--data: changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"clip,action\na,walk\na,run\n", "row 3: clip 'a' is 'walk' and 'run'"),
        (b"clip,action\na,\n", "row 2: expected a clip and its action"),
        (b"clip,action\na\n", "row 2: expected a clip and its action"),
        (b"clip,kind\na,b\n", "columns clip and action"),
        (b"clip,action\n\xff,b\n", "in UTF-8"),
    ],
)
def test_mistakes_in_the_actions_are_told(
    text: bytes, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "a.csv").write_bytes(text)
    (tmp_path / "a.bvh").write_text("")
    words = ["import", "--bvh", str(tmp_path), "--output", str(tmp_path / "o.parquet")]
    assert run(monkeypatch, *words, "--actions", str(tmp_path / "a.csv")) == 2
    told = capsys.readouterr().err
    assert "a.csv" in told and message in told


def test_the_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert run(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    for word in ("import", "evaluate", "animate", "export", "transformer", "mlp", "unet1d", "meanflow"):
        assert word in shown
