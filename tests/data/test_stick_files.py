"""Files of stick figures: what is written is read; what is wrong is refused, naming file, clip and key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mfk.data import StickClip, generate_stick, read_stick, write_stick


def test_what_is_written_is_read(tmp_path: Path):
    clips = [*generate_stick(2, seed=0), *generate_stick(1, seed=0, width=48, actors=2)]
    clips.append(
        StickClip("a person waits", torch.zeros(3, 20), embedding=torch.ones(8), enhanced_meta={"a": 1})
    )
    path = tmp_path / "clips.pt"
    write_stick(path, clips)
    found = read_stick(path)
    assert len(found) == 4
    for a, b in zip(clips, found, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
    # Others read it too, as the list of dicts that the format is.
    plain = torch.load(path, weights_only=True)
    assert plain[3]["description"] == "a person waits" and "actions" not in plain[3]
    assert [part.name for part in tmp_path.iterdir()] == ["clips.pt"]


def test_a_view_does_not_take_its_storage_along(tmp_path: Path):
    write_stick(tmp_path / "one.pt", [StickClip("one", torch.zeros(100_000, 20)[:2])])
    assert (tmp_path / "one.pt").stat().st_size < 10_000


def good() -> dict[str, Any]:
    return {"description": "a person walks", "motion": torch.zeros(5, 20), "actions": None, "source": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"face": torch.zeros(5, 7)}, r"clip 1: 'face': expected a key among description, motion"),
        ({"motion": None}, r"clip 1: 'motion': expected it, got none"),
        ({"motion": torch.zeros(5, 21)}, r"clip 1: 'motion': expected \[T, D\] or .* got \(5, 21\)"),
        (
            {"motion": torch.zeros(5, 20).double()},
            r"clip 1: 'motion': expected torch.float32, got torch.float64",
        ),
        ({"motion": [1.0]}, r"clip 1: 'motion': expected a tensor"),
        ({"motion": torch.zeros(0, 20)}, r"clip 1: 'motion': .* got \(0, 20\)"),
        ({"description": 3}, r"clip 1: 'description': expected a str, got int"),
        ({"actions": torch.zeros(4, dtype=torch.int64)}, r"clip 1: 'actions': expected a shape of \(5,\)"),
        ({"actions": torch.zeros(5)}, r"clip 1: 'actions': expected torch.int64"),
        ({"physics": torch.zeros(5, 4)}, r"clip 1: 'physics': expected a shape of \(5, 6\)"),
        ({"camera": torch.zeros(5, 2)}, r"clip 1: 'camera': expected a shape of \(5, 3\)"),
        ({"embedding": torch.zeros(2, 8)}, r"clip 1: 'embedding': expected \[E\], got \(2, 8\)"),
        ({"meta": "x"}, r"clip 1: 'meta': expected a dict, got str"),
        (
            {"physics": torch.zeros(5, 6).index_fill(0, torch.tensor([3]), torch.nan)},
            r"clip 1: 'physics': expected finite numbers, got nan at \(3, 0\)",
        ),
    ],
)
def test_a_wrong_clip_is_named(tmp_path: Path, change: dict[str, Any], message: str):
    path = tmp_path / "bad.pt"
    torch.save([good(), good() | change], path)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}"):
        read_stick(path)


def test_files_that_are_something_else_are_refused(tmp_path: Path):
    path = tmp_path / "clips.pt"
    with pytest.raises(FileNotFoundError, match=r"clips\.pt: there is no such file"):
        read_stick(path)
    for content, message in (
        ({"a": 1}, "got a dict"),
        ([], "got an empty list"),
        ([3], "clip 0: expected a dict"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=rf"clips\.pt: .*{message}"):
            read_stick(path)
    write_stick(path, generate_stick(3, seed=0))
    whole = path.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"clips\.pt: "):
            read_stick(path)
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:])
    with pytest.raises(ValueError, match=r"clips\.pt: the file is damaged"):
        read_stick(path)


def test_code_in_a_file_is_not_run(tmp_path: Path):
    torch.save([{"description": Path("x"), "motion": torch.zeros(2, 20)}], tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"refused, nothing in it was run: expected a list of clips"):
        read_stick(tmp_path / "x.pt")


def test_only_clips_are_written(tmp_path: Path):
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.pt"):
        write_stick(tmp_path / "x.npz", generate_stick(1, seed=0))
    with pytest.raises(ValueError, match=r"clips: expected at least one"):
        write_stick(tmp_path / "x.pt", [])
    with pytest.raises(TypeError, match=r"clips\[0\]: expected a StickClip"):
        write_stick(tmp_path / "x.pt", [good()])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"clips\[0\]: 'motion': expected \[T, D\]"):
        write_stick(tmp_path / "x.pt", [StickClip("x", torch.zeros(4, 5))])
    assert not [*tmp_path.iterdir()]
