"""Each key of the documents' YAML: another value changes the run where the key says, and only what it may."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import family_tables
import pytest
import torch
import vqvae_config
import vqvae_runs
from torch import Tensor
from vqvae_sections import VQVAEConfig

from mfk import train
from mfk.core import config, tree
from mfk.core.types import Rows, Task, Tree
from mfk.data import batches_of, synthetic_blocks
from mfk.tasks import vqvae
from mfk.train import begin, loop

BASE: dict[str, Any] = {
    "dataset_path": "table.npz",
    "families": {
        "alpha": {"encoder_params": {"hidden_dims": [6], "output_dim": 4}},
        "beta": {"encoder_params": {"hidden_dims": [5], "output_dim": 4}},
        "waves": {
            "encoder": "TemporalCNNEncoder",
            "encoder_params": {"channels": [4], "kernel_size": 3, "output_dim": 4},
        },
    },
    "model": {"group_embedding_dim": 8, "group_hidden_dim": 8},
    "training": {
        "batch_size": 18, "num_epochs": 4, "topo_samples": 12, "use_torch_compile": False,
        "val_every_n_epochs": 2, "dead_code_reset_interval": 2, "checkpoint_dir": "made",
    },
    "logging": {"eval_interval": None, "log_interval": 5, "verbose": False},
}  # fmt: skip


def changed(changes: dict[str, Any]) -> VQVAEConfig:
    """The base with some keys, dotted, at other values."""
    data = copy.deepcopy(BASE)
    for key, value in changes.items():
        at, *path = key.split(".")[::-1]
        place = data
        for name in path[::-1]:
            place = place.setdefault(name, {})
        place[at] = value
    settings = config.from_dict(VQVAEConfig, data)
    vqvae_config.check(settings)
    return settings


def observed(settings: VQVAEConfig) -> dict[str, Any]:
    """What a run with these settings would see and do, measured on the things themselves."""
    asked = vqvae_config.to_run(settings)
    ready = vqvae_runs.make_ready(asked)
    task = vqvae_runs.task_of(asked, ready, 3)
    params, state = task.init(asked.train.seed)
    x = ready.data.train[:18]
    batch = task.draw(0, 5, Rows.all(18), state, {"x": x})
    total, _, aux = task.loss(params, state, batch, params)
    # Codes that no row is near, two of them hardly used, one not at all.
    dead = copy.copy(state)
    dead["books"] = {
        j: book._replace(
            count=book.count * torch.tensor([0.0, 0.0, 0.1, 0.3] + [1.0] * (len(book.codes) - 4))
        )
        for j, book in state["books"].items()
    }
    still = vqvae.vqvae_task(ready.nets, asked.vqvae, ready.data.train, batch_size=18, per_epoch=3)
    at = {step: replaced(still, params, dead, step, x) for step in (2, 5)}
    assert task.update is not None
    after = task.update(state, aux.state, torch.tensor(18.0))[0]["books"]["0"]
    value = task.evaluate(params, state, {"x": x})[0]["val_loss"]
    return {
        "rows": len(ready.data.train) + len(ready.data.val),
        "features": len(ready.categories.assignment),
        "held out": ready.data.val_rows.tolist(),
        "categories": ready.categories.assignment.tolist(),
        "parameters": tree.size(params),
        "codebooks": [(level.latent_dim, level.tokens) for level in ready.nets.levels],
        "gradient in codes": "codes" in params,
        "initial": float(sum(p.double().abs().sum() for p in tree.leaves(params))),
        "training loss": float(total),
        "validation loss": float(value),
        "codes after a step": float(after.codes.double().sum()),
        "resets": at,
    }


def replaced(task: Task, params: Tree, state: Tree, step: int, x: Tensor) -> float:
    """Share of the codes that a reset replaces in this step; -1 where there is none."""
    batch = task.draw(0, step, Rows.all(len(x)), state, {"x": x})
    sums = task.loss(params, state, batch, {})[2].state
    assert task.update is not None
    metrics = task.update(state, sums, torch.tensor(float(len(x))))[1]
    return float(metrics.get("replaced", torch.tensor(-1.0)))


NET = {"initial", "training loss", "validation loss", "codes after a step"}
"""What another initial network changes."""
LOSS = {"training loss", "validation loss"}
ROWS = NET | {"held out"}

# Key -> (another value, what it changes, beside it).
TASK: dict[str, tuple[Any, set[str], dict[str, Any]]] = {
    "dataset_path": ("other.npz", LOSS, {}),
    "max_samples": (40, {"rows", "held out", "training loss"}, {}),
    "random_seed": (7, {"held out", "initial", "training loss"}, {}),
    "families.waves.encoder": ("MLPEncoder", {"parameters"}, {"families.waves.encoder_params": {}}),
    "families.alpha.encoder_params.hidden_dims": ([6, 5], {"parameters"}, {}),
    "families.alpha.encoder_params.output_dim": (5, {"parameters"}, {}),
    "families.alpha.encoder_params.dropout": (0.6, {"training loss"}, {}),
    "families.alpha.encoder_params.activation": ("tanh", LOSS, {}),
    "families.alpha.encoder_params.batch_norm": (False, {"parameters", "training loss"}, {}),
    "families.waves.encoder_params.channels": ([4, 5], {"parameters"}, {}),
    "families.waves.encoder_params.kernel_size": (5, {"parameters"}, {}),
    "model.group_embedding_dim": (9, {"parameters"}, {}),
    "model.group_hidden_dim": (9, {"parameters"}, {}),
    "model.levels": ([{"latent_dim": 3, "num_tokens": 5}], {"codebooks", "parameters"}, {}),
    "model.commitment_cost": (0.9, LOSS, {}),
    "model.use_ema": (
        False, {"gradient in codes", "parameters", "training loss"},
        {"training.dead_code_reset_interval": None},
    ),
    "model.decay": (0.5, {"codes after a step"}, {}),
    "model.dropout": (0.6, {"training loss"}, {}),
    "model.orthogonality_weight": (0.9, LOSS, {}),
    "model.informativeness_weight": (0.9, LOSS, {}),
    "training.category_assignment": (
        "manual", {"categories"}, {"training.category_mapping": {"a": ["[ab]*::*"], "w": ["waves::*"]}},
    ),
    "training.category_mapping": (
        {"a": ["*_0"], "b": ["*_[1-9]"]}, {"categories"}, {"training.category_assignment": "manual"},
    ),
    "training.num_categories_auto": (2, {"categories"}, {}),
    # Of few rows chance alone is more than the target.
    "training.orthogonality_target": (1.0, {"categories"}, {"dataset_path": "many.npz"}),
    "training.min_features_per_category": (1, {"categories"}, {}),
    "training.max_clusters": (2, {"categories"}, {}),
    "training.reconstruction_weight": (0.5, LOSS, {}),
    "training.vq_weight": (0.5, LOSS, {}),
    "training.orthogonality_weight": (0.9, LOSS, {}),
    "training.informativeness_weight": (0.9, LOSS, {}),
    "training.topo_weight": (0.9, LOSS, {}),
    "training.topo_samples": (7, LOSS, {}),
    "training.dead_code_reset_interval": (1, {"resets"}, {}),
    "training.dead_code_threshold": (90.0, {"resets"}, {}),
    "training.dead_code_max_reset_fraction": (0.1, {"resets"}, {}),
}  # fmt: skip

_SHAPES = (
    "families.waves.encoder", "families.alpha.encoder_params.hidden_dims",
    "families.alpha.encoder_params.output_dim", "families.alpha.encoder_params.activation",
    "families.alpha.encoder_params.batch_norm", "families.waves.encoder_params.channels",
    "families.waves.encoder_params.kernel_size", "model.group_embedding_dim", "model.group_hidden_dim",
    "model.levels",
)  # fmt: skip
_FOUND = {*NET, "parameters", "codebooks", "resets"}

# What may differ beside that: consequences.
MAY: dict[str, set[str]] = {
    "dataset_path": {*ROWS, *_FOUND, "categories", "features", "rows"},
    "max_samples": {*ROWS, *_FOUND, "categories", "features"},
    "random_seed": {*ROWS, *_FOUND, "categories"},
    **{key: {*NET, "resets"} for key in _SHAPES},
    **{key: _FOUND for key, (_, effects, _) in TASK.items() if effects == {"categories"}},
    **{key: {"codes after a step"} for key, (_, effects, _) in TASK.items() if effects == {"resets"}},
    "families.alpha.encoder_params.dropout": {"codes after a step", "resets"},
    "model.dropout": {"codes after a step", "resets"},
    "model.decay": {"resets"},
    "model.use_ema": {"validation loss", "initial", "codes after a step", "resets"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two tables, as the working directory."""
    place = tmp_path_factory.mktemp("keys")
    family_tables.write_table(place / "table.npz")
    family_tables.write_table(place / "other.npz", seed=1)
    blocks, _ = synthetic_blocks(0, 2000)
    family_tables.write_table(place / "many.npz", 2000, alpha=blocks[:, :40], beta=blocks[:, 40:])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield place


