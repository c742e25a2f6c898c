"""The transformer of stick figures: sizes, values against torch's modules, causality, padding, the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from small_nets import numbers, randomised
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

import mfk
from mfk.core.model import stateless
from mfk.losses import squared_error
from mfk.nn import STICK_PRESETS, StickOutput, StickTransformer
from mfk.nn.stick_layers import Embed, Head, StickLayer
from mfk.optim import decays_by_name


def small(**options: Any) -> StickTransformer:
    sizes: dict[str, Any] = {"width": 16, "layers": 2, "heads": 4}
    return StickTransformer(5, 3, 7, 6, **{**sizes, **options})


def inputs(frames: int = 6, rows: int = 2) -> dict[str, Tensor]:
    """Of `small`; some frames have no action."""
    draw = torch.Generator().manual_seed(5)
    return {
        "x": numbers(rows, frames, 5),
        "text": numbers(rows, 6, seed=1),
        "actions": torch.randint(-1, 7, (rows, frames), generator=draw),
        "camera": numbers(rows, frames, 3, seed=2),
        "partner": numbers(rows, frames, 5, seed=3),
    }


def close(found: StickOutput, expected: StickOutput, tol: float = 1e-11) -> None:
    for name, a, b in zip(StickOutput._fields, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize(
    ("preset", "wide", "actions", "count"),
    [
        ("small", 20, 60, 7_248_122),
        ("medium", 20, 60, 20_594_618),
        ("large", 20, 60, 44_618_362),
        ("small", 20, 64, 7_248_894),
        ("medium", 20, 64, 20_595_646),
        ("large", 20, 64, 44_619_646),
        ("small", 48, 64, 7_259_674),
        ("medium", 48, 64, 20_611_802),
        ("large", 48, 64, 44_641_178),
    ],
)
def test_documented_parameter_counts(preset: str, wide: int, actions: int, count: int) -> None:
    with torch.device("meta"):
        net = StickTransformer(wide, actions=actions, **STICK_PRESETS[preset]._asdict())
    assert sum(p.numel() for p in net.parameters()) == count


def test_without_conditions_it_is_smaller() -> None:
    with torch.device("meta"):
        net = StickTransformer(**STICK_PRESETS["small"]._asdict(), conditions=("actions", "camera"))
    assert sum(p.numel() for p in net.parameters()) == 7_211_898
    bare = randomised(small(conditions=()))
    x = numbers(2, 6, 5)
    assert bare(x).pose.shape == (2, 6, 3)
    for name in ("actions", "camera", "partner"):
        with pytest.raises(ValueError, match=rf"^{name}: expected None, as the network was built without"):
            bare(x, **{name: inputs()[name]})


def reference(net: StickTransformer, x: Tensor, text: Tensor, actions: Tensor, **more: Tensor) -> StickOutput:
    """The same network of torch's SDPA, RMS norm and complex numbers, one row and one head at a time."""
    p = dict(net.named_parameters())

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def embed(name: str, h: Tensor) -> Tensor:
        h = F.gelu(linear(f"{name}.enter", h)) if f"{name}.enter.weight" in p else h
        return F.layer_norm(
            linear(f"{name}.leave", h), (16,), p[f"{name}.norm.weight"], p[f"{name}.norm.bias"]
        )

    def turn(h: Tensor) -> Tensor:
        angle = torch.arange(len(h)).double()[:, None] * torch.tensor([1.0, 0.01]).double()
        turned = torch.complex(h[:, :2], h[:, 2:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), -1)

    rows = []
    for i in range(len(x)):
        frames = [
            embed("motion", x[i, t])
            + embed("camera", more["camera"][i, t])
            + embed("partner", more["partner"][i, t])
            + (embed("action", p["action_table.weight"][a]) if (a := int(actions[i, t])) >= 0 else 0)
            for t in range(x.shape[1])
        ]
        h = torch.stack([embed("text_token", text[i]), *frames])
        for n in range(len(net.layers)):
            q, k, v = linear(
                f"layers.{n}.qkv", F.rms_norm(h, (16,), p[f"layers.{n}.norm1.weight"], 1e-6)
            ).chunk(3, -1)
            heads = [
                F.scaled_dot_product_attention(turn(a)[None], turn(b)[None], c[None], is_causal=True)[0]
                for a, b, c in zip(q.split(4, -1), k.split(4, -1), v.split(4, -1), strict=True)
            ]
            h = h + linear(f"layers.{n}.leave", torch.cat(heads, -1))
            y, feed = F.rms_norm(h, (16,), p[f"layers.{n}.norm2.weight"], 1e-6), f"layers.{n}.feedforward"
            h = h + linear(f"{feed}.leave", F.silu(linear(f"{feed}.gate", y)) * linear(f"{feed}.value", y))
        rows.append(
            [
                linear(f"leave.{n}.leave", F.gelu(linear(f"leave.{n}.enter", h[1:])))
                for n in StickOutput._fields
            ]
        )
    return StickOutput(*map(torch.stack, zip(*rows, strict=True)))


