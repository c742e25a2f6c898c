"""Emulators as tasks: what a loss is, what it must not depend on, and that it can be trained."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from mfk import losses
from mfk.core import tree
from mfk.core.types import Batch, Rows
from mfk.data import generate_irf
from mfk.data.worlds import WORLDS
from mfk.tasks import irf, irf_data, irf_measure, irf_query, irf_range, irf_report, irf_respond
from mfk.tasks.irf_emulator import emulator
from mfk.tasks.irf_net import IRFNetConfig, irf_nets

pytestmark = pytest.mark.fast

SMALL: dict[str, dict[str, Any]] = {
    "residual": dict(trunk_dim=16, trunk_layers=1),
    "mlp": dict(widths=(16, 8)),
    "gru": dict(hidden=8),
    "pooled": dict(widths=(16, 8)),
    "universal": dict(
        trunk_dim=16, trunk_layers=1, theta_embed_dim=16, head_dim=8, world_embed_dim=4, shock_embed_dim=4
    ),
}
NK, ALL = ("nk",), ("nk", "var", "lss")


def G(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Made:
    """A small network with its task."""

    def __init__(
        self,
        arch: Any = "residual",
        kind: Any = "world",
        worlds: tuple[str, ...] = ALL,
        shock: int | None = None,
        **loss: Any,
    ) -> None:
        self.data = irf_data.open_irf(irf_data.IRFDataConfig(worlds=worlds, samples=60), 0)
        self.nets = irf_nets(IRFNetConfig(arch, kind, shock, **SMALL[arch]), self.data.worlds, 40)
        self.scale = irf_data.measure_scale(self.nets, self.data)
        self.task = irf.irf_task(self.nets, self.scale, irf.IRFConfig(irf.IRFLossConfig(**loss)))
        self.params, self.state = self.task.init(0)
        # Blocks that start at zero would hide what they do.
        self.params = tree.map(lambda x: x + 0.05 * torch.randn(x.shape, generator=G(1)), self.params)

    def rows(self, *names: str, count: int = 4) -> Batch:
        train = self.data.samples["train"]
        some = {
            name: irf_data.Economies(train[name].theta[:count], train[name].irf[:count]) for name in names
        }
        return irf_data.rows_of(self.nets, some)

    def value(self, params: Any, batch: Batch) -> Tensor:
        return self.task.loss(params, self.state, batch, params)[0]


def test_samples_in_memory_are_those_of_the_files(tmp_path) -> None:
    generate_irf(tmp_path / "v1", ("nk", "lss"), samples=40, seed=7)
    files = irf_data.open_irf(irf_data.IRFDataConfig(data=tmp_path / "v1", worlds=("nk", "lss")), 0)
    memory = irf_data.open_irf(irf_data.IRFDataConfig(worlds=("nk", "lss"), samples=40), 7)
    for split, worlds in memory.samples.items():
        for name, ours in worlds.items():
            theirs = files.samples[split][name]
            assert torch.equal(ours.theta, theirs.theta) and torch.allclose(ours.irf, theirs.irf, rtol=1e-6)
    with pytest.raises(ValueError, match="samples"):
        irf_data.open_irf(irf_data.IRFDataConfig(data=tmp_path, samples=7), 0)
    with pytest.raises(ValueError, match="worlds: expected names of nk, var, lss, got 'rbc'"):
        irf_data.worlds_of(("rbc",))


def test_the_scale_is_of_the_training_rows_alone() -> None:
    made = Made(kind="raw")
    for split in made.data.samples:
        if split != "train":
            made.data.samples[split] = {}
    again = irf_data.measure_scale(made.nets, made.data)
    assert all(torch.equal(again[name], x) for name, x in made.scale.items())
    train = made.data.samples["train"]["lss"]
    assert torch.allclose(again["x_mean"][2], train.theta.mean(0).float(), atol=1e-6)
    assert torch.allclose(again["x_std"][2], train.theta.std(0).float(), atol=1e-5)
    mean = torch.nn.functional.pad(train.irf.mean(0), (0, 0, 0, 0, 0, 1))
    assert torch.allclose(again["out_mean"][2], mean, atol=1e-7)
    # c_0, say, is no constant, but an entry of L off the diagonal is: it is not scaled up.
    assert float(again["x_std"][1, 22]) == 1.0


@pytest.mark.parametrize("loss_fn", ["mse", "mae"])
@pytest.mark.parametrize("kind", ["raw", "world"])
def test_the_loss_by_hand(kind, loss_fn) -> None:
    made = Made(kind=kind, loss_fn=loss_fn, horizon_weights="impact", lambda_smooth=0.3)
    batch = made.rows(*ALL)
    total, weight, aux = made.task.loss(made.params, made.state, batch, made.params)
    by_hand = torch.zeros(())
    w = losses.horizon_weights(40, "impact")
    for number, name in enumerate(ALL):
        world, train = WORLDS[name], made.data.samples["train"][name]
        made_irf = irf_measure.emulated(made.nets, made.params, made.state, world, train.theta[:4])
        size = batch["size"][batch["world"] == number][:, : len(world.shocks.names)]
        unit = train.irf / irf_data.rows_of(made.nets, {name: train})["size"][:, :, None, None]
        std = unit.transpose(1, 2).flatten(0, 1).std(0)
        e = (made_irf - train.irf[:4]) / (size[..., None, None] * std[:, None])
        e = e.square() if loss_fn == "mse" else e.abs()
        bent = (made_irf / (size[..., None, None] * std[:, None])).diff(n=2, dim=2).square().mean((2, 3))
        by_hand = by_hand + torch.einsum("h,nshv->", w, e) + 0.3 * bent.sum()
    assert torch.allclose(total, by_hand, rtol=1e-4) and float(weight) == 12
    assert aux.metrics.keys() == {loss_fn, "smoothness"}


def test_a_single_shock_is_that_of_all() -> None:
    made = Made("mlp", "raw", shock=1)
    batch = made.rows(*ALL)
    out = irf_respond.predict(made.nets, made.params, made.state, batch)
    truth, own = irf_respond.target(made.nets, batch)
    assert out.shape == truth.shape == (12, 1, 41, 3) and own.all()
    assert torch.equal(truth[:, 0], batch["irf"][:, 1])
    total = made.value(made.params, batch)
    other = batch | {"irf": batch["irf"].clone()}
    other["irf"][:, [0, 2]] = 7.0
    assert torch.equal(total, made.value(made.params, other))


@pytest.mark.parametrize("kind", ["raw", "world"])
@pytest.mark.parametrize("arch", list(SMALL))
def test_padding_by_another_world_changes_neither_loss_nor_gradient(arch: str, kind: str) -> None:
    """To the last bit, whatever stands in the padding."""
    made = Made(arch, kind, lambda_smooth=0.01)
    for name in ALL:
        alone = made.rows(name)
        first = made.rows(*ALL)
        rows = (first["world"] == ALL.index(name)).nonzero().flatten()
        padded = {key: x[rows].clone() for key, x in first.items()}
        padded["x"][~padded["x_mask"]] = 1e30
        padded["irf"][~padded["shock_mask"]] = 1e30
        assert (
            padded["x"].shape != alone["x"].shape
            or padded["irf"].shape != alone["irf"].shape
            or name == "var"
        )
        assert torch.equal(made.value(made.params, alone), made.value(made.params, padded))
        a, b = (grad(made.value)(made.params, batch) for batch in (alone, padded))
        assert all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))
        assert float(tree.global_norm(a)) > 0


@pytest.mark.parametrize("kind", ["raw", "world"])
@pytest.mark.parametrize("arch", list(SMALL))
def test_another_world_changes_no_derivative_that_is_told(arch: str, kind: str) -> None:
    """With the Sobolev term: derivatives, loss and gradient of the first world, to the last bit."""
    made = Made(arch, kind, sobolev=0.5, lambda_smooth=0.01)
    alone, mixed = made.rows("nk"), made.rows(*ALL)
    assert len(mixed["theta"]) == 12 and mixed["theta"].shape[1] > alone["theta"].shape[1]
    by_itself = made.task.draw(0, 3, Rows.all(4), made.state, alone)
    beside = made.task.draw(0, 3, Rows.all(12), made.state, mixed)
    padded = {name: x[:4] for name, x in beside.items()}
    for name in ("dx", "dsize", "dirf", *(("dbasis",) if kind == "world" else ())):
        inner = tuple(slice(0, n) for n in by_itself[name].shape)
        assert torch.equal(padded[name][inner], by_itself[name]), name
    assert torch.equal(made.value(made.params, by_itself), made.value(made.params, padded))
    a, b = (grad(made.value)(made.params, batch) for batch in (by_itself, padded))
    assert all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))
    later = made.task.draw(0, 4, Rows.all(4), made.state, alone)
    assert not torch.equal(later["dx"], by_itself["dx"])
    # Directions of different parameters, and of different rows, are different numbers.
    assert by_itself["dirf"].flatten(1).unique(dim=0).shape[0] == 4


@pytest.mark.parametrize("arch", list(SMALL))
def test_rows_of_other_worlds_change_no_rows_loss(arch: str) -> None:
    """The gradient of some rows' loss, others being in the batch, is that without them, up to rounding."""
    made = Made(arch, "world" if arch != "pooled" else "raw")
    alone, mixed = made.rows("var"), made.rows(*ALL)
    rows = mixed["world"] == 1
    truth = irf_respond.predict(made.nets, made.params, made.state, alone)
    shown = irf_respond.predict(made.nets, made.params, made.state, mixed)[rows]
    assert torch.allclose(shown[:, :3], truth, rtol=1e-5, atol=1e-9)

    def chosen(params: Any) -> Tensor:
        pred = irf_respond.predict(made.nets, params, made.state, mixed)[rows]
        return (pred - mixed["irf"][rows]).square().sum()

    def only(params: Any) -> Tensor:
        return (irf_respond.predict(made.nets, params, made.state, alone) - alone["irf"]).square().sum()

    a, b = grad(chosen)(made.params), grad(only)(made.params)
    error = tree.global_norm(tree.map(torch.sub, a, b)) / tree.global_norm(b)
    assert float(error) < 1e-5


