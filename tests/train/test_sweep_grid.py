"""The grid of a sweep: which runs a command line means, and which it cannot mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sweep_toy import Fake

from mfk.train import sweep as engine
from mfk.train import sweep_check
from mfk.train.sweep_grid import differences


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


@pytest.mark.parametrize(
    ("line", "names", "words", "settings"),
    [
        (
            "--lr 1e-4 3e-4 --seed 0 1",
            ["lr=1e-4,seed=0", "lr=1e-4,seed=1", "lr=3e-4,seed=0", "lr=3e-4,seed=1"],
            ["--lr=3e-4", "--seed=1"],
            {"train.lr": 3e-4, "train.seed": 1, "train.steps": 4},
        ),
        (
            "long --betas 0.9 0.99 0.8 0.95 --lr 1",
            ["betas=0.9_0.99", "betas=0.8_0.95"],
            ["long", "--betas", "0.8", "0.95", "--lr=1"],
            {"train.betas": [0.8, 0.95], "train.lr": 1.0, "train.steps": 40},
        ),
        (
            "--learning_rate=1 2 --batch_size 4",
            ["lr=1", "lr=2"],
            ["--lr=2", "--batch-size=4"],
            {"train.lr": 2.0, "batch_size": 4},
        ),
        ("--clip None 0.5", ["clip=None", "clip=0.5"], ["--clip=0.5"], {"train.clip": 0.5}),
        (
            "--window None 3 6 1 2",
            ["window=None", "window=3_6", "window=1_2"],
            ["--window", "1", "2"],
            {"train.window": [1, 2]},
        ),
        (
            "--no-shuffle --trackers a b --lr -1 -2e-3",
            ["lr=-1", "lr=-2e-3"],
            ["--no-shuffle", "--trackers", "a", "b", "--lr=-2e-3"],
            {"shuffle": False, "train.trackers": ["a", "b"], "train.lr": -2e-3},
        ),
        ("--shuffle --no-shuffle", ["shuffle=True", "shuffle=False"], ["--no-shuffle"], {"shuffle": False}),
        (
            "--data ../a/b .._a b|c",
            ["data=.._a_b", "data=.._a", "data=b_c"],
            ["--data=b|c"],
            {"data": "b|c"},
        ),
        ("--data a/b a_b", ["data=a_b", "data=a_b~2"], ["--data=a_b"], {"data": "a_b"}),
    ],
)
def test_grid(fake: Fake, line: str, names: list[str], words: list[str], settings: dict[str, Any]) -> None:
    grid = fake.grid(line)
    assert [run.name for run in grid] == names
    assert grid[-1].words == words
    assert settings.items() <= grid[-1].settings.items()


def test_config_files_are_values_too(fake: Fake, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.yaml", "b.yaml")]
    for i, file in enumerate(files):
        file.write_text(f"train:\n  lr: {i}\n")
    grid = fake.grid(f"--config {files[0]} {files[1]} --seed 7")
    assert [run.settings["train.lr"] for run in grid] == [0.0, 1.0]
    assert [run.settings["train.seed"] for run in grid] == [7, 7]


def test_long_names_are_cut_and_stay_different(fake: Fake) -> None:
    names = [run.name for run in fake.grid(f"--data {'x' * 300}1 {'x' * 300}2 {'x' * 300}3")]
    assert len(set(names)) == 3 and max(map(len, names)) < 200


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("--seed 0", "expected a flag with several values"),
        ("", "expected a flag with several values"),
        ("quick --seed 0 1", "quick: expected a preset of fake, one of default, long"),
        ("long more --seed 0 1", "long more: expected a preset"),
        ("--sed 0 1", "--sed: fake has no such flag; did you mean --seed?"),
        ("--lr 1 --lr 2", "--lr: given twice"),
        ("--lr 1 --learning-rate 2", "--lr: given twice"),
        ("--lr 1 two", "--lr two: .*could not convert"),
        ("--seed 0 1 --lr", "--lr: expected a value or several, got none"),
        ("--seed 0 1.5", "--seed 1.5: "),
        ("--betas 0.9 0.99 0.8", "--betas: expected 2 words for each value"),
        ("--precision fp32 fp8", "--precision fp8: invalid choice"),
        ("--shuffle 1 --seed 0 1", "--shuffle: expected no value, got 1"),
        ("--lr 1e-4 0.0001", "--lr 1e-4 and --lr 0.0001 are the same settings"),
        ("--seed 0 1 0", "--seed 0 and --seed 0 are the same settings"),
        ("--config nowhere.yaml --seed 0 1", "--seed 0: nowhere.yaml: there is no such config file"),
        ("--lr 1 2 --seed 0 1", "--dry-run refuses\nlr=2,seed=1:\n  error: lr: expected at most 1"),
        ("--seed 0 1 --jobs 0", "--jobs: expected a whole number of at least 1, got 0"),
        ("--seed 0 1 --jobs", "--jobs: .*expected one value, got none"),
        ("--seed 0 1 --out a b", "--out: .*expected one value, got a b"),
        ("--seed 0 1 --dry-run yes", "--dry-run: .*expected no value, got yes"),
        ("--seed 0 1 --resume a b", "--resume: .*expected at most one value, got a b"),
        ("--seed 0 1 --resume a --out b", "--out: a resumed sweep goes on in its own folder, a; got b"),
    ],
)
def test_mistakes_start_nothing(fake: Fake, line: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        fake.sweep(line)
    assert not fake.root.exists() and not fake.out.exists()


@dataclass(frozen=True)
class NoResume:
    seed: int = 0
    out: str | None = None


def test_an_experiment_that_cannot_go_on_is_refused(fake: Fake) -> None:
    experiment = fake.experiment._replace(presets={"default": ("", NoResume())})
    with pytest.raises(ValueError, match="fake: expected an experiment with --out and --resume"):
        engine.sweep(experiment, ["--seed", "0", "1"], fake.root)


def test_the_dry_runs_cover_each_setting_and_each_seed(fake: Fake) -> None:
    def tried(line: str) -> set[tuple[str, str]]:
        for mark in fake.marks.glob("dry-*"):
            mark.unlink()
        sweep_check.check(fake.experiment, fake.grid(line))
        given = [json.loads(mark.read_text()) for mark in fake.marks.glob("dry-*")]
        return {(x.get("lr", "-"), x.get("seed", "-")) for x in given}

    assert tried("--lr .1 .2 --seed 0 1 2") == {(".1", "0"), (".2", "1"), (".2", "2")}
    assert tried("--lr .1 .2 .3 --seed 0 1") == {(".1", "0"), (".2", "1"), (".3", "0")}
    assert tried("--seed 0 1") == {("-", "0"), ("-", "1")}
    assert tried("--lr .1 .2") == {(".1", "-"), (".2", "-")}


def test_differences() -> None:
    before = {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}
    assert differences(before, before) == []
    assert differences(before, {"a": {"x": 5, "y": 2}, "b": {"x": 5, "y": 3}}) == ["x (1 -> 5)"]
    assert differences(before, {"a": {"x": 1}}) == ["no longer there: b", "y (2 -> None)"]
