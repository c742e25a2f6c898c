"""The experiment as a user runs it: its files, its resume, its answers, its errors."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import ik_commands
import ik_runs
import inverse_kinematics
import panda
import pytest
import torch
import ur10
from signalled import signalled

import mfk
from mfk import kinematics, train
from mfk.core import config

SCRIPT = Path(__file__).parents[2] / "experiments" / "panda.py"
TINY = [
    "--width", "16", "--blocks", "1", "--batch-size", "64", "--warmup-steps", "2", "--log-every", "4",
    "--validate-every", "8", "--checkpoint-every", "8", "--validation-poses", "64", "--report-poses", "200",
    "--threads", "1", "--no-jit",
]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["panda.py", *words])
    inverse_kinematics.main("panda", panda.PRESETS, "A test.")


def fails(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a run that must end with exit code 2 and one screen of text."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *words)
    out, err = capfd.readouterr()
    assert caught.value.code == 2
    assert "Traceback" not in out + err and len((out + err).splitlines()) < 25
    return " ".join((out + err).split())


def final_params(folder: Path) -> dict[str, torch.Tensor]:
    settings = ik_runs.settings_of(folder)
    model = inverse_kinematics.ik.ik_model(kinematics.panda(), settings.ik.net)
    return train.load_params(folder, model.init(0)[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panda") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, *TINY, "--steps", "60", "--out", str(folder))
    return folder


def test_a_run_leaves_everything(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "checkpoints", "logs", "config.yaml", "versions.json", "history.jsonl", "report.json", "report.md",
        "error_cdf.png", "loss.png", "error_by_steps.png", "workspace.png",
    }  # fmt: skip
    history = [json.loads(line) for line in (finished / "history.jsonl").read_text().splitlines()]
    seen = set().union(*history)
    assert seen >= {
        "train/loss", "train/meanflow_residual", "train/velocity_norm", "train/grad_norm", "train/lr",
        "train/raw_error", "train/samples_per_second", "val/val_loss",
    }  # fmt: skip
    report = json.loads((finished / "report.json").read_text())
    assert [row["solver"] for row in report["results"]][:4] == [
        "do nothing", "1 least-squares step", "2 least-squares steps", "3 least-squares steps"
    ]  # fmt: skip
    assert {"torch", "cpu", "threads", "seed"} <= report["facts"].keys()
    events = list((finished / "logs").glob("events.out.tfevents.*"))
    assert len(events) == 1 and events[0].stat().st_size > 500
    settings = ik_runs.settings_of(finished)
    assert settings.train.steps == 60 and settings.run == train.RunConfig()
    assert names >= {"result.json", "history.json", "training_history.json", "config.json", "metadata"}


def test_resumed_run_is_bit_identical(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C at a step in a real process, then the command that it prints."""
    folder = tmp_path / "run"
    stopped = signalled(
        "SIGINT", "step 8/60  position_mm", SCRIPT, *TINY, "--steps", "60", "--out", str(folder)
    )
    assert stopped.returncode == 130, stopped.stderr
    found = re.search(r"Resume with: python experiments/panda.py (--resume .*)", stopped.stdout)
    assert found, stopped.stdout
    run(monkeypatch, *found.group(1).split())
    capfd.readouterr()
    undisturbed, resumed = final_params(finished), final_params(folder)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