@pytest.mark.parametrize("kind", ["raw", "world"])
def test_exact_derivatives_against_differences(kind) -> None:
    made = Made(kind=kind, sobolev=0.5)
    batch = made.rows(*ALL)
    direction = torch.randn(12, 36, generator=G(3), dtype=torch.float64)
    found = irf.tangents(made.nets, made.scale, batch, direction)
    for number, name in enumerate(ALL):
        world, rows = WORLDS[name], batch["world"] == number
        size, shocks = len(world.parameters.names), len(world.shocks.names)
        theta = batch["theta"][rows, :size].double()
        span = made.scale["theta_high"][number, :size] - made.scale["theta_low"][number, :size]
        v = direction[rows, :size] * span / np.sqrt(12 * size)
        ahead, behind = (world.irf(theta + s * 1e-6 * v) for s in (1, -1))
        slope = ((ahead - behind) / 2e-6).float()
        assert torch.allclose(found["dirf"][rows][:, :shocks], slope, rtol=1e-3, atol=1e-6)
        assert not found["dirf"][rows][:, shocks:].any()


def test_the_networks_derivative_against_differences() -> None:
    """The Sobolev term by differences of the emulator along the same direction."""
    made = Made(worlds=NK, sobolev=1.0)
    batch = made.task.draw(0, 0, Rows.all(4), made.state, made.rows("nk"))
    plain = Made(worlds=NK)
    with_it, without = made.value(made.params, batch), plain.value(made.params, batch)
    step = 1e-2
    moved = []
    for s in (1, -1):
        shifted = dict(batch)
        for name in ("x", "size", "basis"):
            shifted[name] = batch[name] + s * step * batch["d" + name]
        moved.append(irf_respond.predict(made.nets, made.params, made.state, shifted))
    slope = (moved[0] - moved[1]) / (2 * step)
    unit = batch["size"][..., None, None] * made.scale["irf_std"][0][:, None]
    by_hand = (((slope - batch["dirf"]) / unit).square().sum(-1).mean(-1)).sum()
    assert torch.allclose(with_it - without, by_hand, rtol=2e-3)


