"""The Panda and the UR10 against values of Pinocchio and example-robot-data, kept in fk_named.json."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mfk import kinematics as kin
from mfk.core.config import from_dict, to_dict

ORACLE = json.loads(Path(__file__).with_name("fk_named.json").read_text())["robots"]
MAKE = {"panda": kin.panda, "ur10": kin.ur10}
FRAMES = [(robot, frame) for robot in ORACLE for frame in ORACLE[robot]["frames"]]


@pytest.mark.parametrize(("robot", "frame"), FRAMES)
def test_poses_of_every_named_configuration(robot: str, frame: str) -> None:
    chain = MAKE[robot](frame)
    named = ORACLE[robot]["named"]
    q = torch.tensor([row["q"] for row in named], dtype=torch.float64)
    expected = torch.tensor([row["poses"][frame] for row in named], dtype=torch.float64)
    pose = kin.forward(chain, q)
    torch.testing.assert_close(pose[:, :3], expected[:, :3], rtol=0, atol=1e-9)
    # Where qw is zero but for rounding either sign is right: compare products of components.
    for got, want in zip(pose[:, 3:], expected[:, 3:], strict=True):
        torch.testing.assert_close(torch.outer(got, got), torch.outer(want, want), rtol=0, atol=1e-9)
    assert bool((pose[:, 3] >= 0).all())
    half = kin.forward(chain, q.float())
    torch.testing.assert_close(half[:, :3].double(), expected[:, :3], rtol=0, atol=2e-6)


@pytest.mark.parametrize("robot", ["panda", "ur10"])
def test_limits_and_names(robot: str) -> None:
    chain = MAKE[robot]()
    assert list(chain.joint_names) == ORACLE[robot]["joint_names"]
    assert chain.lower.tolist() == pytest.approx(ORACLE[robot]["lower"], abs=1e-11)
    assert chain.upper.tolist() == pytest.approx(ORACLE[robot]["upper"], abs=1e-11)
    assert chain.lower.dtype == chain.upper.dtype == chain.velocity.dtype == torch.float64
    assert not any(chain.continuous)


def test_velocities() -> None:
    assert kin.panda().velocity.tolist() == [2.175] * 4 + [2.61] * 3
    assert kin.ur10().velocity.tolist() == [2.16, 2.16, 3.15, 3.2, 3.2, 3.2]


def test_inner_frames_have_fewer_joints() -> None:
    elbow = kin.panda("panda_link4")
    assert elbow.dof == 4
    pose = kin.forward(elbow, torch.zeros(4, dtype=torch.float64))
    s = math.sqrt(0.5)
    torch.testing.assert_close(
        pose, torch.tensor([0.0825, 0, 0.649, s, s, 0, 0], dtype=torch.float64), rtol=0, atol=1e-15
    )
    assert kin.ur10("shoulder_link").dof == 1


def test_unknown_frames_are_named() -> None:
    with pytest.raises(ValueError, match=r"tip: no link named 'panda_hnd'; did you mean: panda_hand"):
        kin.panda("panda_hnd")
    with pytest.raises(ValueError, match="one link, 'base_link', for both"):
        kin.ur10("base_link")


def test_the_ur10_from_its_controllers_base() -> None:
    """Half a turn about z: the position's x and y change sign."""
    q = torch.zeros(6, dtype=torch.float64)
    expected = [
        -1.1843,
        -0.256141,
        0.0116,
    ]  # an independent value, of the chain that mfik's files are made by
    assert kin.forward(kin.ur10("tool0", "base"), q)[:3].tolist() == pytest.approx(expected, abs=1e-12)
    q = torch.tensor([[0.4, -0.5, 0.6, -0.7, 0.8, -0.9]], dtype=torch.float64)
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    expected = turn @ kin.forward_matrix(kin.ur10(), q)
    torch.testing.assert_close(kin.forward_matrix(kin.ur10(base="base"), q), expected, rtol=0, atol=1e-14)