def test_solve_answers_with_joints_and_error(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pose = "0.4 -0.1 0.5 0 1 0 0"
    run(monkeypatch, "solve", "--checkpoint", str(finished), "--pose", *pose.split())
    printed = capfd.readouterr().out
    q = torch.tensor([float(x) for x in re.findall(r"panda_joint\d: ([-+.\d]+) rad", printed)]).double()
    assert len(q) == 7
    got = kinematics.forward(kinematics.panda(), q)
    target = torch.tensor([float(x) for x in pose.split()], dtype=torch.float64)
    error = kinematics.pose_error(got, target)
    stated = [float(x) for x in re.findall(r"error ([.\d]+)", printed)]
    # The joints are printed to 1e-6 rad.
    assert stated[0] == pytest.approx(float(error[:3].norm()) * 1e3, abs=3e-3)
    assert stated[1] == pytest.approx(math.degrees(float(error[3:].norm())), abs=1e-3)


def test_export_writes_a_file_for_load_ik_and_a_program(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    weights, program = tmp_path / "panda.npz", tmp_path / "panda.pt2"
    run(monkeypatch, "export", "--checkpoint", str(finished), "--out", str(weights))
    run(monkeypatch, "export", "--checkpoint", str(finished), "--out", str(program))
    assert "read back and compared" in capfd.readouterr().out
    loaded = mfk.load_ik(weights)
    best = ik_runs.trained(ik_runs.settings_of(finished), loaded.chain, finished)
    assert all(torch.equal(loaded.params[name], x) for name, x in best.params.items())
    assert loaded.record["settings"]["train"]["steps"] == 60 and "results" in loaded.record["report"]
    q = torch.zeros(3, 7) + (loaded.chain.lower + loaded.chain.upper).float() / 2
    pose = kinematics.forward(loaded.chain, q + 0.05)
    with torch.no_grad():
        got = torch.export.load(program).module()(q, pose)
    torch.testing.assert_close(got, loaded.propose(pose, q), rtol=0, atol=1e-5)
    message = fails(
        monkeypatch, capfd, "export", "--checkpoint", str(finished), "--out", str(tmp_path / "x.onnx")
    )
    assert "--out: expected a name that ends in .npz or .pt2" in message


@pytest.mark.parametrize("robot", [panda, ur10])
def test_the_shipped_weights_are_those_of_the_preset(robot: ModuleType) -> None:
    settings = robot.PRESETS["shipped"][1]
    record = mfk.load_ik(settings.robot.robot).record
    made = config.from_dict(ik_runs.IKRun, record["settings"])
    plain = replace(settings, train=replace(settings.train, threads=made.train.threads))
    assert replace(made, run=plain.run) == plain


def test_view_shows_the_network_of_the_checkpoint(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(ik_commands.ik_view, "show", lambda *given: shown.append(given))
    run(monkeypatch, "view", "--checkpoint", str(finished), "--port", "8099")
    [(chain, problem, network, port, title)] = shown
    assert chain == kinematics.panda() and port == 8099 and str(finished) in title
    reference, pose = problem(3)
    found = ik_runs.trained(ik_runs.settings_of(finished), chain, finished)
    u = inverse_kinematics.ik.ik_field(found.model, found.params, found.buffers, pose.float())
    zero, half, one = (torch.full((1,), x) for x in (0.0, 0.5, 1.0))
    with torch.no_grad():
        z = reference.float()
        whole = z + u(z, zero, one)
        z = z + 0.5 * u(z, zero, half)
        halves = z + 0.5 * u(z, half, one)
        for steps, expected in ((1, whole), (2, halves)):
            expected = kinematics.clip_to_limits(chain, expected)
            torch.testing.assert_close(network(reference, pose, steps), expected)


def test_presets_and_dry_run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "documented", "--dry-run")
    printed = capfd.readouterr().out
    assert "# parameters: 17,889,543" in printed and "lr: 0.0001" in printed
    run(monkeypatch, "quick", "--lr", "1e-4", "--dry-run")
    assert "lr: 0.0001" in capfd.readouterr().out
    quick, documented = panda.PRESETS["quick"][1], panda.PRESETS["documented"][1]
    assert quick.ik == panda.PRESETS["default"][1].ik
    assert (documented.ik.loss.weight_c, documented.ik.loss.weight_p) == (1e-4, 0.5)


def test_existing_out(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.stat().st_mtime_ns for path in finished.rglob("*"))
    message = fails(monkeypatch, capfd, *TINY, "--steps", "16", "--out", str(finished))
    assert str(finished) in message and "already holds a run" in message and "--resume" in message
    assert sorted(path.stat().st_mtime_ns for path in finished.rglob("*")) == before


def test_missing_and_damaged_checkpoints(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pose = ["--pose", "0.4", "0", "0.5", "0", "1", "0", "0"]
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in fails(monkeypatch, capfd, "solve", "--checkpoint", str(nowhere), *pose)
    assert str(nowhere) in fails(monkeypatch, capfd, "--resume", str(nowhere))
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("config.yaml", "history.jsonl"):
        (empty / name).write_bytes((finished / name).read_bytes())
    assert "holds no complete checkpoint" in fails(monkeypatch, capfd, "--resume", str(empty))


@pytest.mark.parametrize(
    ("pose", "what"),
    [
        ("0.4 0 0.5 0 2 0 0", "unit quaternions"),
        ("0.4 0 nan 0 1 0 0", "finite"),
        ("0.4 0 0.5 0 1 0", "pose"),
    ],
)
def test_bad_poses(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], pose: str, what: str
) -> None:
    message = fails(monkeypatch, capfd, "solve", "--checkpoint", str(finished), "--pose", *pose.split())
    assert what in message and "pose" in message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("train:\n  learning_rate: 1e-4\n", "train: unknown key 'learning_rate'"),
        ("train:\n  lr: fast\n", "train.lr"),
        ("", "empty"),
        ("robot:\n  frame: panda_hand\n  frame: panda_link8\n", "frame"),
    ],
)
def test_bad_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], text: str, what: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    message = fails(monkeypatch, capfd, "--config", str(file), "--dry-run")
    assert what in message and "settings.yaml" in message


