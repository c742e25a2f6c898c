"""Reading URDF: what is supported gives the right chain, what is not gives one clear error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mfk import kinematics as kin
from mfk.kinematics.urdf import sibling_chains

ARM = """<?xml version="1.0" encoding="utf-8"?>
<robot name="arm">
  <link name="world"/><link name="foot"/><link name="upper"/><link name="lower"/><link name="tool"/>
  <link name="camera"/>
  <joint name="bolt" type="fixed"><parent link="world"/><child link="foot"/>
    <origin xyz="0 0 1" rpy="0 0 1.5707963267948966"/></joint>
  <joint name="hip" type="revolute"><parent link="foot"/><child link="upper"/>
    <axis xyz="0 0 2"/><limit lower="-1" upper="2" velocity="3" effort="4"/></joint>
  <joint name="wheel" type="continuous"><parent link="upper"/><child link="lower"/>
    <origin xyz="0.5 0 0"/></joint>
  <joint name="rail" type="prismatic"><parent link="lower"/><child link="tool"/>
    <axis xyz="0 1 0"/><limit lower="0" upper="0.3" velocity="0.1"/></joint>
  <joint name="mount" type="floating"><parent link="upper"/><child link="camera"/></joint>
  <transmission name="t"><joint name="hip"/></transmission>
</robot>
"""


def pose_of(chain: kin.Chain, *q: float) -> list[float]:
    return kin.forward(chain, torch.tensor(q, dtype=torch.float64)).tolist()


def test_joints_limits_and_geometry() -> None:
    chain = kin.load_urdf(ARM, "tool")
    assert (chain.name, chain.base, chain.tip) == ("arm", "world", "tool")
    assert chain.joint_names == ("hip", "wheel", "rail")
    assert chain.kinds == ("revolute", "continuous", "prismatic")
    assert chain.continuous == (False, True, False)
    assert chain.lower.tolist() == [-1.0, -math.pi, 0.0]
    assert chain.upper.tolist() == [2.0, math.pi, 0.3]
    assert chain.velocity.tolist() == [3.0, math.inf, 0.1]
    # hip at pi/2 on top of the foot's pi/2: the arm points along -x; the wheel turns about it.
    s = math.sqrt(0.5)
    assert pose_of(chain, math.pi / 2, math.pi / 2, 0.2) == pytest.approx(
        [-0.5, 0, 1.2, 0, 0, s, s], abs=1e-15
    )
    assert repr(chain) == "Chain(arm, 3 dof, world -> tool: hip, wheel (continuous), rail (prismatic))"


def test_another_base_and_offsets() -> None:
    chain = kin.load_urdf(ARM, "tool", base="foot")
    assert chain.base == "foot"
    assert pose_of(chain, 0, 0, 0.1) == pytest.approx([0.5, 0.1, 0, 1, 0, 0, 0], abs=1e-15)
    s = math.sqrt(0.5)
    tool = [0.0, 0.0, 0.25, s, s, 0.0, 0.0]
    stand = torch.eye(4, dtype=torch.float64)
    stand[:3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    stand[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    chain = kin.load_urdf(ARM, "tool", base="foot", base_offset=stand, tool_offset=tool)
    assert pose_of(chain, 0, 0, 0.1) == pytest.approx([0.9, 2.5, 3.25, 0.5, 0.5, 0.5, 0.5], abs=1e-15)
    q = torch.tensor([[0.3, -0.7, 0.2], [1.0, 2.0, 0.1]], dtype=torch.float64)
    plain = kin.forward_matrix(kin.load_urdf(ARM, "tool", base="foot"), q)
    expected = stand @ plain @ kin.pose_to_matrix(torch.tensor(tool, dtype=torch.float64))
    torch.testing.assert_close(kin.forward_matrix(chain, q), expected, rtol=0, atol=1e-15)


BRACKETED = ARM.replace(
    "</robot>",
    """
  <link name="wall"/><link name="socket"/><link name="plate"/><link name="loose"/>
  <joint name="b1" type="fixed"><parent link="foot"/><child link="wall"/>
    <origin xyz="0.1 -0.2 0.3" rpy="0.4 -0.5 0.6"/></joint>
  <joint name="b2" type="fixed"><parent link="wall"/><child link="socket"/>
    <origin xyz="-0.7 0.8 0.9" rpy="1.0 1.1 -1.2"/></joint>
  <joint name="b3" type="fixed"><parent link="tool"/><child link="plate"/><origin xyz="0 0 0.01"/></joint>
  <joint name="b4" type="revolute"><parent link="wall"/><child link="loose"/>
    <limit lower="0" upper="1" velocity="1"/></joint>
