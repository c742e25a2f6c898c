"""The network around quantisers: who depends on what, batch norm against torch's, sizes as documented."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from small_nets import numbers, randomised
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

import mfk
from mfk.core.types import Model
from mfk.nn import (
    CategoricalVQVAE,
    FamilyInput,
    LevelConfig,
    MLPEncoder,
    TemporalCNNEncoder,
    auto_levels,
    init_codebook,
    quantize,
)
from mfk.nn.family_encoders import ACTIVATIONS, CopyNorm

# Eleven columns: an ordinary family of 5, a temporal one of 2 features with 3 values; three categories,
# of which the second has columns of both families.
GROUPS = [[0, 3], [1, 4, 5, 6, 7], [2, 8, 9, 10]]
LEVELS = [[LevelConfig(4, 5), LevelConfig(3, 4)], [LevelConfig(4, 5)], [LevelConfig(3, 3), LevelConfig(3, 2)]]


def families() -> dict[str, FamilyInput]:
    return {
        "summary": FamilyInput(
            range(5),
            partial(MLPEncoder, hidden_dims=(6, 4), output_dim=3, dropout=0.3),
        ),
        "temporal": FamilyInput(
            range(5, 11),
            partial(TemporalCNNEncoder, frames=3, channels=(4,), kernel=3, output_dim=2),
        ),
    }


def net(**options: Any) -> CategoricalVQVAE:
    sizes = {"embedding_dim": 6, "hidden_dim": 8, "decoder_dim": 7, "partial_dim": 5, "latent_norm": True}
    made = randomised(CategoricalVQVAE(GROUPS, LEVELS, families(), **{**sizes, **options}))
    for name, buffer in made.named_buffers():
        buffer.copy_(numbers(*buffer.shape, seed=len(name)).abs() + 0.5)
    return made


CATEGORY = [0, 0, 1, 2, 2]  # of each latent
KEY = torch.arange(7)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("filling", [7.0, float("nan")])
def test_a_category_sees_exactly_its_own_features(training: bool, filling: float) -> None:
    model, x = net(), numbers(7, 11)
    before = model.encode(x, KEY, training)
    for g, group in enumerate(GROUPS):
        other = torch.full_like(x, filling)
        other[:, group] = x[:, group]
        after = model.encode(other, KEY, training)
        assert torch.equal(after.embeddings[:, g], before.embeddings[:, g])
        for latent, changed, of in zip(before.latents, after.latents, CATEGORY, strict=True):
            assert torch.equal(latent, changed) == (of == g)


def test_a_latent_depends_on_every_feature_of_its_category_and_every_family_is_trained() -> None:
    model, x = net(), numbers(1, 11)
    slopes = jacrev(lambda x: torch.stack([z.square().sum() + z[0, 0] for z in model.encode(x).latents]))(x)
    for i, g in enumerate(CATEGORY):
        assert slopes[i, 0].nonzero().flatten().tolist() == GROUPS[g]
    total = sum(z[:, 0].sum() for z in model.encode(numbers(7, 11), KEY, True).latents)
    assert isinstance(total, Tensor)
    total.backward()
    for name, p in model.encoders.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        # A bias before batch norm has no gradient, as the mean takes it away.
        if not ("hidden" in name and name.endswith("bias")):
            assert p.grad.any(), name


@pytest.mark.parametrize("frames", [None, 4])
def test_batch_norm_is_torchs_one_copy_at_a_time(frames: int | None) -> None:
    shape = (6, 3, 5) if frames is None else (6, 3, 5, frames)
    x, model = numbers(*shape) * 2 + 1, randomised(CopyNorm(3, 5))
    references = [nn.BatchNorm1d(5).double() for _ in range(3)]
    for reference in references:
        reference.load_state_dict({"weight": model.weight, "bias": model.bias}, strict=False)
    for step in range(3):
        found, buffers = model(x + step, True)
        for copy, reference in enumerate(references):
            torch.testing.assert_close(found[:, copy], reference(x[:, copy] + step))
            torch.testing.assert_close(buffers["running_mean"][copy], reference.running_mean)
            torch.testing.assert_close(buffers["running_var"][copy], reference.running_var)
        model.load_state_dict({**model.state_dict(), **buffers})
    found, none = model(x, False)
    for copy, reference in enumerate(references):
        torch.testing.assert_close(found[:, copy], reference.eval()(x[:, copy]))
    assert none == {}


def test_training_returns_new_buffers_and_writes_none() -> None:
    model, x = net(), numbers(7, 11)
    kept = {name: b.clone() for name, b in model.named_buffers()}
    after = model.encode(x, KEY, True).buffers
    assert after.keys() == kept.keys() and len(kept) == 6
    for name, b in model.named_buffers():
        assert torch.equal(b, kept[name]) and not torch.equal(after[name], b)
        assert not after[name].requires_grad
    same = model.encode(x).buffers
    assert all(torch.equal(same[name], b) for name, b in kept.items())


def test_dropout_is_a_function_of_the_row_s_key() -> None:
    model, x = net(), numbers(7, 11)
    first, again, other = (model.encode(x, k).latents for k in (KEY, KEY, KEY + 7))
    plain = model.encode(x).latents
    for a, b, c, d in zip(first, again, other, plain, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, d)
    half = model.encode(x[3:], KEY[3:]).latents
    torch.testing.assert_close([z[3:] for z in first], list(half))


def test_places_that_drop_are_all_different(monkeypatch: pytest.MonkeyPatch) -> None:
    sites: list[int] = []

    def record(x: Tensor, rate: float, key: Tensor | None, site: int) -> Tensor:
        sites.append(site)
        return x

    for module in ("vqvae", "family_encoders"):
        monkeypatch.setattr(f"mfk.nn.{module}.dropout", record)
    net().encode(numbers(7, 11), KEY)
    assert len(set(sites)) == len(sites) == 3 + 5 + 2 + 1


def test_the_temporal_encoder_is_a_convolution_of_features_over_time() -> None:
    model = randomised(TemporalCNNEncoder(6, 2, frames=3, channels=(4,), kernel=3, output_dim=2))
    x = numbers(5, 2, 6)
    for copy in range(2):
        rows = x[:, copy]
        series = torch.stack((rows[:, :3], rows[:, 3:]), 1)  # [B, D, T]
        filled = nn.functional.pad(series, (1, 1))
        convolution, norm = cast(Any, model.hidden[0]), cast(Any, model.norms[0])
        h = torch.stack(
            [(filled[:, None, :, t : t + 3] * convolution.weight).sum((-2, -1)) for t in range(3)], -1
        )
        h = h + convolution.bias[:, None]
        h = h / (1 + 1e-5) ** 0.5 * norm.weight[:, None] + norm.bias[:, None]
        expected = model.leave(h.relu().mean(-1))
        torch.testing.assert_close(model(x)[0][:, copy], expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_perceptron_is_its_layers_one_after_the_other(activation: str) -> None:
    model = randomised(
        MLPEncoder(4, hidden_dims=(3, 5), output_dim=2, activation=activation, batch_norm=False)
    )
    kinds = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}
    act = {**kinds, "tanh": nn.Tanh}[activation]()
    plain = nn.Sequential(model.hidden[0], act, model.hidden[1], act, model.leave)
    x = numbers(6, 1, 4)
    torch.testing.assert_close(model(x)[0], plain(x))


def test_the_documented_example_has_its_documented_size() -> None:
    sizes = (16, 33, 9)
    bounds = [0, 16, 49, 58]
    groups = [range(a, b) for a, b in pairwise(bounds)]
    levels = [auto_levels(n) for n in sizes]
    model = CategoricalVQVAE(groups, levels, latent_norm=True)
    parameters = sum(p.numel() for p in model.parameters())
    codes = sum(d * k for d, k in zip(model.latent_dims, model.tokens, strict=True))
    assert (parameters, parameters + codes) == (212_224, 216_904)


def test_the_decoders_see_what_they_should() -> None:
    model = net()
    codes = [numbers(7, d, seed=i) for i, d in enumerate(model.latent_dims)]
    assert model.decode(codes).shape == (7, 11)
    alone = model.partial(codes)
    assert len(alone) == 5 and all(p.shape == (7, 11) for p in alone)
    for i in range(5):
        moved = [c + 1 if i == j else c for j, c in enumerate(codes)]
        assert not torch.equal(model.decode(moved), model.decode(codes))
        changed = [not torch.equal(a, b) for a, b in zip(model.partial(moved), alone, strict=True)]
        assert changed == [i == j for j in range(5)]


def test_latents_have_a_common_scale_only_with_the_norm() -> None:
    x = numbers(7, 11)
    model = CategoricalVQVAE(GROUPS, LEVELS, families(), latent_norm=True).double()
    for z in model.encode(x).latents:
        torch.testing.assert_close(z.mean(-1), torch.zeros(7, dtype=torch.float64))
    loose = CategoricalVQVAE(GROUPS, LEVELS, families(), latent_norm=False).double()
    assert all(z.mean(-1).abs().min() > 1e-4 for z in loose.encode(x).latents)


def whole(model: Model, codebooks: Any, buffers: Any, x: Tensor, key: Tensor, params: Any) -> Any:
    """A loss through all of it, as a task has one."""
    encoded = model.apply(params, buffers, "encode", x, key, True)
    said = [quantize(c, z) for c, z in zip(codebooks, encoded.latents, strict=True)]
    quantized = [s[0] for s in said]
    error = (model.apply(params, buffers, "decode", quantized) - x).square().mean()
    apart = mfk.losses.orthogonality(encoded.embeddings.mean(0))
    each = torch.stack(model.apply(params, buffers, "partial", quantized))
    told = mfk.losses.informativeness(each, x).mean()
    kept = mfk.losses.topographic(x, encoded.latents[0])
    pull = sum(mfk.losses.commitment(z, q).mean() for z, q in zip(encoded.latents, quantized, strict=True))
    return error + apart + told + kept + pull, (encoded.buffers, [s[2] for s in said])


def test_one_pure_function_of_members_and_of_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient, buffers and codebooks, member by member and through `mfk.jit`."""
    monkeypatch.setattr(
        "mfk.core.compiler.jitted.compile_graph", lambda graph, fakes: lambda inputs: graph(*inputs)
    )
    model = mfk.stateless(lambda: net())
    states = [model.init(seed) for seed in (0, 1)]
    states = [({k: v + 0.1 * i for k, v in p.items()}, b) for i, (p, b) in enumerate(states)]
    books = [init_codebook(numbers(v.tokens, v.latent_dim)) for category in LEVELS for v in category]
    x, key = numbers(2, 7, 11), torch.arange(14).reshape(2, 7)

    def gradient(params: Any, buffers: Any, books: Any, x: Any, key: Any) -> Any:
        return grad(partial(whole, model, books, buffers, x, key), has_aux=True)(params)

    expected = [gradient(p, b, books, x[i], key[i]) for i, (p, b) in enumerate(states)]
    assert all(g.any() for name, g in expected[0][0].items() if "hidden" not in name)
    stacked = mfk.core.tree.map(lambda *leaves: torch.stack(leaves), *states)
    members: Any = vmap(gradient, in_dims=(0, 0, None, 0, 0))
    found = members(*stacked, books, x, key)
    compiled: Any = mfk.jit(gradient)
    for i in (0, 1):
        mine = mfk.core.tree.map(lambda leaf, i=i: leaf[i], found)
        torch.testing.assert_close(mine, expected[i], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(compiled(*states[0], books, x[0], key[0]), expected[0], rtol=1e-9, atol=1e-11)


def test_autocast_gives_latents_near_the_exact_ones() -> None:
    model, x = CategoricalVQVAE(GROUPS, LEVELS, families()), numbers(7, 11).float()
    exact = model.encode(x, KEY, True)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.encode(x, KEY, True)
        assert model.decode(rough.latents).shape == (7, 11)
    for a, b in zip(exact.latents, rough.latents, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=0.2, atol=0.2)
    assert all(b.dtype == torch.float32 for b in rough.buffers.values())


BAD: dict[str, tuple[Any, str]] = {
    "a column twice": (lambda: CategoricalVQVAE([[0, 1], [1]], LEVELS[:2]), r"groups.*several times \[1\]"),
    "a column absent": (lambda: CategoricalVQVAE([[0], [2]], LEVELS[:2]), r"groups.*absent \[1\]"),
    "an empty category": (lambda: CategoricalVQVAE([[0], []], LEVELS[:2]), r"groups\[1\].*none"),
    "no category": (lambda: CategoricalVQVAE([], []), "groups"),
    "levels of others": (lambda: CategoricalVQVAE([[0], [1]], LEVELS), "levels.*2 categories, got 3"),
    "no level": (lambda: CategoricalVQVAE([[0]], [[]]), r"levels\[0\]"),
    "plain numbers": (lambda: CategoricalVQVAE([[0]], [[(4, 3)]]), r"levels\[0\]\[0\].*LevelConfig"),  # type: ignore[list-item]
    "nothing after the norm": (
        lambda: CategoricalVQVAE([[0]], [[LevelConfig(2, 4)]], latent_norm=True),
        r"levels\[0\]\[0\].latent_dim.*>= 3",
    ),
    "parts of columns": (lambda: CategoricalVQVAE([[0.0]], LEVELS[:1]), r"groups\[0\]: .*ints"),  # type: ignore[list-item]
    "no tokens": (lambda: CategoricalVQVAE([[0]], [[LevelConfig(4, 0)]]), r"levels\[0\]\[0\].tokens"),
    "a column outside": (
        lambda: CategoricalVQVAE([[0]], LEVELS[:1], {"a": FamilyInput([1], MLPEncoder)}),
        r"families\['a'\].columns.*\[0, 1\)",
    ),
    "a column of two families": (
        lambda: CategoricalVQVAE(
            [[0]], LEVELS[:1], {"a": FamilyInput([0], MLPEncoder), "b": FamilyInput([0], MLPEncoder)}
        ),
        "column 0 is in family 'a'",
    ),
    "an empty family": (
        lambda: CategoricalVQVAE([[0]], LEVELS[:1], {"a": FamilyInput([], MLPEncoder)}),
        r"families\['a'\].*none",
    ),
    "another encoder": (
        lambda: CategoricalVQVAE([[0]], LEVELS[:1], {"a": FamilyInput([0], nn.Linear)}),
        r"families\['a'\].encoder.*Linear",
    ),
    "an activation unheard of": (lambda: MLPEncoder(3, activation="swish"), "activation.*'relu'"),
    "an even kernel": (lambda: TemporalCNNEncoder(6, frames=3, kernel=4), "kernel.*odd"),
    "frames that do not fit": (lambda: TemporalCNNEncoder(7, frames=3), "inputs.*frames=3"),
    "another method": (lambda: net()("encodes", numbers(7, 11)), "method.*'encode'"),
    "other columns": (lambda: net().encode(numbers(7, 10)), r"x.*\(7, 11\)"),
    "no rows": (lambda: net().encode(numbers(0, 11)), "x.*at least one row"),
    "one row in training": (lambda: net().encode(numbers(1, 11), training=True), "at least two rows"),
    "too few codes": (lambda: net().decode([numbers(7, 4)]), "quantized.*5 tensors"),
    "codes of others": (lambda: net().partial([numbers(7, 4)] * 5), r"quantized\[1\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