def test_bad_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    for words, what in (
        (["--steps", "0"], "steps"),
        (["--frame", "panda_foot"], "panda_foot"),
        (["--sigma", "-1"], "sigma"),
        (["--jvp-share", "2"], "jvp_share"),
        (["--best-metric", "joy"], "joy"),
        (["--validation-poses", "0"], "validation_poses"),
        (["--report-poses", "0"], "report_poses"),
    ):
        message = fails(monkeypatch, capfd, *TINY, "--steps", "16", *words, *out)
        assert what in message
        assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_divergence_ends_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        *TINY,
        "--steps",
        "400",
        "--schedule",
        "constant",
        "--lr",
        "1e30",
        "--max-consecutive-skips",
        "3",
    ]
    message = fails(monkeypatch, capfd, *words, "--out", str(tmp_path / "run"))
    assert "step" in message and "not finite" in message and "checkpoint" in message


def test_a_mistake_leaves_no_folder_and_the_next_run_takes_the_first_number(tmp_path: Path) -> None:
    for words, code, runs in ((["--best-metric", "joy"], 2, 0), ([], 0, 1)):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *TINY, "--steps", "2", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        assert len(list(tmp_path.glob("outputs/panda/0*"))) == runs
    assert (tmp_path / "outputs/panda/latest").resolve().name == "001"


def test_solve_starts_from_the_reference_given(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reference = torch.tensor([0.3, -0.4, 0.5, -1.2, -0.7, 1.9, 0.2], dtype=torch.float64)
    pose = kinematics.forward(kinematics.panda(), reference + 0.03)
    words = ["--pose", *(f"{x:.9f}" for x in pose.tolist()), "--reference", *map(str, reference.tolist())]
    run(monkeypatch, "solve", "--checkpoint", str(finished), *words)
    q = torch.tensor([float(x) for x in re.findall(r"rad|: ([-+.\d]+) rad", capfd.readouterr().out) if x])
    # The solution next to the reference, not another branch.
    assert float((q - reference).norm()) < 0.3


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--reference", "0", "0", "0"], "reference: expected 7 numbers"),
        (["--reference", "9", "0", "0", "-1", "0", "1", "0"], "panda_joint1"),
        (["--refine", "-1"], "refine: expected"),
        (["--steps", "0"], "steps: expected"),
    ],
)
def test_bad_solve_settings(
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    what: str,
) -> None:
    pose = ["--pose", "0.4", "0", "0.5", "0", "1", "0", "0"]
    assert what in fails(monkeypatch, capfd, "solve", "--checkpoint", str(finished), *pose, *words)


def test_a_pose_out_of_reach_is_said_to_be_unsolved(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "solve", "--checkpoint", str(finished), "--pose", *"5 0 0.5 0 1 0 0".split())
    printed = capfd.readouterr()
    assert caught.value.code == 1 and "not solved" in printed.err and "position error" in printed.out


def test_resume_refuses_other_data(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "config.yaml").read_bytes()
    message = fails(monkeypatch, capfd, "--resume", str(finished), "--sigma", "0.3", "--steps", "64")
    assert "cannot change ik.data.sigma (0.1 -> 0.3)" in message
    assert (finished / "config.yaml").read_bytes() == before


def test_a_reader_that_goes_away_does_not_end_the_training(tmp_path: Path) -> None:
    command = [sys.executable, "-u", str(SCRIPT), *TINY, "--steps", "12", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.wait(timeout=120)
    process.stderr.close()
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "checkpoints" / "00000012" / "manifest.json").exists()
    assert (tmp_path / "run" / "report.md").exists()
