"""The readers of settings, runs, checkpoints and exported networks, with small samples for them."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fuzz_data import Reader, folder_of, one_file
from fuzz_mutators import Sample

from mfk.core import config, tree, yaml12
from mfk.data import irf_blocks, irf_generate, operators, resumable
from mfk.data.cleaning import CleaningConfig, fit_cleaning
from mfk.data.irf_layout import chunk_files
from mfk.kinematics import urdf_text
from mfk.tasks import ik, ik_pretrained, stick_generate, vqvae_preparation, vqvae_tokens
from mfk.train import TrainState, find, load, save
from mfk.train import runs as run_files
from mfk.train.changes import changed_settings, changed_versions
from mfk.train.exports import write_exports
from mfk.train.log import read_history
from mfk.train.state import Guard
from mfk.train.sweep_grid import Run
from mfk.train.sweep_rows import read_row

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import ik_runs  # noqa: E402
import irf_runs  # noqa: E402
import motion_commands  # noqa: E402
import motion_runs  # noqa: E402
import stick_runs  # noqa: E402
import vqvae_config  # noqa: E402
import vqvae_runs  # noqa: E402

# Settings -------------------------------------------------------------------------------------------------


def _yaml(*names: str) -> list[bytes]:
    return [(EXPERIMENTS / "configs" / name).read_bytes() for name in names]


def _config_samples(cls: type, *files: str) -> Callable[[Path], list[Sample]]:
    # A section each: PyYAML takes long for all of them.
    sections = [{name: value} for name, value in config.to_dict(cls()).items()]
    return one_file("config.yaml", *(yaml12.dumps(section).encode() for section in sections), *_yaml(*files))


def _read_config(folder: Path, cls: type) -> None:
    found = config.load_yaml(cls, folder / "config.yaml")
    assert config.from_dict(cls, config.to_dict(found)) == found


def _read_documented(folder: Path) -> None:
    found = vqvae_config.load(folder / "config.yaml")
    assert dataclasses.is_dataclass(found)
    vqvae_config.is_documented(str(folder / "config.yaml"))


# Runs -----------------------------------------------------------------------------------------------------


def _run_samples(folder: Path) -> list[Sample]:
    lines = [
        {"step": i, "time": 1.5, "train/loss": 0.5, "val/val_loss": "nan" if i == 2 else 0.1}
        for i in range(4)
    ]
    history = "".join(json.dumps(line) + "\n" for line in lines)
    result = {"best_metric": "val_loss", "best_step": 1, "best": 0.1, "steps": 3}
    return [{
        "history.jsonl": history.encode(),
        "config.yaml": b"train:\n  lr: 0.001\n  steps: 3\nname: x\n",
        "versions.json": json.dumps(run_files.versions(0)).encode(),
        "result.json": json.dumps(result).encode(),
        "outcome.json": b'{"code": 0, "seconds": 1.5}',
        "data.txt": b"generated\n",
    }]  # fmt: skip


def _read_run(folder: Path) -> None:
    assert all(isinstance(record["step"], int) for record in read_history(folder))
    settings = run_files.read_record(folder)
    changed_settings(folder, settings, ())
    assert isinstance(run_files.read_versions(folder), dict)
    changed_versions(folder, 0)
    run_files.check_same_data(folder, "generated\n")
    row = read_row(Run("x", {}, [], {}), folder)
    assert isinstance(row.steps, int) and isinstance(row.result(), str)
    write_exports(folder)


def _record_samples(folder: Path) -> list[Sample]:
    settings = {"seed": 1, "samples": 40, "cpu": "AVX2"}
    return [{
        "operators.json": json.dumps(settings).encode(),
        "rows.json": json.dumps({"rows": 0, "settings": {"seed": 1}}).encode(),
        "irf.json": json.dumps({"version": "1.0.0", "created_at": "", "settings": settings}).encode(),
        "mark.json": b"[10, 20, 30, 40]",
    }]  # fmt: skip


def _read_records(folder: Path) -> None:
    """The records of unfinished work, each in the folder where it is looked for."""
    works = {}
    for name in ("operators", "rows", "irf", "mark"):
        works[name] = folder / f"{name}.parts"
        works[name].mkdir(exist_ok=True)
        place = works[name] / ("record.json" if name != "mark" else "done/w.0")
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        if (folder / f"{name}.json").exists():
            place.write_bytes((folder / f"{name}.json").read_bytes())
    settings = {"seed": 1, "samples": 40, "cpu": "AVX2"}
    operators._keep_record(folder / "operators", works["operators"], settings)
    layout: Any = SimpleNamespace(rows=0, entries=[SimpleNamespace(stop=1)])
    job = resumable._Job(folder / "rows", works["rows"], layout, {"seed": 1}, 1)
    assert type(resumable._found(job)) is bytes
    record = {"version": "1.0.0", "created_at": "", "settings": settings}
    irf_generate._keep_record(folder / "irf", works["irf"], record)
    world: Any = SimpleNamespace(name="w")
    for path, size in zip(
        chunk_files(works["mark"] / irf_blocks.DATA / "w", 0), (10, 20, 30, 40), strict=True
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    irf_blocks.block_found(irf_blocks.Block(works["mark"], world, 0, 1, 1, 0))


def _state() -> TrainState:
    def zero() -> torch.Tensor:
        return torch.zeros((), dtype=torch.int64)

    params = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2).bfloat16()}
    guard = Guard(zero(), zero(), zero(), torch.ones(()), zero())
    return TrainState(3, params, {"n": torch.zeros(2, dtype=torch.int64)}, {"mu": torch.ones(3)}, None, guard)


def _checkpoint_samples(folder: Path) -> list[Sample]:
    save(folder, _state(), {"val_loss": 0.5}, best_metric="val_loss")
    return [folder_of(folder)]


def _sealed(sample: Sample, random: Random) -> Sample:
    """Half of the samples with checksums that are right again, as who means harm would write them."""
    name = "00000003/manifest.json"
    if random.random() < 0.5:
        return sample
    try:
        record = json.loads(sample[name])["manifest"]
        for file in [*record["files"]] if random.random() < 0.7 else []:
            content = sample.get(f"00000003/{file}", b"")
            record["files"][file] = [len(content), zlib.crc32(content)]
        sample[name] = json.dumps(
            {"crc": zlib.crc32(json.dumps(record).encode()), "manifest": record}
        ).encode()
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        pass
    return sample


def _read_checkpoint(folder: Path) -> None:
    like = _state()
    find(folder, "best")
    found = load(folder, like)
    for (name, x), (_, y) in zip(tree.named_leaves(found), tree.named_leaves(like), strict=True):
        assert type(x) is type(y), name
        assert not isinstance(x, torch.Tensor) or (x.shape == y.shape and x.dtype == y.dtype), name


# What runs export -----------------------------------------------------------------------------------------


def _network_samples(folder: Path) -> list[Sample]:
    samples = []
    robots = ({"name": "panda"}, {"urdf": urdf_text("panda")})
    for robot in robots:
        net = ik.NetConfig(width=4, blocks=1)
        chain = ik_pretrained.load_urdf(urdf_text("panda"), "panda_hand", base="panda_link0")
        params, buffers = ik.ik_model(chain, net).init(0)
        ends = {"frame": "panda_hand", "base": "panda_link0"}
        ik_pretrained.save_ik(folder / "net.npz", params, buffers, net, robot | ends, {"made": 1})
        samples.append(folder_of(folder))
    return samples


def _read_network(folder: Path) -> None:
    found = ik_pretrained.load_ik(folder / "net.npz")
    pose = torch.tensor([0.4, 0.1, 0.4, 0.0, 1.0, 0.0, 0.0])
    q = found.chain.lower.float()
    assert found.propose(pose, q).shape == (found.chain.dof,)


@functools.cache
def _nets() -> Any:
    levels = [SimpleNamespace(tokens=6), SimpleNamespace(tokens=4)]
    return SimpleNamespace(levels=levels, categories=["a"], codebooks=[(0, 0), (0, 1)])


def _token_samples(folder: Path) -> list[Sample]:
    tokens = torch.tensor([[0, 1], [5, 3], [2, 0]])
    vqvae_tokens.write_tokens(folder / "tokens.parquet", _nets(), tokens, "mine")
    return [folder_of(folder)]


def _read_tokens(folder: Path) -> None:
    tokens = vqvae_tokens.read_tokens(folder / "tokens.parquet", _nets(), "mine")
    assert tokens.dtype == torch.int64 and tokens.shape[1] == 2


def _tokenizer_samples(folder: Path) -> list[Sample]:
    del folder
    x = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
    cleaning = fit_cleaning(x, CleaningConfig(percentiles=None))[0]
    names = ["x", "y"]
    families = {"a": vqvae_preparation.Family(tuple(names), None)}
    prepared = vqvae_preparation.Preparation(
        families, {"a": tuple(names)}, {"static": cleaning}, x.mean(0).astype(float), x.std(0).astype(float)
    )
    told = {
        "prepared": json.loads(vqvae_preparation.to_json(prepared)), "categories": ["u", "v"],
        "assignment": [0, 1], "rows": 9,
    }  # fmt: skip
    return [{"tokenizer.json": json.dumps(told).encode()}]


def _read_tokenizer(folder: Path) -> None:
    prepared, categories, rows = vqvae_runs._read(folder / "tokenizer.json")
    assert len(categories.assignment) == len(vqvae_preparation.feature_names(prepared)) and rows > 0
    vqvae_preparation.columns_of(prepared)


def _opening_samples(folder: Path) -> list[Sample]:
    del folder
    known = stick_generate.Openings(torch.rand(3, 5, 20), torch.tensor([0, 1, -1]), 0.0)
    return [{"openings.json": stick_generate.to_json(known).encode()}]


def _read_openings(folder: Path) -> None:
    known = stick_generate.from_json(folder / "openings.json", 20)
    assert bool(known.motion.isfinite().all()) and known.action.dtype == torch.int64
    action = int(known.action[0])  # another one may be done by no opening, which `check_actions` refuses
    assert stick_generate.opening(known, action, 0).shape == (5, 20)


def _settings(cls: type, *files: str) -> Reader:
    return Reader(_config_samples(cls, *files), functools.partial(_read_config, cls=cls))


def _read_actions(folder: Path) -> None:
    actions = motion_commands._actions(folder / "actions.csv")
    assert actions and all(actions) and all(actions.values())


READERS: dict[str, Reader] = {
    "config ik": _settings(ik_runs.IKRun, "quick_test.yaml"),
    "config motion": _settings(motion_runs.MotionRun, "model_mlp.yaml"),
    "config stick": _settings(stick_runs.StickRun, "stick_small.yaml"),
    "config irf": _settings(irf_runs.IRFRun, "universal_A.yaml"),
    "config vqvae": _settings(vqvae_runs.VQVAERun),
    "config documented": Reader(
        one_file("config.yaml", *_yaml("vqvae/default.yaml", "vqvae/summary_1k.yaml")), _read_documented
    ),
    "actions table": Reader(
        one_file("actions.csv", b"clip,action\na,walk\nb,run\n"), _read_actions, named="--actions: "
    ),
    "run folder": Reader(_run_samples, _read_run, named="--data: "),
    "unfinished work": Reader(_record_samples, _read_records),
    "checkpoint": Reader(_checkpoint_samples, _read_checkpoint, _sealed),
    "ik network": Reader(_network_samples, _read_network),
    "tokens": Reader(_token_samples, _read_tokens),
    "tokenizer": Reader(_tokenizer_samples, _read_tokenizer),
    "openings": Reader(_opening_samples, _read_openings),
}
