"""Read a serial chain from a URDF file or text.

Supported on the path from base to tip: fixed, revolute, continuous and prismatic joints with any
axis. Everything else about the robot (masses, meshes, transmissions, other branches) is left unread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from xml.etree.ElementTree import Element, ParseError

import torch
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeElementTree
from torch import Tensor

from mfk.core.types import describe
from mfk.kinematics import rotations
from mfk.kinematics.chain import Chain, Joint, Kind, Vector, serial_chain
from mfk.kinematics.ik import check_pose

_MOVING: dict[str, Kind] = {
    "fixed": "fixed",
    "revolute": "revolute",
    "continuous": "continuous",
    "prismatic": "prismatic",
}


class _Edge(NamedTuple):
    """A joint element with its ends, its numbers still unread."""

    name: str
    parent: str
    child: str
    element: Element


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
        base: name of the link whose frame poses are given in; the robot's root link by default.
        base_offset: pose of the base link in the frame that poses shall be given in, [7] or [4, 4].
        tool_offset: pose of the tool in the tip link's frame, [7] (x y z in m, qw qx qy qz) or [4, 4].

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a URDF, no such link, or a joint on the path that is not supported or not
            complete; the message names the file, the element, and what was expected.
        TypeError: an argument of the wrong type.
    """
    if not isinstance(tip, str):
        raise TypeError(f"tip: expected the name of a link, got {describe(tip)}")
    source, content = _read(path_or_text)
    robot = _parse(source, content)
    edges = _path(source, robot, tip, base)
    return serial_chain(
        name=robot.get("name") or "robot",
        base=edges[0].parent,
        tip=tip,
        joints=[_joint(f"{source}: joint {edge.name!r}", edge) for edge in edges],
        base_offset=None if base_offset is None else _offset("base_offset", base_offset),
        tool_offset=None if tool_offset is None else _offset("tool_offset", tool_offset),
    )


def _read(path_or_text: str | PathLike[str]) -> tuple[str, str | bytes]:
    """(what to call it in messages, content)."""
    if isinstance(path_or_text, str):
        text = path_or_text.lstrip("\ufeff \t\r\n")
        if text.startswith("<"):
            return "URDF text", text
        if not text:
            raise ValueError("path_or_text: expected a file's path or URDF text, got an empty string")
    elif not isinstance(path_or_text, PathLike):
        raise TypeError(f"path_or_text: expected a str or a path, got {describe(path_or_text)}")
    path = Path(path_or_text)
    if len(str(path)) > 4096 or len(path.name) > 255:
        raise ValueError(f"path_or_text: expected a file's path or URDF text, got {describe(str(path))}")
    if path.is_dir():
        raise ValueError(f"{path}: expected a URDF file, got a directory")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; URDF given as text must start with '<'")
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path}: expected a URDF, got an empty file")
    return str(path), content


def _parse(source: str, content: str | bytes) -> Element:
    try:
        root = SafeElementTree.fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise ValueError(
            f"{source}: expected a URDF without document type, entities or external references "
            f"({type(error).__name__})"
        ) from None
    except (ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{source}: expected well-formed XML: {error}") from None
    if root.tag != "robot":
        raise ValueError(f"{source}: expected the root element <robot>, got <{root.tag}>")
    return root


def _path(source: str, robot: Element, tip: str, base: str | None) -> list[_Edge]:
    """The joints from `base` (or the root) to `tip`, in that order."""
    links = [_attribute(source, element, "name") for element in robot.findall("link")]
    _check_unique(source, "link", links)
    edges = [_edge(source, element) for element in robot.findall("joint")]
    _check_unique(source, "joint", [edge.name for edge in edges])
    for argument, link in (("tip", tip), ("base", base)):
        if link is not None and link not in links:
            _raise_unknown_link(source, argument, link, links)
    into: dict[str, list[_Edge]] = {}
    for edge in edges:
        into.setdefault(edge.child, []).append(edge)
    path: list[_Edge] = []
    seen = {tip}
    link = tip
    while link != base and link in into:
        parents = into[link]
        if len(parents) > 1:
            names = ", ".join(repr(edge.name) for edge in parents[:4])
            raise ValueError(
                f"{source}: link {link!r}: expected one parent joint, got {len(parents)}: {names}"
            )
        path.append(parents[0])
        link = parents[0].parent
        if link not in links:
            raise ValueError(f"{source}: joint {parents[0].name!r}: its parent link {link!r} is not defined")
        if link in seen:
            raise ValueError(f"{source}: link {link!r} is its own ancestor; expected a tree of links")
        seen.add(link)
    if base is not None and link != base:
        raise ValueError(
            f"{source}: base: expected a link between the root {link!r} and {tip!r}, got {base!r}"
        )
    if not path:
        raise ValueError(
            f"{source}: expected a joint between the base and the tip, got one link, {tip!r}, for both"
        )
    return path[::-1]


def _raise_unknown_link(source: str, argument: str, link: str, links: list[str]) -> NoReturn:
    near = get_close_matches(link, links, n=5)
    shown = ", ".join(near or links[:12])
    more = f" and {len(links) - 12} more" if not near and len(links) > 12 else ""
    raise ValueError(
        f"{source}: {argument}: no link named {link!r}; "
        f"{'did you mean' if near else 'the links are'}: {shown}{more}"
    )


def _edge(source: str, element: Element) -> _Edge:
    name = _attribute(source, element, "name")
    where = f"{source}: joint {name!r}"
    parent = _attribute(where, _only(where, element, "parent"), "link")
    child = _attribute(where, _only(where, element, "child"), "link")
    return _Edge(name, parent, child, element)


def _joint(where: str, edge: _Edge) -> Joint:
    """The numbers of one joint on the path, checked."""
    kind = _MOVING.get(_attribute(where, edge.element, "type"))
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
        _number(f"{where}: limit: {side}", _attribute(f"{where}: limit", limit, side))
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


def _attribute(where: str, element: Element, name: str) -> str:
    value = element.get(name)
    if not value:
        raise ValueError(f"{where}: <{element.tag}>: expected the attribute {name}")
    return value


def _only(where: str, element: Element, tag: str) -> Element:
    found = element.findall(tag)
    if len(found) != 1:
        raise ValueError(f"{where}: expected one <{tag}>, got {len(found)}")
    return found[0]


def _check_unique(source: str, what: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{source}: expected {what} names to differ, got {name!r} twice")
        seen.add(name)


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
