"""Motion models as tasks: what a loss is, what it must not depend on, and that it can be trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from motions import WORLD, data
from torch import Tensor
from torch.func import grad

from mfk import losses
from mfk.core import tree
from mfk.core.types import Batch, Rows, Task
from mfk.data import LoaderConfig, WindowConfig
from mfk.losses import TimeConfig
from mfk.tasks import motion, motion_data, motion_measure
from mfk.tasks.motion_net import MotionNet, MotionNetConfig, motion_net, predict

SMALL: dict[str, dict[str, Any]] = {
    "transformer": dict(width=16, layers=1, heads=2, feedforward=32),
    "mlp": dict(hidden=(16, 16)),
    "unet1d": dict(channels=(8, 16), heads=2),
}
HORIZON = 5


class Made:
    """A small network with its task, and one drawn batch."""

    def __init__(
        self, arch: str = "mlp", labels: int = 0, net: dict[str, Any] | None = None, **loss: Any
    ) -> None:
        config = MotionNetConfig(arch=arch, horizon=HORIZON, **{"dropout": 0.0, **SMALL[arch], **(net or {})})  # pyright: ignore[reportArgumentType]
        self.data = data(labels=labels)
        self.loss = motion.MotionLossConfig(**loss)
        self.config = motion.MotionConfig(self.loss)
        generative = self.loss.objective != "regression"
        diffusion = motion.diffusion_of(self.loss)
        self.net: MotionNet = motion_net(config, 28, labels, generative, diffusion)
        self.scale = motion_data.measure_scale(self.data, HORIZON)
        self.task: Task = motion.motion_task(self.net, self.data.how, self.scale, self.config)
        self.params, self.state = self.task.init(0)
        # A head of zeros would hide what the network does.
        self.params = tree.map(lambda x: x + 0.05 * torch.randn(x.shape, generator=G(1)), self.params)

    def batch(self, rows: int = 12) -> Batch:
        seen, ahead = motion.window_of(self.net, self.loss)
        source = motion_data.training_batches(
            self.data, seen, ahead, rows, 0, WindowConfig(), LoaderConfig(shuffle=True)
        )
        return next(source.start(0))

    def drawn(self, rows: int = 12, step: int = 0) -> Batch:
        return self.task.draw(0, step, Rows.all(rows), self.state, self.batch(rows))

    def value(self, params: Any, batch: Batch) -> Tensor:
        return self.task.loss(params, self.state, batch, params)[0]


def G(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_by_hand() -> None:
    made = Made(vel_weight=0.3, quat_norm_weight=0.2, quat_distance_weight=0.5)
    batch = made.drawn()
    x = batch["x"]
    total, weight, aux = made.task.loss(made.params, made.state, batch, made.params)
    out = predict(made.net, made.params, made.state["buffers"], made.scale, x[:, :HORIZON])
    truth, before = x[:, HORIZON], x[:, HORIZON - 1]
    q, p = ((y * made.scale["std"] + made.scale["mean"]).unflatten(-1, (4, 7))[..., 3:] for y in (out, truth))
    by_hand = (
        (out - truth).square().mean(-1)
        + 0.3 * ((out - before) - (truth - before)).square().mean(-1)
        + 0.2 * (q.norm(dim=-1) - 1).square().mean(-1)
        + 0.5 * torch.minimum((q - p).square().sum(-1), (q + p).square().sum(-1)).mean(-1)
    )
    assert torch.allclose(total, by_hand.sum(), rtol=1e-5) and float(weight) == 12
    assert torch.allclose(aux.metrics["mse"], (out - truth).square().mean(-1).sum(), rtol=1e-5)


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
def test_a_rollout_by_hand(loss) -> None:
    made = Made(loss=loss, rollout_steps=3, truncate_steps=3, teacher_decay_steps=10)
    batch = made.drawn(step=4)
    assert batch["teacher"].any() and not batch["teacher"].all()
    x, window, rows = batch["x"], batch["x"][:, :HORIZON], torch.zeros(12)
    error = {"mse": losses.squared_error, "l1": losses.absolute_error, "smooth_l1": losses.smooth_l1_error}[
        loss
    ]
    shares = torch.zeros(12)
    for k in range(3):
        out = predict(made.net, made.params, made.state["buffers"], made.scale, window)
        weight = batch["valid"][:, HORIZON + k] / (1 + 0.05 * k)
        rows, shares = rows + weight * error(out, x[:, HORIZON + k]), shares + weight
        if k < 2:
            follows = torch.where(batch["teacher"][:, k, None], x[:, HORIZON + k], out)
            window = torch.cat((window[:, 1:], follows[:, None]), 1)
    assert torch.allclose(made.value(made.params, batch), (rows / shares).sum(), rtol=1e-5)


def test_truncated_gradients() -> None:
    """With truncation after every step no gradient passes through a frame that was fed back."""
    whole = Made(rollout_steps=3, truncate_steps=3)
    cut = Made(rollout_steps=3, truncate_steps=1)
    batch = whole.drawn()
    assert torch.equal(whole.value(whole.params, batch), cut.value(cut.params, batch))
    a, b = grad(whole.value)(whole.params, batch), grad(cut.value)(cut.params, batch)
    assert float(tree.global_norm(tree.map(torch.sub, a, b))) > 1e-3 * float(tree.global_norm(a))


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("arch", list(SMALL))
def test_a_later_frame_changes_no_earlier_prediction(arch: str, ratio: float) -> None:
    """Exactly: with scheduled sampling, the loss of step k sees the truth up to frame k alone."""
    made = Made(arch, rollout_steps=4, truncate_steps=4)
    batch = made.drawn()
    batch["teacher"] = torch.rand(batch["teacher"].shape, generator=G(0)) < ratio
    for k in range(4):
        # All steps after k are masked; their frames then may be anything.
        batch["valid"] = torch.ones_like(batch["valid"])
        batch["valid"][:, HORIZON + k + 1 :] = False
        changed = dict(batch, x=batch["x"].clone())
        changed["x"][:, HORIZON + k + 1 :] = torch.randn(
            changed["x"][:, HORIZON + k + 1 :].shape, generator=G(k)
        )
        assert torch.equal(made.value(made.params, batch), made.value(made.params, changed))
        a, b = (grad(made.value)(made.params, c) for c in (batch, changed))
        assert all(torch.equal(p, q) for p, q in zip(tree.leaves(a), tree.leaves(b), strict=True))


def test_a_sequence_is_predicted_causally() -> None:
    made = Made("transformer", net={"returns": "sequence"})
    x = made.drawn()["x"][:, :HORIZON]
    out = predict(made.net, made.params, made.state["buffers"], made.scale, x)
    assert out.shape == (12, HORIZON, 28)
    for k in range(1, HORIZON):
        changed = x.clone()
        changed[:, k:] += torch.randn(changed[:, k:].shape, generator=G(k))
        other = predict(made.net, made.params, made.state["buffers"], made.scale, changed)
        assert torch.equal(out[:, :k], other[:, :k]) and not torch.equal(out[:, k:], other[:, k:])
    assert float(made.value(made.params, made.drawn())) > 0


@pytest.mark.parametrize("returns", ["last", "sequence"])
def test_what_is_masked_does_not_count_whatever_it_is(returns: str) -> None:
    """NaN beyond a clip's end: loss and gradient are those of the valid frames, to the bit."""
    weights: dict[str, Any] = dict(vel_weight=0.1, quat_norm_weight=0.1, quat_distance_weight=0.1)
    made = Made(
        "transformer", net={"returns": returns}, rollout_steps=3, teacher_decay_steps=10**9, **weights
    )
    batch = made.drawn()
    batch["valid"] = torch.ones_like(batch["valid"])
    batch["valid"][::2, HORIZON + 1 :] = False
    spoilt = dict(batch, x=batch["x"].clone())
    spoilt["x"][::2, HORIZON + 1 :] = torch.nan
    assert torch.equal(made.value(made.params, batch), made.value(made.params, spoilt))
    a, b = (grad(made.value)(made.params, c) for c in (batch, spoilt))
    assert all(torch.equal(p, q) for p, q in zip(tree.leaves(a), tree.leaves(b), strict=True))
    # The valid windows alone have the same gradient as they have among the others.
    few = {name: x[1::2] for name, x in batch.items()}
    alone = grad(made.value)(made.params, few)
    masked = dict(spoilt, valid=spoilt["valid"].clone())
    rest = grad(made.value)(made.params, {name: x[::2] for name, x in masked.items()})
    for whole, one, other in zip(tree.leaves(b), tree.leaves(alone), tree.leaves(rest), strict=True):
        assert torch.allclose(whole, one + other, atol=1e-6)


