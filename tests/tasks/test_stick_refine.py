"""Refinement of stick figures: what is learnt, what a perfect network gives, and where no gradient flows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sticks import REFINE, TEXT, G, Made
from torch import Tensor
from torch.func import grad

from mfk import losses
from mfk.core import tree
from mfk.core.types import Batch, Model, Rows, Tree
from mfk.data.stick import shared_point_gap
from mfk.losses import TimeConfig
from mfk.tasks import stick_refine
from mfk.tasks.stick import StickConfig, StickLossConfig
from mfk.tasks.stick_features import joined
from mfk.tasks.stick_net import RefineConfig, StickNets
from mfk.tasks.stick_refine import draw_noise, move_size, refine, refine_loss

DDPM = replace(REFINE, refinement="ddpm", noise_steps=40, sample_steps=8)
BOTH = pytest.mark.parametrize("config", [REFINE, DDPM], ids=["meanflow", "ddpm"])


def with_network(nets: StickNets, apply: Callable[[Tensor, Tensor], Tensor]) -> StickNets:
    """The networks with (z, t) -> [B, T, D] in place of the one that refines."""
    assert nets.denoiser is not None
    stub = Model(nets.denoiser.init, lambda params, buffers, z, seen, r, t, text: apply(z, t))
    return nets._replace(denoiser=stub)


def case(config: RefineConfig, width: int = 20) -> tuple[Made, Batch, Tensor]:
    """Windows and a prediction of them that is a little wrong."""
    made = Made(refine=config, width=width)
    batch = made.drawn()
    del batch["noise"], batch["drift"]
    truth = batch["motion"][:, 1:]
    given = truth + 0.003 * joined(torch.randn(truth.shape, generator=G(2)))
    return made, batch, given


@BOTH
@pytest.mark.parametrize("width", [20, 48])
def test_a_perfect_network_gives_the_truth(config: RefineConfig, width: int) -> None:
    made, batch, given = case(config, width)
    truth, valid = batch["motion"][:, 1:], batch["valid"][:, 1:]
    size = torch.tensor(0.7)
    state = made.state | {"residual": size}
    end = (truth - given) / stick_refine._unit(given, valid) / size
    assert float(end.abs().max()) * 0.7 < stick_refine._MOST  # so that nothing is cut

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        place = (t[:, 0] * config.noise_steps).round().long() - 1
        share = losses.signal_shares(config.noise_steps)[place][:, None, None]
        return (share.sqrt() * z - end) / (1 - share).sqrt()

    perfect = (lambda z, t: end) if config is REFINE else velocity
    nets = with_network(made.nets, perfect)
    noise = torch.randn(truth.shape, generator=G(3))
    made_of_it = refine(nets, {}, state, given, batch["text"], noise)
    torch.testing.assert_close(made_of_it, truth, atol=2e-4, rtol=0)
    assert float((given - truth).abs().max()) > 5e-3


@BOTH
def test_a_perfect_network_has_no_loss(config: RefineConfig) -> None:
    made, batch, given = case(config)
    batch["valid"][2, 8:] = False
    valid = batch["valid"][:, 1:]
    end = (batch["motion"][:, 1:] - given) / stick_refine._unit(given, valid) * valid[..., None]
    ends = end.clamp(-stick_refine._MOST, stick_refine._MOST)
    state = made.state | {"residual": torch.tensor(1.0)}
    start = joined(batch["refine_noise"]) * valid[..., None]
    if config is not REFINE:
        share = losses.signal_shares(config.noise_steps)[batch["s"]][:, None, None]
        perfect = {8: share.sqrt() * start - (1 - share).sqrt() * ends}
    else:
        batch["r"] = batch["r"] * 0.9  # at the very end the velocity is divided by what is left
        batch["t"] = torch.maximum(batch["t"], batch["r"][: len(batch["t"])])
        first = len(batch["t"])  # rows with an end time come first, the others by themselves
        perfect = {first: ends[:first], 8 - first: ends[first:]}
        assert len(perfect) == 2
    nets = with_network(made.nets, lambda z, t: perfect[len(z)])
    rows, _ = refine_loss(nets, {}, state, batch, given)
    assert rows.shape == (8,) and float(rows.abs().max()) < 1e-5
    wrong = with_network(made.nets, lambda z, t: torch.zeros_like(z))
    assert float(refine_loss(wrong, {}, state, batch, given)[0].min()) > 1e-3


def test_jitter_counts_the_third_differences_of_the_error() -> None:
    made, batch, given = case(DDPM)
    batch["valid"][:] = True
    batch["valid"][2, 8:] = False
    nets = with_network(made.nets, lambda z, t: torch.zeros_like(z))
    plain, more, most = (refine_loss(nets, {}, made.state, batch, given, w)[0] for w in (0.0, 1.0, 3.0))
    torch.testing.assert_close(most - plain, 3 * (more - plain))
    # The network says 0, so that its error is what it was to say.
    valid = batch["valid"][:, 1:]
    share = losses.signal_shares(DDPM.noise_steps)[batch["s"]][:, None, None]
    end = ((batch["motion"][:, 1:] - given) / stick_refine._unit(given, valid)).clamp(-5, 5)
    error = share.sqrt() * joined(batch["refine_noise"]) - (1 - share).sqrt() * end / made.state["residual"]
    for row, frames in ((1, error.shape[1]), (2, 7)):
        e = error[row, :frames]
        third = e[3:] - 3 * e[2:-1] + 3 * e[1:-2] - e[:-3]
        torch.testing.assert_close(plain[row], e.square().mean(), rtol=1e-4, atol=0)
        torch.testing.assert_close(
            (more - plain)[row], third.square().sum() / 20 / e.numel(), rtol=1e-4, atol=0
        )


@BOTH
def test_temperature_is_the_share_of_the_noise(config: RefineConfig) -> None:
    made, batch, given = case(config)
    a, b = (torch.randn(given.shape, generator=G(seed)) for seed in (4, 5))

    def made_of(noise: Tensor, temperature: float) -> Tensor:
        nets = made.nets._replace(refine=replace(config, temperature=temperature))
        return refine(nets, made.params["refine"], made.state, given, batch["text"], noise)

    assert torch.equal(made_of(a, 0.0), made_of(b, 0.0)) and not torch.equal(made_of(a, 1.0), made_of(b, 1.0))
    torch.testing.assert_close(made_of(a, 0.5), made_of(0.5 * a, 1.0))


@BOTH
def test_no_gradient_flows_into_the_transformer(config: RefineConfig) -> None:
    strong, none = (
        Made(StickConfig(StickLossConfig(diffusion=weight)), refine=config) for weight in (10.0, 0.0)
    )
    batch = strong.drawn()
    a, b = (grad(made.value)(strong.params, batch) for made in (strong, none))
    assert all(torch.equal(a["net"][name], b["net"][name]) for name in a["net"])
    assert all(bool(x.isfinite().all()) for x in tree.leaves(a))
    assert float(tree.global_norm(a["refine"])) > 0 and not tree.global_norm(b["refine"])
    difference = strong.value(strong.params, batch) - none.value(strong.params, batch)
    part = strong.task.loss(strong.params, strong.state, batch, strong.params)[2].metrics["refine"]
    torch.testing.assert_close(difference, 10 * part, rtol=1e-4, atol=1e-4)


def moved(state: Tree, sums: Tree) -> Tree:
    return move_size(state, sums, torch.tensor(1.0))[0]


@BOTH
def test_the_size_of_what_is_left_is_followed(config: RefineConfig) -> None:
    made, batch, given = case(config)
    batch["valid"][0, 5:] = False
    valid = batch["valid"][:, 1:]
    state = made.state | {"residual": torch.tensor(0.5)}
    after = moved(state, refine_loss(made.nets, made.params["refine"], state, batch, given)[1])
    left = (batch["motion"][:, 1:] - given) / stick_refine._unit(given, valid)
    left = left.clamp(-stick_refine._MOST, stick_refine._MOST)[valid]
    keep = stick_refine._KEEP
    expected = (keep * 0.25 + (1 - keep) * left.square().mean()).sqrt()
    torch.testing.assert_close(after["residual"], expected)
    assert after.keys() == state.keys() and float(state["residual"]) == 0.5


@BOTH
def test_windows_that_stand_off_are_not_refined(config: RefineConfig) -> None:
    made, batch, given = case(config)
    batch["noise"] = torch.zeros_like(batch["motion"])
    alone, sums = refine_loss(made.nets, made.params["refine"], made.state, batch, given)
    state = moved(made.state, sums)
    batch["noise"][3] = 0.1
    rows, sums = refine_loss(made.nets, made.params["refine"], made.state, batch, given)
    after = moved(made.state, sums)
    assert float(rows[3]) == 0 < float(alone[3])
    assert not torch.equal(after["residual"], state["residual"])
    batch["noise"][:] = 0.1
    none = moved(made.state, refine_loss(made.nets, made.params["refine"], made.state, batch, given)[1])
    assert torch.equal(none["residual"], made.state["residual"])


@BOTH
def test_refined_figures_hold_together_and_are_repeatable(config: RefineConfig) -> None:
    made, batch, given = case(replace(config, temperature=1.0))
    noise = torch.randn(given.shape, generator=G(0))
    a, b = (
        refine(made.nets, made.params["refine"], made.state, given, batch["text"], noise) for _ in range(2)
    )
    assert torch.equal(a, b) and a.shape == given.shape and bool(a.isfinite().all())
    assert float(shared_point_gap(a).max()) < 1e-4
    assert not torch.equal(
        a, refine(made.nets, made.params["refine"], made.state, given, batch["text"], -noise)
    )


def test_what_a_prediction_is_measured_in() -> None:
    """Root mean square acceleration around a frame, of frames that count alone, against a plain loop."""
    made = Made(refine=REFINE)
    given = made.batch()["motion"].double()
    valid = torch.ones(given.shape[:2], dtype=torch.bool)
    valid[1, 6:] = False
    valid[2, 2:] = False
    unit = stick_refine._unit(torch.where(valid[..., None], given, 1e3), valid)
    for b in range(3):
        length = int(valid[b].sum())
        for t in range(length):
            near = range(max(1, t - stick_refine._AROUND), min(length - 1, t + stick_refine._AROUND + 1))
            bends = [(given[b, s + 1] - 2 * given[b, s] + given[b, s - 1]).square().mean() for s in near]
            square = torch.stack(bends).mean() if bends else torch.zeros(())
            expected = (square + stick_refine.FLOOR**2).sqrt()
            torch.testing.assert_close(unit[b, t, 0], expected.double(), rtol=1e-6, atol=1e-9)


@BOTH
def test_what_is_predicted_in_padding_changes_nothing(config: RefineConfig) -> None:
    made, batch, given = case(config)
    batch["valid"][0, 5:] = False
    batch["valid"][3, 9:] = False
    spoilt = torch.where(batch["valid"][:, 1:, None], given, float("nan"))

    def value(params: Any, given: Tensor) -> Tensor:
        return refine_loss(made.nets, params, made.state, batch, given)[0].sum()

    params = made.params["refine"]
    a, b = grad(value)(params, given), grad(value)(params, spoilt)
    assert torch.equal(value(params, given), value(params, spoilt))
    assert all(torch.equal(a[name], b[name]) for name in a)


@BOTH
def test_draws_have_what_the_kind_needs(config: RefineConfig) -> None:
    made = Made(refine=config)
    motion = made.batch()["motion"]
    drawn = draw_noise(made.nets, TimeConfig(), 0, 0, Rows.all(8), motion)
    assert drawn["refine_noise"].shape == (8, 11, 20)
    if config is DDPM:
        many = draw_noise(made.nets, TimeConfig(), 0, 0, Rows.all(4000), motion[:1].expand(4000, 12, 20))
        assert drawn.keys() == {"refine_noise", "s"}
        assert many["s"].unique().tolist() == list(range(40))
    else:
        assert drawn.keys() == {"refine_noise", "r", "t"} and drawn["r"].shape == (8, 1)


def test_networks_without_a_refinement() -> None:
    made = Made()
    given = made.batch()["motion"]
    with pytest.raises(ValueError, match=r"refinement: expected networks with one \(diffusion.enabled\)"):
        refine(made.nets, {}, made.state, given, torch.zeros(8, TEXT), given)