def test_values_are_those_of_torchs_modules() -> None:
    net = randomised(small())
    for p in net.parameters():
        p.data.mul_(0.6)
    close(net(**inputs()), reference(net, **inputs()), 1e-9)
    shapes = [tuple(out.shape) for out in net(**inputs())]
    assert shapes == [(2, 6, 3), (2, 6, 7), (2, 6, 6), (2, 6, 32), (2, 6, 2), (2, 6, 2)]


def test_matrices_start_uniform_by_their_own_sizes() -> None:
    torch.manual_seed(0)
    net = StickTransformer(width=128, layers=1, heads=4)
    for name, fan in (("layers.0.qkv.weight", 256), ("layers.0.feedforward.gate.weight", 640)):
        weight, bound = net.get_parameter(name), (6 / fan) ** 0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("name", ["x", "actions", "camera", "partner"])
def test_what_comes_later_changes_nothing_at_all(name: str) -> None:
    net, given = small().double(), inputs()
    before = net(**given)
    for t in range(1, 6):
        changed = {**given, name: given[name].clone()}
        changed[name][:, t:] = (given[name][:, t:] + 2) % 7 if name == "actions" else 1e3
        for a, b in zip(before, net(**changed), strict=True):
            assert torch.equal(a[:, :t], b[:, :t])
            assert not torch.allclose(a[:, t], b[:, t])


def test_text_changes_every_frame_and_none_is_zeros() -> None:
    net, given = small().double(), inputs()
    other = net(**{**given, "text": given["text"] + 1}).pose
    assert (net(**given).pose != other).any(-1).all()
    nothing = {**given, "text": torch.zeros_like(given["text"])}
    close(net(**nothing), net(**{**given, "text": None}), 0)


def test_no_action_adds_nothing() -> None:
    net, given = small().double(), inputs()
    close(net(**{**given, "actions": torch.full((2, 6), -1)}), net(**{**given, "actions": None}))
    assert not torch.allclose(net(**given).pose, net(**{**given, "actions": None}).pose)


def padded(given: dict[str, Tensor], before: int, behind: int, fill: float) -> dict[str, Any]:
    frames = given["x"].shape[1]

    def pad(x: Tensor, value: float) -> Tensor:
        out = x.new_full((len(x), before + frames + behind, *x.shape[2:]), value)
        out[:, before : before + frames] = x
        return out

    out: dict[str, Any] = {n: pad(given[n], fill) for n in ("x", "camera", "partner")}
    valid = pad(torch.ones(2, frames, dtype=torch.bool), False)
    return {"text": given["text"], "actions": pad(given["actions"], 999), "valid": valid, **out}


@pytest.mark.parametrize(("before", "behind"), [(0, 3), (3, 0), (2, 2)])
def test_padding_changes_nothing(before: int, behind: int) -> None:
    net, given = small().double(), inputs()
    nan, big = (net(**padded(given, before, behind, fill)) for fill in (float("nan"), 1e6))
    for a, b in zip(nan, big, strict=True):
        assert torch.equal(a, b) and a.isfinite().all()
    close(StickOutput(*(a[:, before : before + 6] for a in nan)), net(**given))


def test_padding_leaves_gradients_finite() -> None:
    net, given = small().double(), padded(inputs(), 2, 1, float("nan"))

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        pose = functional_call(net, params, (), {**given, "x": x}).pose
        return torch.where(given["valid"], squared_error(pose, torch.zeros_like(pose)), 0.0).sum()

    params = {n: p.detach() for n, p in net.named_parameters()}
    weights, frames = grad(loss, argnums=(0, 1))(params, given["x"])
    assert all(g.isfinite().all() for g in weights.values())
    assert frames.isfinite().all() and not frames[~given["valid"]].any() and frames[given["valid"]].any()