def test_gradients_against_finite_differences() -> None:
    made = Made(loss="smooth_l1", vel_weight=0.1, quat_norm_weight=0.2, quat_distance_weight=0.3,
                rollout_steps=3, truncate_steps=3)  # fmt: skip
    params, state, batch = (tree.cast(x, torch.float64) for x in (made.params, made.state, made.drawn()))

    def value(p: Any) -> Tensor:
        return made.task.loss(p, state, batch, p)[0]

    gradient = grad(value)(params)
    direction = tree.map(lambda x: torch.randn(x.shape, generator=G(3), dtype=x.dtype), params)
    slope = sum((g * d).sum() for g, d in zip(tree.leaves(gradient), tree.leaves(direction), strict=True))
    h = 1e-6
    ahead = value(tree.map(lambda p, d: p + h * d, params, direction))
    behind = value(tree.map(lambda p, d: p - h * d, params, direction))
    assert float(slope) == pytest.approx(float((ahead - behind) / (2 * h)), rel=1e-5)


@pytest.mark.parametrize("arch", list(SMALL))
@pytest.mark.parametrize("objective", ["regression", "meanflow", "diffusion"])
def test_split_batches_agree(arch: str, objective: str) -> None:
    more = dict(rollout_steps=2) if objective == "regression" else {}
    made = Made(arch, labels=3, net={"dropout": 0.2}, objective=objective, noise=0.1, **more)
    batch = made.batch()
    whole = made.task.draw(0, 3, Rows.all(12), made.state, batch)
    total = made.value(made.params, whole)
    parts = []
    for k in range(3):
        index = range(k, 12, 3)
        some = {name: x[k::3] for name, x in batch.items()}
        parts.append(made.value(made.params, made.task.draw(0, 3, Rows(index, 12), made.state, some)))
    assert torch.allclose(total, torch.stack(parts).sum(), rtol=1e-5)
    gradient = grad(made.value)(made.params, whole)
    assert all(bool(g.isfinite().all()) for g in tree.leaves(gradient))