@pytest.fixture(scope="module")
def base(folder: Path) -> dict[str, Any]:
    return observed(changed({}))


@pytest.mark.parametrize("key", list(TASK))
def test_keys_of_data_network_and_loss(key: str, base: dict[str, Any]) -> None:
    value, effects, more = TASK[key]
    found = observed(changed({**more, key: value}))
    base = observed(changed(more)) if "dataset_path" in more else base
    differing = {name for name in base if found[name] != base[name]}
    assert effects <= differing, effects - differing
    assert differing <= effects | MAY.get(key, set()), differing - effects


def test_families_are_read_as_listed(folder: Path, base: dict[str, Any]) -> None:
    only = changed({})
    only = config.from_dict(VQVAEConfig, config.to_dict(only) | {"families": {"beta": {}}})
    assert observed(only)["features"] == 4 and base["features"] == 12


# Of the loop: key -> (another value, beside it, what a short run then tells otherwise).
LOOP: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "training.batch_size": (9, {}, {"steps": 24, "validated": [0, 12, 24]}),
    "training.num_epochs": (3, {}, {"steps": 9, "validated": [0, 6, 9]}),
    "training.learning_rate": (0.002, {}, {"rates": [0.002] * 3}),
    "training.scheduler": ("linear", {}, {"rates": [0.00067, 0.000258, 0.0000925]}),
    "training.warmup_epochs": (2, {}, {"rates": [0.000833, 0.001, 0.001]}),
    "training.optimizer": ("adamw", {}, {}),
    "training.checkpoint_dir": ("elsewhere/run", {}, {"folder": "elsewhere/run"}),
    "training.save_every": (1, {}, {"saved": [0, 3, 6, 9, 12]}),
    "training.early_stopping_patience": (
        1, {"training.early_stopping_min_delta": 0.99}, {"steps": 6, "validated": [0, 6]},
    ),
    "training.early_stopping_min_delta": (
        0.99, {"training.early_stopping_patience": 2}, {"steps": 6, "validated": [0, 6]},
    ),
    "training.val_every_n_epochs": (1, {}, {"validated": [0, 3, 6, 9, 12]}),
    "training.use_torch_compile": (True, {}, {"compiled": True}),
    "logging.wandb": (True, {}, {"trackers": ("wandb",)}),
    "logging.log_interval": (3, {}, {"logged": [3, 6, 9, 12]}),
    "logging.eval_interval": (4, {}, {"validated": [0, 4, 6, 8, 12]}),
    "logging.verbose": (True, {}, {"told": True}),
}  # fmt: skip


