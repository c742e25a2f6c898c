"""fit: what it writes, and that stopping, killing and resuming change no bit of the result."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import yaml
from torch.utils.data import DataLoader
from toy import make_task, validation
from toy_runs import CONFIG, fit_toy, same, stream

from mfk.core import Batches, Rows, Task, tree
from mfk.optim import warmup_cosine
from mfk.train import (
    TrainingDiverged,
    find,
    init_state,
    load,
    load_params,
    read_history,
    saved,
    validation_metrics,
)
from mfk.train.config import make_optimizer


@pytest.fixture(scope="module")
def undisturbed_given(tmp_path_factory):
    return fit_toy(tmp_path_factory.mktemp("given") / "run", batches=stream())


def test_what_a_run_leaves(undisturbed):
    run, state = undisturbed.run, undisturbed.state
    assert state.step == 20 and not undisturbed.interrupted
    assert yaml.safe_load((run / "config.yaml").read_text()) == {"train": {"steps": 20}}
    versions = json.loads((run / "versions.json").read_text())
    assert versions["threads"] == 1 and versions["seed"] == 0
    assert list((run / "logs").iterdir())
    train = [r for r in read_history(run) if "train/loss" in r]
    val = [r for r in read_history(run) if "val/val_loss" in r]
    assert [r["step"] for r in train] == [4, 8, 12, 16, 20]
    assert [r["step"] for r in val] == [0, 6, 12, 18, 20]
    schedule = warmup_cosine(1e-2, 3, 20, 1e-6)
    assert [r["train/lr"] for r in train] == pytest.approx([schedule(r["step"] - 1) for r in train], rel=1e-6)
    names = {
        "loss",
        "grad_norm",
        "lr",
        "skipped",
        "weight",
        "raw_error",
        "skipped_steps",
        "samples_per_second",
    }
    assert {n for n in train[0] if "/" in n} == {f"train/{n}" for n in names}
    assert all(r["train/samples_per_second"] > 0 for r in train)


def test_checkpoints_are_the_best_the_last_and_the_final(undisturbed):
    run = undisturbed.run
    values = {r["step"]: r["val/val_loss"] for r in read_history(run) if "val/val_loss" in r}
    best = min(values, key=lambda step: values[step])
    assert (undisturbed.best_step, undisturbed.best) == (best, values[best])
    assert find(run / "checkpoints", "best").step == best
    steps = [c.step for c in saved(run / "checkpoints")]
    assert steps[-1] == 20 and best in steps and len(steps) <= 3


def test_the_checkpoint_is_the_state_and_validation_sees_the_average(undisturbed):
    task, folder = make_task(), undisturbed.run / "checkpoints"
    like = init_state(task, make_optimizer(CONFIG), 3, ema=True)
    back = load(folder, like)
    assert same(back, undisturbed.state)
    params = load_params(folder, like.params)
    assert same(params, undisturbed.state.ema) and not same(params, undisturbed.state.params)
    batches, error, weight = validation(), 0.0, 0.0
    for batch in batches:
        totals, weights = task.evaluate(params, {}, batch)
        error, weight = error + totals["val_loss"].item(), weight + weights["val_loss"].item()
    assert saved(folder)[-1].metrics["val_loss"] == pytest.approx(error / weight, rel=1e-6)
    assert validation_metrics(task, back, batches) == saved(folder)[-1].metrics


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Python's own handlers: a background job of the shell has SIGINT ignored, nohup's SIGHUP."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize(
    ("number", "stop_at"), [(signal.SIGINT, 0), (signal.SIGTERM, 4), (signal.SIGHUP, 7), (signal.SIGINT, 11)]
)
def test_stop_and_resume_is_bit_identical(tmp_path, capsys, undisturbed_given, number, stop_at):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    first = fit_toy(
        tmp_path / "run",
        batches=stream(stop_at, (number,)),
        resume_hint="python x.py --resume",
        console=True,
    )
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert first.interrupted and first.state.step == stop_at + 1
    assert find(tmp_path / "run" / "checkpoints").step == stop_at + 1
    out = capsys.readouterr().out
    assert f"stopped after step {stop_at + 1} of 20" in out and "Resume with: python x.py --resume" in out
    second = fit_toy(tmp_path / "run", batches=stream(), resume=True)
    assert not second.interrupted and same(second.state, undisturbed_given.state)
    history, expected = read_history(tmp_path / "run"), read_history(undisturbed_given.run)
    for record in history + expected:
        record.pop("time")
        record.pop("train/samples_per_second", None)
    assert history == expected


@pytest.mark.usefixtures("usual_signals")
def test_a_second_signal_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit_toy(tmp_path / "run", batches=stream(7, (signal.SIGINT, signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (
        find(tmp_path / "run" / "checkpoints").step == 6 or find(tmp_path / "run" / "checkpoints").step == 5
    )


def test_a_signal_during_the_last_step(tmp_path, undisturbed_given):
    result = fit_toy(tmp_path / "run", batches=stream(19))
    assert result.interrupted and result.state.step == 20 and same(result.state, undisturbed_given.state)
    again = fit_toy(tmp_path / "run", batches=stream(), resume=True)
    assert not again.interrupted and same(again.state, undisturbed_given.state)


def test_outside_the_main_thread(tmp_path, undisturbed):
    results = []
    thread = threading.Thread(target=lambda: results.append(fit_toy(tmp_path / "run")))
    thread.start()
    thread.join()
    assert same(results[0].state, undisturbed.state)


def test_a_short_burst_is_skipped(tmp_path):
    result = fit_toy(tmp_path / "run", replace(CONFIG, max_consecutive_skips=4), make_task(range(6, 9)))
    assert result.state.step == 20
    assert (result.state.guard.skipped.item(), result.state.opt.step.item()) == (3, 17)
    history = read_history(tmp_path / "run")
    assert [r["train/skipped_steps"] for r in history if "train/loss" in r] == [0, 2, 3, 3, 3]
    assert all(bool(torch.isfinite(x).all()) for x in tree.leaves(result.state.params))


def test_a_long_burst_stops_the_run(tmp_path):
    config = replace(CONFIG, max_consecutive_skips=4)
    with pytest.raises(TrainingDiverged) as caught:
        fit_toy(tmp_path / "run", config, make_task(range(7, 100)))
    message = str(caught.value)
    good = find(tmp_path / "run" / "checkpoints")
    assert "step 12" in message and "train/loss" in message and "5 steps in a row" in message
    assert str(good.path) in message
    state = load(
        tmp_path / "run" / "checkpoints", init_state(make_task(), make_optimizer(config), 0, ema=True)
    )
    assert bool(tree.all_finite(state.params)) and bool(tree.all_finite(state.opt))


def test_parameters_that_overflow_are_never_saved(tmp_path):
    """The gradient is finite and the step is not: lr is too large for fp32."""
    config = replace(CONFIG, lr=3e38, min_lr=0.0, warmup_steps=0, weight_decay=10.0, clip=None)
    with pytest.raises(TrainingDiverged, match=r"Last good checkpoint: .*00000000"):
        fit_toy(tmp_path / "run", config)
    assert [c.step for c in saved(tmp_path / "run" / "checkpoints")] == [0]


def test_without_validation_and_average(tmp_path, capsys):
    config = replace(CONFIG, ema_decay=None, schedule="constant", clip=None)
    result = fit_toy(tmp_path / "run", config, validation=(), console=True)
    assert (result.best_step, result.best, result.state.ema) == (-1, math.inf, None)
    assert [c.step for c in saved(tmp_path / "run" / "checkpoints")] == [15, 20]
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("step 4/20  loss ") and out[-1].startswith("step 20/20  loss ")


def test_batches_that_end_early(tmp_path):
    with pytest.raises(ValueError, match="batches: ended before step 3"):
        fit_toy(tmp_path / "run", batches=Batches(lambda start: iter([{"x": torch.ones(16, 3)}] * 3), None))


def test_more_threads_than_asked_for_are_given_back(tmp_path):
    before = torch.get_num_threads()
    fit_toy(tmp_path / "run", replace(CONFIG, steps=3, threads=before + 1))
    assert torch.get_num_threads() == before
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["threads"] == before + 1


def test_a_failing_save_is_an_error_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    import orbax.checkpoint.experimental.v1 as ocp

    write = ocp.save

    def full(path, tree):
        if path.name == "00000010":
            raise OSError(28, "No space left on device")
        write(path, tree)

    monkeypatch.setattr(ocp, "save", full)
    with pytest.raises(OSError, match=r"00000010.*No space left"):
        fit_toy(tmp_path / "run", validation=())
    assert find(tmp_path / "run" / "checkpoints").step == 5


def test_accumulation_of_the_loop_equals_one_batch(tmp_path):
    one = fit_toy(tmp_path / "one", replace(CONFIG, accumulate=1, batch_size=15))
    four = fit_toy(tmp_path / "four", replace(CONFIG, accumulate=4, batch_size=15))
    for name, p in one.state.params.items():
        torch.testing.assert_close(p, four.state.params[name], rtol=1e-3, atol=1e-5)


def test_rows_of_the_draws_do_not_depend_on_the_split():
    task = make_task()
    whole = task.draw(0, 3, Rows.all(10), {}, {})
    part = task.draw(0, 3, Rows(range(1, 10, 3), 10), {}, {})
    assert torch.equal(whole["x"][1::3], part["x"])


def test_early_stopping_ends_saves_and_says_so(tmp_path, capsys):
    """At lr 0 no validation is better than the first."""
    config = replace(CONFIG, lr=0.0, min_lr=0.0, patience=2, steps=100)
    result = fit_toy(tmp_path / "run", config, console=True)
    assert result.stopped_early and not result.interrupted
    assert result.state.step == 12 and result.best_step == 0
    assert find(tmp_path / "run").step == 12 and find(tmp_path / "run", "best").step == 0
    assert "early stop after step 12: val_loss has not fallen" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["stopped_early"] and record["steps"] == 12 and record["best_step"] == 0
    # It stays stopped, and goes on with more patience.
    assert fit_toy(tmp_path / "run", config, resume=True).state.step == 12
    assert fit_toy(tmp_path / "run", replace(config, patience=3), resume=True).state.step == 18


def test_early_stopping_survives_a_resume(tmp_path):
    config = replace(CONFIG, lr=0.0, min_lr=0.0, patience=2, steps=100)
    fit_toy(tmp_path / "run", config, batches=stream(9))
    result = fit_toy(tmp_path / "run", config, batches=stream(), resume=True)
    assert result.stopped_early and result.state.step == 12


def test_patience_in_epochs(tmp_path):
    config = replace(
        CONFIG, lr=0.0, min_lr=0.0, patience=2, patience_unit="epochs", validate_every=2, steps=100
    )
    assert fit_toy(tmp_path / "run", config, batches=stream()).state.step == 8
    # Stopped between two validations, when the patience is over but has not been asked for: the next asks.
    config = replace(config, validate_every=6, log_every=None)
    part = fit_toy(tmp_path / "part", config, batches=stream(8))
    assert part.interrupted and part.state.step == 9
    result = fit_toy(tmp_path / "part", config, batches=stream(), resume=True)
    assert result.stopped_early and result.state.step == 12
    # The end has its record, whatever the interval.
    assert any("train/loss" in r for r in read_history(tmp_path / "part") if r["step"] == 12)


def test_epochs_decide_everything(tmp_path):
    config = replace(
        CONFIG, epochs=3, warmup_steps=0, warmup_epochs=1, validate_every=None, validate_every_epochs=2,
        log_every=None, log_every_epochs=1, checkpoint_every=None, checkpoint_every_epochs=1, keep_last=None,
    )  # fmt: skip
    result = fit_toy(tmp_path / "run", config, batches=stream())
    assert result.state.step == 12
    history = read_history(tmp_path / "run")
    assert [r["step"] for r in history if "val/val_loss" in r] == [0, 8, 12]
    assert [r["step"] for r in history if "epoch/loss" in r] == [4, 8, 12]
    assert [r["step"] for r in history if "train/loss" in r] == [12]
    assert [c.step for c in saved(tmp_path / "run" / "checkpoints")] == [0, 4, 8, 12]


def test_an_epochs_record_is_the_mean_over_its_steps(tmp_path):
    each = fit_toy(tmp_path / "each", replace(CONFIG, log_every=1), batches=stream())
    config = replace(CONFIG, log_every_epochs=2)
    mean = fit_toy(tmp_path / "mean", config, batches=stream())
    assert same(each.state, mean.state)
    train = {r["step"]: r for r in read_history(each.run) if "train/loss" in r}
    epochs = [r for r in read_history(mean.run) if "epoch/loss" in r]
    assert [r["step"] for r in epochs] == [8, 16]
    for record in epochs:
        steps = [train[step] for step in range(record["step"] - 7, record["step"] + 1)]
        weights = [step["train/weight"] for step in steps]
        assert len(set(weights)) > 1 and record["epoch/weight"] == sum(weights)
        for name in ("loss", "raw_error"):
            expected = sum(w * step[f"train/{name}"] for w, step in zip(weights, steps, strict=True))
            assert record[f"epoch/{name}"] == pytest.approx(expected / sum(weights), rel=1e-6)
        for name in ("grad_norm", "lr"):
            expected = sum(step[f"train/{name}"] for step in steps) / 8
            assert record[f"epoch/{name}"] == pytest.approx(expected, rel=1e-6)
        assert record["epoch/steps"] == 8


def test_skipped_steps_are_not_in_the_mean(tmp_path):
    config = replace(CONFIG, log_every_epochs=1, steps_per_epoch=10)
    fit_toy(tmp_path / "run", config, make_task(range(3, 6)))
    records = [r for r in read_history(tmp_path / "run") if "epoch/loss" in r]
    assert [r["epoch/steps"] for r in records] == [7, 10]
    assert all(math.isfinite(r["epoch/loss"]) for r in records)


@pytest.mark.parametrize("log_every", [None, 1, 7])
def test_a_burst_is_seen_whatever_the_interval_of_the_logs(tmp_path, log_every):
    config = replace(CONFIG, max_consecutive_skips=5, log_every=log_every)
    with pytest.raises(TrainingDiverged, match="steps in a row were skipped"):
        fit_toy(tmp_path / "run", config, make_task(range(1, 9)))


def _loader(seed: int | None = None) -> DataLoader:
    rows = [{"x": torch.linspace(-1, k % 7, 3)} for k in range(40)]
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(rows, batch_size=16, shuffle=True, generator=generator)  # type: ignore[arg-type]


@pytest.mark.parametrize("generator", [None, 5])
def test_a_torch_data_loader_feeds_the_loop_and_resumes(tmp_path, generator):
    """Three batches an epoch, the last one short; the order depends on the seed and the epoch only."""
    config = replace(CONFIG, epochs=4, warmup_steps=0)
    whole = fit_toy(tmp_path / "whole", config, batches=_loader(generator))
    assert whole.state.step == 12
    torch.randn(7)
    part = fit_toy(tmp_path / "part", config, batches=_loader(generator), task=_stopping(5))
    assert part.interrupted and part.state.step == 6
    again = fit_toy(tmp_path / "part", config, batches=_loader(generator), resume=True)
    assert same(again.state, whole.state)
    other = fit_toy(tmp_path / "other", replace(config, seed=1), batches=_loader(generator))
    assert not same(other.state.params, whole.state.params)


def _stopping(at: int) -> Task:
    """The task; a signal comes in while step `at` is drawn."""
    task = make_task()

    def draw(seed, step, rows, state, batch):
        if step == at and rows.index.start == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return task.draw(seed, step, rows, state, batch)

    return task._replace(draw=draw)


def test_the_other_files_of_a_run(tmp_path):
    config = replace(CONFIG, profile=(3, 4))
    run = fit_toy(tmp_path / "run", config).run
    assert json.loads((run / "result.json").read_text())["steps"] == 20
    assert (run / "logs" / "profile_3_4.json").stat().st_size > 1000
    values = json.loads((run / "history.json").read_text())["val/val_loss"]
    assert values["step"] == [0, 6, 12, 18, 20]
    assert {"config.json", "training_history.json", "metadata"} <= {p.name for p in run.iterdir()}
    assert {p.name for p in run.iterdir()} >= {"logs", "checkpoints"}


def test_precision_reaches_the_step(tmp_path):
    states = {p: fit_toy(tmp_path / p, replace(CONFIG, precision=p)).state for p in ("fp32", "bf16", "fp16")}
    assert not same(states["fp32"].params, states["bf16"].params)
    assert all("train/loss_scale" in r for r in read_history(tmp_path / "fp16") if "train/loss" in r)
    for precision, tolerance in (("bf16", 0.1), ("fp16", 0.02)):
        for name, p in states["fp32"].params.items():
            assert float((p - states[precision].params[name]).norm()) < tolerance * float(p.norm())


def test_the_terminal_shows_what_the_level_says(tmp_path, capsys):
    shown = {}
    for level in ("debug", "info", "warning", "error"):
        fit_toy(tmp_path / level, replace(CONFIG, log_level=level), console=True)
        shown[level] = capsys.readouterr().out
    assert "saved in" in shown["debug"] and "saved in" not in shown["info"]
    assert "step 20/20" in shown["info"]
    assert shown["warning"] == shown["error"] == ""
    assert len({len(read_history(tmp_path / level)) for level in shown}) == 1
