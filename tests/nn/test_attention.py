from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import optree
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

import mfk
from mfk.losses import meanflow
from mfk.nn import SelfAttention, attention
from mfk.optim import decays_by_name

reference = nn.functional.scaled_dot_product_attention


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


Three = tuple[Tensor, Tensor, Tensor]


def inputs(queries: int = 4, keys: int = 4, e: int = 3, dtype: torch.dtype = torch.float64) -> Three:
    """q, k, v of 2 sequences and 3 heads, d = 3."""
    return (
        numbers(2, 3, queries, 3, seed=0, dtype=dtype),
        numbers(2, 3, keys, 3, seed=1, dtype=dtype),
        numbers(2, 3, keys, e, seed=2, dtype=dtype),
    )


def boolean(*shape: int) -> Tensor:
    """About two thirds True, and every query may attend to the first key."""
    mask = numbers(*shape, seed=7) > -0.5
    mask[..., 0] = True
    return mask


def additive(*shape: int) -> Tensor:
    return numbers(*shape, seed=8).masked_fill(~boolean(*shape), -math.inf)


# Number of queries and keys, width of the values, and the keywords.
CASES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "plain": (4, 4, 3, {}),
    "other lengths": (4, 6, 5, {}),
    "causal": (4, 4, 3, {"causal": True}),
    "causal, more keys": (3, 5, 2, {"causal": True}),
    "causal, fewer keys": (5, 3, 4, {"causal": True}),
    "boolean": (4, 6, 5, {"mask": boolean(4, 6)}),
    "boolean, of the keys": (4, 6, 3, {"mask": boolean(2, 1, 1, 6)}),
    "boolean, of the heads": (4, 4, 3, {"mask": boolean(3, 4, 4)}),
    "additive": (4, 6, 5, {"mask": additive(4, 6)}),
    "additive, of each": (4, 4, 3, {"mask": additive(2, 3, 4, 4)}),
    "boolean and causal": (4, 4, 3, {"mask": boolean(2, 1, 1, 4), "causal": True}),
    "additive and causal": (4, 6, 5, {"mask": additive(4, 6), "causal": True}),
    "scale": (4, 5, 2, {"scale": 0.3, "mask": boolean(4, 5)}),
    "negative scale": (4, 4, 3, {"scale": -1.7, "causal": True}),
}
each_case = pytest.mark.parametrize("case", CASES)


def build(case: str, dtype: torch.dtype = torch.float64) -> tuple[Three, dict[str, Any]]:
    queries, keys, e, options = CASES[case]
    mask = options.get("mask")
    if mask is not None and mask.is_floating_point():
        options = {**options, "mask": mask.to(dtype)}
    return inputs(queries, keys, e, dtype), options


def expected(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """SDPA, which is documented to refuse a mask and is_causal together, and takes roots of the scale."""
    if scale is not None and scale < 0:
        q, scale = -q, -scale
    if mask is None or not causal:
        return reference(q, k, v, mask, is_causal=causal, scale=scale)
    may = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    mask = mask & may if mask.dtype == torch.bool else mask.masked_fill(~may, -math.inf)
    return reference(q, k, v, mask, scale=scale)


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient_are_those_of_sdpa(case: str, dtype: torch.dtype) -> None:
    xs, options = build(case, dtype)
    tolerance: dict[str, Any] = (
        {"rtol": 1e-11, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 2e-6}
    )
    out = attention(*xs, **options)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected(*xs, **options), **tolerance)
    along = numbers(*out.shape, seed=9, dtype=dtype)
    results = []
    fn: Callable[..., Tensor]
    for fn in (attention, expected):
        leaves = [x.clone().requires_grad_() for x in xs]
        results.append(torch.autograd.grad((fn(*leaves, **options) * along).sum(), leaves))
    torch.testing.assert_close(results[0], results[1], **tolerance)


def test_gradient_of_an_additive_mask() -> None:
    xs, mask = inputs(4, 6), additive(3, 4, 6)
    results = []
    for fn in (attention, reference):
        leaf = mask.clone().requires_grad_()
        results.append(torch.autograd.grad(fn(*xs, leaf).square().sum(), leaf)[0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-13)


@each_case
def test_forward_mode_and_gradients_through_it(case: str) -> None:
    """Against central differences, all inputs moving at once; of SDPA, so that its value is not our own."""
    xs, options = build(case)
    along = [numbers(*x.shape, seed=10 + i) for i, x in enumerate(xs)]
    back = [numbers(*x.shape, seed=20 + i) for i, x in enumerate(xs)]
    h = 1e-5

    def moved(points: Sequence[Tensor], directions: Sequence[Tensor], step: float) -> Any:
        return [x + step * d for x, d in zip(points, directions, strict=True)]

    def numeric(points: Sequence[Tensor]) -> Tensor:
        ahead, behind = (expected(*moved(points, along, s), **options) for s in (h, -h))
        return (ahead - behind) / (2 * h)

    def rate(*points: Tensor) -> Tensor:
        return jvp(lambda q, k, v: attention(q, k, v, **options), points, tuple(along))[1]

    torch.testing.assert_close(rate(*xs), numeric(xs), rtol=1e-7, atol=1e-8)
    gradient = grad(lambda ps: rate(*ps).square().sum())(tuple(xs))
    slope = sum((g * d).sum() for g, d in zip(gradient, back, strict=True))
    ahead, behind = (rate(*moved(xs, back, s)).square().sum() for s in (h, -h))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), rtol=1e-7, atol=1e-8)


