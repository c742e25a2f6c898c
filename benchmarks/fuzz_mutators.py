"""Files made wrong: bytes, and the trees of JSON, YAML, tables and XML, changed a little or a lot.

A sample is a file, or a folder of files, by name. What hypothesis draws, `draws`, is a number, from which
Python's own generator changes bytes and trees, and values to put into trees; `inputs` makes files of it.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any
from xml.etree import ElementTree

from hypothesis import strategies as st

from mfk.core import yaml12

Sample = dict[str, bytes]
"""Name below the sample's folder -> content."""

Finish = Callable[[Sample, Random], Sample]
"""Makes of a changed sample one that its own checks take for whole: checksums, say."""

_NUMBERS = (0, 1, -1, 2, 7, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64)
_FLOATS = (0.5, -0.0, 1e-320, 1e30, 3.5e38, 1e300, -1e308, float("inf"), float("-inf"), float("nan"))
_WORDS = (
    "", " ", "\x00", "nan", "inf", "-1", "1e999", "9" * 5000, "..", "../../etc/passwd", "/etc/passwd",
    "é\u2028", "\ud7ff", "\U0001f600", "{", "}", "[", "null", "a" * 300, "float32", "int64", "__class__",
    "%s%n", "1_000", "٣",
)  # fmt: skip
_VALUES = st.recursive(
    st.sampled_from((None, True, False, 10**400, *_NUMBERS, *_FLOATS, *_WORDS))
    | st.integers()
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_DEPTHS = (3, 200, 5000, 100_000)


draws = st.tuples(st.integers(0, 2**64 - 1), st.lists(_VALUES, min_size=2, max_size=4))
"""What `inputs` makes its inputs of; a drawing takes hypothesis longer than an input takes a reader."""


def inputs(
    samples: Sequence[Sample],
    drawn: tuple[int, list[Any]],
    place: int,
    count: int,
    finish: Finish | None = None,
) -> Iterator[Sample]:
    """Samples in which one file was changed, or several, by what its suffix says it holds.

    `place` is the number of the first of them: hypothesis likes to draw numbers once more.
    """
    number, values = drawn
    random = Random(f"{number} {place}")
    for _ in range(count):
        sample = dict(random.choice(samples))
        for _ in range(1 if random.random() < 0.9 else 3):
            name = random.choice(sorted(sample))
            if len(sample) > 1 and random.random() < 0.02:
                del sample[name]
                continue
            others = [other[name] for other in samples if name in other]
            value = random.choice(values)
            sample[name] = change(name, sample[name], others, value, random)
        yield finish(sample, random) if finish else sample


def change(name: str, content: bytes, others: Sequence[bytes], value: Any, random: Random) -> bytes:
    """One file's bytes, changed; `others` are files of the same name, `value` what a tree may take in."""
    if random.random() < 0.02:
        return b""
    suffix = name.rpartition(".")[2]
    kind = _KINDS.get(suffix) or (_json if content[:1] in (b"{", b"[") else None)
    if kind is None and content[:2] == b"PK":
        kind = _zip
    # What no longer parses is changed as bytes.
    if kind is not None and random.random() < 0.75:
        try:
            return kind(content, value, random)
        except Exception:  # an earlier change can have left anything
            pass
    return _bytes(content, others, random)


def _bytes(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        size = len(data)
        # Headers and footers say more than what lies between.
        at = random.choice((
            random.randrange(size + 1), min(size, random.randrange(64)), max(0, size - random.randrange(256)),
        ))  # fmt: skip
        end = min(size, at + random.choice((1, 2, 4, 8, 16, random.randrange(1, 400))))
        match random.randrange(10):
            case 0 if at < size:
                data[at] ^= 1 << random.randrange(8)
            case 1 if at < size:
                data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
            case 2:
                del data[at:]
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = random.randbytes(end - at)
            case 5:
                data[at:at] = data[at:end] * random.choice((1, 2, 50))
            case 6:
                width = random.choice((1, 2, 4, 8))
                number = random.choice((*_NUMBERS, size, size + 1, 255, 65535))
                data[at : at + width] = (number % 256**width).to_bytes(
                    width, random.choice(("little", "big"))
                )
            case 7 if others:
                other = random.choice(others)
                start = random.randrange(len(other) + 1)
                data[at:end] = other[start : start + random.randrange(400)]
            case 8:
                data[at:end] = bytes(end - at)
            case _:
                data[at:end] = random.choice(_WORDS).encode()
    return bytes(data)


def _tree(tree: Any, value: Any, random: Random) -> Any:
    """The tree with a few of its nodes changed, removed, repeated, or put where others were."""
    holder = [tree]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        open_: list[Any] = [holder]
        while open_:
            node = open_.pop()
            pairs = node.items() if isinstance(node, dict) else enumerate(node)
            for key, child in pairs:
                places.append((node, key))
                if isinstance(child, dict | list):
                    open_.append(child)
        node, key = random.choice(places)
        match random.randrange(8):
            case 0 if node is not holder:
                del node[key]
            case 1:
                node[key] = _near(node[key], random)
            case 2:
                other, its = random.choice(places)
                node[key] = copy.deepcopy(other[its])
            case 3 if isinstance(node, list):
                node.insert(key, copy.deepcopy(node[key]))
            case 3 if isinstance(node, dict):
                node[random.choice(_WORDS)] = node.pop(key)
            case 4 if isinstance(node[key], dict | list):
                node[key].clear()
            case 5:
                node[key] = random.choice((*_NUMBERS, *_FLOATS, *_WORDS))
            case _:
                node[key] = copy.deepcopy(value)  # else a second one might lie in itself
    return holder[0]


def _near(value: Any, random: Random) -> Any:
    """Something like `value`."""
    match value:
        case bool():
            return not value
        case int() | float():
            return random.choice((value + 1, -value, value * 1000, float(value), str(value), [value]))
        case str():
            return random.choice((value + "x", value[:-1], value.upper(), [value], {value: value}))
        case list() | dict():
            return random.choice(([value], {"a": value}, len(value)))
    return random.choice((0, "", []))


def _json(content: bytes, value: Any, random: Random) -> bytes:
    tree = json.loads(content)
    match random.randrange(8):
        case 0:
            depth = random.choice(_DEPTHS)
            deep = random.choice(
                ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth)
            )
            marker = json.dumps(_tree(tree, "\x1fhere", random))
            return marker.replace('"\\u001fhere"', deep).encode()
        case 1:
            text = content.decode()
            key = random.choice([*tree] if isinstance(tree, dict) and tree else ["a"])
            return text.replace("{", "{" + f"{json.dumps(key)}: {json.dumps(value)}, ", 1).encode()
        case 2:
            return json.dumps(tree).encode(random.choice(("utf-8-sig", "utf-16", "utf-32", "utf-16-be")))
    return json.dumps(_tree(tree, value, random)).encode()


def _lines(content: bytes, value: Any, random: Random) -> bytes:
    """JSON a line."""
    lines = content.split(b"\n")
    at = random.randrange(len(lines))
    match random.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, random.choice(lines))
        case _:
            lines[at] = _json(lines[at], value, random)
    return b"\n".join(lines)


