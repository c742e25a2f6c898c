"""The robots that come with the package, and any other by its URDF.

Franka Emika Panda and Universal Robots UR10 are here; `RobotConfig` says which robot, by name or file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from mfk.kinematics.chain import Chain
from mfk.kinematics.urdf import load_urdf, sibling_chains
from mfk.kinematics.urdf_tree import check_link, read_tree


@dataclass(frozen=True)
class RobotConfig:
    """Which robot, and between which of its links."""

    robot: Literal["panda", "ur10"] = "panda"
    """Franka Emika Panda or Universal Robots UR10."""
    urdf: Path | None = None
    """URDF file of another robot, in place of `robot`; it needs `frame`."""
    frame: str | None = None
    """Link whose pose is solved for; None: panda_hand or tool0."""
    base: str | None = None
    """Link that poses are given in; None: the robot's root."""


_FRAMES = {"panda": "panda_hand", "ur10": "tool0"}


@cache
def panda(frame: str = "panda_hand", base: str = "panda_link0") -> Chain:
    """Franka Emika Panda, 7 revolute joints, base frame panda_link0.

    `frame` is any of panda_link1 to panda_link8 (the flange), panda_hand, panda_hand_tcp; a frame
    before the flange has fewer joints, and so has a later `base`. ValueError for another name.
    """
    return load_urdf(urdf_text("panda"), frame, base=base)


@cache
def ur10(frame: str = "tool0", base: str = "base_link") -> Chain:
    """Universal Robots UR10, 6 revolute joints, base frame base_link.

    `frame` is any link up to wrist_3_link, ee_link (x axis out of the flange) or tool0 (z axis out of
    the flange); a frame before wrist_3_link has fewer joints. `base` is base_link, or base: the frame
    of the robot's own controller, half a turn about z from base_link. ValueError for another name.
    """
    return load_urdf(urdf_text("ur10"), frame, base=base)


def load_robot(config: RobotConfig) -> Chain:
    """The chain that a config names.

    Raises:
        FileNotFoundError: no such URDF file.
        ValueError: no such robot or link, no `frame` beside `urdf`, or a URDF
            that is not supported; the message names the field or the file.
    """
    urdf = _urdf(config)
    tree = read_tree(urdf)
    tree = tree if config.urdf is not None else tree._replace(source=config.robot)
    if config.frame is None and config.urdf is not None:
        shown = ", ".join(tree.links[:20]) + (" ..." if len(tree.links) > 20 else "")
        raise ValueError(
            f"frame: {config.urdf} needs the name of a link to solve for; its links are: {shown}"
        )
    frame = _FRAMES[config.robot] if config.frame is None else config.frame
    check_link(tree, "frame", frame)
    check_link(tree, "base", config.base)
    return load_urdf(urdf, frame, base=config.base)


def frames(config: RobotConfig) -> Iterator[Chain]:
    """The chains with the moving joints of ``load_robot(config)``, between all links that these allow.

    They tell in which frames given poses are: `.base` and `.tip` are their names. The configured chain
    comes first. Errors as `load_robot`, before the first chain.
    """
    return sibling_chains(_urdf(config), load_robot(config))


def urdf_text(name: str) -> str:
    """The kinematics-only URDF, "panda" or "ur10", that the package ships."""
    return (
        resources.files("mfk.kinematics").joinpath("descriptions", f"{name}.urdf").read_text(encoding="utf-8")
    )


def _urdf(config: RobotConfig) -> str | Path:
    if config.urdf is not None:
        return Path(config.urdf)
    if config.robot not in _FRAMES:
        raise ValueError(f"robot: expected {' or '.join(_FRAMES)}, got {config.robot!r}")
    return urdf_text(config.robot)