def test_balanced_worlds_by_hand() -> None:
    plain, made = Made(), Made(balance=True)
    batch = made.rows("nk", "lss")  # none of var
    recent = torch.tensor([0.5, 3.0, 0.01])
    state = made.state | {"recent": recent}
    each = [plain.value(plain.params, plain.rows(name)) for name in ("nk", "lss")]
    total, weight, aux = made.task.loss(made.params, state, batch, made.params)
    assert torch.allclose(total, each[0] / 0.5 + each[1] / 0.01, rtol=1e-5) and float(weight) == 8
    moved = torch.stack((0.495 + 0.01 * each[0] / 4, recent[1], 0.0099 + 0.01 * each[1] / 4))
    assert made.task.update is not None
    after, _ = made.task.update(state, aux.state, weight)
    assert torch.allclose(after["recent"], moved, rtol=1e-5) and after.keys() == state.keys()
    # What is carried is data to the gradient.
    slope = grad(lambda p: made.task.loss(p, state, batch, p)[0])(made.params)
    theirs = [grad(plain.value)(plain.params, plain.rows(name)) for name in ("nk", "lss")]
    expected = tree.map(lambda a, b: a / 0.5 + b / 0.01, *theirs)
    error = tree.global_norm(tree.map(torch.sub, slope, expected)) / tree.global_norm(expected)
    assert float(error) < 1e-5


