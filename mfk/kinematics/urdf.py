"""Read a serial chain from a URDF file or text.

Supported on the path from base to tip: fixed, revolute, continuous and prismatic joints with any
axis. Everything else about the robot (masses, meshes, transmissions, other branches) is left unread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any
from xml.etree.ElementTree import Element

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.kinematics import rotations
from mfk.kinematics.chain import Chain, Joint, Kind, Vector, serial_chain
from mfk.kinematics.ik import check_pose
from mfk.kinematics.urdf_tree import Edge, Tree, attribute, read_tree, rigid_links, route

_MOVING: dict[str, Kind] = {
    "fixed": "fixed",
    "revolute": "revolute",
    "continuous": "continuous",
    "prismatic": "prismatic",
}


def load_urdf(
    path_or_text: str | PathLike[str],
    tip: str,
    *,
    base: str | None = None,
    base_offset: Tensor | Sequence[Any] | None = None,
    tool_offset: Tensor | Sequence[Any] | None = None,
) -> Chain:
    """The serial chain from `base` to the link `tip`.

    Args:
        path_or_text: a file's path, or the URDF itself: a string whose first visible character is "<".
        tip: name of the link whose pose is wanted.
        base: name of the link whose frame poses are given in; the robot's root link by default. It is an
            ancestor of the tip, or hangs from one by fixed joints (the `base` of ROS-Industrial's UR).
        base_offset: pose of the base link in the frame that poses shall be given in, [7] or [4, 4].
        tool_offset: pose of the tool in the tip link's frame, [7] (x y z in m, qw qx qy qz) or [4, 4].

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a URDF, no such link, or a joint on the path that is not supported or not
            complete; the message names the file, the element, and what was expected.
        TypeError: an argument of the wrong type.
    """
    for argument, link in (("tip", tip), ("base", base)):
        if not isinstance(link, str) and (link is not None or argument == "tip"):
            raise TypeError(f"{argument}: expected the name of a link, got {describe(link)}")
    return _chain(
        read_tree(path_or_text),
        tip,
        base,
        base_offset=None if base_offset is None else _offset("base_offset", base_offset),
        tool_offset=None if tool_offset is None else _offset("tool_offset", tool_offset),
    )


def sibling_chains(path_or_text: str | PathLike[str], chain: Chain) -> Iterator[Chain]:
    """Every chain of a URDF that has the moving joints of `chain`; they differ in base and tip.

    The bases are the links fixed to the link that carries the first joint, the tips those fixed to the
    link that the last joint carries. `chain` with its own base and tip comes first, then those that
    share one of the two. A pair with a fixed joint whose numbers cannot be read is no chain.

    Raises:
        ValueError: `chain` is not from this URDF; or as `load_urdf`.
    """
    tree = read_tree(path_or_text)
    edges = {edge.name: edge for edge in tree.edges}
    if not {*chain.joint_names} <= edges.keys():
        raise ValueError(f"chain: expected one of {tree.source}, got {chain}")
    bases = rigid_links(tree, edges[chain.joint_names[0]].parent)
    tips = rigid_links(tree, edges[chain.joint_names[-1]].child)
    pairs = [(base, tip) for base in bases for tip in tips]
    pairs.sort(key=lambda pair: 2 * (pair[0] != chain.base) + (pair[1] != chain.tip))
    for base, tip in pairs:
        try:
            yield _chain(tree, tip, base)
        except ValueError:
            continue


def _chain(
    tree: Tree,
    tip: str,
    base: str | None,
    base_offset: Tensor | None = None,
    tool_offset: Tensor | None = None,
) -> Chain:
    branch, path = route(tree, tip, base)
    if branch:
        from_base = _inverse(_joints(tree, branch))
        base_offset = from_base if base_offset is None else base_offset @ from_base
    name = path[0].parent if base is None else base
    joints = _joints(tree, path)
    try:
        return serial_chain(tree.name, name, tip, joints, base_offset, tool_offset)
    except ValueError as error:
        raise ValueError(f"{tree.source}: {error}") from None


def _joints(tree: Tree, edges: list[Edge]) -> list[Joint]:
    return [_joint(f"{tree.source}: joint {edge.name!r}", edge) for edge in edges]


def _inverse(fixed: list[Joint]) -> Tensor:
    """The inverse of a row of fixed joints' transform, [4, 4] in float64."""
    total = torch.eye(4, dtype=torch.float64, device="cpu")
    for joint in fixed:
        xyz, rpy = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (joint.xyz, joint.rpy))
        back = torch.eye(4, dtype=torch.float64, device="cpu")
        back[:3, :3] = rotations.rpy_to_matrix(rpy).T
        back[:3, 3] = -back[:3, :3] @ xyz
        total = back @ total
    return total


