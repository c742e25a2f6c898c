"""Named arrays on disk, written and read by orbax without a word on the terminal."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as the new folder `path`, beside it first and then renamed into place."""
    with silent_orbax() as ocp:
        try:
            ocp.save(path, dict(arrays))
        except Exception:
            _let_end(1.0)
            raise


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder that `write_arrays` made."""
    with silent_orbax() as ocp:
        try:
            return dict(ocp.load(path))
        except Exception:
            _let_end(0.1)
            raise


@contextmanager
def silent_orbax() -> Iterator[Any]:
    """Orbax's v1 interface, silent: it and JAX log each save, and warn of accelerators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ocp = _import_orbax()
        loggers = [logging.getLogger(name) for name in ("absl", "jax", "orbax", "asyncio")]
        levels, hook = [logger.level for logger in loggers], sys.unraisablehook
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        loggers[-1].addFilter(_not_of_orbax)
        sys.unraisablehook = lambda unraisable: None
        try:
            yield ocp
        finally:
            sys.unraisablehook = hook
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _let_end(seconds: float) -> None:
    """Wait for what orbax has not ended when it raises.

    Reads and writes that are still under way report to an event loop that is closed by now, one traceback
    each; they must not bury the message that matters. What comes later yet, on a busy machine, is for the
    filter.
    """
    time.sleep(seconds)
    gc.collect()


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Whether a record of asyncio's is about something else than a write of orbax's that failed."""
    place = record.exc_info[2] if record.exc_info else None
    while place is not None:
        if f"{os.sep}orbax{os.sep}" in place.tb_frame.f_code.co_filename:
            return False
        place = place.tb_next
    return True


def _import_orbax() -> Any:
    """Import orbax, and with it JAX, which is told to leave accelerators alone.

    It would otherwise reserve most of a GPU's memory only to write files. A JAX that is imported
    already, or that the user has configured, stays as it is.
    """
    ours = "jax" not in sys.modules and "JAX_PLATFORMS" not in os.environ
    if ours:
        os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        import orbax.checkpoint.experimental.v1 as ocp

        _mend_tensorstore()
        # JAX collects its own garbage along with Python's; a Ctrl-C that lands in there is lost.
        gc.callbacks[:] = [c for c in gc.callbacks if getattr(c, "__name__", "") != "_xla_gc_callback"]
    finally:
        if ours:
            del os.environ["JAX_PLATFORMS"]
    return ocp


class _Spec(dict[str, Any]):
    """What orbax asks tensorstore to make of a description of a folder: itself."""

    def to_json(self) -> dict[str, Any]:
        return dict(self)


def _mend_tensorstore() -> None:
    """Have orbax use of tensorstore no more threads than cores, and nothing that leaks.

    `tensorstore.KvStore.Spec.to_json` never frees the texts that it makes (0.1.86). Orbax calls it for each
    array: of a hundred arrays saved a thousand times, 30 MB.
    """
    import tensorstore
    from orbax.checkpoint._src.serialization import tensorstore_utils

    # Orbax asks for up to 128 threads, and each checkpoint of many arrays starts a few more of them.
    # Tensorstore's own number is as many as cores, and 4 at least.
    for context in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        limits = getattr(tensorstore_utils, context, {}).get("file_io_concurrency", {})
        limits["limit"] = "shared"
    if tensorstore_utils.ts is tensorstore:
        store = types.SimpleNamespace(Spec=_Spec, open=tensorstore.KvStore.open)
        mended: Any = types.SimpleNamespace(**vars(tensorstore) | {"KvStore": store})
        tensorstore_utils.ts = mended
