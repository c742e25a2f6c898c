"""Stick figures as a task: what a loss is, what it must not depend on, and that it can be trained."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from sticks import REFINE, G, Made
from torch import Tensor
from torch.func import grad

from mfk.core import tree
from mfk.core.types import Batch, Rows
from mfk.data.stick import ENVIRONMENTS, GRAVITIES, GRAVITY, StickClip
from mfk.losses import TimeConfig
from mfk.optim import adamw
from mfk.tasks import stick_data, stick_measure
from mfk.tasks.stick import StickConfig, StickLossConfig, check_stick
from mfk.tasks.stick_features import anchor_of, meant, measured, see
from mfk.tasks.stick_net import RefineConfig, StickNetConfig, stick_nets
from mfk.train import init_state, make_train_step

FULL = StickLossConfig(
    anchor=0.6, temporal=0.3, action=0.2, physics=0.7, environment=0.11, consistency=0.4, gravity=0.5,
    clearance=0.02,
)  # fmt: skip
QUIET = replace(FULL, noisy_share=0.0, text_dropout=0.0, action_dropout=0.0)


def made_of(loss: StickLossConfig, **more: Any) -> Made:
    return Made(StickConfig(loss), **more)


def shortened(made: Made, rows: int = 4) -> Batch:
    """Windows whose second and last have only some of their frames."""
    batch = made.batch(rows)
    batch["valid"][1, 7:] = False
    batch["valid"][-1, 4:] = False
    return batch


def spoilt(batch: Batch, number: float = math.nan, label: int = 10**6) -> Batch:
    """The same frames with something else where they do not count."""
    outside = ~batch["valid"]
    changed = {name: x.clone() for name, x in batch.items()}
    for name in ("motion", "physics", "camera"):
        changed[name][outside] = number
    changed["actions"][outside] = label
    return changed


@pytest.mark.parametrize("pose", ["smooth_l1", "mse"])
def test_the_loss_of_a_window_by_hand(pose: Any) -> None:
    config = replace(FULL, pose=pose, noisy_share=0.7, text_dropout=0.4)
    made = made_of(config, frames=10, condition_camera=True)
    batch = made.drawn(shortened(made, 5))
    batch["environment"][:2] = torch.tensor([-1, 3])
    batch["actions"][2, 4:6] = -1
    shown = batch["motion"] + batch["noise"] + batch["drift"]
    assert bool(batch["drift"].any())
    seen = see(made.scale, shown[:, :-1])
    out = made.nets.model.apply(
        made.params["net"], made.state["buffers"]["net"], seen.features, batch["text"],
        batch["told"][:, :-1], batch["camera"][:, :-1],
    )  # fmt: skip
    target = batch["motion"][:, 1:] + (1 - config.recovery) * batch["drift"][:, :-1]
    raw, anchor = out.pose[..., :20], out.pose[..., 20:]
    true, points = measured(seen, target), meant(seen, raw)
    there = anchor_of(made.scale, shown[:, :-1], batch["motion"][:, 1:])

    def error(a: Tensor, b: Tensor) -> Tensor:
        if pose == "mse":
            return (a - b).square().mean()
        return torch.nn.functional.smooth_l1_loss(a, b)

    std = made.scale["physics"]
    fast, hard = std[:2].square().mean(), std[2:4].square().mean()
    rows, flying = [], 0
    for b in range(5):
        count = int(batch["valid"][b, 1:].sum())
        feet = target[b, :count][:, [7, 11]]
        total = torch.zeros(())
        for t in range(count):
            part = error(raw[b, t], true[b, t]) + 0.6 * (anchor[b, t] - there[b, t]).square().mean()
            if t:
                part = part + 0.3 * error(raw[b, t] - raw[b, t - 1], true[b, t] - true[b, t - 1])
            if (label := int(batch["actions"][b, t + 1])) >= 0:
                part = part - 0.2 * out.actions[b, t].log_softmax(-1)[label]
            if (place := int(batch["environment"][b])) >= 0:
                part = part - 0.11 * out.environment[b, t].log_softmax(-1)[place]
            physics = (out.physics[b, t] - batch["physics"][b, t + 1] / std).square().mean()
            now = out.physics[b, t] * std
            if t + 1 < count:
                after = out.physics[b, t + 1] * std
                moved = (points[b, t + 1, :2] - points[b, t, :2]) * 25 - now[:2]
                gained = after[:2] - now[:2] - now[2:4] / 25
                physics = physics + 0.4 * (moved.square().sum() + gained.square().sum()) / fast
            if float(feet[t].min()) > float(feet.min()) + 0.02:
                flying += 1
                g = GRAVITY if int(batch["environment"][b]) < 0 else _gravity(int(batch["environment"][b]))
                physics = physics + 0.5 * (now[3] + g).square() / hard
            total = total + part + 0.7 * physics
        rows.append(total / count)
    value, weight, aux = made.task.loss(made.params, made.state, batch, made.params)
    assert flying
    torch.testing.assert_close(value, torch.stack(rows).sum(), rtol=1e-4, atol=1e-4)
    assert float(weight) == 5
    assert aux.metrics.keys() == {"pose_loss", "anchor", "temporal", "action", "environment", "physics"}


def _gravity(environment: int) -> float:
    return GRAVITY * GRAVITIES.get(ENVIRONMENTS[environment], 1.0)


@pytest.mark.parametrize("weight", ["anchor", "temporal", "action", "physics", "environment"])
def test_a_weight_of_zero_leaves_its_part_out(weight: str) -> None:
    made, without = made_of(QUIET), made_of(replace(QUIET, **{weight: 0.0}))
    batch = made.drawn()
    aux = without.task.loss(made.params, made.state, batch, made.params)[2]
    assert weight not in aux.metrics
    part = made.task.loss(made.params, made.state, batch, made.params)[2].metrics[weight]
    difference = made.value(made.params, batch) - without.value(made.params, batch)
    torch.testing.assert_close(difference, getattr(QUIET, weight) * part, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("refine", [None, REFINE, replace(REFINE, refinement="ddpm")])
@pytest.mark.parametrize("width", [20, 48])
def test_what_stands_in_padding_changes_nothing(width: int, refine: RefineConfig | None) -> None:
    """Loss, metrics, gradient and what is carried, by one bit."""
    made = made_of(FULL, width=width, refine=refine, condition_camera=True)
    batch = shortened(made)
    a, b = made.drawn(batch), made.drawn(spoilt(batch))
    one, other = (made.task.loss(made.params, made.state, x, made.params) for x in (a, b))
    assert bool(one[0].isfinite())
    for p, q in zip(tree.leaves(one), tree.leaves(other), strict=True):
        assert torch.equal(p, q)
    one, other = (grad(made.value)(made.params, x) for x in (a, b))
    for p, q in zip(tree.leaves(one), tree.leaves(other), strict=True):
        assert torch.equal(p, q) and bool(p.isfinite().all())
    for x, y in zip(made.task.evaluate(made.params, made.state, batch),
                    made.task.evaluate(made.params, made.state, spoilt(batch)), strict=True):  # fmt: skip
        assert all(torch.equal(x[name], y[name]) for name in x)


def test_a_short_clip_counts_as_it_would_without_padding() -> None:
    made = made_of(QUIET, condition_camera=True)
    batch = made.drawn(shortened(made))
    for row, length in ((1, 7), (3, 4)):
        padded = {name: x[row : row + 1] for name, x in batch.items()}
        cut = {name: x[:, :length] if x.ndim > 1 and x.shape[1] == 12 else x for name, x in padded.items()}
        torch.testing.assert_close(
            made.value(made.params, padded), made.value(made.params, cut), rtol=1e-5, atol=1e-5
        )


def test_two_micro_batches_are_one_batch() -> None:
    """Row i in number i mod 2, with what is drawn for the rows of each."""
    made = made_of(FULL, dropout=0.1, refine=REFINE)
    whole = made.batch(7)
    total, weight, grads = torch.zeros(()), torch.zeros(()), None
    for k in range(2):
        part = {name: x[k::2] for name, x in whole.items()}
        drawn = made.task.draw(0, 3, Rows(range(k, 7, 2), 7), made.state, part)
        value = made.task.loss(made.params, made.state, drawn, made.params)
        total, weight = total + value[0], weight + value[1]
        slope = grad(made.value)(made.params, drawn)
        grads = slope if grads is None else tree.map(torch.add, grads, slope)
    drawn = made.drawn(whole, step=3)
    torch.testing.assert_close(total, made.value(made.params, drawn), rtol=1e-5, atol=1e-5)
    assert float(weight) == 7
    together = grad(made.value)(made.params, drawn)
    size = tree.global_norm(together)
    assert float(tree.global_norm(tree.map(torch.sub, together, grads))) < 1e-5 * float(size)


def test_what_is_drawn_depends_on_seed_step_and_rows_alone() -> None:
    made = made_of(FULL, dropout=0.1, refine=REFINE)
    batch = made.batch(8)
    a, b = made.drawn(batch), made.drawn(batch)
    random = {"noise", "drift", "key", "refine_noise", "r", "t"}
    assert a.keys() == batch.keys() | random | {"told"}
    assert all(torch.equal(a[name], b[name]) for name in a)
    state = torch.get_rng_state()
    for other in (made.drawn(batch, seed=1), made.drawn(batch, step=1)):
        assert all(not torch.equal(a[name], other[name]) for name in random)
    assert torch.equal(state, torch.get_rng_state())
    part = {name: x[2:7:2] for name, x in batch.items()}
    some = made.task.draw(0, 0, Rows(range(2, 7, 2), 8), made.state, part)
    for name in a.keys() - {"t"}:
        assert torch.equal(some[name], a[name][2:7:2]), name
    ends = len(a["t"])  # the first rows have one
    assert torch.equal(some["t"], a["t"][2 : min(ends, 7) : 2])


def test_shares_of_what_is_left_out_and_added() -> None:
    config = replace(FULL, noisy_share=0.25, text_dropout=0.5, action_dropout=0.75, noise=(1e-3, 1e-2))
    made = made_of(config)
    batch = {name: x[:1].expand(400, *x.shape[1:]) for name, x in made.windows.items()}
    drawn = made.drawn(batch)
    noisy = (drawn["noise"] != 0).flatten(1).any(1)
    assert torch.equal(noisy, (drawn["drift"] != 0).flatten(1).any(1))
    assert 0.18 < float(noisy.float().mean()) < 0.32
    assert 0.42 < float((drawn["text"] == 0).all(1).float().mean()) < 0.58
    assert 0.68 < float((drawn["told"] == -1).all(1).float().mean()) < 0.82
    assert torch.equal(drawn["actions"], batch["actions"])
    # What stands off changes evenly along a window.
    assert float(drawn["drift"].diff(n=2, dim=1).abs().max()) < 1e-5
    # Places that hold one point move alike, which makes for the mean of several numbers.
    sizes = drawn["noise"][noisy].std((1, 2))
    assert float(sizes.min()) > 3e-4 and float(sizes.max()) < 1.3e-2
    quiet = made_of(replace(config, noisy_share=0.0)).drawn(batch)
    assert "noise" not in quiet and "drift" not in quiet


def test_the_label_to_predict_enters_no_prediction() -> None:
    """It changes the action's own error and nothing else, by one bit."""
    made = made_of(QUIET, condition_actions=True)
    batch = made.drawn()
    changed = made.batch()
    changed["actions"][:, -1] = (changed["actions"][:, -1] + 1) % 60
    a, b = (
        made.task.loss(made.params, made.state, x, made.params)[2].metrics
        for x in (batch, made.drawn(changed))
    )
    assert not torch.equal(a["action"], b["action"])
    assert all(torch.equal(a[name], b[name]) for name in a.keys() - {"action"})


