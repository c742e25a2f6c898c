"""YAML text <-> plain data by the core schema of YAML 1.2, and no more than a config needs.

PyYAML alone reads YAML 1.1, where ``1e-4`` is text, ``no`` is false, ``010`` is eight and ``1:30`` is ninety.
Anchors, aliases, tags, repeated keys and keys that are not text are refused. The module imports PyYAML at
its head; whoever needs it imports it where it is used.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

_TAG = "tag:yaml.org,2002:"
_DIGITS = 400  # what is longer is no setting; Python writes no number of thousands of digits


def loads(text: str, source: str) -> Any:
    """The plain data of one YAML document: None where it holds nothing.

    Raises:
        ValueError: not YAML, or YAML that is refused here; names `source`, line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{source}: {line}{error.problem or error.context}") from None
    except RecursionError:
        raise ValueError(f"{source}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}") from None


def dumps(data: Any) -> str:
    """YAML text that `loads` reads back as `data`: keys in their order, lists on one line, floats exact."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or any(getattr(event, x, None) for x in ("anchor", "tag")):
            problem = "anchors, aliases and tags are not accepted: write the value out"
            raise ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            problem = None
            if key.tag != _TAG + "str":
                problem = "expected text as a key; put it in quotes"
            elif key.value in seen:
                problem = f"the key {key.value!r} is given twice"
            if problem:
                raise ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: ClassVar = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _integer(loader: Any, node: Any) -> int:
    if len(node.value) > _DIGITS:
        problem = f"expected an integer of at most {_DIGITS} digits, got {len(node.value)}"
        raise ConstructorError(None, None, problem, node.start_mark)
    return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)


def _row(dumper: Any, data: list[Any]) -> Any:
    return dumper.represent_sequence(_TAG + "seq", data, flow_style=True)


def _text(dumper: Any, data: str) -> Any:
    # Unescaped, PyYAML would write a line separator that it reads back as a space.
    return dumper.represent_scalar(_TAG + "str", data, style=None if data.isprintable() else '"')


_Loader.add_constructor(_TAG + "int", _integer)
_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _row)

# Tag, what it looks like (YAML 1.2.2, section 10.3.2), and its first characters.
_SCALARS = [
    ("null", "~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
]
for _tag, _pattern, _first in _SCALARS:
    for _side in (_Loader, _Dumper):
        # \Z: "$" would also match before a final newline, and write the text "1\n" as a number.
        _side.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)
