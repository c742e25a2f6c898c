"""BVH: by hand, against pybvh, and everything that is no such file."""

from __future__ import annotations

import math
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mfk.data import bvh_frames, read_bvh, read_bvh_header
from mfk.kinematics import quaternion_to_matrix

ARM = """HIERARCHY
ROOT Hips
{
    OFFSET 1 2 3
    CHANNELS 6 Xposition Yposition Zposition Yrotation Xrotation Zrotation
    JOINT Left Arm
    {
        OFFSET 0 4 0
        CHANNELS 3 Zrotation Xrotation Yrotation
        End Site
        {
            OFFSET 0 1 0
        }
    }
    JOINT Tail
    {
        OFFSET 0 0 -2
        CHANNELS 2 Xposition Zrotation
    }
}
MOTION
Frames: 2
Frame Time: 0.0333333
10 20 30 90 90 0 90 0 90 0 0
0 0 0 0 0 0 30 40 50 5 90
"""
PLAIN = (
    ARM.replace("Left Arm", "Arm")
    .replace("OFFSET 1 2 3", "OFFSET 0 0 0")
    .replace("2 Xposition Z", "3 Yrotation Xrotation Z")
)
PLAIN = PLAIN.replace("0 0\n0 0 0 0 0 0 30 40 50 5 90", "0 0 9\n0.5 1e-1 -.25 -170 80 190 30 40 50 5 90 1")


