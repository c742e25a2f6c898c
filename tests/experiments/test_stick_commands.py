"""A run of experiments/stick.py and what is done with it: generate, evaluate, make, validate, import."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stick as script
import torch
from PIL import Image
from stick_line import SILENT, TINY, refuse, run

from mfk.data.stick import ACTIONS, shared_point_gap
from mfk.data.stick_check import check_stick
from mfk.data.stick_files import read_stick, write_stick
from mfk.data.stick_generate import generate_stick


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAIN_DATA_PATH", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on generated clips, with its sample."""
    out = tmp_path_factory.mktemp("stick") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRAIN_DATA_PATH", raising=False)
        patch.setattr(script, "SAMPLE_SECONDS", 1.0)
        assert run(*TINY, "--clips", "20", "--sample-text", "a person walks", "--out", str(out)) == 0
    yield out


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
    said = "somebody is there, then walks"
    words = ["generate", "--text", said, "--seconds", "1", "--checkpoint", str(trained)]
    for name, seed in (("a", "4"), ("b", "4"), ("c", "5")):
        assert run(*words, "--seed", seed, "--out", f"{name}.{suffix}") == 0
    a, b, c = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "abc")
    assert a == b and a != c
    if suffix == "npz":
        with np.load("a.npz") as found:
            assert found["motion"].shape == (25, 20) and float(found["fps"]) == 25
            assert set(found["actions"][12:]) == {ACTIONS.index("walk")} and str(found["text"]) == said
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
        (["--seconds", "-1"], "seconds: expected 0.24 to 3600, got -1"),
        (["--seconds", "0"], "seconds: expected 0.24 to 3600"),
        (["--seconds", "nan"], "seconds: expected a finite float, got nan"),
        (["--text", " "], "text: expected words, got"),
        (["--text", "..."], "text: expected words"),
        (["--actions", "walk", "juggle"], "actions: expected some of idle, walk,"),
        (["--actions", "hug"], "error: actions: expected what the training clips do, walk, "),
        (["--text", "a person hugs"], "error: text: expected what the training clips do, walk, "),
        (
            ["--out", "a.webm"],
            "error: --out: expected NAME.gif or NAME.mp4 or NAME.png or NAME.npz, got 'a.we",
        ),
        (["--out", "no/a.gif"], "error: --out: expected the folder 'no' to be there"),
        (["--out", 300 * "a" + ".gif"], "a.gif: expected a file that can be written, got: File name too lon"),
        (["--checkpoint", "nowhere"], "error: --checkpoint: nowhere is not the folder of a run"),
        (["--checkpoint", 300 * "a"], "expected the folder of a run that can be read, got: "),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": [[[0.0] * 48] * 5]}, "expected motion [N, 5, 20] and an action of each of N openings"),
        ({"ground": 0.1}, "expected a ground under all points, got 0.1"),
        ({"ground": [0.0]}, "expected a ground under all points, got [0.0]"),
        ({"ground": None}, "expected a ground under all points, got None"),
        ({"ground": False}, "expected a ground under all points, got False"),
        ({"motion": [[[1e38] * 20] * 5]}, "expected places within 1,000,000 units, and actions"),
    ],
)  # fmt: skip
def test_openings_of_another_figure_are_refused(
    change: dict[str, Any], message: str, trained: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    right = {"action": [1], "ground": 0.0, "motion": [[[0.0] * 20] * 5]}
    (tmp_path / "run/openings.json").write_text(json.dumps(right | change))
    said = refuse(capsys, "generate", "--checkpoint", "run", "--text", "a person walks", "--out", "a.npz")
    assert f"run/openings.json: {message}" in said
    assert not Path("a.npz").exists()


def test_folders_where_files_are_expected_and_the_other_way_round(trained: Path, capsys) -> None:
    for name in ("a.gif", "a.pt", "a.json"):
        Path(name).mkdir()
    Path("file").touch()
    given = ["--text", "a person walks", "--checkpoint", str(trained)]
    assert "--out: expected a file, got the folder 'a.gif'" in refuse(
        capsys, "generate", *given, "--out", "a.gif"
    )
    given = ["evaluate", "--checkpoint", str(trained), "--out"]
    for out in ("file", "file/below"):
        assert f"--out: {out}: expected a folder, got the file file" in refuse(capsys, *given, out)
    made = ["make", "--clips", "1", "--output"]
    assert "--output: a.pt: expected a file, got a folder" in refuse(capsys, *made, "a.pt")
    assert "a.pt: expected a file, got a folder" in refuse(capsys, "validate", "--data", "a.pt")
    words = [*recording(Path()), "--output", "b.pt"]
    for flag, wrong, message in (
        ("--bvh", "file", "--bvh: expected a folder of BVH files, got file"),
        ("--index", "a.json", "--index: a.json: expected a file that can be read, got: Is a directory"),
        ("--index", "none", "--index: none: expected a file that can be read, got: No such file"),
        ("--joint-map", "a.json", "--joint-map: a.json: expected a file that can be read, got: Is a"),
    ):
        assert message in refuse(capsys, *words, flag, wrong)
    Path("one.bvh").unlink()
    message = "--bvh: .: expected the index's files, each readable, got: one.bvh: No such file or directory"
    assert message in refuse(capsys, *words)


def test_places_that_may_not_be_used(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """As where the user lacks the right, which root does not."""
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK and allowed(path, mode))
    told = refuse(capsys, "generate", "--text", "a walk", "--checkpoint", str(trained), "--out", "a.gif")
    assert "--out: expected a folder that can be written to, got '.'" in told
    for words in (["evaluate", "--checkpoint", str(trained), "--out", "b/c"], [*TINY, "--out", "b/c"]):
        message = "--out: b/c: expected a folder that can be written to, got ., which cannot"
        assert message in refuse(capsys, *words)
    assert "--output: .: expected a folder that" in refuse(capsys, "make", "--output", "a.pt")


def test_a_full_disk_is_told(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    given = ["--text", "a walk", "--seconds", "1", "--checkpoint", str(trained)]
    for words, told, inside in (
        (["generate", *given, "--out", "a.gif"], "--out: a.gif: expected a file that can be written", ""),
        (["generate", *given, "--out", "a.npz"], "--out: a.npz: expected a file that can be written", ""),
        (
            ["make", "--clips", "1", "--output", "a.pt"],
            "--output: a.pt: expected a file that can be written",
            "",
        ),
        (
            ["evaluate", *given[-2:], "--out", "b"],
            "--out: b: expected a folder that can be written to",
            "b/report.json: ",
        ),
    ):
        assert run(*words) == 2
        # Progress stands before it.
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == f"error: {told}, got: {inside}No space left on device"
    assert not any(Path().glob("**/a.*"))


def test_make_validate_and_drop(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["make", "--clips", "4", "--seed", "3", "--output"]
    assert run(*words, "a.pt") == 0 and run(*words, "b.pt", "--figure", "48", "--transitions", "0") == 0
    shown = capsys.readouterr()
    assert "wrote a.pt: 4 clips, 1,000 frames (40 s)" in shown.out
    assert [f"{n}/4 clips" in shown.err for n in range(6)] == [False, True, True, True, True, False]
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
