"""The tokenizer as a task: its loss by hand, its gradients by differences, its codes by the recursion."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_tables import NET, SMALL, Tokenizer, cast
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.func import grad

from mfk.core import tree
from mfk.core.types import Batch, Rows, Tree
from mfk.optim import adamw, constant
from mfk.tasks import vqvae, vqvae_measure
from mfk.tasks.vqvae import check_vqvae, forward
from mfk.train.state import TrainState, init_state
from mfk.train.step import make_train_step

WEIGHTS = (
    "reconstruction_weight", "vq_weight", "orthogonality_weight", "informativeness_weight", "topo_weight",
)  # fmt: skip


def only(name: str, weight: float = 1.0) -> dict[str, Any]:
    return {each: weight if each == name else 0.0 for each in WEIGHTS}


def drawn(made: Tokenizer, rows: int = 18, step: int = 0) -> Batch:
    return made.task.draw(0, step, Rows.all(rows), made.state, {"x": made.x[:rows]})


def value(made: Tokenizer, params: Tree, batch: Batch) -> Tensor:
    return made.task.loss(params, made.state, batch, params)[0]


def distances(*parts: np.ndarray) -> np.ndarray:
    """The mean of the matrices of distances, by scipy."""
    return np.mean([cdist(x, x) for x in parts], axis=0).ravel()


def by_hand(made: Tokenizer, x: Tensor, encoded: Any, books: list[np.ndarray], samples: int) -> float:
    """The loss of a row in NumPy, of latents and embeddings that the network says."""
    c, net, buffers = made.config, made.params["net"], made.state["buffers"]
    zs = [z.numpy() for z in encoded.latents]
    es = [book[cdist(z, book).argmin(1)] for z, book in zip(zs, books, strict=True)]
    quantized = [torch.from_numpy(e) for e in es]
    decoded = made.nets.model.apply(net, buffers, "decode", quantized).numpy()
    alone = [y.numpy() for y in made.nets.model.apply(net, buffers, "partial", quantized)]
    rows = x.numpy()
    close = np.mean([((z - e) ** 2).mean() for z, e in zip(zs, es, strict=True)])
    centroids = encoded.embeddings.numpy().mean(0)
    cosines = []
    for g in range(len(centroids)):
        for h in range(g):
            a, b = centroids[g], centroids[h]
            cosines.append((a @ b / np.linalg.norm(a) / np.linalg.norm(b)) ** 2)
    near = [z[:samples] for z in zs], [e[:samples] for e in es]
    pre = np.corrcoef(distances(rows[:samples]), distances(*near[0]))[0, 1]
    post = np.corrcoef(distances(*near[0]), distances(*near[1]))[0, 1]
    return float(
        c.reconstruction_weight * ((decoded - rows) ** 2).mean()
        + c.vq_weight * (c.commitment_cost * close + (0 if c.use_ema else close))
        + c.orthogonality_weight * np.mean(cosines)
        + c.informativeness_weight * np.mean([((y - rows) ** 2).mean() for y in alone])
        + c.topo_weight * (0.3 * (1 - pre) + 0.7 * (1 - post))
    )


@pytest.mark.parametrize("use_ema", [True, False])
def test_the_loss_by_hand(tmp_path: Path, use_ema: bool) -> None:
    made = Tokenizer(
        tmp_path, reconstruction_weight=0.9, vq_weight=1.1, commitment_cost=0.4, orthogonality_weight=0.7,
        informativeness_weight=0.6, topo_weight=0.8, topo_samples=11, use_ema=use_ema,
        dead_code_reset_interval=None,
    )  # fmt: skip
    batch = drawn(made)
    own = (made.params["net"], made.state["buffers"], "encode", batch["x"])
    total, weight, aux = made.task.loss(made.params, made.state, batch, made.params)
    encoded = made.nets.model.apply(*own, batch["key"], True)
    books = [made.state["books"][str(j)].codes.numpy() for j in range(6)]
    assert float(weight) == 18
    assert float(total) / 18 == pytest.approx(by_hand(made, batch["x"], encoded, books, 11), rel=1e-9)
    assert ("codebook" in aux.metrics) == (not use_ema)
    # Validation: nothing dropped, running statistics, nothing moves.
    totals, weights = made.task.evaluate(made.params, made.state, {"x": batch["x"]})
    expected = by_hand(made, batch["x"], made.nets.model.apply(*own), books, 11)
    assert float(totals["val_loss"] / weights["val_loss"]) == pytest.approx(expected, rel=1e-9)


def test_each_weight_scales_its_own_part(tmp_path: Path) -> None:
    made = Tokenizer(tmp_path)
    batch, parts = drawn(made), {}
    for name in WEIGHTS:
        for w in (1.0, 3.0):
            config = vqvae.VQVAEConfig(**only(name, w))
            task = vqvae.vqvae_task(made.nets, config, made.data.train, batch_size=18, per_epoch=3)
            parts[name, w] = float(task.loss(made.params, made.state, batch, {})[0])
        assert parts[name, 1.0] > 0 and parts[name, 3.0] == pytest.approx(3 * parts[name, 1.0])
    every = vqvae.VQVAEConfig(**dict.fromkeys(WEIGHTS, 1.0))
    whole = vqvae.vqvae_task(made.nets, every, made.data.train, batch_size=18, per_epoch=3)
    total = float(whole.loss(made.params, made.state, batch, {})[0])
    assert total == pytest.approx(sum(parts[name, 1.0] for name in WEIGHTS))


# Of each term: parameters that it must reach, and some that it must not.
REACHED = {
    "reconstruction_weight": ("decoder.0.weight", "decoder.2.bias"),
    "vq_weight": ("encoders.0.hidden.0.weight", "enter.1.weight", "heads.3.weight"),
    "orthogonality_weight": ("encoders.2.leave.weight", "enter.0.weight", "leave.0.0.weight"),
    "informativeness_weight": ("partials.0.0.weight", "partials.5.2.weight"),
    "topo_weight": ("encoders.1.hidden.0.weight", "enter.2.weight", "heads.0.weight"),
}
MISSED = {
    "reconstruction_weight": ("partials.0.0.weight",),
    "vq_weight": ("decoder.0.weight", "partials.0.0.weight"),
    "orthogonality_weight": ("decoder.0.weight", "heads.0.weight"),
    "informativeness_weight": ("decoder.0.weight",),
    "topo_weight": ("decoder.0.weight", "partials.0.0.weight"),
}


def differences(f: Any, x: Tensor, places: list[int], step: float = 1e-6) -> list[float]:
    """Central differences of f() in some entries of x, which is changed in place and put back."""
    found = []
    for place in places:
        flat, kept = x.view(-1), float(x.view(-1)[place])
        flat[place] = kept + step
        ahead = float(f())
        flat[place] = kept - step
        found.append((ahead - float(f())) / (2 * step))
        flat[place] = kept
    return found


def largest(slope: Tensor) -> list[int]:
    return slope.abs().flatten().topk(min(3, slope.numel())).indices.tolist()


@pytest.mark.parametrize("name", WEIGHTS)
def test_gradients_of_each_term_by_differences(tmp_path: Path, name: str) -> None:
    """Where the value itself is differentiable: behind the codes, and in what is compared to them."""
    made = Tokenizer(tmp_path, **only(name), dead_code_reset_interval=None)
    batch = drawn(made)
    slopes = grad(lambda p: value(made, p, batch))(made.params)["net"]
    for key in REACHED[name]:
        places = largest(slopes[key])
        found = differences(lambda: value(made, made.params, batch), made.params["net"][key], places)
        assert np.allclose(slopes[key].flatten()[places], found, rtol=1e-4, atol=1e-9), key
        assert np.abs(found).max() > 1e-4, key
    assert all(not slopes[key].any() for key in MISSED[name])


@pytest.mark.parametrize("name", ["reconstruction_weight", "informativeness_weight"])
def test_gradients_go_straight_through_the_codes(tmp_path: Path, name: str) -> None:
    """Encoders: differences of the loss with q = e + z(params) - z, e and z held."""
    made = Tokenizer(tmp_path, **only(name), dead_code_reset_interval=None)
    batch = drawn(made)
    x, net, buffers = batch["x"], made.params["net"], made.state["buffers"]

    def latents() -> tuple[Tensor, ...]:
        return made.nets.model.apply(net, buffers, "encode", x, batch["key"], True).latents

    parts = forward(made.nets, made.config, made.params, made.state, x, batch["key"], training=True)
    held = [z.clone() for z in parts.latents]

    def surrogate() -> Tensor:
        q = [e + z - z0 for e, z, z0 in zip(parts.codes, latents(), held, strict=True)]
        method = "decode" if name == "reconstruction_weight" else "partial"
        said = made.nets.model.apply(net, buffers, method, q)
        said = [said] if isinstance(said, Tensor) else said
        return len(x) * torch.stack([(y - x).square().mean() for y in said]).mean()

    slopes = grad(lambda p: value(made, p, batch))(made.params)["net"]
    for key in ("encoders.0.hidden.0.weight", "encoders.2.leave.weight", "enter.1.weight", "heads.4.bias"):
        places = largest(slopes[key])
        found = differences(surrogate, net[key], places)
        assert np.allclose(slopes[key].flatten()[places], found, rtol=1e-4, atol=1e-9), key
        assert np.abs(found).max() > 1e-4, key


def test_frozen_encoders_have_no_gradient(tmp_path: Path) -> None:
    trained, frozen = (Tokenizer(tmp_path, frozen_encoders=one) for one in (False, True))
    found = []
    for made in (trained, frozen):
        found.append(grad(lambda params, made=made: value(made, params, drawn(made)))(made.params)["net"])
    for name, ours in found[0].items():
        if name.startswith("encoders."):
            assert bool((ours != 0).any()) and not bool(found[1][name].any())
        else:
            assert torch.equal(ours, found[1][name])


def test_no_gradient_reaches_codes_that_are_averages(tmp_path: Path) -> None:
    made = Tokenizer(tmp_path)
    batch = drawn(made)

    def of_books(books: Tree) -> Tensor:
        return made.task.loss(made.params, made.state | {"books": books}, batch, {})[0]

    slopes = grad(of_books)(made.state["books"])
    assert all(not x.any() for x in tree.leaves(slopes))
    # Though the loss does depend on them.
    codes = made.state["books"]["0"].codes
    assert max(map(abs, differences(lambda: of_books(made.state["books"]), codes, [0, 1, 2, 3, 4]))) > 1e-3


def test_codes_that_learn_by_gradient(tmp_path: Path) -> None:
    """Their gradient is that of the codebook term alone, in closed form; and they move."""
    made = Tokenizer(tmp_path, vq_weight=1.3, use_ema=False, dead_code_reset_interval=None)
    batch = drawn(made)
    parts = forward(made.nets, made.config, made.params, made.state, batch["x"], batch["key"], training=True)
    slopes = grad(lambda p: value(made, p, batch))(made.params)["codes"]
    for j, z in enumerate(parts.latents):
        codes, index = made.params["codes"][str(j)], parts.indices[:, j]
        expected = torch.zeros_like(codes)
        for row, k in zip(z, index.tolist(), strict=True):
            expected[k] += 1.3 * 2 * (codes[k] - row) / (codes.shape[1] * 6)
        assert torch.allclose(slopes[str(j)], expected, rtol=1e-9, atol=1e-12) and expected.any()
    state, params = started(made)
    for step in range(30):
        state, _ = stepper(made, lr=0.05)(state, {"x": made.x[:18] if step % 2 else made.x[18:36]})
    moved = [state.params["codes"][str(j)] - params["codes"][str(j)] for j in range(6)]
    assert all(float(x.abs().max()) > 0.01 for x in moved)

    def gap(params: Tree, state: Tree) -> float:
        return float(made.task.evaluate(params, state, {"x": made.x[:18]})[0]["codebook"])

    assert gap(state.params, state.state) < gap(state.params | {"codes": params["codes"]}, state.state)


def started(made: Tokenizer) -> tuple[TrainState, Tree]:
    """A state of its own memory, which steps may reuse; and the initial parameters."""
    return init_state(made.task._replace(init=lambda _: (made.params, made.state)), adamw(), 0), made.params


def stepper(made: Tokenizer, lr: float = 1e-2, accumulate: int = 1, **more: Any) -> Any:
    return make_train_step(
        made.task, adamw(weight_decay=0.0), constant(lr), seed=0, accumulate=accumulate, **more
    )


def ema(book: tuple[np.ndarray, ...], z: np.ndarray, decay: float) -> tuple[np.ndarray, ...]:
    """One step of the textbook's recursion, code by code."""
    codes, n, m = (x.copy() for x in book)
    nearest = cdist(z, book[0]).argmin(1)
    for k in range(len(codes)):
        own = z[nearest == k]
        n[k] = decay * n[k] + (1 - decay) * len(own)
        m[k] = decay * m[k] + (1 - decay) * own.sum(0)
        if len(own):
            codes[k] = m[k] / n[k]
    return codes, n, m