def test_dropout_and_noise_are_of_the_step_and_the_seed() -> None:
    made = Made(net={"dropout": 0.3}, noise=0.2)
    a, again, other = made.drawn(step=1), made.drawn(step=1), made.drawn(step=2)
    assert all(torch.equal(a[name], again[name]) for name in a)
    assert not torch.equal(a["key"], other["key"]) and not torch.equal(a["noise"], other["noise"])
    assert made.value(made.params, a) != made.value(made.params, other)


def test_the_flow_of_meanflow_is_that_of_the_residual() -> None:
    """A field that knows the answer, u = z1 - z0, has no loss, and one step of it is the true frame."""
    made = Made(objective="meanflow")
    batch = made.drawn()
    x, frame = batch["x"][:, :HORIZON], batch["x"][:, HORIZON]
    end = motion.flow_end(made.net, made.scale, x, frame)
    assert torch.allclose(motion.flow_frame(made.net, made.scale, x, end), frame, atol=1e-5)
    assert float(end.square().mean()) < 10  # in units of its deviation
    v = end - batch["z0"]
    n = len(batch["t"])
    z = batch["z0"] + batch["r"] * v
    assert n == 3  # a quarter
    exact = losses.meanflow(lambda z, r, t: v[:n], z[:n], v[:n], batch["r"][:n], batch["t"])
    assert float(exact.max()) == 0


def test_diffusion_tells_the_noise_in_the_residual() -> None:
    made = Made(objective="diffusion", noise_schedule=(0.01, 0.3), noise_steps=20, sample_steps=4)
    batch = made.drawn(rows=100)
    assert sorted(batch["s"].unique().tolist()) == list(range(20))
    total, weight, _ = made.task.loss(made.params, made.state, batch, made.params)
    # A head of zeros says that there is no noise: the error is the noise's own mean square.
    still = dict(made.params)
    still["leave.weight"], still["leave.bias"] = (0 * still[f"leave.{x}"] for x in ("weight", "bias"))
    by_hand = batch["z0"].square().mean(-1).sum()
    assert torch.allclose(made.task.loss(still, made.state, batch, still)[0], by_hand, rtol=1e-5)
    assert float(total) != float(by_hand) and float(weight) == 100
    noise = torch.randn(100, 1, 28, generator=G(5))
    frame = motion.predictor_of(made.net, made.params, made.state, noise)(batch["x"][:, :HORIZON], None, 0)
    assert frame.shape == (100, 28) and bool(frame.isfinite().all())


