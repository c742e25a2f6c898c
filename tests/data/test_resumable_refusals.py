"""Files, folders and unfinished work that are not ours to write over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mfk import kinematics
from mfk.data import IKDataConfig, generate_ik, ik_generate
from mfk.losses import TimeConfig

PANDA = kinematics.panda()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 rows, for tests that need many blocks and not their numbers."""
    monkeypatch.setattr(ik_generate, "BLOCK", 64)


class Stop(BaseException):
    """Neither an Exception nor anything that the code knows."""


def interrupted(path: Path, rows: int = 300, at: int = 128, **options: Any) -> Path:
    """The work folder of a call that has been stopped."""

    def stop(done: int, total: int) -> None:
        if done >= at:
            raise Stop

    with pytest.raises(Stop):
        generate_ik(path, PANDA, rows=rows, progress=stop, **options)
    assert not path.exists()
    return path.with_name(path.name + ".parts")


def test_what_exists_is_refused(small: None, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_text("mine")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere.pt")
    before = sorted(tmp_path.iterdir())
    for name in ("file.pt", "folder.pt", "link.pt"):
        with pytest.raises(FileExistsError, match=rf"{name}: exists already"):
            generate_ik(tmp_path / name, PANDA, rows=10)
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "file.pt").read_text() == "mine"


def test_a_file_that_comes_while_we_work_is_kept(small: None, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    work = interrupted(path)
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"x\.pt: exists already"):
        generate_ik(path, PANDA, rows=300)
    path.unlink()

    def intrude(done: int, rows: int) -> None:
        path.write_text("mine")

    with pytest.raises(FileExistsError, match=r"x\.pt: exists already"):
        generate_ik(path, PANDA, rows=300, progress=intrude)
    assert path.read_text() == "mine" and (work / "rows").exists()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, r"\(seed 0 -> 1\)"),
        ({"rows": 400}, r"\(rows 300 -> 400\)"),
        ({"rows": 100}, r"\(rows 300 -> 100\)"),
        ({"config": IKDataConfig(sigma=0.2)}, r"\(sigma 0\.1 -> 0\.2\)"),
        ({"config": IKDataConfig("uniform"), "seed": 2}, r"\(reference local -> uniform, seed 0 -> 2\)"),
        ({"times": TimeConfig("mfik", jvp_share=1.0)}, r"\(times\.distribution uniform -> mfik\)"),
        ({"chain": kinematics.panda("panda_link8")}, "to panda_hand -> panda from .* to panda_link8, "),
    ],
)
def test_work_of_other_settings_is_refused(
    small: None, tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    path = tmp_path / "x.pt"
    work = interrupted(path)
    before = {file.name: file.read_bytes() for file in work.iterdir()}
    with pytest.raises(ValueError, match=rf"x\.pt\.parts: .* other settings .*{difference}.* delete"):
        generate_ik(path, **{"chain": PANDA, "rows": 300, **change})
    assert {file.name: file.read_bytes() for file in work.iterdir()} == before
    generate_ik(path, PANDA, rows=300)


def test_another_geometry_under_the_same_name_is_refused(small: None, tmp_path: Path) -> None:
    text = kinematics.urdf_text("panda")
    moved = kinematics.load_urdf(text.replace("0.333", "0.334"), "panda_hand")
    assert repr(moved) == repr(PANDA)
    interrupted(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"other settings \(geometry \w+ -> \w+\)"):
        generate_ik(tmp_path / "x.pt", moved, rows=300)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\x00" * 99,
        '{"rows": 3}',
        '{"rows": -1, "settings": {}}',
        '{"rows": 2.5, "settings": {}}',
    ],
)
def test_a_damaged_record(small: None, tmp_path: Path, content: str) -> None:
    work = interrupted(tmp_path / "x.pt")
    (work / "record.json").write_text(content)
    with pytest.raises(ValueError, match=r"record\.json: .*delete the folder .*x\.pt\.parts"):
        generate_ik(tmp_path / "x.pt", PANDA, rows=300)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_lost_rows(small: None, tmp_path: Path, damage: str) -> None:
    part = interrupted(tmp_path / "x.pt") / "rows"
    if damage == "gone":
        part.unlink()
    else:
        os.truncate(part, 20_000)
    with pytest.raises(ValueError, match=r"rows: expected at least \d+ bytes, the file is gone or cut"):
        generate_ik(tmp_path / "x.pt", PANDA, rows=300)


def test_a_folder_of_somebody_else_is_left_alone(small: None, tmp_path: Path) -> None:
    work = tmp_path / "x.pt.parts"
    work.mkdir()
    (work / "thesis.tex").write_text("mine")
    with pytest.raises(
        ValueError, match=r"x\.pt\.parts: expected a folder of unfinished work, got thesis\.tex"
    ):
        generate_ik(tmp_path / "x.pt", PANDA, rows=300)
    assert [file.name for file in work.iterdir()] == ["thesis.tex"]
    (tmp_path / "y.pt.parts").write_text("mine")
    with pytest.raises(OSError, match=r"y\.pt\.parts: cannot make this folder"):
        generate_ik(tmp_path / "y.pt", PANDA, rows=300)


def test_folders_that_cannot_be_written_to(small: None, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.pt: there is no folder .*nowhere; make it first"):
        generate_ik(tmp_path / "nowhere" / "x.pt", PANDA, rows=10)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        generate_ik(tmp_path / "file" / "x.pt", PANDA, rows=10)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    # Permissions stop nobody who is root, and /proc stops everybody.
    folder = closed if os.geteuid() else Path("/proc/self")
    with pytest.raises(OSError, match=r"x\.pt"):
        generate_ik(folder / "x.pt", PANDA, rows=10)
    with pytest.raises(OSError, match="File name too long"):
        generate_ik(tmp_path / ("x" * 250 + ".pt"), PANDA, rows=10)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["closed", "file"]