@each_case
def test_vmap_agrees(case: str) -> None:
    xs, options = build(case)
    mask = options.get("mask")
    if mask is not None:
        options = {**options, "mask": mask.expand(2, 3, *mask.shape[-2:])}
    rest = {name: x for name, x in options.items() if name != "mask"}
    out = attention(*xs, **options)
    one = vmap(vmap(lambda q, k, v, mask=None: attention(q, k, v, mask, **rest)))
    args = xs if mask is None else [*xs, options["mask"]]
    torch.testing.assert_close(one(*args), out, rtol=1e-12, atol=1e-14)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = inputs(dtype=torch.float32)
    out = attention(1e4 * q, 1e4 * k, v)
    best = (q @ k.mT).argmax(-1, keepdim=True)
    torch.testing.assert_close(out, v.take_along_dim(best.expand(*best.shape[:-1], v.shape[-1]), -2))
    # In fp16 a product of 65 536 would be infinite, and of 32 768 it is not.
    half = torch.full((1, 4), 128.0, dtype=torch.float16)
    torch.testing.assert_close(attention(half, half, half), half)


def masked_rows() -> dict[str, Tensor]:
    """Query 1 may attend nowhere."""
    may = torch.ones(4, 5, dtype=torch.bool)
    may[1], may[2, 0] = False, False
    return {"boolean": may, "additive": torch.zeros(4, 5).double().masked_fill(~may, -math.inf)}


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_a_query_that_may_attend_nowhere_gets_zeros(kind: str) -> None:
    xs, mask = inputs(4, 5), masked_rows()[kind]
    out = attention(*xs, mask)
    assert (out[..., 1, :] == 0).all()
    torch.testing.assert_close(out, reference(*xs, mask), rtol=1e-11, atol=1e-13)
    along = tuple(numbers(*x.shape, seed=10 + i) for i, x in enumerate(xs))

    def rate(*points: Tensor) -> Tensor:
        return jvp(lambda q, k, v: attention(q, k, v, mask), points, along)[1]

    def kept(*points: Tensor) -> Tensor:
        """The same without that query."""
        rows = torch.tensor([0, 2, 3])

        def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q[..., rows, :], k, v, mask[rows])

        return jvp(fn, points, along)[1]

    found = rate(*xs)
    assert (found[..., 1, :] == 0).all()
    torch.testing.assert_close(found[..., [0, 2, 3], :], kept(*xs), rtol=1e-11, atol=1e-13)
    of_all, of_kept = (grad(lambda ps, fn=fn: fn(*ps).square().sum())(tuple(xs)) for fn in (rate, kept))
    torch.testing.assert_close(of_all, of_kept, rtol=1e-11, atol=1e-13)
    assert (of_all[0][..., 1, :] == 0).all()


def test_a_padded_query_of_nans_gets_zeros() -> None:
    q, k, v = inputs(4, 5)
    q[..., 1, :] = math.nan
    mask = masked_rows()["boolean"]
    torch.testing.assert_close(attention(q, k, v, mask), attention(q.nan_to_num(), k, v, mask))


def test_a_mask_leaves_nothing_with_causal() -> None:
    """Each lets the first query attend to one key, and not to the same one."""
    xs, mask = inputs(3, 3), torch.ones(3, 3, dtype=torch.bool)
    mask[:, 0] = False
    out = attention(*xs, mask, causal=True)
    assert (out[..., 0, :] == 0).all()
    torch.testing.assert_close(out[..., 1, :], xs[2][..., 1, :])


def test_no_keys() -> None:
    q, k, v = inputs(4, 0)
    for mask in (None, torch.ones(4, 0, dtype=torch.bool)):
        assert torch.equal(attention(q, k, v, mask), torch.zeros(2, 3, 4, 3).double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["plain", "boolean", "additive", "additive in fp32"])
