"""Threads that share a compiled function."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from test_traps import lines, python

import mfk
from mfk.core.compiler import matmul as products


def together(work: Callable[[int], object], count: int) -> list[BaseException]:
    """What `count` threads that start at once raise."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(i: int) -> None:
        try:
            barrier.wait()
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_first_calls_at_once_in_a_fresh_process() -> None:
    script = """
        import threading
        import torch, mfk
        from torch.func import grad
        torch.set_num_threads(1)
        w = torch.ones(3, 3)
        def loss(x):
            return (x @ w).sin().sum()
        f, g = mfk.jit(grad(loss)), mfk.jit(loss)
        barrier, right = threading.Barrier(4), []
        def run(n):
            x = torch.full((n, 3), 0.2)
            barrier.wait()
            right.append(torch.allclose(f(x), grad(loss)(x)) and torch.allclose(g(x), loss(x)))
        threads = [threading.Thread(target=run, args=(n,)) for n in (2, 3, 4, 2)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print(right, f.traces, g.traces)
    """
    assert lines(python(script))[:-1] == ["[True, True, True, True] 3 3"]


def test_a_shape_is_traced_once_however_many_ask_for_it() -> None:
    weight = torch.ones(3)
    f = mfk.jit(lambda x: x * weight)
    assert together(lambda i: f(torch.ones(2 + i % 2, 3)), 6) == []
    assert f.traces == 2


def test_the_switch_of_the_matrix_product_is_restored_by_the_last() -> None:
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, seen = settings.fp32_precision, []
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def call(i: int) -> None:
        if i == 1:
            assert first_in.wait(20)
        with products.matmul_context("onednn")():
            (first_in, second_in)[i].set()
            assert (second_in, first_out)[i].wait(20)
            seen.append(settings.fp32_precision)
        if i == 0:
            first_out.set()

    assert together(call, 2) == []
    assert seen == ["bf16", "bf16"]
    assert settings.fp32_precision == before
