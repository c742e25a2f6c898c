"""The links and joints of a URDF as a tree of names: which joints lie between which links.

The numbers of the joints stay unread; `mfk.kinematics.urdf` reads those that it needs.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeElementTree

from mfk.core.types import describe


class Edge(NamedTuple):
    """A joint element with its ends, its numbers still unread."""

    name: str
    parent: str
    child: str
    element: Element

    @property
    def fixed(self) -> bool:
        """Whether its type says that it does not move."""
        return self.element.get("type") == "fixed"


class Tree(NamedTuple):
    """A robot's links and joints; names are unique, ends are not checked."""

    source: str  # what to call the URDF in messages
    name: str
    links: list[str]
    edges: list[Edge]


class Route(NamedTuple):
    """The way from a base link to a tip link."""

    branch: list[Edge]  # fixed joints from an ancestor of the tip down to the base; empty if it is one
    path: list[Edge]  # joints from that ancestor down to the tip


def read_tree(path_or_text: str | PathLike[str]) -> Tree:
    """Links and joints of a URDF, given as a file's path or as text whose first visible character is "<".

    Raises:
        FileNotFoundError, ValueError, TypeError: as `mfk.kinematics.load_urdf`.
    """
    source, content = _read(path_or_text)
    robot = _parse(source, content)
    links = [attribute(source, element, "name") for element in robot.findall("link")]
    _check_unique(source, "link", links)
    edges = [_edge(source, element) for element in robot.findall("joint")]
    _check_unique(source, "joint", [edge.name for edge in edges])
    return Tree(source, robot.get("name") or "robot", links, edges)


def route(tree: Tree, tip: str, base: str | None) -> Route:
    """The joints from `base` to `tip`; from the root where `base` is None.

    Raises:
        ValueError: no such link; a link with two parents, or its own ancestor; a base that neither lies
            between the root and the tip nor hangs from there by fixed joints; no joint in between.
    """
    check_link(tree, "tip", tip)
    check_link(tree, "base", base)
    path = _climb(tree, tip, () if base is None else (base,))
    above = [edge.parent for edge in path]
    root = above[0] if above else tip
    branch: list[Edge] = []
    if base not in (None, root):
        branch = _climb(tree, base, {tip, *above})
        meeting = branch[0].parent if branch else base
        loose = [edge.name for edge in branch if not edge.fixed]
        if loose or meeting not in {tip, *above}:
            why = f" (joint {loose[-1]!r} is not fixed)" if loose else ""
            raise ValueError(
                f"{tree.source}: base: expected a link between the root {root!r} and {tip!r}, or one fixed "
                f"to such a link, got {base!r}{why}"
            )
        path = path[above.index(meeting) :] if meeting in above else []
    if not path:
        ends = f"one link, {tip!r}, for both" if base in (None, tip) else f"{base!r}, fixed below {tip!r}"
        raise ValueError(f"{tree.source}: expected a joint between the base and the tip, got {ends}")
    return Route(branch, path)


def rigid_links(tree: Tree, link: str) -> list[str]:
    """The links that no moving joint parts from `link`, itself first."""
    found = [link]
    fixed = [edge for edge in tree.edges if edge.fixed]
    for here in found:
        for edge in fixed:
            for near, far in ((edge.parent, edge.child), (edge.child, edge.parent)):
                if near == here and far not in found and far in tree.links:
                    found.append(far)
    return found


def check_link(tree: Tree, argument: str, link: str | None) -> None:
    """ValueError, with names that there are, unless `link` is one of the tree or None."""
    if link is None or link in tree.links:
        return
    near = get_close_matches(link, tree.links, n=5)
    shown = ", ".join(near or tree.links[:12])
    more = f" and {len(tree.links) - 12} more" if not near and len(tree.links) > 12 else ""
    raise ValueError(
        f"{tree.source}: {argument}: no link named {link!r}; "
        f"{'did you mean' if near else 'the links are'}: {shown}{more}"
    )


def attribute(where: str, element: Element, name: str) -> str:
    """An attribute's text; ValueError where there is none."""
    value = element.get(name)
    if not value:
        raise ValueError(f"{where}: <{element.tag}>: expected the attribute {name}")
    return value


def _climb(tree: Tree, link: str, stop: Collection[str]) -> list[Edge]:
    """The joints from the root, or from the nearest ancestor in `stop`, down to `link`."""
    into: dict[str, list[Edge]] = {}
    for edge in tree.edges:
        into.setdefault(edge.child, []).append(edge)
    path: list[Edge] = []
    seen = {link}
    while link not in stop and link in into:
        parents = into[link]
        if len(parents) > 1:
            names = ", ".join(repr(edge.name) for edge in parents[:4])
            raise ValueError(
                f"{tree.source}: link {link!r}: expected one parent joint, got {len(parents)}: {names}"
            )
        path.append(parents[0])
        link = parents[0].parent
        if link not in tree.links:
            raise ValueError(
                f"{tree.source}: joint {parents[0].name!r}: its parent link {link!r} is not defined"
            )
        if link in seen:
            raise ValueError(f"{tree.source}: link {link!r} is its own ancestor; expected a tree of links")
        seen.add(link)
    return path[::-1]


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


def _edge(source: str, element: Element) -> Edge:
    name = attribute(source, element, "name")
    where = f"{source}: joint {name!r}"
    parent = attribute(where, _only(where, element, "parent"), "link")
    child = attribute(where, _only(where, element, "child"), "link")
    return Edge(name, parent, child, element)


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