def test_robots_by_name() -> None:
    assert kin.load_robot(kin.RobotConfig()) == kin.panda()
    assert kin.load_robot(kin.RobotConfig("ur10")) == kin.ur10()
    assert kin.load_robot(kin.RobotConfig("ur10", frame="ee_link", base="base")) == kin.ur10(
        "ee_link", "base"
    )
    assert kin.load_robot(kin.RobotConfig(frame="panda_link7")) == kin.panda("panda_link7")


def test_robots_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "arm.urdf"
    file.write_text(kin.urdf_text("ur10"))
    assert kin.load_robot(kin.RobotConfig(urdf=file, frame="tool0")) == kin.ur10()
    found = kin.load_robot(kin.RobotConfig(urdf=file, frame="wrist_3_link", base="base"))
    assert found == kin.ur10("wrist_3_link", "base")
    assert kin.load_robot(kin.RobotConfig("panda", urdf=file, frame="tool0")) == kin.ur10()
    # A config goes through YAML and back.
    config = kin.RobotConfig(urdf=file, frame="tool0")
    assert from_dict(kin.RobotConfig, to_dict(config)) == config


def test_robots_that_cannot_be_loaded(tmp_path: Path) -> None:
    file = tmp_path / "arm.urdf"
    file.write_text(kin.urdf_text("ur10"))
    unknown: Any = "ur5"
    wrong = [
        (kin.RobotConfig(urdf=file), f"frame: {file} needs the name of a link .* base_link, base, shoulder"),
        (kin.RobotConfig(urdf=file, frame="tool"), f"{file}: frame: no link named 'tool'; .*mean: tool0"),
        (kin.RobotConfig(urdf=file, frame="tool0", base="bse"), f"{file}: base: no link named 'bse'"),
        (kin.RobotConfig(unknown), "robot: expected panda or ur10, got 'ur5'"),
        (kin.RobotConfig(frame="tool0"), "panda: frame: no link named 'tool0'; the links are: panda_link0"),
        (kin.RobotConfig(base="world"), "panda: base: no link named 'world'"),
        (kin.RobotConfig(frame=""), "panda: frame: no link named ''"),
        (kin.RobotConfig("ur10", frame="base"), "ur10: no joint moves between 'base_link' and 'base'"),
    ]
    for config, words in wrong:
        with pytest.raises(ValueError, match=words):
            kin.load_robot(config)
        with pytest.raises(ValueError, match=words):
            kin.frames(config)
    with pytest.raises(FileNotFoundError, match=r"none\.urdf: no such file"):
        kin.load_robot(kin.RobotConfig(urdf=tmp_path / "none.urdf", frame="tool0"))


def test_frames_of_a_robot() -> None:
    chains = list(kin.frames(kin.RobotConfig("ur10", base="base")))
    pairs = [(chain.base, chain.tip) for chain in chains]
    assert pairs[0] == ("base", "tool0")
    assert {*pairs} == {(b, t) for b in ("base", "base_link") for t in ("tool0", "ee_link", "wrist_3_link")}
    assert {chain.tip for chain in kin.frames(kin.RobotConfig())} == {
        "panda_link7", "panda_link8", "panda_hand", "panda_hand_tcp",
    }  # fmt: skip
    assert all(chain == kin.ur10(chain.tip, chain.base) for chain in chains)


def test_a_chain_is_a_value() -> None:
    chain = kin.panda()
    assert chain is kin.panda()
    for twin in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert twin == chain
        assert hash(twin) == hash(chain)
    assert chain != kin.panda("panda_link8")
    assert repr(kin.ur10("ee_link")) == (
        "Chain(ur10, 6 dof, base_link -> ee_link: shoulder_pan_joint, shoulder_lift_joint, elbow_joint, "
        "wrist_1_joint, wrist_2_joint, wrist_3_joint)"
    )
    attribute = "name"
    with pytest.raises(AttributeError):
        setattr(chain, attribute, "other")


def test_limits_cannot_be_changed_through_the_tensors() -> None:
    chain = kin.panda()
    chain.lower.zero_()
    assert chain.lower.tolist() == list(chain.lower_limits)
    assert chain.lower_limits[0] == -2.8973