def test_draws_do_not_depend_on_the_split_of_a_batch() -> None:
    made = Made(sobolev=1.0)
    batch = made.rows(*ALL)
    whole = made.task.draw(0, 5, Rows.all(12), made.state, batch)
    some = Rows(range(1, 12, 2), 12)
    part = made.task.draw(0, 5, some, made.state, {name: x[1::2] for name, x in batch.items()})
    assert all(torch.allclose(part[name], whole[name][1::2], rtol=1e-5, atol=1e-9) for name in part)


@pytest.mark.parametrize("arch", ["residual", "universal"])
def test_a_few_steps_help(arch: str) -> None:
    made = Made(arch)
    batch = made.rows(*ALL, count=40)
    params = made.params
    before = float(made.value(params, batch))
    for _ in range(80):
        slope = grad(made.value)(params, batch)
        norm = tree.global_norm(slope)
        params = tree.map(lambda p, g: p - 0.1 * g / norm, params, slope)  # noqa: B023
    assert float(made.value(params, batch)) < 0.8 * before


def test_what_validation_says() -> None:
    made = Made()
    batch = made.rows(*ALL)
    totals, weights = made.task.evaluate(made.params, made.state, batch)
    assert totals.keys() == weights.keys() == {"val_loss", "nrmse_nk", "nrmse_var", "nrmse_lss"}
    assert float(weights["nrmse_nk"]) == 12 and float(weights["nrmse_lss"]) == 8
    assert torch.allclose(totals["val_loss"], made.value(made.params, batch))


