"""Functions of torch answered by others while a mode is active."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode


class Replacing(TorchFunctionMode):
    """While it is active, calls of some functions are answered by what stands for them.

    Args:
        others: functions and what stands for them, which may return NotImplemented.
    """

    def __init__(self, others: Mapping[Any, Callable[..., Any]]) -> None:
        """Nothing is called yet."""
        super().__init__()
        self._others = others

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or what stands for it."""
        kwargs = kwargs or {}
        other = self._others.get(func)
        result = NotImplemented if other is None else other(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result
