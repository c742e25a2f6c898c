"""The two robots that come with the package: Franka Emika Panda and Universal Robots UR10."""

from __future__ import annotations

from functools import cache
from importlib import resources

from mfk.kinematics.chain import Chain
from mfk.kinematics.urdf import load_urdf


@cache
def panda(frame: str = "panda_hand") -> Chain:
    """Franka Emika Panda, 7 revolute joints, base frame panda_link0.

    `frame` is any of panda_link1 to panda_link8 (the flange), panda_hand, panda_hand_tcp; a frame
    before the flange has fewer joints. ValueError for another name.
    """
    return load_urdf(urdf_text("panda"), frame, base="panda_link0")


@cache
def ur10(frame: str = "tool0") -> Chain:
    """Universal Robots UR10, 6 revolute joints, base frame base_link.

    `frame` is any link up to wrist_3_link, ee_link (x axis out of the flange) or tool0 (z axis out of
    the flange); a frame before wrist_3_link has fewer joints. ValueError for another name.
    """
    return load_urdf(urdf_text("ur10"), frame, base="base_link")


def urdf_text(name: str) -> str:
    """The kinematics-only URDF, "panda" or "ur10", that the package ships."""
    return (
        resources.files("mfk.kinematics").joinpath("descriptions", f"{name}.urdf").read_text(encoding="utf-8")
    )
