"""Recordings as stick figures: a skeleton worked out by hand, and the real ones where they are."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mfk.data import (
    ACTIONS,
    check_stick,
    five_segments,
    read_bvh_header,
    shared_point_gap,
    stick_from_bvh,
    stick_points,
)

PLACES = {  # cm from the root, when nothing is turned
    "neck": (0, 60, 0),
    "head": (0, 80, 0),
    "chest": (0, 35, 0),
    **{f"{s}_shoulder": (x * 20, 55, 0) for s, x in (("l", 1), ("r", -1))},
    **{f"{s}_elbow": (x * 45, 55, 0) for s, x in (("l", 1), ("r", -1))},
    **{f"{s}_hand": (x * 70, 55, 5) for s, x in (("l", 1), ("r", -1))},
    **{f"{s}_hip": (x * 10, -5, 0) for s, x in (("l", 1), ("r", -1))},
    **{f"{s}_knee": (x * 10, -45, 3) for s, x in (("l", 1), ("r", -1))},
    **{f"{s}_foot": (x * 10, -85, 0) for s, x in (("l", 1), ("r", -1))},
}
UNIT = 68.0  # cm


def write(
    folder: Path, roots: list[tuple[float, float, float]], action: str = "walk"
) -> tuple[Path, Path, Path]:
    """A recording at 30 frames/s whose root goes through places, nothing else moving; index and map."""
    lines = ["HIERARCHY", "ROOT root", "{", "OFFSET 0 0 0"]
    lines.append("CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation")
    for name, place in PLACES.items():
        lines += [f"JOINT b_{name}", "{", "OFFSET {} {} {}".format(*place), "CHANNELS 1 Zrotation"]
        lines += ["End Site", "{", "OFFSET 0 1 0", "}", "}"]
    lines += ["}", "MOTION", f"Frames: {len(roots)}", "Frame Time: 0.0333333"]
    for root in roots:
        lines.append(" ".join(f"{x:g}" for x in (*root, *[0.0] * (3 + len(PLACES)))))
    (folder / "one.bvh").write_text("\n".join(lines) + "\n")
    index, joints = folder / "index.csv", folder / "map.json"
    index.write_text(f"clip,file,skeleton,action,text\nfirst,one.bvh,mine,{action},a person moves\n")
    skeletons = {"other": {name: f"b_{name}" for name in PLACES}, "mine": "other"}
    joints.write_text(json.dumps({"skeletons": skeletons}))
    return folder, index, joints


def test_who_walks_is_seen_from_the_side_in_units_at_25_frames_a_second(tmp_path: Path):
    # 2 cm a frame along -z: 0.6 m/s.
    roots = [(7.0, 90.0, 5.0 - 2.0 * t) for t in range(91)]
    told: list[tuple[int, int, str]] = []
    (clip,) = stick_from_bvh(*write(tmp_path, roots), width=48, progress=lambda *x: told.append(x))
    assert told == [(1, 1, "first")]
    assert clip.motion.shape == (76, 48)
    points = stick_points(clip.motion)
    assert torch.allclose(points["pelvis"][:, 0], torch.arange(76) * 60.0 / UNIT / 25, atol=1e-5)
    # From the side, left and right are in one place but for hands; feet are 85 cm below the root.
    assert torch.allclose(points["left_elbow"], points["right_elbow"], atol=1e-5)
    assert torch.allclose(points["left_wrist"][:, 0], points["pelvis"][:, 0] - 5 / UNIT, atol=1e-5)
    assert float(points["left_ankle"][:, 1].abs().max()) < 1e-6
    assert torch.allclose(points["neck"][:, 1], torch.tensor((60 + 85) / UNIT))
    assert clip.actions is not None and set(clip.actions.tolist()) == {ACTIONS.index("walk")}
    assert isinstance(clip.physics, Tensor)
    assert torch.allclose(clip.physics[:, 0], torch.tensor(60 / UNIT), atol=1e-3)
    assert clip.description == "a person moves"
    assert check_stick([clip]) == []


def test_who_stays_is_seen_with_the_left_at_the_left(tmp_path: Path):
    (clip,) = stick_from_bvh(*write(tmp_path, [(0.0, 90.0, 0.5 * t) for t in range(31)], "climb"))
    assert clip.motion.shape == (26, 20)
    points = stick_points(clip.motion)
    assert torch.allclose(points["left_hand"][:, 0], torch.tensor(-70 / UNIT), atol=1e-5)
    assert torch.allclose(points["right_foot"][:, 0], torch.tensor(10 / UNIT), atol=1e-5)
    assert clip.actions is not None and int(clip.actions[0]) == ACTIONS.index("climbing")


def test_twenty_numbers_are_those_of_forty_eight(tmp_path: Path):
    given = write(tmp_path, [(3.0 * t, 90.0, 0.1 * t * t) for t in range(40)])
    (small,), (large,) = stick_from_bvh(*given), stick_from_bvh(*given, width=48)
    assert torch.allclose(five_segments(large.motion), small.motion, atol=1e-6)


def test_what_is_wrong_is_named(tmp_path: Path):
    folder, index, joints = write(tmp_path, [(0.0, 90.0, 0.0)] * 10)
    with pytest.raises(
        ValueError, match=r"clips: expected names of the index \(first, \.\.\.\), got 'second'"
    ):
        stick_from_bvh(folder, index, joints, clips=["second"])
    (tmp_path / "two.csv").write_text(index.read_text().replace(",walk,", ",juggle,"))
    with pytest.raises(ValueError, match=r"one\.bvh: expected an action among ACTIONS, got 'juggle'"):
        stick_from_bvh(folder, tmp_path / "two.csv", joints)
    (tmp_path / "two.csv").write_text(index.read_text().replace("mine", "unknown"))
    with pytest.raises(ValueError, match=r"map\.json: expected a skeleton 'unknown', got other, mine"):
        stick_from_bvh(folder, tmp_path / "two.csv", joints)
    (tmp_path / "two.csv").write_text(index.read_text().replace(",text", ""))
    with pytest.raises(ValueError, match=r"two\.csv: expected rows with the columns clip"):
        stick_from_bvh(folder, tmp_path / "two.csv", joints)
    (tmp_path / "two.csv").write_text(index.read_text().replace("a person moves", ""))
    with pytest.raises(ValueError, match=r"two\.csv: row 2: expected something under 'text'"):
        stick_from_bvh(folder, tmp_path / "two.csv", joints)
    (tmp_path / "two.csv").write_text(index.read_text().replace("one.bvh", "none.bvh"))
    with pytest.raises(FileNotFoundError, match=r"none\.bvh"):
        stick_from_bvh(folder, tmp_path / "two.csv", joints)
    said = json.loads(joints.read_text())
    for change, message in (
        ({"mine": "other", "other": "mine"}, r"skeleton 'mine': expected joints, got names in a circle"),
        ({"mine": {}}, r"skeleton 'mine': expected a bone for 'neck'"),
    ):
        (tmp_path / "map2.json").write_text(json.dumps({"skeletons": change}))
        with pytest.raises(ValueError, match=rf"map2\.json: {message}"):
            stick_from_bvh(folder, index, tmp_path / "map2.json")
    said["skeletons"]["other"]["head"] = "skull"
    (tmp_path / "map2.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"one\.bvh: expected a bone 'skull', as skeleton 'mine' has it"):
        stick_from_bvh(folder, index, tmp_path / "map2.json")
    (tmp_path / "map2.json").write_text("{")
    with pytest.raises(ValueError, match=r"map2\.json: expected JSON"):
        stick_from_bvh(folder, index, tmp_path / "map2.json")


def test_real_recordings(tmp_path: Path):
    if "MFK_DATA" not in os.environ:
        pytest.skip("MFK_DATA does not name the folder of the recordings")
    data = Path(os.environ["MFK_DATA"]) / "mocap"
    for archive in data.glob("*.tar.gz"):
        with tarfile.open(archive) as file:
            file.extractall(tmp_path, filter="data")
    given = (tmp_path, data / "index.csv", data / "joint_map.json")
    clips = stick_from_bvh(*given, width=48)
    assert len(clips) == 61
    for clip in clips:
        assert clip.meta is not None
        path = next(tmp_path.glob(f"*/{clip.meta['clip']}.bvh"))
        header = read_bvh_header(path)
        assert len(clip.motion) == int((header.frames - 1) * 25 / header.fps + 1e-6) + 1
        assert float(shared_point_gap(clip.motion).max()) < 1e-5
        # A torso of 0.27 to 0.75 m, as projected.
        height = (
            (stick_points(clip.motion)["neck"] - stick_points(clip.motion)["pelvis"]).norm(dim=-1).median()
        )
        assert 0.4 < float(height) < 1.1
    findings = check_stick(clips)
    # A marker flip that the recordings' own notes tell of: frame 840 at 30 frames/s.
    other = [f for f in findings if f.rule != "length"]
    assert [(clips[f.clip].meta or {})["clip"] for f in other] == ["cmu_01_07"]
    assert other[0].rule == "acceleration" and other[0].frame in range(698, 702)