def _yaml(content: bytes, value: Any, random: Random) -> bytes:
    text = content.decode()
    match random.randrange(5):
        case 0:
            lines = text.split("\n")
            at = random.randrange(len(lines))
            lines[at] = random.choice((
                "a: &a [1]", "b: *a", "<<: {lr: 1}", "x: !!python/object/apply:os.system [echo]",
                "!!binary aGk=", "? [1, 2]\n: 3", "\t- x", "--- {}", "%YAML 1.1", "a: |\n x", "'", "- - - -",
                lines[at] + ": :", "[" * random.choice(_DEPTHS[:3]), "lr: 1e400", "seed: 0x" + "f" * 6000,
                "x: 2024-01-01", "\u0085",
            ))  # fmt: skip
            return "\n".join(lines).encode()
        case 1:
            lines = text.split("\n")
            lines.insert(random.randrange(len(lines)), random.choice(lines))
            return "\n".join(lines).encode()
    return yaml12.dumps(_tree(yaml12.loads(text, "sample"), value, random)).encode()


def _csv(content: bytes, value: Any, random: Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode())))
    row = random.choice(rows)
    place = random.randrange(len(row) + 1)
    match random.randrange(5):
        case 0:
            rows.remove(row)
        case 1:
            rows.insert(random.randrange(len(rows)), list(row))
        case 2:
            row[place:place] = [str(value)]
        case 3:
            row[place : place + 1] = [random.choice((*_WORDS, '"' * 7, "x" * 140_000))]
        case _:
            row[place : place + 1] = []
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _xml(content: bytes, value: Any, random: Random) -> bytes:
    root = ElementTree.fromstring(content)
    elements = list(root.iter())
    element = random.choice(elements)
    match random.randrange(7):
        case 0:
            entity = '<!ENTITY a "aaaa"><!ENTITY b SYSTEM "file:///etc/passwd">'
            head = random.choice((f"<!DOCTYPE robot [{entity}]>", "<!DOCTYPE robot>", "<?xml encoding='x'?>"))
            return (head + ElementTree.tostring(root, "unicode")).encode()
        case 1:
            depth = random.choice(_DEPTHS)
            text = ElementTree.tostring(root, "unicode")
            return text.replace(">", ">" + "<a>" * depth + "</a>" * depth, 1).encode()
        case 2:
            parent = random.choice(elements)
            parent.extend(copy.deepcopy(random.choice(elements)) for _ in range(2))
        case 3 if element is not root:
            parent = next(each for each in elements if element in list(each))
            parent.remove(element)
        case 4:
            element.tag = random.choice(elements).tag
        case _ if element.attrib:
            key = random.choice(sorted(element.attrib))
            words = (*_WORDS, *map(str, (*_NUMBERS, *_FLOATS, value)), "1 2", "1e308 1e308 1e308", "0 0 0")
            element.set(key, random.choice((random.choice(words), *random.choice(elements).attrib.values())))
    return ElementTree.tostring(root, "unicode").encode("utf-8", "surrogatepass")