def test_evaluation_by_hand() -> None:
    made = made_of(FULL, off=0.0)
    batch = shortened(made)
    totals, weights = made.task.evaluate(made.params, made.state, batch)
    errors, count = 0.0, 0
    for row, length in enumerate((12, 7, 12, 4)):
        x = batch["motion"][row, :length].double()
        errors += float((x[2:] - 2 * x[1:-1] + x[:-2]).square().mean(-1).sum())
        count += length - 2
    assert weights["mse"] == weights["constant_velocity_mse"] == count and weights["val_loss"] == 4
    assert math.isclose(float(totals["constant_velocity_mse"]), errors, rel_tol=1e-3)
    # A network whose pose head is zero is constant velocity.
    assert math.isclose(float(totals["mse"]), errors, rel_tol=1e-3)
    # Neither what is told nor the seed matters.
    other = made.task.evaluate(made.params, made.state, {**batch, "text": batch["text"]})
    assert torch.equal(totals["val_loss"], other[0]["val_loss"])


def test_a_short_training_is_better_than_constant_velocity() -> None:
    loss = StickLossConfig(noisy_share=0.0)
    made = made_of(loss, frames=30, count=40, long=60, off=0.0, net_width=32)
    held, steps = made.clips[32:], 80
    windows = len(stick_data.windows_of(made.clips[:32], 30, False, "training")["motion"])
    model, straight = _errors(made, made.params, held)
    assert model == pytest.approx(straight, rel=1e-4)
    optimizer = adamw(weight_decay=0.0)
    step = make_train_step(
        made.task, optimizer, lambda i: 1e-2 * min(1, (i + 1) / 10) * (1 - i / steps), seed=0, clip=1.0
    )
    state = init_state(made.task, optimizer, 0, ema=False)
    for i in range(steps):
        rows = torch.randint(0, windows, (16,), generator=G(i))
        state, _ = step(state, {name: x[rows] for name, x in made.windows.items()})
    model, again = _errors(made, state.params, held)
    assert again == straight and model < 0.6 * straight