@pytest.mark.parametrize("accumulate", [1, 3])
def test_codes_follow_the_textbooks_recursion_through_the_step(tmp_path: Path, accumulate: int) -> None:
    """Micro-batches: the codes move once, by the rows of all; batch norm by the mean over the rows."""
    made = Tokenizer(tmp_path, decay=0.9, dead_code_reset_interval=None)
    state, _ = started(made)
    step = stepper(made, accumulate=accumulate)
    books = {j: tuple(x.numpy().copy() for x in book) for j, book in made.state["books"].items()}
    counts = [float(book[1].sum()) for book in books.values()]
    # k-means counts the rows of the batches that follow.
    assert counts == pytest.approx([18] * 6)
    for k in range(3):
        x = made.x[18 * k : 18 * (k + 1)]
        before = tree.clone(state.params)
        carried = tree.clone(state.state)
        latents: list[list[np.ndarray]] = [[] for _ in books]
        running: list[Tensor] = []
        for i in range(accumulate):
            rows = Rows(range(i, 18, accumulate), 18)
            batch = made.task.draw(0, k, rows, carried, {"x": x[i::accumulate]})
            encoded = made.nets.model.apply(
                before["net"], carried["buffers"], "encode", batch["x"], batch["key"], True
            )
            running.append(encoded.buffers["encoders.0.norms.0.running_var"])
            for j, z in enumerate(encoded.latents):
                latents[j].append(z.numpy())
        for j, parts in enumerate(latents):
            books[str(j)] = ema(books[str(j)], np.concatenate(parts), 0.9)
        state, _ = step(state, {"x": x})
        kept = state.state["buffers"]["encoders.0.norms.0.running_var"]
        assert torch.allclose(kept, torch.stack(running).mean(0), rtol=1e-12)
        for j, book in books.items():
            for ours, theirs in zip(state.state["books"][j], book, strict=True):
                assert np.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_micro_batches_change_nothing_where_rows_are_not_coupled(tmp_path: Path) -> None:
    made = Tokenizer(
        tmp_path, encoder=replace(SMALL, batch_norm=False), orthogonality_weight=0.0, topo_weight=0.0,
        dead_code_reset_interval=None,
    )  # fmt: skip
    ends = []
    for accumulate in (1, 4):
        state, _ = started(made)
        for k in range(2):
            state, metrics = stepper(made, accumulate=accumulate)(state, {"x": made.x[18 * k : 18 * (k + 1)]})
        ends.append((state.params, state.state, metrics["loss"]))  # pyright: ignore[reportPossiblyUnboundVariable]
    for a, b in zip(*(tree.leaves(end) for end in ends), strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


def test_micro_batches_of_any_size_and_reduced_precision(tmp_path: Path) -> None:
    """10 rows in 4 parts: of two or three rows each, where only three have distances to correlate."""
    made = Tokenizer(tmp_path, dead_code_reset_interval=1, per_epoch=1, dtype=torch.float32)
    for rows, precision in ((10, "fp32"), (1, "fp32"), (2, "fp32"), (10, "bf16")):
        state, _ = started(made)
        state, metrics = stepper(made, accumulate=4, precision=precision)(state, {"x": made.x[:rows]})
        assert float(metrics["skipped"]) == 0 and all(x.isfinite() for x in metrics.values())
        assert all(x.dtype != torch.bfloat16 for x in tree.leaves(state.state))
    exact, rounded = (
        stepper(made, precision=p)(started(made)[0], {"x": made.x[:18]})[1]["loss"] for p in ("fp32", "bf16")
    )
    assert float(exact) == pytest.approx(float(rounded), rel=0.05) and float(exact) != float(rounded)


def with_dead(made: Tokenizer, dead: tuple[int, ...] = (1, 4)) -> Tree:
    """The state with some codes of the first codebook far away and unused."""
    book = made.state["books"]["0"]
    codes, count = book.codes.clone(), book.count.clone()
    codes[list(dead)], count[list(dead)] = 1e3, 0.0
    fresh = book._replace(codes=codes, count=count, total=count[:, None] * codes)
    return made.state | {"books": made.state["books"] | {"0": fresh}}


def test_resets_come_at_their_steps_and_to_dead_codes_alone(tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(decay=0.9, dead_code_threshold=20.0, dead_code_max_reset_fraction=0.5)
    made = Tokenizer(tmp_path, dead_code_reset_interval=2, **settings)
    plain = Tokenizer(tmp_path, dead_code_reset_interval=None, **settings)
    made.state = plain.state = with_dead(made)
    ours, theirs = started(made)[0], started(plain)[0]
    step, other = stepper(made), stepper(plain)
    replaced = []
    for k in range(6):
        x = made.x[18 * (k % 3) : 18 * (k % 3 + 1)]
        before = ours._replace(params=tree.clone(ours.params), state=tree.clone(ours.state))
        (ours, metrics), (theirs, _) = step(ours, {"x": x}), other(theirs, {"x": x})
        replaced.append(float(metrics["replaced"]))
        if k < 5:
            same = zip(tree.leaves(ours[1:3]), tree.leaves(theirs[1:3]), strict=True)
            assert all(torch.equal(a, b) for a, b in same)
    # Two epochs of three steps; two of six codes, in one of six codebooks at least.
    assert replaced[:5] == [0.0] * 5 and replaced[5] >= 2 / 6 / 6
    drawn_ = made.task.draw(0, 5, Rows.all(18), {}, {"x": x})  # pyright: ignore[reportPossiblyUnboundVariable]
    latents = made.nets.model.apply(
        before.params["net"], before.state["buffers"], "encode", drawn_["x"], drawn_["key"], True  # pyright: ignore[reportPossiblyUnboundVariable]
    ).latents  # fmt: skip
    found = 0
    for j in range(6):
        book, without = ours.state["books"][str(j)], theirs.state["books"][str(j)]
        share = without.count.mean()
        for k in range(len(book.codes)):
            if torch.equal(book.codes[k], without.codes[k]):
                assert all(torch.equal(a[k], b[k]) for a, b in zip(book, without, strict=True))
                continue
            found += 1
            assert without.count[k] < 0.2 * share
            assert torch.equal(book.count[k], share)
            assert torch.equal(book.total[k], share * book.codes[k])
            assert bool((latents[j] == book.codes[k]).all(1).any())  # a latent of a row of this batch
    first, without = ours.state["books"]["0"], theirs.state["books"]["0"]
    assert all(not torch.equal(first.codes[k], without.codes[k]) for k in (1, 4))
    assert found == sum(
        min(3 if j % 2 == 0 else 2, int((b.count < 0.2 * b.count.mean()).sum()))
        for j, b in ((j, theirs.state["books"][str(j)]) for j in range(6))
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_reset_replaces_no_more_than_its_share(tmp_path: Path, accumulate: int) -> None:
    made = Tokenizer(
        tmp_path, dead_code_reset_interval=1, per_epoch=1, dead_code_threshold=50.0,
        dead_code_max_reset_fraction=0.34,
    )  # fmt: skip
    made.state = with_dead(made, (0, 1, 2, 3))
    state, _ = started(made)
    state, _ = stepper(made, accumulate=accumulate)(state, {"x": made.x[:18]})
    far = state.state["books"]["0"].codes[:4, 0] > 900
    assert int(far.sum()) == 2  # of six codes two are a third


def test_no_two_codes_become_one_row(tmp_path: Path) -> None:
    """A micro-batch of three rows for four unused codes: rounding would choose between two that are alike."""
    made = Tokenizer(
        tmp_path, dead_code_reset_interval=1, per_epoch=1, dead_code_threshold=50.0,
        dead_code_max_reset_fraction=1.0,
    )  # fmt: skip
    made.state = with_dead(made, (0, 1, 2, 3))
    state, _ = started(made)
    before = state.state["books"]["0"].codes.clone()
    state, _ = stepper(made, accumulate=6)(state, {"x": made.x[:18]})
    codes = state.state["books"]["0"].codes
    moved = codes[:4][(codes[:4] - before[:4]).abs().amax(-1) > 100]
    assert len(moved) == 3
    assert torch.pdist(moved).min() > 1e-6


def test_draws_do_not_depend_on_the_split_of_a_batch(tmp_path: Path) -> None:
    made = Tokenizer(tmp_path, dead_code_reset_interval=1, per_epoch=2)
    whole = made.task.draw(0, 1, Rows.all(18), {}, {"x": made.x[:18]})
    some = made.task.draw(0, 1, Rows(range(1, 18, 2), 18), {}, {"x": made.x[1:18:2]})
    assert torch.equal(some["key"], whole["key"][1::2]) and bool(whole["reset"]) and not bool(some["reset"])
    assert len(set(whole["key"].tolist())) == 18
    assert not torch.equal(whole["key"], made.task.draw(0, 2, Rows.all(18), {}, {})["key"])
    for column in whole["candidates"].T:  # of six rows no row twice
        assert len(set(column.tolist())) == 6
    few = made.task.draw(0, 1, Rows.all(2), {}, {"x": made.x[:2]})
    assert set(few["candidates"].flatten().tolist()) == {0, 1}


def test_dropout_and_batch_norm_are_of_training_alone(tmp_path: Path) -> None:
    made = Tokenizer(tmp_path)
    own = (made.nets, made.config, made.params, made.state, made.x[:18])
    one, two = forward(*own), forward(*own)
    assert torch.equal(one.decoded, two.decoded)
    name = "encoders.0.norms.0.running_mean"
    assert torch.equal(one.buffers[name], made.state["buffers"][name])
    keys = [torch.full((18,), k) for k in (1, 2)]
    trained = [forward(*own, key, training=True) for key in keys]
    assert not torch.equal(trained[0].latents[0], trained[1].latents[0])
    assert not torch.equal(trained[0].buffers[name], made.state["buffers"][name])
    # Without dropout a key changes nothing.
    calm = Tokenizer(tmp_path, encoder=replace(SMALL, dropout=0.0), net=replace(NET, dropout=0.0))
    own = (calm.nets, calm.config, calm.params, calm.state, calm.x[:18])
    a, b = (forward(*own, key, training=True) for key in keys)
    assert torch.equal(a.latents[0], b.latents[0])


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"topo_weight": -1.0}, "topo_weight: expected a finite number >= 0"),
        ({"vq_weight": math.nan}, "vq_weight: expected a finite number >= 0, got nan"),
        ({"topo_samples": 2}, "topo_samples: expected at least 3, got 2"),
        ({"decay": 1.0}, "decay: expected a number in"),
        ({"dead_code_reset_interval": 0}, "dead_code_reset_interval: expected at least 1"),
        ({"dead_code_threshold": 101.0}, "dead_code_threshold: expected a number from 0 to 100"),
        (
            {"dead_code_max_reset_fraction": 1.1},
            "dead_code_max_reset_fraction: expected a number from 0 to 1",
        ),
        ({"use_ema": False}, "dead_code_reset_interval: no effect without use_ema"),
        ({"use_ema": False, "dead_code_reset_interval": None, "decay": 0.5}, "decay: no effect"),
    ],
)
def test_settings_that_are_refused(changed: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        check_vqvae(vqvae.VQVAEConfig(**changed))


def test_figures_by_hand(tmp_path: Path) -> None:
    made = Tokenizer(tmp_path, rows=300, dtype=torch.float32)
    x = made.x[:270]  # two parts of rows whose distances are compared
    score, books = vqvae_measure.measure(made.nets, made.config, made.params, made.state, x)
    double = Tokenizer(tmp_path, rows=300)
    params, state = cast(made.params, torch.float64), cast(made.state, torch.float64)
    parts = forward(double.nets, double.config, params, state, x.double())
    rows, indices = x.double().numpy(), parts.indices.numpy()
    assert score.rows == 270 and score.mse == pytest.approx(
        ((parts.decoded.numpy() - rows) ** 2).mean(), 1e-5
    )
    assert score.quality == pytest.approx(max(0.0, 1 - score.mse))
    used = [len(set(indices[:, j])) for j in range(6)]
    assert score.utilisation == pytest.approx(np.mean([n / k for n, k in zip(used, [6, 4] * 3, strict=True)]))
    assert score.bits == pytest.approx(3 * math.log2(6) + 3 * math.log2(4))
    centroids = parts.embeddings.numpy().mean(0)
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    assert score.orthogonality == pytest.approx(np.abs((unit @ unit.T)[np.triu_indices(3, 1)]).mean(), 1e-4)
    zs, es = ([p.numpy() for p in side] for side in (parts.latents, parts.codes))

    def alike(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return sum(
            len(rows[some]) / 270
            * np.corrcoef(distances(*(x[some] for x in a)), distances(*(x[some] for x in b)))[0, 1]
            for some in (slice(0, 256), slice(256, 270))
        )  # fmt: skip

    assert score.topo_pre == pytest.approx(alike([rows], zs), abs=1e-4)
    assert score.topo_post == pytest.approx(alike(zs, es), abs=1e-4)
    for j, book in enumerate(books):
        share = np.bincount(indices[:, j]) / 270
        entropy = -sum(p * math.log(p) for p in share if p)
        columns = list(made.nets.groups[j // 2])
        assert (book.category, book.level, book.used) == ("abc"[j // 2], j % 2, used[j])
        assert book.perplexity == pytest.approx(math.exp(entropy)) and book.most == pytest.approx(share.max())
        assert book.topo_pre == pytest.approx(alike([rows[:, columns]], [zs[j]]), abs=1e-4)
        assert book.topo_post == pytest.approx(alike([zs[j]], [es[j]]), abs=1e-4)
        alone = double.nets.model.apply(params["net"], state["buffers"], "partial", list(parts.quantized))[j]
        assert book.alone == pytest.approx(((alone.numpy() - rows)[:, columns] ** 2).mean(), rel=1e-4)
    assert score.perplexity == pytest.approx(np.mean([b.perplexity / b.tokens for b in books]))


def test_a_few_steps_help(tmp_path: Path) -> None:
    made = Tokenizer(tmp_path, dtype=torch.float32)
    state, _ = started(made)
    before = float(made.task.evaluate(state.params, state.state, {"x": made.x})[0]["mse"])
    step = stepper(made)
    for k in range(60):
        state, _ = step(state, {"x": made.x[18 * (k % 3) : 18 * (k % 3 + 1)]})
    after = float(made.task.evaluate(state.params, state.state, {"x": made.x})[0]["mse"])
    assert after < 0.75 * before
