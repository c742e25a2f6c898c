"""Straight-line programs on the numbers of one row, simplified while they are built."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Load(NamedTuple):
    """Number of a row in an input: ``input[offset + row * stride]``; stride 0: the same for all rows."""

    input: int
    offset: int
    stride: int


class Step(NamedTuple):
    """One operation on earlier values; ``load`` and ``constant`` carry what they are in `value`."""

    name: str
    operands: tuple[int, ...]
    value: Any = None


_FOLDED: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
}
_COMMUTE = frozenset(("add", "mul", "max", "min", "and", "or"))


class Program:
    """Steps in the order of their making; equal steps are one (value numbering)."""

    def __init__(self, dtype: type) -> None:
        """`dtype` is np.float32 or np.float64, the arithmetic of constants."""
        self.dtype = dtype
        self.steps: list[Step] = []
        self._known: dict[Step, int] = {}

    def constant(self, value: float) -> int:
        """A number, rounded to the program's dtype."""
        with np.errstate(over="ignore"):
            rounded = self.dtype(value)
        # repr tells 0.0 from -0.0, and NaN equals itself.
        return self._number(Step("constant", (), repr(float(rounded))))

    def load(self, load: Load) -> int:
        """A number of an input."""
        return self._number(Step("load", (), load))

    def value(self, i: int) -> float | None:
        """What value i is if it is a constant."""
        return float(self.steps[i].value) if self.steps[i].name == "constant" else None

    def call(self, name: str, *operands: int) -> int:
        """A value computed from others, by the rules of arithmetic and with 0 x = 0."""
        known = [self.value(i) for i in operands]
        if name in _FOLDED and all(x is not None for x in known):
            with np.errstate(all="ignore"):
                return self.constant(float(_FOLDED[name](*(self.dtype(x) for x in known))))
        simpler = self._simplify(name, operands, known)
        if simpler is not None:
            return simpler
        if name in _COMMUTE:
            operands = tuple(sorted(operands))
        return self._number(Step(name, tuple(operands)))

    def _simplify(self, name: str, operands: Sequence[int], known: Sequence[float | None]) -> int | None:
        if name == "mul":
            for k, other in zip(known, reversed(operands), strict=True):
                if k == 0:
                    return self.constant(0.0)
                if k == 1:
                    return other
                if k == -1:
                    return self.call("neg", other)
        elif name == "add":
            for k, other in zip(known, reversed(operands), strict=True):
                if k == 0:
                    return other
            first, second = (self.steps[i] for i in operands)
            if second.name == "neg":
                return self.call("sub", operands[0], second.operands[0])
            if first.name == "neg":
                return self.call("sub", operands[1], first.operands[0])
        elif name == "sub":
            if known[1] == 0:
                return operands[0]
            if known[0] == 0:
                return self.call("neg", operands[1])
            if self.steps[operands[1]].name == "neg":
                return self.call("add", operands[0], self.steps[operands[1]].operands[0])
        elif name == "div":
            if known[0] == 0:
                return self.constant(0.0)
            if known[1] is not None and known[1] != 0 and math.frexp(known[1])[0] in (0.5, -0.5):
                return self.call("mul", operands[0], self.constant(1 / known[1]))  # exact
        elif name == "neg" and self.steps[operands[0]].name == "neg":
            return self.steps[operands[0]].operands[0]
        return None

    def _number(self, step: Step) -> int:
        if step not in self._known:
            self._known[step] = len(self.steps)
            self.steps.append(step)
        return self._known[step]


def needed(program: Program, outputs: Sequence[int]) -> list[int]:
    """The values that `outputs` depend on, in the order of their making."""
    marked = set(outputs)
    for i in range(max(outputs, default=-1), -1, -1):
        if i in marked:
            marked.update(program.steps[i].operands)
    return sorted(marked)