def test_half_precision_has_an_fp32_softmax(dtype: torch.dtype, kind: str) -> None:
    xs = inputs(64, 256, 16, dtype)
    mask = None if kind == "plain" else boolean(64, 256) if kind == "boolean" else additive(64, 256)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(torch.float32 if "fp32" in kind else dtype)
    out = attention(*xs, mask)
    assert out.dtype == dtype
    wide = None if mask is None else mask if mask.dtype == torch.bool else mask.double()
    q, k, v = (x.double() for x in xs)
    exact = reference(q, k, v, wide)
    eps = torch.finfo(dtype).eps
    assert (out.double() - exact).abs().max() < 2 * eps
    # Between the two products nothing is rounded to `dtype`: the operators say so.
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    graph = mfk.jit(lambda q, k, v: attention(q, k, v, mask)).graph(*xs)
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten._softmax.default:
            seen.append((node.args[0].meta["val"].dtype, node.meta["val"].dtype))
    assert seen == [(torch.float32, torch.float32)]


def test_autocast() -> None:
    xs, mask = inputs(8, 8, dtype=torch.float32), additive(8, 8).float()
    net, x = SelfAttention(8, 2, causal=True), numbers(2, 5, 8, dtype=torch.float32)
    exact = attention(*xs, mask), net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(*xs, mask), net(x)
        mixed = attention(xs[0], xs[1].bfloat16(), xs[2], mask)
        rate = jvp(net, (x,), (x.cos(),))[1]
    for a, b in zip((*out, mixed), (*exact, exact[0]), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, rtol=0.02, atol=0.02)
    torch.testing.assert_close(rate.float(), jvp(net, (x,), (x.cos(),))[1], rtol=0.03, atol=0.03)


def change(i: int, fn: Callable[[Tensor], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda xs: [fn(x) if j == i else x for j, x in enumerate(xs)]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (change(0, lambda q: q[0, 0, 0]), ValueError, r"^q: expected a shape \[..., L, d\]"),
        (change(0, lambda q: q[..., :0]), ValueError, r"^q: expected a shape"),
        (
            change(1, lambda k: k[..., :2]),
            ValueError,
            r"^k: expected the shape \(2, 3, S, 3\), got \(2, 3, 5, 2",
        ),
        (change(1, lambda k: k[:1]), ValueError, "^k: expected the shape"),
        (change(1, lambda k: k[0]), ValueError, "^k: expected the shape"),
        (change(2, lambda v: v[..., :4, :]), ValueError, r"^v: expected the shape \(2, 3, 5, e\)"),
        (change(2, lambda v: v[:, :1]), ValueError, "^v: expected the shape"),
        (change(2, lambda v: v.float()), TypeError, "^v: expected the dtype of q, torch.float64"),
        (change(1, lambda k: k.long()), TypeError, "^k: expected a floating-point tensor"),
        (change(0, lambda q: q.tolist()), TypeError, "^q: expected a floating-point tensor"),
        (
            change(3, lambda m: m[:, :4]),
            ValueError,
            r"^mask: expected a shape that broadcasts to .* \(2, 3, 4, 5",
        ),
        (change(3, lambda m: m.expand(1, 2, 3, 4, 5)), ValueError, "^mask: expected a shape"),
        (change(3, lambda m: m[0, 0]), ValueError, "^mask: expected a shape"),
        (change(3, lambda m: m.long()), TypeError, "^mask: expected a boolean or floating-point tensor"),
        (change(3, lambda m: m.float()), TypeError, "^mask: expected torch.bool, q's dtype"),
        (change(3, lambda m: m.tolist()), TypeError, "^mask: expected a boolean or floating-point tensor"),
    ],
)
def test_errors_name_the_argument(
    wrong: Callable[[list[Any]], list[Any]], error: type[Exception], message: str
) -> None:
    xs = [*inputs(4, 5), boolean(4, 5)]
    attention(*xs)
    with pytest.raises(error, match=message):
        attention(*wrong(xs))


@pytest.mark.parametrize("scale", [math.nan, math.inf, True, "1"])
def test_bad_scales(scale: Any) -> None:
    with pytest.raises(ValueError, match=r"^scale: expected a finite number"):
        attention(*inputs(), scale=scale)


def test_errors_of_the_module() -> None:
    with pytest.raises(ValueError, match=r"^width: expected an int >= 1"):
        SelfAttention(0, 1)
    with pytest.raises(ValueError, match=r"^heads: expected an int >= 1"):
        SelfAttention(4, True)
    with pytest.raises(ValueError, match=r"^width: expected a multiple of heads, 3, got 8"):
        SelfAttention(8, 3)
    net = SelfAttention(8, 2)
    for x in (torch.zeros(8), torch.zeros(2, 3, 7), None):
        with pytest.raises(ValueError, match=r"^x: expected the shape \[..., L, 8\]"):
            net(x)
    # Of two sequences and two heads the first axis could be either.
    with pytest.raises(ValueError, match=r"^mask: expected 2 axes"):
        net(torch.zeros(2, 3, 8), torch.ones(2, 3, 3, dtype=torch.bool))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["plain", "causal", "padding", "heads"])
