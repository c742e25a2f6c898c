"""Tensors that a function reaches without being given them: where they are, for each call to read anew."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Deeper objects than this are not searched, nor more of them.
_DEPTH, _OBJECTS = 12, 20_000
# Each call looks at the bindings again, and at a tenth of a microsecond each at no more of them than this,
# in no larger containers.
_BINDINGS, _ENTRIES = 100, 16


class ClosedOver(NamedTuple):
    """A tensor that a function closes over."""

    name: str  # how a reader would call it, for messages
    read: Callable[[], Any]  # what is there now
    tensor: Tensor  # what was there when it was found
    # Pairs of ways that led to one object, this tensor or what holds it; they may part later.
    same: tuple[tuple[Callable[[], Any], Callable[[], Any]], ...] = ()
    containers: tuple[Callable[[], Any], ...] = ()  # lists, tuples and dicts on the way to it


class Holder(NamedTuple):
    """What binds names (a function, an object, a small container), and how to read what they are bound to."""

    read: Callable[[], Any]
    bound: list[Callable[[Any], Any]]


class Reached(NamedTuple):
    """What a function reaches without being given it."""

    tensors: dict[int, ClosedOver]  # by `id`
    holders: list[Holder]  # the nearest ones


class Structure(NamedTuple):
    """What a trace took for granted of what surrounds the function."""

    forms: list[
        tuple[Callable[[], Any], list[tuple[Callable[[Any], Any], Any]]]
    ]  # of what names are bound to
    sizes: list[tuple[Callable[[], Any], Any]]  # of the containers of tensors

    def holds(self) -> bool:
        """Whether it is so now; it raises where something cannot be read any more."""
        for read, bound in self.forms:
            holder = read()
            for inner, form in bound:
                now = _form(inner(holder))
                if now is not form and now != form:
                    return False
        return all(_size(read()) == size for read, size in self.sizes)


def structure(holders: list[Holder], used: list[ClosedOver]) -> Structure:
    """The structure as it is now, which is after the trace: what the function itself set is as it left it."""
    forms: list[tuple[Callable[[], Any], list[tuple[Callable[[Any], Any], Any]]]] = []
    for holder in holders:
        bound: list[tuple[Callable[[Any], Any], Any]] = []
        with suppress(Exception):  # a container of the caller's may raise anything
            value = holder.read()
            bound = [(inner, _form(inner(value))) for inner in holder.bound]
        if bound:
            forms.append((holder.read, bound))
    containers: dict[int, tuple[Callable[[], Any], Any]] = {}
    for read in (read for tensor in used for read in tensor.containers):
        with suppress(Exception):
            containers.setdefault(id(value := read()), (read, _size(value)))
    return Structure(forms, list(containers.values()))


def closed_over(fn: Callable[..., Any]) -> Reached:
    """The tensors that `fn` can reach through closures, globals, defaults, partials, modules and containers.

    What is held by modules (in Python's sense) or by compiled objects is not found.
    """
    found: dict[int, ClosedOver] = {}
    holders: list[tuple[int, Holder]] = []
    containers: set[int] = set()
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
        children = list(_children(value))
        if isinstance(value, Mapping | list | tuple):
            containers.add(key)
        if _binds(value, len(children)):
            holders.append((depth, Holder(read, [inner for _, inner in children])))
        for label, inner in children:
            path = f"{name}{label}" if name else label.lstrip(".")
            stack.append((path, _reader(read, inner), depth + 1, key))
    for start, tensor in found.items():
        pairs: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
        around: list[Callable[[], Any]] = []
        key = start
        while key is not None:
            pairs += [(first[key], other) for other in others.get(key, ())]
            if key in containers:
                around.append(first[key])
            key = parent[key]
        found[start] = tensor._replace(same=tuple(pairs), containers=tuple(around))
    return Reached(found, _nearest(holders))


def _nearest(holders: list[tuple[int, Holder]]) -> list[Holder]:
    nearest: list[Holder] = []
    left = _BINDINGS
    for _, holder in sorted(holders, key=lambda pair: pair[0]):
        left -= len(holder.bound)
        if left < 0:
            break
        nearest.append(holder)
    return nearest


def _binds(value: Any, entries: int) -> bool:
    """Whether names in `value` are looked at again at each call: not a module's, which are many."""
    if isinstance(value, types.FunctionType):
        return entries > 0 and (value.__module__ or "").split(".")[0] != "mfk"
    return 0 < entries <= _ENTRIES and not isinstance(value, nn.Module | types.MethodType)


def _form(value: Any) -> Any:
    """What of a value decides what is traced: that it is a tensor or None, or which function it is."""
    kind = type(value)
    if kind is types.FunctionType:
        return value.__code__  # the same code with other cells is read through
    if value is None or kind is types.BuiltinFunctionType:
        return value
    return Tensor if isinstance(value, Tensor) else object


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


def _size(container: Any) -> Any:
    """The length; of a small dict the keys, in order."""
    if isinstance(container, dict) and len(container) <= _ENTRIES:
        return [key if isinstance(key, str) else id(key) for key in container]
    return len(container)


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
    if closure is None:
        return False
    try:
        _ = closure[i].cell_contents
    except ValueError:  # an empty cell
        return False
    return True


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
