"""TrainConfig: what is refused, epochs as steps, the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mfk.train import TrainConfig, resolve_device
from mfk.train.config import check_config, in_steps, is_due

BASE = TrainConfig(steps=100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=0), "steps: expected an int >= 1, got 0"),
        (dict(epochs=0), "epochs: expected an int >= 1"),
        (dict(steps_per_epoch=0), "steps_per_epoch: expected an int >= 1"),
        (dict(validate_every=0), "validate_every: expected an int >= 1"),
        (dict(log_every_epochs=0), "log_every_epochs"),
        (dict(checkpoint_every_epochs=-1), "checkpoint_every_epochs"),
        (dict(warmup_epochs=-1), "warmup_epochs: expected an int >= 0"),
        (dict(patience=0), "patience: expected an int >= 1"),
        (dict(keep_last=0), "keep_last"),
        (dict(patience=3, min_delta=-0.1), "min_delta: expected a finite number >= 0"),
        (dict(patience=3, min_delta=1.0), "min_delta: expected a share below 1"),
        (dict(patience=3, validate_every=None), "patience: early stopping needs validations"),
        (dict(min_delta=0.1), "min_delta: 0.1 would have no effect"),
        (dict(patience_unit="epochs"), "patience_unit: 'epochs' would have no effect"),
        (dict(precision="fp8"), "precision: expected one of"),
        (dict(log_level="loud"), "log_level: expected one of"),
        (dict(trackers=("wandb", "wandb")), "trackers: expected some of"),
        (dict(trackers=("visdom",)), "trackers: expected some of"),
        (dict(profile=(5, 4)), r"profile: expected the first step and the last, got \(5, 4\)"),
        (dict(profile=(-1, 4)), "profile: expected an int >= 0"),
        (dict(accumulate=300), "accumulate: expected at most batch_size"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(replace(BASE, **changes))


def test_epochs_become_steps():
    config = replace(BASE, epochs=3, warmup_epochs=1, patience=2, patience_unit="epochs")
    plan = in_steps(config, 7)
    assert (plan.steps, plan.warmup_steps, plan.steps_per_epoch) == (21, 7, 7)
    assert plan.epochs is None and plan.warmup_epochs is None
    assert in_steps(replace(config, steps_per_epoch=5), None).steps == 15
    # The data's own epoch goes first.
    assert in_steps(replace(config, steps_per_epoch=5), 7).steps == 21
    assert in_steps(BASE, 7).steps == 100 and in_steps(BASE, None).steps_per_epoch is None
    assert in_steps(replace(BASE, warmup_steps=9, warmup_epochs=0), 7).warmup_steps == 0


@pytest.mark.parametrize(
    ("changes", "per_epoch", "message"),
    [
        (
            dict(epochs=2),
            None,
            "epochs: data that are made on the fly have no epochs",
        ),
        (dict(validate_every_epochs=2), None, "validate_every_epochs: data"),
        (dict(patience=2, patience_unit="epochs"), None, "patience_unit: data"),
        (dict(steps_per_epoch=4), None, "steps_per_epoch: has no effect"),
        (dict(warmup_epochs=50), 7, "warmup_epochs: expected at most the run's 100 steps, got 350"),
        (dict(warmup_steps=101), 7, "warmup_steps: expected at most the run's 100 steps, got 101"),
        (dict(profile=(100, 101)), None, "profile: expected to begin before step 100"),
    ],
)
def test_what_an_epoch_of_no_length_refuses(changes, per_epoch, message):
    with pytest.raises(ValueError, match=message):
        in_steps(replace(BASE, **changes), per_epoch)


def test_is_due():
    assert [step for step in range(1, 13) if is_due(step, 5, None, None)] == [5, 10]
    assert [step for step in range(1, 13) if is_due(step, None, 2, 3)] == [6, 12]
    assert [step for step in range(1, 13) if is_due(step, 5, 1, 6)] == [5, 6, 10, 12]
    assert not any(is_due(step, None, None, None) for step in range(1, 13))


def test_devices(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device: expected one of the 2 CUDA devices"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, message in (
        ("cuda", "one of the 0 CUDA"),
        ("mps", "finds none here"),
        ("gpu", "expected auto, cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == torch.device("mps")