@pytest.mark.parametrize("chunks", [[1] * 6, [3, 1, 2], [6]])
def test_the_cache_changes_nothing(chunks: list[int]) -> None:
    """In float32, as it is used; functional, as a Model calls it."""
    model = stateless(lambda: small().eval())
    params, buffers = model.init(3)
    given = {n: x.float() if x.is_floating_point() else x for n, x in inputs().items()}
    text = given.pop("text")
    outputs, cache, start = [], 8, 0
    for size in chunks:
        now = {n: x[:, start : start + size] for n, x in given.items()}
        out, cache = model.apply(params, buffers, text=text if not start else None, cache=cache, **now)
        outputs.append(out)
        start += size
        assert cache.length == 1 + start
    whole = StickOutput(*(torch.cat(parts, 1) for parts in zip(*outputs, strict=True)))
    close(whole, model.apply(params, buffers, text=text, **given), 1e-5)


def test_a_cache_is_not_written_to() -> None:
    net, x = small().double(), numbers(2, 4, 5)
    _, cache = net(x[:, :2], cache=4)
    before = [memory.clone() for layer in cache.layers for memory in layer]
    first, _ = net(x[:, 2:3], cache=cache)
    again, _ = net(x[:, 2:3], cache=cache)
    close(first, again, 0)
    assert all(map(torch.equal, before, [memory for layer in cache.layers for memory in layer]))
    assert cache.layers[0][0].shape == (2, 4, 5, 4)


def test_dropout_belongs_to_the_row_and_its_places_differ() -> None:
    net, given, key = small(dropout=0.5).double(), inputs(4, 4), torch.tensor([7, 8, 9, 7])
    whole = net(**given, key=key).pose
    parts = [net(**{n: x[i::2] for n, x in given.items()}, key=key[i::2]).pose[[0, 1]] for i in (0, 1)]
    torch.testing.assert_close(torch.cat(parts), whole[[0, 2, 1, 3]])
    assert not torch.allclose(net(**given).pose, whole)
    assert not torch.allclose(net(**given, key=key + 1).pose, whole)
    once = [m.site for m in net.modules() if isinstance(m, Embed | Head)]
    twice = [m.site for m in net.modules() if isinstance(m, StickLayer)]
    places = once + twice + [site + 1 for site in twice]
    assert len(set(places)) == len(places) == 5 + 6 + 2 * 2


def test_derivatives_against_finite_differences() -> None:
    net, given, h = small().double(), inputs(3), 1e-6
    along = numbers(2, 3, 5, seed=9)

    def pose(x: Tensor) -> Tensor:
        return net(**{**given, "x": x}).pose

    rate = jvp(pose, (given["x"],), (along,))[1]
    ahead, behind = pose(given["x"] + h * along), pose(given["x"] - h * along)
    torch.testing.assert_close(rate, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-7)
    slope = (grad(lambda x: pose(x).square().sum())(given["x"]) * along).sum()
    torch.testing.assert_close(
        slope, (ahead.square().sum() - behind.square().sum()) / (2 * h), rtol=1e-5, atol=1e-7
    )


def test_vmap_over_samples() -> None:
    net, given = small().double(), padded(inputs(4), 0, 1, float("nan"))

    def one(row: dict[str, Tensor]) -> Tensor:
        return net(**{n: x[None] for n, x in row.items()}).pose[0]

    torch.testing.assert_close(vmap(one)(given), net(**given).pose, rtol=1e-10, atol=1e-12)


def test_traced_gradient_is_the_eager_one() -> None:
    net, given = small(dropout=0.2).double(), padded(inputs(4), 0, 1, 0.0)
    given["actions"].clamp_(max=6)
    params = {n: p.detach() for n, p in net.named_parameters()}
    key = torch.tensor([1, 2])

    def loss(params: dict[str, Tensor], given: dict[str, Tensor], key: Tensor) -> Tensor:
        out = functional_call(net, params, (), {**given, "key": key})
        return torch.stack([x.square().sum() for x in out]).sum()

    args = (params, given, key)
    found = mfk.jit(grad(loss)).graph(*args)(*flat(args))
    torch.testing.assert_close(list(found), flat(grad(loss)(*args)), rtol=1e-9, atol=1e-10)


