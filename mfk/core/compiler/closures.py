"""Tensors that a function reaches without being given them: where they are, for each call to read anew."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Deeper objects than this are not searched, nor more of them.
_DEPTH, _OBJECTS = 12, 20_000


class ClosedOver(NamedTuple):
    """A tensor that a function closes over."""

    name: str  # how a reader would call it, for messages
    read: Callable[[], Any]  # what is there now
    tensor: Tensor  # what was there when it was found
    # Pairs of ways that led to one object, this tensor or what holds it; they may part later.
    same: tuple[tuple[Callable[[], Any], Callable[[], Any]], ...] = ()


def closed_over(fn: Callable[..., Any]) -> dict[int, ClosedOver]:
    """The tensors that `fn` can reach through closures, globals, defaults, partials, modules and containers.

    Keyed by ``id`` of the tensor. What is held by modules (in Python's sense) or by compiled objects is not
    found.
    """
    found: dict[int, ClosedOver] = {}
    first: dict[int, Callable[[], Any]] = {}
    others: dict[int, list[Callable[[], Any]]] = {}  # further ways to what was found before
    parent: dict[int, int | None] = {}
    stack: list[tuple[str, Callable[[], Any], int, int | None]] = [("", lambda: fn, 0, None)]
    while stack and len(first) < _OBJECTS:
        name, read, depth, holder = stack.pop()
        try:
            value = read()
        except Exception:  # a container of the caller's may raise anything
            continue
        key = id(value)
        if key in first:
            others.setdefault(key, []).append(read)
            continue
        is_tensor = isinstance(value, Tensor)
        if depth > _DEPTH and not is_tensor:
            continue
        first[key], parent[key] = read, holder
        if is_tensor:
            found[key] = ClosedOver(name, read, value)
            continue
        for label, inner in _children(value):
            path = f"{name}{label}" if name else label.lstrip(".")
            stack.append((path, _reader(read, inner), depth + 1, key))
    for start, tensor in found.items():
        pairs: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
        key = start
        while key is not None:
            pairs += [(first[key], other) for other in others.get(key, ())]
            key = parent[key]
        found[start] = tensor._replace(same=tuple(pairs))
    return found


def _reader(read: Callable[[], Any], inner: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: inner(read())


def _children(value: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """(label, accessor) of what `value` holds."""
    if isinstance(value, types.FunctionType):
        yield from _function_children(value)
    elif isinstance(value, types.MethodType):
        yield "", lambda m: m.__self__
        yield "", lambda m: m.__func__
    elif isinstance(value, functools.partial):
        yield "", lambda p: p.func
        yield from _items(value.args, "args")
        for key in value.keywords:
            yield f".{key}", lambda p, key=key: p.keywords[key]
    elif isinstance(value, nn.Module):
        for part in ("_parameters", "_buffers", "_modules", "__dict__"):
            for key in _keys(getattr(value, part)):
                if key not in ("_parameters", "_buffers", "_modules"):
                    yield f".{key}", lambda m, part=part, key=key: getattr(m, part)[key]
    elif isinstance(value, Mapping):
        for key in _keys(value):
            yield f"[{key!r}]", lambda m, key=key: m[key]
    elif isinstance(value, tuple | list):
        for i in range(len(value)):
            yield f"[{i}]", lambda s, i=i: s[i]
    elif _is_plain(value):
        for key in list(vars(value)):
            yield f".{key}", lambda o, key=key: vars(o)[key]
        if isinstance(type(value).__call__, types.FunctionType):
            yield "", lambda o: type(o).__call__


def _function_children(fn: types.FunctionType) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    for i, name in enumerate(fn.__code__.co_freevars):
        if _holds(fn.__closure__, i):
            yield f".{name}", lambda f, i=i: f.__closure__[i].cell_contents
    for i in range(len(fn.__defaults__ or ())):
        yield f".default {i}", lambda f, i=i: f.__defaults__[i]
    for name in fn.__kwdefaults__ or ():
        yield f".{name}", lambda f, name=name: f.__kwdefaults__[name]
    if hasattr(fn, "__wrapped__"):
        yield "", lambda f: f.__wrapped__
    if _is_library(fn.__module__):
        return
    for name in sorted(_names(fn.__code__)):
        if name in fn.__globals__ and not isinstance(fn.__globals__[name], types.ModuleType | type):
            yield f".{name}", lambda f, name=name: f.__globals__[name]


def _names(code: types.CodeType) -> set[str]:
    """Names that a function and those written inside it look up."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner)) if inner else set(code.co_names)


def _holds(closure: tuple[Any, ...] | None, i: int) -> bool:
    try:
        return closure is not None and closure[i].cell_contents is not None
    except ValueError:  # an empty cell
        return False


def _items(values: tuple[Any, ...], name: str) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    for i in range(len(values)):
        yield f".{name}[{i}]", lambda p, i=i: p.args[i]


def _keys(mapping: Mapping[Any, Any]) -> list[Any]:
    return list(mapping)[:_OBJECTS]


def _is_plain(value: Any) -> bool:
    """An object of a class written in Python, outside torch and the standard containers."""
    return (
        hasattr(value, "__dict__")
        and not isinstance(
            value, type | types.ModuleType | torch.dtype | torch.device | torch._ops.OpOverload
        )
        and not _is_library(type(value).__module__)
    )


def _is_library(module: str | None) -> bool:
    return (module or "").split(".")[0] in ("torch", "builtins", "numpy", "functools", "typing", "optree")