def _joint(where: str, edge: Edge) -> Joint:
    """The numbers of one joint on the path, checked."""
    kind = _MOVING.get(attribute(where, edge.element, "type"))
    if kind is None:
        raise ValueError(
            f"{where}: type: expected fixed, revolute, continuous or prismatic, "
            f"got {edge.element.get('type')!r}"
        )
    if edge.element.find("mimic") is not None:
        raise ValueError(f"{where}: expected a joint that moves by itself, got one that mimics another")
    origin = edge.element.find("origin")
    xyz = (0.0, 0.0, 0.0) if origin is None else _vector(f"{where}: origin", origin, "xyz", "0 0 0")
    rpy = (0.0, 0.0, 0.0) if origin is None else _vector(f"{where}: origin", origin, "rpy", "0 0 0")
    if kind == "fixed":
        return Joint(edge.name, kind, xyz, rpy)
    element = edge.element.find("axis")
    axis = (1.0, 0.0, 0.0) if element is None else _vector(f"{where}: axis", element, "xyz", None)
    if not any(axis):
        raise ValueError(f"{where}: axis: expected a direction, got the zero vector {axis}")
    lower, upper, velocity = _limits(where, kind, edge.element.find("limit"))
    return Joint(edge.name, kind, xyz, rpy, axis, lower, upper, velocity)


def _limits(where: str, kind: Kind, limit: Element | None) -> tuple[float, float, float]:
    velocity = math.inf
    if limit is not None and "velocity" in limit.attrib:
        velocity = _number(f"{where}: limit: velocity", limit.attrib["velocity"])
        if velocity < 0:
            raise ValueError(f"{where}: limit: velocity: expected no less than 0, got {velocity}")
    if kind == "continuous":
        return -math.pi, math.pi, velocity
    if limit is None:
        raise ValueError(f'{where}: a {kind} joint needs <limit lower="..." upper="..."/>, got none')
    lower, upper = (
        _number(f"{where}: limit: {side}", attribute(f"{where}: limit", limit, side))
        for side in ("lower", "upper")
    )
    if lower > upper:
        raise ValueError(f"{where}: limit: expected lower <= upper, got {lower} > {upper}")
    return lower, upper, velocity


def _vector(where: str, element: Element, name: str, default: str | None) -> Vector:
    text = element.get(name, default)
    if text is None:
        raise ValueError(f"{where}: expected the attribute {name}")
    parts = text.split()
    if len(parts) != 3:
        raise ValueError(f"{where}: {name}: expected three numbers, got {text!r}")
    x, y, z = (_number(f"{where}: {name}", part) for part in parts)
    return x, y, z


def _number(where: str, text: str) -> float:
    try:
        # Python's float takes 1_0 as well, which is no number in XML.
        number = float(text.replace("_", "?"))
    except ValueError:
        raise ValueError(f"{where}: expected a number, got {text!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a finite number, got {text!r}")
    return number


def _offset(name: str, offset: Tensor | Sequence[Any]) -> Tensor:
    """[4, 4] in float64 from a pose [7] or a homogeneous matrix."""
    try:
        value = torch.as_tensor(offset, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected a pose [7] or a matrix [4, 4], got {describe(offset)}") from None
    if value.shape == (7,):
        check_pose(value, name)
        quaternion = rotations.quaternion_normalize(value[3:])
        return rotations.pose_to_matrix(torch.cat((value[:3], quaternion)))
    if value.shape != (4, 4):
        raise ValueError(f"{name}: expected a pose [7] or a matrix [4, 4], got shape {tuple(value.shape)}")
    rotation, identity = value[:3, :3], torch.eye(3, dtype=torch.float64, device="cpu")
    last = torch.tensor((0.0, 0.0, 0.0, 1.0), dtype=torch.float64, device="cpu")
    if not (
        bool(torch.isfinite(value).all())
        and torch.equal(value[3], last)
        and torch.allclose(rotation @ rotation.T, identity, rtol=0.0, atol=1e-6)
        and float(torch.linalg.det(rotation)) > 0
    ):
        raise ValueError(
            f"{name}: expected a rotation matrix over the last row 0 0 0 1, got {value.tolist()}"
        )
    return value