def _errors(made: Made, params: Any, clips: list[StickClip]) -> tuple[float, float]:
    found = stick_measure.next_frame_errors(made.nets, params, made.state, clips, 30)
    row = stick_measure.by_action(found)[-1]
    assert row.action == "all"
    return row.model, row.velocity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose": "l3"}, "pose: expected smooth_l1 or mse"),
        ({"temporal": -1.0}, "temporal: expected a finite number >= 0"),
        ({"action": math.nan}, "action: expected a finite number >= 0"),
        ({"diffusion": math.inf}, "diffusion: expected"),
        ({"noisy_share": 1.5}, "noisy_share: expected a share"),
        ({"text_dropout": -0.1}, "text_dropout: expected a share"),
        ({"recovery": 2.0}, "recovery: expected a share"),
        ({"noise": (0.2, 0.1)}, "noise: expected 0 < least <= largest"),
        ({"drift": (0.0, 0.1)}, "drift: expected 0 < least <= largest"),
        ({"clearance": -1.0}, "clearance: expected a finite number >= 0"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    nets = stick_nets(StickNetConfig(width=16, heads=2), RefineConfig(), 20)
    with pytest.raises(ValueError, match=message):
        check_stick(StickConfig(replace(StickLossConfig(), **change)), nets)


def test_settings_without_effect_are_named() -> None:
    net = StickNetConfig(width=16, heads=2)
    times = StickConfig(times=TimeConfig(jvp_share=0.5))
    for refine in (RefineConfig(), replace(REFINE, refinement="ddpm")):
        with pytest.raises(ValueError, match="times: no effect"):
            check_stick(times, stick_nets(net, refine, 20))
    check_stick(times, stick_nets(net, REFINE, 20))
    cases: list[tuple[RefineConfig, str]] = [
        (RefineConfig(channels=(8,)), "channels"),
        (RefineConfig(refinement="ddpm"), "refinement"),
        (replace(REFINE, noise_steps=10, sample_steps=5), "noise_steps"),
        (replace(REFINE, refinement="ddpm", sample_steps=2_000), "sample_steps: expected 1 to noise_steps"),
    ]
    for refine, message in cases:
        with pytest.raises(ValueError, match=message):
            stick_nets(net, refine, 20)


def test_networks_that_cannot_be_built_say_why() -> None:
    with pytest.raises(ValueError, match=r"width: expected a multiple of heads, 5, got 16"):
        stick_nets(StickNetConfig(width=16, heads=5), RefineConfig(), 20).model.init(0)
    with pytest.raises(ValueError, match="num_actions: expected at least the 60"):
        stick_nets(StickNetConfig(num_actions=59), RefineConfig(), 20)
    with pytest.raises(ValueError, match="motion: expected frames of 20 or 48 numbers, got 21"):
        stick_nets(StickNetConfig(), RefineConfig(), 21)


def test_every_parameter_learns() -> None:
    """Of what is told: none of the parameters is without a gradient, but the unused heads'."""
    made = made_of(FULL, refine=REFINE, condition_camera=True)
    slopes = grad(made.value)(made.params, made.drawn(made.batch(8)))
    still = [
        name for name, x in itertools.chain(slopes["net"].items(), slopes["refine"].items()) if not x.any()
    ]
    assert all(name.startswith(("leave.position", "leave.velocity")) for name in still), still