def test_module_is_multi_head_attention(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    net = SelfAttention(6, 2, causal=kind == "causal", bias=bias).double()
    other = nn.MultiheadAttention(6, 2, bias=bias, batch_first=True, dtype=torch.float64)
    state = {
        name.replace("in_proj_", "qkv.").replace("out_proj", "leave"): torch.randn_like(x)
        for name, x in other.named_parameters()
    }
    net.load_state_dict(state)
    with torch.no_grad():
        for name, x in other.named_parameters():
            x.copy_(state[name.replace("in_proj_", "qkv.").replace("out_proj", "leave")])
    x = numbers(3, 4, 6)
    mask, padding, blocked = None, None, None
    if kind == "causal":
        blocked = torch.ones(4, 4, dtype=torch.bool).triu(1)
    if kind == "padding":
        mask = boolean(3, 1, 1, 4)
        padding = ~mask[:, 0, 0]
    if kind == "heads":
        mask = additive(3, 2, 4, 4)
        blocked = mask.flatten(0, 1)
    theirs = other(x, x, x, key_padding_mask=padding, attn_mask=blocked, need_weights=False)[0]
    torch.testing.assert_close(net(x, mask), theirs, rtol=1e-11, atol=1e-12)


def test_module_under_vmap_and_without_a_batch() -> None:
    torch.manual_seed(0)
    net, x = SelfAttention(6, 2, causal=True).double(), numbers(5, 3, 4, 6)
    mask = boolean(1, 4)
    out = net(x, mask)
    assert out.shape == x.shape
    torch.testing.assert_close(vmap(vmap(lambda y: net(y, mask)))(x), out)
    torch.testing.assert_close(net(x[1, 2], mask), out[1, 2])
    # Nothing of what comes later.
    torch.testing.assert_close(net(x[..., :2, :], mask[:, :2]), out[..., :2, :])


def test_weights_decay_and_biases_do_not() -> None:
    found = {name: decays_by_name(name) for name, _ in SelfAttention(4, 2).named_parameters()}
    assert found == {"qkv.weight": True, "qkv.bias": False, "leave.weight": True, "leave.bias": False}


class Block(nn.Module):
    """A velocity of sequences of numbers: a causal transformer block, of z, r and t at each position."""

    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, width), nn.Linear(width, 1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal=True)
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        x = self.enter(torch.stack((z, r.expand_as(z), t.expand_as(z)), -1))
        x = x + self.attention(self.norm1(x))
        x = x + self.contract(nn.functional.silu(self.expand(self.norm2(x))))
        return self.leave(x).squeeze(-1)


def meanflow_gradient() -> tuple[Callable[..., dict[str, Tensor]], tuple[Any, ...]]:
    torch.manual_seed(0)
    net = Block().double()
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(params: dict[str, Tensor], z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return meanflow(lambda *a: functional_call(net, params, a), z, v, r, t).sum()

    r = 0.5 * torch.rand(3, 1, dtype=torch.float64)
    return grad(loss), (params, numbers(3, 5, seed=1), numbers(3, 5, seed=2), r, r + 0.4)


@pytest.mark.slow
def test_compiled_meanflow_gradient_is_the_eager_one() -> None:
    gradient, args = meanflow_gradient()
    compiled = mfk.jit(gradient)
    torch.testing.assert_close(compiled(*args), gradient(*args), rtol=1e-10, atol=1e-12)
    assert compiled.traces == 1


def test_no_product_in_the_graph_has_a_zero_operand() -> None:
    gradient, args = meanflow_gradient()
    graph = mfk.jit(gradient).graph(*args)
    aten: Any = torch.ops.aten
    products = {aten.mm.default: (0, 1), aten.bmm.default: (0, 1), aten.addmm.default: (1, 2)}
    seen: list[str] = []
    zero: list[str] = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            if n.target in products:
                operands, _ = self.fetch_args_kwargs_from_env(n)
                seen.append(n.name)
                zero.extend(n.name for i in products[n.target] if not operands[i].any())
            return super().run_node(n)

    def flat(x: Any) -> list[Tensor]:
        """As a compiled function flattens."""
        return optree.tree_leaves(x, namespace="mfk.jit")

    results = Watch(graph).run(*flat(args))
    assert len([name for name in seen if name.startswith("bmm")]) >= 6
    assert zero == []
    # The graph that was looked at computes the gradient.
    torch.testing.assert_close(list(results), flat(gradient(*args)), rtol=1e-10, atol=1e-12)