def flat(x: Any) -> list[Tensor]:
    """As a compiled function flattens."""
    return optree.tree_leaves(x, namespace="mfk.jit")


def test_biases_and_norms_are_told_by_their_names() -> None:
    net = small()
    kinds = (nn.LayerNorm, mfk.nn.RMSNorm)
    norms = {n for n, layer in net.named_modules() if isinstance(layer, kinds)}
    for n, _ in net.named_parameters():
        assert decays_by_name(n) == (n.rpartition(".")[0] not in norms and not n.endswith(".bias"))


def test_autocast() -> None:
    net = small()
    given = {n: x.float() if x.is_floating_point() else x for n, x in inputs().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(**given)
    for a, b in zip(out, net(**given), strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"x": torch.zeros(2, 6, 4)}, ValueError, r"^x: expected the shape \[B, T, 5\]"),
        ({"text": torch.zeros(2, 9)}, ValueError, r"^text: expected the shape \(2, 6\), got \(2, 9\)"),
        ({"text": torch.zeros(2, 6).double()}, TypeError, r"^text: expected x's dtype, torch.float32"),
        ({"actions": torch.zeros(2, 5).long()}, ValueError, r"^actions: expected the shape \(2, 6\)"),
        ({"actions": torch.zeros(2, 6).int()}, TypeError, r"^actions: expected a tensor of torch.int64"),
        ({"actions": torch.full((2, 6), 7)}, IndexError, r"index out of range"),
        ({"actions": torch.full((2, 6), -2)}, IndexError, r"index out of range"),
        ({"camera": torch.zeros(2, 6, 2)}, ValueError, r"^camera: expected the shape \(2, 6, 3\)"),
        ({"camera": torch.zeros(2, 6, 3).long()}, TypeError, r"^camera: expected a floating-point tensor"),
        ({"partner": torch.zeros(2, 6, 3)}, ValueError, r"^partner: expected the shape \(2, 6, 5\)"),
        ({"valid": torch.ones(2, 6)}, TypeError, r"^valid: expected a tensor of torch.bool"),
        ({"valid": torch.ones(6).bool()}, ValueError, r"^valid: expected the shape \(2, 6\)"),
        ({"key": torch.zeros(3).long()}, ValueError, r"^key: expected the shape \(2,\)"),
        ({"cache": 0}, ValueError, r"^cache: expected an int >= 1"),
        ({"cache": 5}, ValueError, r"^cache: expected places for 6 frames, got 5"),
        ({"cache": 9, "valid": torch.ones(2, 6).bool()}, ValueError, r"^valid: expected None where there is"),
        ({"cache": 9, "key": torch.zeros(2).long()}, ValueError, r"^key: expected None where there is"),
    ],
)
def test_errors_name_the_argument(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    right = {n: x.float() if x.is_floating_point() else x for n, x in inputs().items()}
    with pytest.raises(error, match=message):
        small()(**{**right, **wrong})


def test_a_cache_fits_its_network_and_its_batch() -> None:
    net, x = small(), torch.zeros(2, 2, 5)
    _, cache = net(x, cache=3)
    for call, message in (
        (lambda: net(x, cache=cache), r"^cache: expected places for 4 frames, got 3"),
        (lambda: net(x[:, :1], torch.zeros(2, 6), cache=cache), r"^text: expected None, as the cache holds"),
        (lambda: net(x[:1, :1], cache=cache), r"^cache: expected keys \(1, 4, 'S', 4\), got \(2, 4, 4, 4\)"),
        (lambda: small(layers=1)(x[:, :1], cache=cache), r"^cache: expected 1 layers, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(heads=3), r"^width: expected a multiple of heads, 3, got 16"),
        (lambda: small(heads=16), r"^heads: expected an even width of each, for rotations, got 16 / 16"),
        (lambda: small(width=18, heads=3), r"^width: expected a multiple of 4"),
        (lambda: small(layers=0), r"^layers: expected an int >= 1"),
        (lambda: small(dropout=1.0), r"^dropout rate: expected"),
        (
            lambda: small(conditions=("action",)),
            r"^conditions: expected one of 'actions', 'camera', 'partner'",
        ),
        (lambda: StickTransformer(0), r"^inputs: expected an int >= 1"),
        (lambda: StickTransformer(text=0), r"^text: expected an int >= 1"),
    ],
)
def test_sizes_that_cannot_be(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
