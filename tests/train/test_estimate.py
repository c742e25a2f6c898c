"""Estimates against sums by hand, against the profiler's allocations, and against a process's peak."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import make_task

from mfk.core import Aux, Task, config, rng, stateless, yaml12
from mfk.losses import flow_matching, meanflow
from mfk.nn import MeanFlowNet
from mfk.optim import adamw, constant
from mfk.train import TrainConfig, init_state, make_train_step
from mfk.train.estimate import describe_run, memory_estimate

INPUTS, HIDDEN = 4, 512
PLAIN = TrainConfig(batch_size=1_000, device="cpu")


def _wide(chunk: int | None = None) -> Task:
    """Regression by Linear-Tanh-Linear; the loss may take its rows in chunks."""
    model = stateless(lambda: nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)))

    def draw(seed, step, rows, state, batch):
        return dict(batch) or {"x": rng.normal(rng.key(seed, step, "x"), rows, (INPUTS,))}

    def loss(params, state, batch, teacher):
        x = batch["x"]
        chunks = x.split(chunk or len(x))
        total = torch.stack([model.apply(params, {}, part).square().sum() for part in chunks]).sum()
        return total, torch.tensor(float(len(x))), Aux(state, {})

    return Task(model.init, draw, loss, lambda *a: ({}, {}))


def _flow() -> Task:
    """MeanFlow on a quarter of the rows, flow matching on the rest: "t" is shorter than the other tensors."""
    model = stateless(lambda: MeanFlowNet(7, width=64, blocks=2, condition=16, frequencies=8))

    def draw(seed, step, rows, state, batch):
        drawn = {
            name: rng.normal(rng.key(seed, step, name), rows, (n,))
            for name, n in (("z", 7), ("v", 7), ("p", 7))
        }
        r = rng.uniform(rng.key(seed, step, "r"), rows, (1,)) / 2
        return {**drawn, "r": r, "t": r[: len(r) // 4] + 0.5}

    def loss(params, state, batch, teacher):
        z, v, p, r, t = (batch[name] for name in ("z", "v", "p", "r", "t"))
        n = len(t)

        def field(pose):
            return lambda z, r, t: model.apply(params, state, z, pose, r, t)

        error = torch.cat(
            (meanflow(field(p[:n]), z[:n], v[:n], r[:n], t), flow_matching(field(p[n:]), z[n:], v[n:], r[n:]))
        )
        return error.sum(), torch.tensor(float(len(z))), Aux(state, {})

    return Task(model.init, draw, loss, lambda *a: ({}, {}))


def _allocated(task: Task, config: TrainConfig) -> int:
    """Most bytes that one real step had allocated at a time, by the allocator's own record."""
    from torch.profiler import ProfilerActivity, profile

    optimizer = adamw()
    state = init_state(task, optimizer, 0, ema=config.ema_decay is not None)
    step = make_train_step(
        task,
        optimizer,
        constant(1e-3),
        seed=0,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        clip=config.clip,
        ema_decay=config.ema_decay,
        precision=config.precision,
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        step(state, {})
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events: list[Any] = recorded.profiler.kineto_results.events()
    events = [e for e in events if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_what_a_run_keeps_is_counted_by_hand():
    estimate = memory_estimate(make_task(), PLAIN)
    numbers = (3 * 8 + 8) + (8 + 1)
    assert estimate.parameters == estimate.gradients == estimate.average == 4 * numbers
    # Two moments and a count; the guard: skipped, consecutive, worst, clean, scale; the task: one number.
    assert estimate.moments == 2 * 4 * numbers + 4
    assert estimate.carried == 4 * 8 + 4 + 4
    assert estimate.batch == 1_000 * (3 * 4 + 4 + 1)
    assert estimate.saving == 2 * (4 * 4 * numbers + 4 + 40)
    assert estimate.total == estimate.device + estimate.process == sum(estimate) - estimate.saving


@pytest.mark.parametrize("rows", [40, 128, 129, 5_000])
def test_activations_by_hand(rows):
    """Alive where the backward pass ends: tanh's value, its gradient, and the gradient of its argument."""
    estimate = memory_estimate(_wide(), replace(PLAIN, batch_size=rows))
    weights = 4 * (INPUTS * HIDDEN + HIDDEN + HIDDEN + 1)
    few = 4 * rows * 4 + weights  # the rows' outputs and errors; the step scales the gradient into new memory
    assert 0 <= estimate.activations - 3 * 4 * rows * HIDDEN < few


@pytest.mark.parametrize("accumulate", [1, 2, 5])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_allocator_agrees(accumulate, precision):
    """The estimate saw 32 and 128 rows in a micro-batch, the allocator all of them."""
    task = _flow()
    config = replace(PLAIN, batch_size=3_000, accumulate=accumulate, precision=precision)
    estimate = memory_estimate(task, config)
    made = estimate.gradients + estimate.activations
    assert made == pytest.approx(_allocated(task, config), rel=0.05)
    assert estimate.activations > 10 * estimate.gradients


def test_the_allocator_agrees_where_operations_depend_on_the_rows():
    task, config = _wide(chunk=48), replace(PLAIN, batch_size=3_000)
    estimate = memory_estimate(task, config)
    assert estimate.gradients + estimate.activations == pytest.approx(_allocated(task, config), rel=0.15)


@pytest.mark.parametrize(
    ("rows", "accumulate"),
    [(1, 1), (128, 1), (400, 1), (2_000, 1), (800, 2), (1_200, 3), (2_800, 7), (3_200, 8)],
)
def test_the_allocator_agrees_where_parameters_are_most_of_it(rows, accumulate):
    """With few rows a step peaks in the update, with many in the loss: two peaks do not make a line."""
    model = stateless(lambda: nn.Sequential(nn.Linear(INPUTS, 900), nn.Tanh(), nn.Linear(900, 900)))

    def loss(params, state, batch, teacher):
        return model.apply(params, {}, batch["x"]).sum(), torch.tensor(1.0), Aux(state, {})

    task = _wide()._replace(init=model.init, loss=loss)
    config = replace(PLAIN, batch_size=rows, accumulate=accumulate)
    estimate = memory_estimate(task, config)
    made = estimate.gradients + estimate.activations
    assert made == pytest.approx(_allocated(task, config), rel=0.02)


def test_settings_change_the_lines_that_they_should():
    base = memory_estimate(_wide(), PLAIN)

    def changed(**settings):
        other = memory_estimate(_wide(), replace(PLAIN, **settings))
        # What a process holds wanders a little; the heap and the copies follow from the others.
        names = set(base._fields) - {"process", "heap", "saving"}
        return other, {name for name in names if getattr(other, name) != getattr(base, name)}

    other, names = changed(ema_decay=None)
    assert names == {"average"} and other.average == 0 and other.saving < base.saving
    other, names = changed(batch_size=2_000)
    assert names == {"batch", "activations"} and other.batch == 2 * base.batch
    assert other.activations == pytest.approx(2 * base.activations, rel=0.01)
    other, names = changed(accumulate=4)
    assert names == {"gradients", "batch", "activations"} and other.gradients == 3 * base.gradients
    assert other.batch == base.batch / 4
    assert other.activations == pytest.approx(base.activations / 4, rel=0.05)
    other, names = changed(precision="bf16")
    assert names == {"activations"} and other.activations < 0.9 * base.activations
    assert changed(precision="fp16")[0].activations == other.activations
    assert changed(lr=0.5, clip=None, seed=3, steps=7)[1] <= {"activations"}


def test_rows_of_a_data_set():
    data = {"x": torch.ones(5_000, INPUTS)}
    given, drawn = memory_estimate(_wide(), PLAIN, data), memory_estimate(_wide(), PLAIN)
    assert given.batch == 4 * 1_000 * INPUTS
    assert given.activations == drawn.activations
    assert "batch: 1,000 rows\n#   x  (1000, 4) float32" in describe_run(_wide(), PLAIN, data)
    few = memory_estimate(_wide(), PLAIN, {"x": data["x"][:10]})
    assert few.batch == 4 * 10 * INPUTS and few.activations < given.activations / 20
    micro = describe_run(_wide(), replace(PLAIN, accumulate=3), {"x": data["x"][:100]})
    assert "batch: micro-batch 1 of 3, 34 of 100 rows\n#   x  (34, 4) float32" in micro


def test_a_process_counts_what_it_holds():
    before = memory_estimate(_wide(), PLAIN).process
    held = torch.ones(50_000_000)
    after = memory_estimate(_wide(), PLAIN).process
    assert after - before == pytest.approx(held.numel() * 4, rel=0.2)


def test_the_state_of_the_measured_steps_is_given_back():
    # Blocks of this size stay in the process when they are freed, unless it is asked to hand them back.
    model = stateless(lambda: nn.Sequential(*(nn.Linear(1_000, 1_000) for _ in range(24))))

    def loss(params, state, batch, teacher):
        return model.apply(params, {}, batch["x"]).sum(), torch.tensor(1.0), Aux(state, {})

    def draw(seed, step, rows, state, batch):
        return {"x": rng.normal(rng.key(seed, step, "x"), rows, (1_000,))}

    before = memory_estimate(make_task(), PLAIN).process
    estimate = memory_estimate(
        Task(model.init, draw, loss, lambda *a: ({}, {})), replace(PLAIN, batch_size=8)
    )
    assert estimate.parameters == 4 * 24 * 1_000 * 1_001
    assert estimate.process - before < estimate.parameters / 2


def test_the_text_is_a_comment_of_the_config():
    text = describe_run(make_task(), PLAIN)
    assert all(line.startswith("# ") for line in text.splitlines()) and text.endswith("\n")
    whole = config.to_yaml(PLAIN) + text
    assert yaml12.loads(whole, "dry run") == config.to_dict(PLAIN)
    for line in ("# parameters: 41", "#   0.weight  (8, 3) float32", "# carried state: 1"):
        assert line in text.splitlines()
    table = [line.split() for line in text.splitlines()[-11:]]
    figures = {" ".join(words[1:-1]): float(words[-1].replace(",", "")) for words in table}
    total = figures.pop("sum")
    figures.pop("more while a checkpoint is written")
    assert total == pytest.approx(sum(figures.values()), abs=0.06 * len(figures))
    assert total > 100


def _tree_task(params) -> Task:
    def loss(params, state, batch, teacher):
        return torch.cat([p.flatten() for p in params.values()]).sum(), torch.tensor(1.0), Aux(state, {})

    return Task(lambda seed: (params, {}), lambda *a: {}, loss, lambda *a: ({}, {}))


def test_repeated_blocks_share_a_line():
    shapes = {
        f"blocks.{i}.{name}": (3,) if name == "bias" else (3, 3) for i in range(12) for name in ("bias", "w")
    }
    shapes |= {"blocks.12.w": (3, 4), "heads.0.w": (2,), "heads.3.w": (2,), "4": (1,), "odd\u2028name": (1,)}
    text = describe_run(_tree_task({name: torch.ones(shape) for name, shape in shapes.items()}), PLAIN)
    names = text[: text.index("# batch")].splitlines()
    assert names == [
        "# parameters: 162",
        "#   4                 (1,) float32",
        "#   blocks.0-11.bias  12 x (3,) float32",
        "#   blocks.0-11.w     12 x (3, 3) float32",
        "#   blocks.12.w       (3, 4) float32",
        "#   heads.0,3.w       2 x (2,) float32",
        "#   'odd\\u2028name'   (1,) float32",
    ]


def test_a_long_tree_is_cut():
    named = {f"layer_{chr(97 + i // 26)}{chr(97 + i % 26)}": torch.ones(i + 1) for i in range(60)}
    text = describe_run(_tree_task(named), PLAIN)
    assert f"#   and 20 more tensors of {sum(range(41, 61)):,}\n" in text
    assert "layer_bn " in text and "layer_bo" not in text


def test_mistakes():
    with pytest.raises(ValueError, match="'y' has 5 rows, 'x' has 4"):
        memory_estimate(_wide(), PLAIN, {"x": torch.ones(4, 3), "y": torch.ones(5)})
    with pytest.raises(ValueError, match=r"device: .*cuda:99"):
        describe_run(_wide(), replace(PLAIN, device="cuda:99"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        memory_estimate(_wide(), PLAIN, {"x": torch.ones(4, 3)})


def _big() -> Task:
    model = stateless(lambda: nn.Sequential(nn.Linear(1_024, 4_096), nn.Tanh(), nn.Linear(4_096, 512)))

    def draw(seed, step, rows, state, batch):
        return {"x": rng.normal(rng.key(seed, step, "x"), rows, (1_024,))}

    def loss(params, state, batch, teacher):
        return model.apply(params, {}, batch["x"]).square().sum(), torch.tensor(1.0), Aux(state, {})

    return Task(model.init, draw, loss, lambda *a: ({}, {}))


_ESTIMATE = """
from test_estimate import PLAIN, _big, memory_estimate, replace
print(memory_estimate(_big(), replace(PLAIN, batch_size=3_000)).total)
"""
_TRAIN = """
from pathlib import Path
from test_estimate import _big, adamw, constant, init_state, make_train_step
from mfk.train import arrays
with arrays.silent_orbax():
    state = init_state(_big(), adamw(), 0, ema=True)
step = make_train_step(_big(), adamw(), constant(1e-3), seed=0, batch_size=3_000, clip=1.0, ema_decay=0.9)
for _ in range(3):
    state, _ = step(state, {})
# Not getrusage: its peak is handed down from the process that started this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
def test_a_process_needs_what_was_estimated():
    """Two fresh processes: one estimates, the other trains and tells its peak."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    sizes = [
        int(
            subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for program in (_ESTIMATE, _TRAIN)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.15)