def ran(
    settings: VQVAEConfig, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """What a run of the loop tells; nothing is compiled, and nothing sent."""
    asked = vqvae_config.to_run(settings)
    compiled: list[bool] = []
    step = loop.make_train_step

    def make(*args: Any, **more: Any) -> Any:
        compiled.append(more.pop("compiled"))
        return step(*args, **more, compiled=False)

    trackers: list[Any] = []
    sink = begin.open_sink

    def opened(*args: Any, **more: Any) -> Any:
        trackers.append(more.pop("trackers"))
        return sink(*args, **more, trackers=())

    saved: list[int] = []
    patch.setattr(loop.checkpoint, "save", lambda folder, state, *_, **__: saved.append(state.step))
    patch.setattr(loop, "make_train_step", make)
    patch.setattr(begin, "open_sink", opened)
    capsys.readouterr()
    ready = vqvae_runs.make_ready(asked)
    batches = batches_of({"x": ready.data.train}, asked.train.batch_size, seed=asked.train.seed)
    task = vqvae_runs.task_of(asked, ready, batches.per_epoch or 0)
    result = train.launch(
        task, asked, name="vqvae", validation=[{"x": ready.data.val}], batches=batches
    )  # fmt: skip
    assert result is not None
    history = train.read_history(result.run)
    weights = sum(float(p.double().abs().sum()) for p in tree.leaves(result.state.params))
    rates = [r["train/lr"] for r in history if "train/lr" in r]
    return {
        "folder": str(result.run),
        "steps": result.state.step,
        "validated": [r["step"] for r in history if "val/val_loss" in r],
        "logged": [r["step"] for r in history if "train/lr" in r],
        "rates": [float(f"{r:.3g}") for r in rates],
        "saved": saved,
        "compiled": compiled[0],
        "trackers": trackers[0],
        "told": "category_0: " in capsys.readouterr().out,
        "weights": weights,
    }


@pytest.fixture(scope="module")
def usual(folder: Path) -> dict[str, Any]:
    return {
        "folder": "made", "steps": 12, "validated": [0, 6, 12], "logged": [5, 10, 12], "rates": [0.001] * 3,
        "compiled": False, "trackers": (), "told": False,
    }  # fmt: skip


@pytest.mark.parametrize("key", ["", *LOOP])
def test_keys_of_the_loop(
    key: str,
    usual: dict[str, Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    value, more, told = LOOP.get(key, (None, {}, {}))
    place = {} if key == "training.checkpoint_dir" else {"training.checkpoint_dir": str(tmp_path / "made")}
    changes = {"families": {"beta": {}}, **more, **place, **({key: value} if key else {})}
    found = ran(changed(changes), monkeypatch, capsys)
    found["folder"] = found["folder"].replace(str(tmp_path) + "/", "")
    for name, expected in {**usual, **told}.items():
        # What is validated more often may find more to keep, and ends sooner or later is logged otherwise.
        if name in told or name in ("folder", "compiled", "trackers", "told"):
            assert found[name] == expected, name
    if "steps" not in told:
        assert found["steps"] == 12
    if key == "training.optimizer":
        plain = ran(changed({**changes, key: "adam", **{"training.checkpoint_dir": str(tmp_path / "b")}}),
                    monkeypatch, capsys)  # fmt: skip
        assert found["weights"] < plain["weights"]


def test_every_key_is_here() -> None:
    """None of the documents' keys without a test of its effect."""
    known = {*TASK, *LOOP}
    for key in config.flatten(config.to_dict(VQVAEConfig())):
        own = key.replace("families.summary.", "families.alpha.").replace(
            "families.architecture.", "families.alpha."
        )
        if own.endswith((".encoder", ".channels", ".kernel_size")):
            own = own.replace("alpha", "waves")
        assert own in known, key