def write(folder: Path, text: str, name: str = "clip.bvh") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def rotation(axis: str, degrees: float) -> np.ndarray:
    """Its matrix from sine and cosine, independent of any quaternion."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i = "xyz".index(axis)
    matrix = np.eye(3)
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix[[j, j, k, k], [j, k, j, k]] = c, -s, s, c
    return matrix


def test_two_bones_by_hand(tmp_path: Path) -> None:
    bvh = read_bvh(write(tmp_path, ARM))
    assert bvh.header.bone_names == ("Hips", "Left Arm", "Tail")
    assert bvh.header.parents == (-1, 0, 0)
    assert bvh.header.channels[1] == ("Zrotation", "Xrotation", "Yrotation")
    assert (bvh.header.frames, bvh.header.fps) == (2, 30.0)
    frames = bvh_frames(bvh, 0.5)
    assert frames.dtype == torch.float32
    # Hips: Ry(90) Rx(90) takes y to z, then z to x: the arm's 4 along y point along x.
    torch.testing.assert_close(frames[0, 0, :3], 0.5 * torch.tensor([11.0, 22.0, 33.0]))
    torch.testing.assert_close(frames[0, 1, :3], 0.5 * torch.tensor([15.0, 22.0, 33.0]))
    hips = rotation("y", 90) @ rotation("x", 90)
    arm = hips @ rotation("z", 90) @ rotation("y", 90)
    np.testing.assert_allclose(quaternion_to_matrix(frames[0, 1, 3:].double()), arm, atol=1e-6)
    # Without the hips' turn: R_z(30) R_x(40) R_y(50), and the tail's position channel.
    turned = rotation("z", 30) @ rotation("x", 40) @ rotation("y", 50)
    np.testing.assert_allclose(quaternion_to_matrix(frames[1, 1, 3:].double()), turned, atol=1e-6)
    torch.testing.assert_close(frames[1, 2, :3], 0.5 * torch.tensor([6.0, 2.0, 1.0]))


def test_position_channels_are_added_or_replace(tmp_path: Path) -> None:
    path = write(tmp_path, ARM)
    np.testing.assert_array_equal(read_bvh(path).translations[0, 0], [11, 22, 33])
    np.testing.assert_array_equal(read_bvh(path, positions="add").translations[0, 0], [11, 22, 33])
    replaced = read_bvh(path, positions="replace").translations
    np.testing.assert_array_equal(replaced[0, 0], [10, 20, 30])
    np.testing.assert_array_equal(replaced[1, 2], [5, 0, -2])  # one axis has a channel
    other = write(tmp_path, ARM.replace("OFFSET 0 0 -2", "OFFSET 7 0 -2"))
    with pytest.raises(ValueError, match=r"'Tail' has both an OFFSET and Xposition.*add or replace"):
        read_bvh(other)
    np.testing.assert_array_equal(read_bvh(other, positions="add").translations[1, 2], [12, 0, -2])
    np.testing.assert_array_equal(read_bvh(other, positions="replace").translations[1, 2], [5, 0, -2])
    with pytest.raises(ValueError, match="positions: expected add, replace or None, got 'sum'"):
        read_bvh(path, positions="sum")  # type: ignore[arg-type]


def test_signs_are_continuous(tmp_path: Path) -> None:
    turns = "".join(f"0 0 0 {degrees} 0 0 0 0 0 0 0\n" for degrees in range(-350, 1100, 50))
    text = ARM[: ARM.index("10 20 30")].replace("Frames: 2", "Frames: 29") + turns
    q = bvh_frames(read_bvh(write(tmp_path, text)), 1.0)[..., 3:]
    assert bool((q[0, :, 0] >= 0).all())
    # 50 degrees from frame to frame are 25 on the sphere of quaternions.
    torch.testing.assert_close((q[1:] * q[:-1]).sum(-1)[:, 0], torch.full((28,), math.cos(math.radians(25))))
    torch.testing.assert_close(q[:, 0], q[:, 1])


def same_as_pybvh(path: Path) -> None:
    pybvh = pytest.importorskip("pybvh")
    ours, theirs = read_bvh(path), pybvh.Bvh.from_file(path)
    assert list(ours.header.bone_names) == theirs.joint_names
    assert ours.header.fps == theirs.fps
    frames = bvh_frames(ours, 1.0)
    np.testing.assert_allclose(frames[..., :3], theirs.joint_positions(), atol=1e-4, rtol=1e-6)
    np.testing.assert_allclose(quaternion_to_matrix(ours.rotations), theirs.to_rotmat()[1], atol=1e-12)
    _, local = theirs.to_rotmat()
    turned: list[np.ndarray] = []
    for bone, parent in enumerate(ours.header.parents):
        turned.append(local[:, bone] if parent < 0 else turned[parent] @ local[:, bone])
    np.testing.assert_allclose(quaternion_to_matrix(frames[..., 3:]), np.stack(turned, 1), atol=2e-6)


def test_against_pybvh(tmp_path: Path) -> None:
    same_as_pybvh(write(tmp_path, PLAIN))


@pytest.mark.filterwarnings("ignore:Rest pose suggests world up")
@pytest.mark.parametrize(
    ("archive", "clip"),
    [
        ("cmu_bvh30", "cmu/cmu_01_01.bvh"),
        ("cmu_bvh30", "cmu/cmu_131_01.bvh"),
        ("animated_drawings_bvh30", "animated_drawings/ad_dab.bvh"),
    ],
)
def test_recordings_against_pybvh(tmp_path: Path, archive: str, clip: str) -> None:
    if "MFK_DATA" not in os.environ:
        pytest.skip("MFK_DATA is not set")
    with tarfile.open(Path(os.environ["MFK_DATA"]) / "mocap" / f"{archive}.tar.gz") as tar:
        tar.extract(clip, tmp_path, filter="data")
    same_as_pybvh(tmp_path / clip)


@pytest.mark.parametrize(
    "changed",
    [
        ARM.replace("\n", "\r\n"),
        "\ufeff" + ARM,
        ARM.replace("    ", "\t").replace(" 20 ", "\t20  ") + "\n  \n",
        ARM.replace("\n    {", " {").replace("\n{", "{"),
        ARM.replace("Xposition", "XPOSITION").replace("ROOT", "Root").replace("Frames: 2", "FRAMES:2"),
        ARM.removesuffix("\n"),
    ],
)
def test_other_ways_to_write_it(tmp_path: Path, changed: str) -> None:
    expected, found = read_bvh(write(tmp_path, ARM)), read_bvh(write(tmp_path, changed, "other.bvh"))
    torch.testing.assert_close(found.translations, expected.translations, rtol=0, atol=0)
    torch.testing.assert_close(found.rotations, expected.rotations, rtol=0, atol=0)
    assert found.header[:2] == expected.header[:2]
    assert found.header[3:] == expected.header[3:]


@pytest.mark.parametrize(
    ("seconds", "fps"),
    [("0.0333333", 30), ("0.00833333", 120), ("0.008333", 120), ("0.04", 25), ("0.0333667", 1 / 0.0333667)],
)
def test_frame_rates(tmp_path: Path, seconds: str, fps: float) -> None:
    assert read_bvh_header(write(tmp_path, ARM.replace("0.0333333", seconds))).fps == fps


def test_a_header_is_read_without_its_frames(tmp_path: Path) -> None:
    header = read_bvh_header(write(tmp_path, ARM[: ARM.index("10 20")] + "what is here is not read"))
    torch.testing.assert_close(header.offsets[1], torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64))
    assert header.frames == 2


LAST = "0 0 0 0 0 0 30 40 50 5 90\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected HIERARCHY, got the end of the file"),
        ("PK\x03\x04", "line 1: expected HIERARCHY"),
        ("HIERARCHY\n", "expected ROOT, got the end"),
        (ARM[: ARM.index("JOINT Tail")], "expected JOINT, End Site or } of bone 'Hips', got the end"),
        (ARM[: ARM.index("End Site") + 8], "expected {, got the end"),
        (ARM[: ARM.index("Frames")], "expected Frames: and a positive number, got the end"),
        (ARM.replace("ROOT Hips", "JOINT Hips"), "line 2: expected ROOT, got JOINT Hips"),
        (ARM.replace("JOINT Tail", "ROOT Tail"), "line 15: expected one root"),
        (ARM.replace("JOINT Tail", "JOINT Hips"), "line 15: expected a bone's name that no other has"),
        (ARM.replace("JOINT Tail", "JOINT"), "line 15: expected a bone's name"),
        (ARM.replace("    OFFSET 1 2 3\n", ""), "line 5: expected OFFSET of bone 'Hips'"),
        (ARM.replace("OFFSET 1 2 3", "OFFSET 1 2"), "line 4: expected OFFSET and three finite numbers"),
        (ARM.replace("OFFSET 1 2 3", "OFFSET 1 nan 3"), "line 4: expected OFFSET and three finite numbers"),
        (ARM.replace("CHANNELS 3", "CHANNELS 4"), "line 9: expected CHANNELS, their number"),
        (ARM.replace("Zrotation Xr", "Wrotation Xr"), "line 9: expected CHANNELS, .* got CHANNELS 3 Wrot"),
        (ARM.replace("Zrotation Xr", "Xrotation Xr"), "line 9: .* each at most once"),
        (ARM.replace("CHANNELS 2 Xposition Zrotation", "CHANNELS"), "line 18: expected CHANNELS, their"),
        (ARM.replace("}\nMOTION", "}\n}\nMOTION"), "line 21: expected MOTION, got }"),
        (ARM.replace("    }\n}\nMOTION", "    }\nMOTION"), "line 20: expected JOINT, .* got MOTION"),
        (ARM.replace("            OFFSET 0 1 0", "JOINT a"), "line 12: expected OFFSET or } of an end site"),
        (ARM.replace("Frames: 2", "Frames: 0"), "line 22: expected Frames: and a positive number"),
        (ARM.replace("Frame Time: 0.0333333\n", ""), "line 23: expected Frame Time: and a positive"),
        (ARM.replace("0.0333333", "0"), "line 23: expected Frame Time: and a positive"),
        (ARM.replace("0.0333333", "-1"), "line 23: expected Frame Time: and a positive"),
        (ARM.replace("0.0333333", "1e-320"), "line 23: expected Frame Time: and a positive"),
        (ARM.removesuffix(LAST), "expected 2 frames, as it says, got 1; it has been cut"),
        (ARM.removesuffix(" 90\n"), "line 25: expected 11 numbers, one for each channel, got 10 of them"),
        (ARM + LAST, "line 26: expected no more than 2 frames, got 0 0"),
        (ARM.replace(" 40 ", " 4O "), "line 25: expected finite numbers, got 4O"),
        (ARM.replace(" 40 ", " nan "), "line 25: expected finite numbers, got nan"),
        (ARM.replace(" 40 ", " -inf "), "line 25: expected finite numbers, got -inf"),
        (ARM.replace(" 40 ", " 4_0 "), "line 25: expected finite numbers, got 4_0"),
        ("HIERARCHY ROOT a", "line 1: expected HIERARCHY, got HIERARCHY ROOT a"),
        (
            "HIERARCHY\nROOT a\n{\nOFFSET 0 0 0\nCHANNELS 0\n}\nMOTION\nFrames: 1\nFrame Time: 1\n",
            "expected at least one channel",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_bvh(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_other_text_and_other_arguments(tmp_path: Path) -> None:
    path = tmp_path / "clip.bvh"
    path.write_bytes(ARM.replace("Tail", "Büste").encode("latin-1"))
    with pytest.raises(ValueError, match="expected text in UTF-8"):
        read_bvh(path)
    with pytest.raises(FileNotFoundError):
        read_bvh_header(tmp_path / "missing.bvh")
    bvh = read_bvh(write(tmp_path, ARM))
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="metres_per_unit: expected a positive number"):
            bvh_frames(bvh, scale)