def test_evaluate_is_what_measures_say_and_baselines_are_what_they_are() -> None:
    made = Made()
    batches = motion_data.validation_batches(made.data, HORIZON, 6, None, 0)
    totals, weights = made.task.evaluate(made.params, made.state, batches[0])
    frames, valid = batches[0]["frames"], batches[0]["valid"]
    given = (WORLD, made.scale, motion_measure.extrapolator("last", made.scale), frames, valid, None, HORIZON)
    step, made_frames = motion_measure.next_steps(*given), motion_measure.rollouts(*given)
    # Persistence: the last frame stands still, its error is the distance that the truth has gone.
    moved = (frames[:, HORIZON:, :, :3] - frames[:, HORIZON - 1 : HORIZON, :, :3]).norm(dim=-1).mean(-1)
    assert torch.allclose(made_frames.position_cm, 100 * moved, atol=1e-3)
    one = (frames[:, HORIZON:, :, :3] - frames[:, HORIZON - 1 : -1, :, :3]).norm(dim=-1).mean(-1)
    assert torch.allclose(step.position_cm, 100 * one, atol=1e-3)
    assert float(weights["val_loss"]) == float(valid[:, HORIZON:].sum())
    assert {"val_loss", "mae", "rollout_cm", "position_cm", "joint_deg"} <= totals.keys()


def test_training_lowers_the_error_of_held_out_frames(tmp_path) -> None:
    from mfk import train

    made = Made(net={"hidden": (64, 64)})
    batches = motion_data.training_batches(made.data, HORIZON, 1, 64, 0, WindowConfig(), LoaderConfig())
    validation = motion_data.validation_batches(made.data, HORIZON, 6, None, 0)
    config = train.TrainConfig(
        steps=150, batch_size=64, lr=3e-3, jit=False, ema_decay=0.95, validate_every=50
    )
    result = train.fit(
        made.task,
        config,
        run=tmp_path / "run",
        record={},
        validation=validation,
        batches=batches,
        console=False,
    )
    losses_seen = [r["val/val_loss"] for r in train.read_history(tmp_path / "run") if "val/val_loss" in r]
    assert result.best < 0.9 * losses_seen[0]
    # What was measured of the data is in the checkpoint.
    _, state = made.task.init(1)
    saved = train.load_state(tmp_path / "run", state, "best")
    assert all(torch.equal(saved["scale"][name], x) for name, x in made.scale.items())


def test_refusals() -> None:
    made = Made()
    with pytest.raises(ValueError, match="batch: expected the keys"):
        made.task.draw(0, 0, Rows.all(12), made.state, {})
    with pytest.raises(ValueError, match="frames: expected the shape"):
        batch = made.batch()
        made.task.draw(0, 0, Rows.all(12), made.state, dict(batch, frames=batch["frames"][:, 1:]))
    mistakes: list[tuple[dict[str, Any], str]] = [
        (dict(vel_weight=-1.0), "vel_weight"),
        (dict(rollout_steps=0), "rollout_steps"),
        (dict(truncate_steps=2), "truncate_steps"),
        (dict(loss="huber"), "loss: expected one of"),
        (dict(objective="meanflow", vel_weight=1.0), "vel_weight"),
        (dict(weight_p=0.5), "weight_p"),
        (dict(noise_steps=10), "noise_steps"),
        (dict(objective="diffusion", noise_schedule=(0.0, 0.1)), "first: expected a number between"),
        (dict(objective="diffusion", sample_steps=2000), "steps: expected an int in"),
    ]
    for changes, message in mistakes:
        with pytest.raises(ValueError, match=message):
            motion.motion_task(
                made.net, WORLD, made.scale, motion.MotionConfig(motion.MotionLossConfig(**changes))
            )
    with pytest.raises(ValueError, match="jvp_share"):
        motion.motion_task(made.net, WORLD, made.scale, motion.MotionConfig(times=TimeConfig(jvp_share=0.5)))
    good = MotionNetConfig()
    for changed, message in (
        (replace(good, input_dim=27), "input_dim: expected the 28 numbers"),
        (replace(good, output_dim=1), "output_dim"),
        (replace(good, conditioning_dim=5), "conditioning_dim: expected the width of the data's labels, 3"),
        (replace(good, horizon=65), "max_seq_len, 64"),
        (replace(good, horizon=2), "base: linear needs a horizon of at least 3"),
        (replace(good, arch="mlp", width=3), "width"),
        (replace(good, returns="sequence", causal=False), "returns: sequence needs causal"),
    ):
        with pytest.raises(ValueError, match=message):
            motion_net(changed, 28, 3, False)
    with pytest.raises(ValueError, match="returns"):
        motion_net(replace(good, returns="sequence"), 28, 3, True)