def test_figures_by_hand() -> None:
    truth = torch.randn(5, 2, 41, 3, generator=G(0), dtype=torch.float64)
    truth[:, 1] = 0  # a shock that moves nothing
    made = truth + 0.1 * torch.randn(truth.shape, generator=G(1), dtype=torch.float64)
    rows = irf_measure.compare("w", "val", ("a", "b"), made, truth)
    row = rows[1]
    assert (row.shock, row.variable, row.samples) == ("a", "inflation", 5)
    y, x = truth[:, 0, :, 1].numpy(), made[:, 0, :, 1].numpy()
    assert row.nrmse == pytest.approx(np.mean(np.sqrt(((x - y) ** 2).mean(1))) / y.std())
    assert row.iae == pytest.approx(np.abs(x - y).sum(1).mean())
    assert row.sign == pytest.approx((np.sign(x[:, :3]) == np.sign(y[:, :3])).mean())
    assert row.by_period[7] == pytest.approx(np.sqrt(((x - y)[:, 7] ** 2).mean()) / y.std())
    shown = irf_report.response_table(rows)[1]
    assert math.isnan(rows[3].sign) and shown[3][6] == "-" and shown[0][6].endswith(" %")
    assert rows[3].nrmse == pytest.approx(float((made[:, 1, :, 0] ** 2).mean(1).sqrt().mean()))


@pytest.mark.parametrize(("period", "share"), [(4, 1.0), (10, 0.0)])
def test_high_frequencies(period: int, share: float) -> None:
    wave = torch.cos(2 * torch.pi * torch.arange(40, dtype=torch.float64) / period)[:, None]
    assert float(irf_measure.high_frequency(wave)) == pytest.approx(share, abs=1e-12)
    assert float(irf_measure.high_frequency(torch.zeros(41, 1))) == 0.0


@pytest.mark.parametrize("kind", ["raw", "world"])
@pytest.mark.parametrize("arch", list(SMALL))
def test_the_emulator_is_a_function_of_theta(arch: str, kind: str) -> None:
    made = Made(arch, kind)
    batch = made.rows(*ALL)
    whole = irf_respond.predict(made.nets, made.params, made.state, batch)
    for number, name in enumerate(ALL):
        shocks = len(WORLDS[name].shocks.names)
        theta = made.data.samples["train"][name].theta[:4]
        respond = emulator(made.nets, made.params, made.state, name)
        out = respond(theta)
        assert torch.allclose(out, whole[batch["world"] == number][:, :shocks], rtol=1e-4, atol=1e-6)
        assert torch.allclose(vmap(respond)(theta), out, rtol=1e-4, atol=1e-6)
        assert torch.allclose(respond(theta.view(2, 2, -1)).flatten(0, 1), out, rtol=1e-4, atol=1e-6)
        slope = grad(lambda t: (respond(t) / out.abs().mean()).sum())(theta)  # noqa: B023
        assert slope.shape == theta.shape and slope.dtype == torch.float64 and bool(slope.isfinite().all())
    with pytest.raises(ValueError, match="world_id: expected one of nk, var, lss, got 'rbc'"):
        emulator(made.nets, made.params, made.state, "rbc")
    with pytest.raises(ValueError, match=r"theta: expected a tensor of shape \[..., 36\]"):
        respond(torch.zeros(2, 12))  # pyright: ignore[reportPossiblyUnboundVariable]


def test_what_is_out_of_range() -> None:
    made = Made()
    train = made.data.samples["train"]["nk"].theta
    told = irf_range.outside(WORLDS["nk"], 0, made.scale, train)
    assert not told.flag.any() and told.reasons == [[]] * len(train)
    odd = train[:3].clone()
    odd[0, 3] = 4.0  # phi_pi
    odd[1, 3], odd[1, 4] = 0.5, 0.0  # phi_pi and phi_y: not determinate
    told = irf_range.outside(WORLDS["nk"], 0, made.scale, odd)
    assert told.flag.tolist() == [True, True, False]
    assert any(why.startswith("phi_pi 4 outside [") for why in told.reasons[0])
    assert "no stable solution" in told.reasons[1]
    for number, name in enumerate(ALL):
        empty = made.data.samples["train"][name].theta[:2].clone()
        empty[1, 5] = torch.nan
        assert irf_range.outside(WORLDS[name], number, made.scale, empty).flag.tolist() == [False, True]
    for number, name in enumerate(ALL):
        for split in ("test_extrapolation_slice", "test_extrapolation_corner"):
            theta = made.data.samples[split][name].theta
            assert irf_range.outside(WORLDS[name], number, made.scale, theta).flag.all(), (name, split)


