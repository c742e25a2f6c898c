"""What a process that saves and compiles again and again may keep: nothing."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
from torch import Tensor
from torch.func import grad
from torch.fx.graph_module import _loader
from toy import make_task

from mfk import train
from mfk.core import jit
from mfk.core.compiler.backend import forgotten
from mfk.core.memory import hand_back
from mfk.train.arrays import write_arrays


def test_a_save_keeps_nothing_of_each_array(tmp_path: Path) -> None:
    """Orbax asks tensorstore for the description of each array's place, of which that keeps four texts."""
    write_arrays(tmp_path / "a", {"x": np.ones(3, np.float32)})
    from orbax.checkpoint._src.serialization import tensorstore_utils

    def described() -> Any:
        return tensorstore_utils.build_kvstore_tspec(str(tmp_path), "x")

    expected = {"driver": "file", "path": f"{tmp_path}/"}
    assert described()["manifest"] == tensorstore.KvStore.Spec(expected).to_json() == expected
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    for _ in range(1000):
        described()
    gc.collect()
    after = tracemalloc.take_snapshot()
    tracemalloc.stop()
    assert sum(change.count_diff for change in after.compare_to(before, "filename")) < 500


@pytest.mark.parametrize("together", [True, False])
def test_a_save_starts_as_many_threads_as_tensorstore_would(tmp_path: Path, together: bool) -> None:
    """Orbax asks for 128, more of which start with each checkpoint of many arrays."""
    write_arrays(tmp_path / "a", {"x": np.ones(3, np.float32)})
    from orbax.checkpoint._src.serialization import tensorstore_utils

    def files(context: Any) -> Any:
        return context["file_io_concurrency"].to_json()

    asked = files(tensorstore_utils.get_ts_context(use_ocdbt=together))
    assert asked == files(tensorstore.Context())
    assert asked != files(tensorstore.Context({"file_io_concurrency": {"limit": 128}}))


def test_a_function_that_was_compiled_can_be_freed() -> None:
    """torch would keep the source of each graph, and each module, for good."""
    weights = torch.randn(4, 4)

    def compiled() -> None:
        def loss(x: Tensor) -> Tensor:
            return (torch.tanh(x @ weights) ** 2).sum()

        jit(grad(loss))(torch.ones(3, 4))

    def kept() -> tuple[int, int]:
        gc.collect()
        # Of the class that Inductor writes into each of its modules.
        return len(_loader.eval_cache), sum(type(x).__name__ == "Runner" for x in gc.get_objects())

    compiled()
    before = kept()
    for _ in range(4):
        compiled()
    assert kept() == before


def test_what_another_thread_traces_meanwhile_keeps_its_lines() -> None:
    traced: list[torch.fx.GraphModule] = []
    with forgotten():
        thread = threading.Thread(target=lambda: traced.append(torch.fx.symbolic_trace(lambda x: x + 1)))
        thread.start()
        thread.join()
        ours = torch.fx.symbolic_trace(lambda x: x + 2)
    kept = _loader.eval_cache
    assert "x + 1" in kept[traced[0].forward.__code__.co_filename]
    assert ours.forward.__code__.co_filename not in kept
    assert int(ours(torch.tensor(1))) == 3


_ARENAS = """
import ctypes, os, sys, threading
from mfk.core import cli

def program():
    def work():
        held = [bytearray(1000) for _ in range(10_000)]
        inside.wait()
    inside = threading.Barrier(17)
    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    inside.wait()
    for thread in threads:
        thread.join()
    stream = ctypes.CDLL(None).fopen
    stream.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(stream(sys.argv[1].encode(), b"w"))
    ctypes.CDLL(None).malloc_info(0, handle)
    ctypes.CDLL(None).fclose(handle)

cli.main(program)
"""


@pytest.mark.skipif(not hasattr(__import__("ctypes").CDLL(None), "malloc_info"), reason="no glibc")
@pytest.mark.parametrize("asked", [None, "5"])
def test_threads_share_what_is_freed(tmp_path: Path, asked: str | None) -> None:
    """Of 16 threads at once that allocate, as many would have a store of freed memory each."""
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    if asked is not None:
        environment["MALLOC_ARENA_MAX"] = asked
    file = tmp_path / "info.xml"
    subprocess.run([sys.executable, "-c", _ARENAS, str(file)], check=True, env=environment)
    stores = file.read_text().count("<heap nr=")
    assert stores == (2 if asked is None else int(asked)), stores


def resident() -> float:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fragmented() -> bytearray:
    """What is left of 100 MB in pieces that are freed: one on top, so that the C library keeps the others."""
    pieces = [bytearray(50_000) for _ in range(2_000)]
    last = bytearray(50_000)
    del pieces
    return last


def test_freed_memory_goes_back() -> None:
    last = fragmented()
    before = resident()
    hand_back()
    assert len(last) == 50_000 and before - resident() > 80e6


def test_freed_memory_goes_back_with_each_checkpoint(tmp_path: Path) -> None:
    """It would be kept, in more and more pieces."""
    task, held, levels = make_task(), [], []

    def draw(seed: int, step: int, *more: Any) -> Any:
        levels.append(resident())
        if step == 2:
            held.append(fragmented())
            levels.append(resident())
        return task.draw(seed, step, *more)

    config = train.TrainConfig(
        steps=4, batch_size=8, checkpoint_every=1, validate_every=None, jit=False, device="cpu"
    )
    train.fit(task._replace(draw=draw), config, run=tmp_path / "run", record={}, console=False)
    assert len(levels) == 5 and levels[2] < levels[3] - 80e6 and levels[4] < levels[3] - 80e6