</robot>""",
)


def by_hand(x: float, y: float, z: float, roll: float, pitch: float, yaw: float) -> np.ndarray:
    """The 4 x 4 matrix of an <origin>, by scipy: rotations about the fixed axes x, y, z in this order."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [roll, pitch, yaw]).as_matrix()
    matrix[:3, 3] = x, y, z
    return matrix


@pytest.mark.parametrize(("base", "joints"), [("wall", 1), ("socket", 2)])
def test_a_base_that_hangs_from_the_path_by_fixed_joints(base: str, joints: int) -> None:
    here = by_hand(0.1, -0.2, 0.3, 0.4, -0.5, 0.6)
    here = here @ by_hand(-0.7, 0.8, 0.9, 1.0, 1.1, -1.2) if joints == 2 else here
    chain = kin.load_urdf(BRACKETED, "tool", base=base)
    assert (chain.base, chain.tip, chain.joint_names) == (base, "tool", ("hip", "wheel", "rail"))
    q = torch.tensor([[0.3, -0.7, 0.2], [1.0, 2.0, 0.1]], dtype=torch.float64)
    plain = kin.forward_matrix(kin.load_urdf(BRACKETED, "tool", base="foot"), q)
    expected = torch.from_numpy(np.linalg.inv(here)) @ plain
    torch.testing.assert_close(kin.forward_matrix(chain, q), expected, rtol=0, atol=1e-14)
    stand = torch.from_numpy(by_hand(1, 2, 3, 0, 0, 0.5))
    moved = kin.load_urdf(BRACKETED, "tool", base=base, base_offset=stand)
    torch.testing.assert_close(kin.forward_matrix(moved, q), stand @ expected, rtol=0, atol=1e-14)


def test_a_base_that_moves_against_the_path_is_refused() -> None:
    near = "base: expected a link between the root 'world' and 'tool', or one fixed to such a link, got "
    for base, joint in (("loose", "b4"), ("camera", "mount")):
        with pytest.raises(ValueError, match=f"{near}'{base}' \\(joint '{joint}' is not fixed\\)"):
            kin.load_urdf(BRACKETED, "tool", base=base)
    # Joints that may be numbered wrongly but do not lie between the two are not read; these do.
    broken = BRACKETED.replace('rpy="0.4 -0.5 0.6"', 'rpy="0.4 -0.5"')
    assert kin.load_urdf(broken, "tool", base="foot").dof == 3
    with pytest.raises(ValueError, match="joint 'b1': origin: rpy: expected three numbers"):
        kin.load_urdf(broken, "tool", base="socket")
    with pytest.raises(ValueError, match="expected a joint between the base and the tip, got 'plate', fixed"):
        kin.load_urdf(BRACKETED, "tool", base="plate")
    island = ARM.replace("</robot>", '<link name="island"/></robot>')
    with pytest.raises(ValueError, match=f"{near}'island'$"):
        kin.load_urdf(island, "tool", base="island")


def test_chains_between_other_links_with_the_same_joints() -> None:
    chain = kin.load_urdf(BRACKETED, "tool", base="foot")
    others = list(sibling_chains(BRACKETED, chain))
    pairs = [(other.base, other.tip) for other in others]
    assert others[0] == chain
    assert pairs[1] == ("foot", "plate")
    assert {*pairs} == {(b, t) for b in ("foot", "world", "wall", "socket") for t in ("tool", "plate")}
    assert len(pairs) == 8
    for other in others:
        assert other == kin.load_urdf(BRACKETED, other.tip, base=other.base)
    broken = BRACKETED.replace('rpy="0.4 -0.5 0.6"', 'rpy="0.4 -0.5"')
    assert {other.base for other in sibling_chains(broken, chain)} == {"foot", "world"}
    with pytest.raises(ValueError, match=r"chain: expected one of URDF text, got Chain\(panda"):
        next(sibling_chains(BRACKETED, kin.panda()))