def _words(content: bytes, value: Any, random: Random) -> bytes:
    """Text of words and lines."""
    lines = content.decode().split("\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(lines))
        words = lines[at].split(" ")
        place = random.randrange(len(words))
        match random.randrange(8):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines[at:at] = [random.choice(lines)] * random.choice((1, 1, 3000))
            case 2:
                other = random.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                words[place] = random.choice(random.choice(lines).split(" "))
                lines[at] = " ".join(words)
            case 4:
                words[place] = str(value)
                lines[at] = " ".join(words)
            case _:
                words[place] = random.choice(
                    (*_WORDS, *map(str, (*_NUMBERS, *_FLOATS)), "1e-9", "1e9", "1e18")
                )
                lines[at] = " ".join(words)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _zip(content: bytes, value: Any, random: Random) -> bytes:
    """An archive with an entry changed, and the checksums of what is in it now."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
        method = archive.infolist()[0].compress_type
    at = random.randrange(len(entries))
    name, data = entries[at]
    match random.randrange(10):
        case 0:
            entries[at] = (random.choice(("../../x", "/x", "a/../b", name.upper(), *_WORDS[:5])) or "x", data)
        case 1:
            del entries[at]
        case 2:
            entries[at] = (name, random.choice(entries)[1])
        case 3 | 4 | 5 if name.endswith("data.pkl"):
            entries[at] = (name, _pickle(data, random))
        case 3 | 4 | 5 if name.endswith(".npy"):
            head, tail = data[:10], data[128:]
            text = _words(data[10:128].replace(b", ", b" , "), value, random).replace(b" , ", b", ")
            if random.random() < 0.7:  # the header has the length that it says
                text = text[:117].ljust(117) + b"\n"
            entries[at] = (name, head + text + tail)
        case 6:
            method = random.choice(
                (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
            )
        case 7 if name.endswith("about.npy"):
            tree = _json(data[128:], value, random)
            size = str(len(tree)).encode()
            head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + size + b",), }"
            entries[at] = (name, data[:10] + head.ljust(117) + b"\n" + tree)
        case _:
            entries[at] = (name, _bytes(data, [each for _, each in entries], random))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in dict(entries).items():
            archive.writestr(name, data)
    return out.getvalue()


def _pickle(content: bytes, random: Random) -> bytes:
    """A pickle's operations: removed, repeated, exchanged, or with other numbers in them."""
    starts = [at for _, _, at in pickletools.genops(content) if at is not None]
    parts = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    for _ in range(random.choice((1, 1, 2, 3))):
        at, other = random.randrange(len(parts)), random.randrange(len(parts))
        match random.randrange(6):
            case 0:
                parts[at] = b""
            case 1:
                parts[at] = parts[at] + parts[other]
            case 2:
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts[at] = parts[other]
            case _:
                number = random.choice(_NUMBERS)
                parts[at] = random.choice((
                    b"K" + bytes([number % 256]), b"J" + (number % 2**32).to_bytes(4, "little"),
                    b"\x8a\x09" + number.to_bytes(9, "little", signed=True), b"N", b"]", b"}", b")",
                    b"\x88", b"2", b"cbuiltins\neval\n", b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
                    b"G" + random.randbytes(8), b"X\x04\x00\x00\x00abcd",
                ))  # fmt: skip
    return b"".join(parts)


_KINDS: dict[str, Callable[[bytes, Any, Random], bytes]] = {
    "json": _json,
    "jsonl": _lines,
    "yaml": _yaml,
    "csv": _csv,
    "urdf": _xml,
    "bvh": _words,
    "npz": _zip,
    "pt": _zip,
    "zarray": _json,
    "zattrs": _json,
}