def test_a_query_warns() -> None:
    made = Made()
    members = [(made.params, made.state), (made.task.init(1)[0], made.state)]
    theta = made.data.samples["train"]["nk"].theta[:2].clone()
    answer = irf_query.ask(made.nets, members, "nk", theta)
    assert answer.irf.shape == (2, 3, 41, 3) and answer.spread is not None and float(answer.spread.max()) > 0
    assert irf_query.ask(made.nets, members[:1], "nk", theta).spread is None
    theta[1, 2] = 0.9
    with pytest.warns(
        irf_query.OutOfRange, match="economy 1: out of the training's range: kappa 0.9 outside"
    ):
        irf_query.ask(made.nets, members, "nk", theta)
    with pytest.raises(ValueError, match="world_id: expected one of nk, var, lss, got 'rbc'"):
        irf_query.ask(made.nets, members, "rbc", theta)
    with pytest.raises(ValueError, match=r"theta: expected a shape \[N, 12\]"):
        irf_query.ask(made.nets, members, "nk", theta[0])
    with pytest.raises(TypeError, match="theta: expected a float64 tensor"):
        irf_query.ask(made.nets, members, "nk", theta.float())


def test_an_ensembles_mean_is_judged() -> None:
    made = Made(worlds=NK)
    members = [(made.task.init(seed)[0], made.state) for seed in range(3)]
    rows, covered = irf_measure.measure(made.nets, members, made.data, ("test_interpolation",))
    theta, truth = made.data.samples["test_interpolation"]["nk"]
    each = torch.stack([irf_measure.emulated(made.nets, *m, WORLDS["nk"], theta) for m in members]).double()
    again = irf_measure.compare(
        "nk", "test_interpolation", WORLDS["nk"].shocks.names, each.mean(0), truth.double()
    )
    assert rows == again
    error, spread = (truth.double() - each.mean(0)).abs(), irf_measure.deviation(each)
    assert spread.shape == truth.shape and bool((spread >= each.std(0)).all())
    flat = torch.tensor([2.0, 1.0, 0.0]).reshape(1, 1, 1, 3, 1).expand(4, 1, 1, 3, 1)  # members that agree
    assert irf_measure.deviation(flat).flatten().tolist() == pytest.approx([2e-4] * 3)
    found = covered["nk", "test_interpolation"]
    assert found.two == pytest.approx(float((error <= 2 * spread).double().mean()))
    assert found.bars == pytest.approx(float((error <= found.factor * spread).double().mean()))
    _, on_validation = irf_measure.measure(made.nets, members, made.data, ("val",))
    assert on_validation["nk", "val"].bars == pytest.approx(0.95, abs=1e-3)  # what the factor was chosen for
    assert on_validation["nk", "val"].factor == found.factor
    assert irf_measure.measure(made.nets, members[:1], made.data, ("val",))[1] == {}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (dict(loss_fn="huber"), "loss_fn: expected one of mse, mae"),
        (dict(horizon_weights="late"), "horizon_weights"),
        (dict(sobolev=-1.0), "sobolev"),
        (dict(lambda_smooth=float("nan")), "lambda_smooth"),
        (dict(tau=0.0, horizon_weights="exponential"), "tau"),
        (dict(tau=5.0), "tau: no effect"),
    ],
)
def test_mistakes_in_the_loss(words: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        irf.check_irf(irf.IRFConfig(irf.IRFLossConfig(**words)))


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (dict(arch="cnn"), "arch: expected one of"),
        (dict(coordinates="polar"), "coordinates"),
        (dict(widths=(3,)), "widths"),
        (dict(arch="mlp", trunk_dim=3), "trunk_dim"),
        (dict(shock=0), "shock: expected None but for"),
        (dict(arch="mlp", coordinates="raw", shock=2), "shock: expected None or 0 to 1, got 2"),
    ],
)
def test_mistakes_in_the_network(words: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        irf_nets(IRFNetConfig(**words), [WORLDS["nk"], WORLDS["lss"]], 40)