def test_files_paths_and_byte_order_marks(tmp_path: Path) -> None:
    file = tmp_path / "arm.urdf"
    file.write_text(ARM, encoding="utf-8-sig")
    expected = kin.load_urdf(ARM, "tool")
    for source in (file, str(file), "\ufeff\n  " + ARM.split("?>")[1]):
        assert kin.load_urdf(source, "tool") == expected


def test_angles_written_short_are_taken_as_written() -> None:
    short = ARM.replace("1.5707963267948966", "1.5708")
    q = torch.zeros(3, dtype=torch.float64)
    got = kin.forward(kin.load_urdf(short, "tool"), q)
    expected = [0.5 * math.cos(1.5708), 0.5 * math.sin(1.5708), 1, math.cos(0.7854), 0, 0, math.sin(0.7854)]
    assert got.tolist() == pytest.approx(expected, abs=1e-15)


HIP = '<axis xyz="0 0 2"/><limit lower="-1" upper="2" velocity="3" effort="4"/>'
LOOP = (
    '<robot name="loop"><link name="tool"/><link name="b"/>'
    '<joint name="j" type="fixed"><parent link="tool"/><child link="b"/></joint>'
    '<joint name="k" type="fixed"><parent link="b"/><child link="tool"/></joint></robot>'
)
BOMB = '<!DOCTYPE robot [<!ENTITY a "aaaa">]><robot name="&a;"/>'
OUTSIDE = '<!DOCTYPE robot SYSTEM "file:///etc/passwd"><robot name="r"/>'
BAD = [
    (
        ARM.replace("<robot", "<robt").replace("</robot", "</robt"),
        r"expected the root element <robot>, got <robt>",
    ),
    ("<robot name='x'><link", "expected well-formed XML"),
    ("<html><p>hello</p></html>", "<robot>, got <html>"),
    (BOMB, "without document type, entities"),
    (OUTSIDE, "without document type"),
    (LOOP, "link 'tool' is its own ancestor"),
    (ARM.replace('type="revolute"', 'type="planar"'), "joint 'hip': type: expected fixed, .* got 'planar'"),
    (ARM.replace('type="revolute"', 'type="floating"'), "joint 'hip': type: .* got 'floating'"),
    (ARM.replace(' type="revolute"', ""), "joint 'hip': <joint>: expected the attribute type"),
    (ARM.replace(HIP, HIP + '<mimic joint="rail"/>'), "joint 'hip': .* mimics another"),
    (ARM.replace(HIP, '<axis xyz="0 0 1"/>'), "joint 'hip': a revolute joint needs <limit"),
    (ARM.replace('lower="-1" ', ""), "joint 'hip': limit: <limit>: expected the attribute lower"),
    (ARM.replace('lower="-1"', 'lower="3"'), r"joint 'hip': limit: expected lower <= upper, got 3.0 > 2.0"),
    (
        ARM.replace('upper="2"', 'upper="nan"'),
        "joint 'hip': limit: upper: expected a finite number, got 'nan'",
    ),
    (ARM.replace('velocity="3"', 'velocity="-3"'), "velocity: expected no less than 0, got -3.0"),
    (ARM.replace('xyz="0 0 2"', 'xyz="0 0 0"'), "joint 'hip': axis: expected a direction, got the zero"),
    (ARM.replace('xyz="0 0 2"', 'xyz="0 0"'), "joint 'hip': axis: xyz: expected three numbers, got '0 0'"),
    (ARM.replace('<axis xyz="0 0 2"/>', "<axis/>"), "joint 'hip': axis: expected the attribute xyz"),
    (ARM.replace('xyz="0.5 0 0"', 'xyz="0.5 x 0"'), "joint 'wheel': origin: xyz: expected a number, got 'x'"),
    (ARM.replace('xyz="0.5 0 0"', 'xyz="inf 0 0"'), "joint 'wheel': origin: .* finite number, got 'inf'"),
    (ARM.replace('<link name="foot"/>', ""), "joint 'hip': its parent link 'foot' is not defined"),
    (ARM.replace('<link name="foot"/>', '<link name="world"/>'), "link names to differ, got 'world' twice"),
    (ARM.replace('name="wheel"', 'name="hip"'), "joint names to differ, got 'hip' twice"),
    (ARM.replace('<parent link="foot"/>', ""), "joint 'hip': expected one <parent>, got 0"),
    (
        ARM.replace('<child link="camera"/>', '<child link="lower"/>'),
        "link 'lower': .* one parent joint, got 2",
    ),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_text_is_explained(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        kin.load_urdf(text, "tool")
    assert str(error.value).startswith("URDF text: ")
    assert len(str(error.value)) < 400


def test_trouble_off_the_path_does_not_matter() -> None:
    assert kin.load_urdf(ARM.replace('xyz="0 0 2"', 'xyz="0 0 0"'), "tool", base="upper").dof == 2


def test_unknown_links_are_listed() -> None:
    with pytest.raises(ValueError, match=r"tip: no link named 'tol'; did you mean: tool"):
        kin.load_urdf(ARM, "tol")
    with pytest.raises(
        ValueError, match="tip: no link named 'zzz'; the links are: world, foot, upper, lower"
    ):
        kin.load_urdf(ARM, "zzz")
    with pytest.raises(ValueError, match="base: no link named 'bas'"):
        kin.load_urdf(ARM, "tool", base="bas")
    with pytest.raises(
        ValueError, match=r"base: expected a link between the root 'world' and 'tool', .* got 'camera'"
    ):
        kin.load_urdf(ARM, "tool", base="camera")
    with pytest.raises(ValueError, match="one link, 'tool', for both"):
        kin.load_urdf(ARM, "tool", base="tool")
    with pytest.raises(ValueError, match="arm: no joint moves between 'world' and 'foot'"):
        kin.load_urdf(ARM, "foot")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.urdf: no such file; URDF given as text must start"):
        kin.load_urdf(tmp_path / "none.urdf", "tool")
    with pytest.raises(ValueError, match="expected a URDF file, got a directory"):
        kin.load_urdf(str(tmp_path), "tool")
    empty, binary = tmp_path / "empty.urdf", tmp_path / "binary.urdf"
    empty.write_text(" \n")
    binary.write_bytes(b"\x00\xff\xfe\x01")
    with pytest.raises(ValueError, match=r"empty\.urdf: expected a URDF, got an empty file"):
        kin.load_urdf(empty, "tool")
    with pytest.raises(ValueError, match=r"binary\.urdf: expected well-formed XML"):
        kin.load_urdf(binary, "tool")
    with pytest.raises(
        ValueError, match="path_or_text: expected a file's path or URDF text, got an empty string"
    ):
        kin.load_urdf("  ", "tool")
    broken = tmp_path / "broken.urdf"
    broken.write_text(ARM.replace('xyz="0 0 2"', 'xyz="0 0 0"'))
    with pytest.raises(ValueError, match=r"broken\.urdf: joint 'hip': axis"):
        kin.load_urdf(broken, "tool")


@pytest.mark.parametrize("argument", ["base_offset", "tool_offset"])
def test_wrong_arguments(argument: str) -> None:
    def load(offset: Any) -> kin.Chain:
        return kin.load_urdf(ARM, "tool", **{argument: offset})

    content: Any = b"<robot/>"
    number: Any = 3

    skewed = torch.eye(4)
    skewed[0, 1] = 0.1
    mirrored = torch.diag(torch.tensor([1.0, 1, -1, 1]))
    with pytest.raises(ValueError, match=rf"{argument}: expected unit quaternions .* norm 2"):
        load([0, 0, 0, 2, 0, 0, 0])
    for matrix in (skewed, mirrored, torch.full((4, 4), math.nan)):
        with pytest.raises(ValueError, match=f"{argument}: expected a rotation matrix over"):
            load(matrix)
    with pytest.raises(
        ValueError, match=rf"{argument}: expected a pose \[7\] or a matrix .* got shape \(3,\)"
    ):
        load([1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match=f"{argument}: expected a pose"):
        load("nowhere")
    with pytest.raises(TypeError, match="path_or_text: expected a str or a path, got b'<robot"):
        kin.load_urdf(content, "tool")
    with pytest.raises(TypeError, match="tip: expected the name of a link, got 3"):
        kin.load_urdf(ARM, number)
    with pytest.raises(TypeError, match="base: expected the name of a link, got 3"):
        kin.load_urdf(ARM, "tool", base=number)
