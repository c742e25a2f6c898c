"""What torch cannot trace or crashes at, in processes of its own, and the CPU's matrix product."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import mfk
from mfk.core.compiler import exact_matmul
from mfk.core.compiler import matmul as products

ROOT = Path(__file__).parents[3]


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )


def lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 0, (
        f"exit status {result.returncode}\n{result.stdout}\n{result.stderr[-3000:]}"
    )
    return result.stdout.split("\n")


# Each case is traced under jvp and grad of jvp, run as a graph, and compared with eager.
TRAPS = """
import torch, torch.nn.functional as F, mfk
from torch.func import grad, jvp, vmap
import mfk.core.compiler.jitted as jitted
jitted.compile_graph = lambda graph, fakes: lambda inputs: graph(*inputs)
torch.set_num_threads(1)
D = torch.float64

def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)

X, V, M, B, W, O = (numbers(*s, seed=i) for i, s in enumerate(
    ((4, 4), (4, 4), (4, 4), (3, 4, 4), (4,), (4,))))
C = numbers(4, 4, seed=9)

CASES = {
    "add alpha": lambda x, p: torch.add(x.sin(), p, alpha=2) + torch.add(p, x, alpha=3) + p.add(x, alpha=0.5),
    "sub alpha": lambda x, p: torch.sub(x.sin(), p, alpha=2) - p.sub(x, alpha=3)
        + torch.subtract(p, x, alpha=2),
    "rsub alpha": lambda x, p: torch.rsub(x, p, alpha=3) + torch.rsub(p, x.sin(), alpha=2),
    "addmm": lambda x, p: torch.addmm(p, x, p, beta=2, alpha=3)
        + torch.addmm(x, p, x, beta=0.5) + p.addmm(x, x, beta=0),
    "addmv": lambda x, p: torch.addmv(p[0], x, p[1], beta=2) + p[0].addmv(p, x[0], alpha=2),
    "baddbmm": lambda x, p: torch.baddbmm(p.expand(3, 4, 4), x * B, B, beta=2, alpha=0.5)
        + torch.addbmm(p, x * B, B, beta=3),
    "addr": lambda x, p: torch.addr(p, x[0], p[1], beta=2, alpha=3),
    "addcmul": lambda x, p: torch.addcmul(p, x, p, value=2) + x.addcmul(p, x.sin(), value=-1),
    "addcdiv": lambda x, p: torch.addcdiv(p, x, 2 + p * p, value=2) + x.addcdiv(p, 2 + x * x, value=-1),
    "layer norm": lambda x, p: F.layer_norm(x * p, (4,), p[0], p[1]) + F.layer_norm(x, (4, 4), p),
    "layer norm without gain": lambda x, p: F.layer_norm(x * p, (4,), None, p[1]) + torch.layer_norm(x, (4,)),
    "group norm": lambda x, p: F.group_norm((x * p)[:, :, None] * p[0], 2, p[0], p[1]),
    "rms norm": lambda x, p: F.rms_norm(x * p, (4,), p[0], 1e-3) + F.rms_norm(x, (4, 4)),
    "atan2": lambda x, p: torch.atan2(x, p) + torch.atan2(p, x),
    "batch slices": lambda x, p: torch.cat((x[:1] @ p, x[1:3].sin() * p[:2], x[3:])),
    "closure": lambda x, p: x @ C + C * p,
    "where and clamp": lambda x, p: torch.where(x > p, x * p, x.clamp(min=-0.5)),
    "norms": lambda x, p: x / torch.linalg.vector_norm(x * p, dim=-1, keepdim=True) + F.normalize(p + x),
}
extra = {
    "in place": lambda x, p: x.clone().add_(p, alpha=2).sub_(x.sin(), alpha=3),
}
"""


def test_operators_that_the_tracer_cannot_take_as_they_are() -> None:
    script = TRAPS + textwrap.dedent(
        """
        for name, fn in {**CASES, **extra}.items():
            def tangent(x, p, v, fn=fn):
                return jvp(lambda x: fn(x, p), (x,), (v,))
            def loss(p, x, v, fn=fn):
                y, dy = tangent(x, p, v)
                return (y + dy.square()).sum()
            problem = "right"
            for f, args in ((tangent, (X, M, V)), (grad(loss), (M, X, V))):
                try:
                    got, want = mfk.jit(f)(*args), f(*args)
                    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
                except Exception as error:
                    problem = f"{type(error).__name__}: {str(error)[:300]!r}"
            print(name, problem, sep=": ", flush=True)
        """
    )
    out = [line for line in lines(python(script)) if line]
    assert len(out) == 19
    assert [line for line in out if not line.endswith(": right")] == []


def test_other_traps() -> None:
    script = TRAPS + textwrap.dedent(
        """
        def check(name, f, *args, tolerance=1e-10):
            try:
                got, want = mfk.jit(f)(*args), f(*args)
                torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
                print(name, "right", sep=": ", flush=True)
            except Exception as error:
                print(name, f"{type(error).__name__}: {str(error)[:300]!r}", sep=": ", flush=True)

        class Hidden:
            __slots__ = ("x",)
        hidden = Hidden()
        hidden.x = C
        try:
            mfk.jit(lambda x: jvp(lambda y: y @ hidden.x, (x,), (V,)))(X)
        except mfk.core.compiler.TraceError:
            print("hidden tensor inside jvp: refused")
        check("a later jvp", lambda x: jvp(lambda y: y @ C + C, (x,), (V,)), X)
        print("a plain jvp: right" if torch.equal(jvp(torch.sin, (X,), (V,))[1], X.cos() * V) else "wrong")

        class Cube(torch.autograd.Function):
            generate_vmap_rule = True
            @staticmethod
            def forward(x):
                return x ** 3
            @staticmethod
            def setup_context(ctx, inputs, output):
                ctx.save_for_backward(inputs[0])
                ctx.save_for_forward(inputs[0])
            @staticmethod
            def backward(ctx, g):
                return 3 * ctx.saved_tensors[0] ** 2 * g
            @staticmethod
            def jvp(ctx, v):
                return 3 * ctx.saved_tensors[0] ** 2 * v

        def written(x):
            z = torch.zeros_like(x)
            z[0] = Cube.apply(x)[0]
            return z
        check("custom function and a write", lambda x: grad(lambda y: written(y).sum())(x), X)
        check("custom function, forward mode", lambda x: jvp(Cube.apply, (x,), (V,)), X)
        check("custom function, forward mode and a write", lambda x: jvp(written, (x,), (V,)), X)
        check("custom function, grad of jvp",
              grad(lambda x: jvp(Cube.apply, (x,), (V,))[1].square().sum()), X)

        # Eager with the affine part by hand stands for what torch cannot do.
        b, g, o = X.bfloat16(), W.float(), O.float()
        w = torch.ones(2, 4, 1, dtype=torch.bfloat16)
        def norm(x):
            y = F.group_norm(F.layer_norm(x, (4,), g, o)[..., None].bfloat16(), 2, g, o).to(torch.bfloat16)
            return F.conv1d(y, w)
        def by_hand(x):
            y = F.layer_norm(x, (4,)) * g.bfloat16() + o.bfloat16()
            y = F.group_norm(y[..., None], 2) * g.bfloat16()[:, None] + o.bfloat16()[:, None]
            return F.conv1d(y, w)
        try:
            got = mfk.jit(lambda x: jvp(norm, (x,), (V.bfloat16(),)))(b)
            want = jvp(by_hand, (b,), (V.bfloat16(),))
            torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
            print("bf16 with fp32 affine: right", got[1].dtype)
        except Exception as error:
            print(f"bf16 with fp32 affine: {type(error).__name__}: {error}")

        # torch widens the tangent of a 0-dimensional tensor to float64, and so does its trace.
        def line(x):
            return jvp(lambda y: (y * 2.5 + 1) / 3.0, (x,), (torch.tensor(1.0),))
        def bend(x):
            return grad(lambda x: jvp(lambda y: (y * y * 2.5).sin(), (x,), (torch.tensor(1.0),))[1])(x)
        s = torch.tensor(0.5)
        check("scalar", line, s)
        check("scalar, twice", bend, s)
        """
    )
    assert [line for line in lines(python(script)) if line] == [
        "hidden tensor inside jvp: refused",
        "a later jvp: right",
        "a plain jvp: right",
        "custom function and a write: right",
        "custom function, forward mode: right",
        "custom function, forward mode and a write: right",
        "custom function, grad of jvp: right",
        "bf16 with fp32 affine: right torch.bfloat16",
        "scalar: right",
        "scalar, twice: right",
    ]


def test_without_a_compiler_the_graph_runs_and_one_warning_says_so(tmp_path: Path) -> None:
    script = """
        import warnings
        import torch, mfk
        from torch.func import grad
        w = torch.ones(3, 2)
        def loss(x):
            return (x @ w).sin().sum()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x = torch.ones(4, 3)
            f = mfk.jit(grad(loss))
            for g in (f, mfk.jit(lambda x: loss(x) + 1), mfk.jit(lambda x: ((x.sin() * x).exp() + x) / 2)):
                for _ in range(2):
                    y = g(x)
            print(torch.equal(f(x), grad(loss)(x)))
        for c in caught:
            if "mfk" in str(c.message):
                print(c.category.__name__, "no working C++ compiler" in str(c.message))
    """
    result = python(script, CXX="/nonexistent/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert lines(result)[:-1] == ["True", "RuntimeWarning True"]


@pytest.mark.slow
def test_what_was_compiled_before_the_compiler_went_does_no_harm(tmp_path: Path) -> None:
    script = """
        import warnings
        import torch, mfk
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x = torch.linspace(0, 1, 12).reshape(4, 3)
            y = mfk.jit(lambda x: x.sum(0).sin() + x)(x)
            torch.testing.assert_close(y, x.sum(0).sin() + x)
        print(sum("no working C++ compiler" in str(c.message) for c in caught))
    """
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    assert lines(python(script, **cache))[0] == "0"
    assert any(tmp_path.rglob("*.so"))
    assert lines(python(script, CXX="/nonexistent/g++", **cache))[0] == "1"


@pytest.mark.parametrize("kind", ["no such folder", "a file"])
def test_a_cache_folder_that_cannot_be_used_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file") if kind == "a file" else "/proc/nope"
    script = """
        import torch, mfk
        f = mfk.jit(lambda x: x.sin() + x)
        for _ in range(2):
            try:
                f(torch.ones(3))
            except OSError as error:
                print(type(error).__name__, error)
    """
    out = lines(python(script, TORCHINDUCTOR_CACHE_DIR=folder))[:-1]
    assert len(out) == 2
    for line in out:
        assert line.startswith("OSError TORCHINDUCTOR_CACHE_DIR: expected a folder that compiled code")
        assert f"got {folder!r}" in line and "--no-jit" in line


# The matrix product


def test_the_switch_is_set_for_the_call_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, seen = settings.fp32_precision, []

    def compile_graph(graph: object, fakes: object) -> object:
        def run(inputs: list[Tensor]) -> list[Tensor]:
            seen.append(settings.fp32_precision)
            if inputs[0].sum() < 0:
                raise ArithmeticError("stop")
            return [inputs[0]]

        return run

    monkeypatch.setattr("mfk.core.compiler.jitted.compile_graph", compile_graph)
    monkeypatch.setattr("mfk.core.compiler.jitted.exact_matmul", lambda: "onednn")
    f = mfk.jit(lambda x: x @ x)
    f(torch.eye(2))
    assert settings.fp32_precision == before
    with pytest.raises(ArithmeticError):
        f(-torch.eye(2))
    assert settings.fp32_precision == before
    mfk.jit(lambda x: x @ x, matmul="default")(torch.eye(2))
    assert seen == ["bf16", "bf16", before]


def test_only_products_that_keep_every_bit_are_exact() -> None:
    keeps = products._keeps_bits
    assert keeps(lambda a, b: a @ b)
    assert not keeps(lambda a, b: (a.bfloat16() @ b.bfloat16()).float())
    # tf32: ten bits of the mantissa.
    assert not keeps(lambda a, b: (a.view(torch.int32) & ~0x1FFF).view(torch.float32) @ b)
    assert not keeps(lambda a, b: (a.double() @ b.double()).mul(1 + 2.0**-23).float())

    def missing(a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError("no such operator")

    assert not keeps(missing)


def test_the_route_of_this_cpu_is_exact() -> None:
    assert exact_matmul() in ("onednn", "strict", "default")
    x = torch.linspace(-3, 3, 64 * 64).reshape(64, 64) * (1 + 2.0**-20)
    with products.matmul_context(exact_matmul())():
        assert torch.equal(x @ torch.eye(64), x)


def test_amx_and_narrow_defaults_are_not_given_leave_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = products.exact_matmul.__wrapped__
    monkeypatch.setattr(products, "_has_amx", lambda: True)
    assert choose() in ("strict", "default")
    monkeypatch.setattr(products, "_has_amx", lambda: False)
    monkeypatch.setattr(products, "_keeps_bits", lambda product: product is not products._through_onednn)
    assert choose() in ("strict", "default")
    monkeypatch.setattr(products, "_keeps_bits", lambda product: False)
    assert choose() == "default"


def test_a_torch_that_cannot_tell_is_taken_to_have_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert products._has_amx()


def test_an_environment_that_rounds_never_gives_onednn() -> None:
    script = "from mfk.core.compiler import exact_matmul; print(exact_matmul())"
    assert lines(python(script, ONEDNN_DEFAULT_FPMATH_MODE="BF16"))[0] in ("strict", "default")


def test_the_strict_graph_has_the_right_numbers() -> None:
    def fn(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        wide = a.double() @ b.double()
        return [a @ b, b.t() @ a.t(), torch.addmm(c, a, b), a[:, ::2] @ b[::2], wide.float(), a[:0] @ b]

    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(*s, generator=generator) for s in ((5, 8), (8, 6), (6,)))
    graph = make_fx(fn, tracing_mode="fake")(a, b, c)
    products.use_strict(graph)
    graph.graph.lint()
    graph.recompile()
    names = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert names.count("mfk.strict_mm.default") == 4
    assert names.count("aten.mm.default") == 2  # float64, and nothing to compute
    if not products._keeps_bits(products._strict_product):
        pytest.skip("this build of torch has no strict product")
    for got, want in zip(graph(a, b, c), fn(a, b, c), strict=True):
        assert got.dtype == want.dtype and got.stride() == want.stride()
        torch.testing.assert_close(got, want)


def test_a_strict_function_equals_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    if not products._keeps_bits(products._strict_product):
        pytest.skip("this build of torch has no strict product")
    monkeypatch.setattr("mfk.core.compiler.jitted.exact_matmul", lambda: "strict")

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return ((x @ w).sin() @ w.t()).square().mean()

    w, x = torch.linspace(-1, 1, 12).reshape(4, 3), torch.linspace(0, 2, 20).reshape(5, 4)
    f = mfk.jit(torch.func.grad(loss))
    torch.testing.assert_close(f(w, x), torch.func.grad(loss)(w, x))
    assert f.graph(w, x).graph.find_nodes(op="call_function", target=torch.ops.mfk.strict_mm.default)
