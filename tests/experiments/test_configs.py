"""Every named configuration loads, dry-runs, and is the preset that it says it is."""

from __future__ import annotations

import sys
from pathlib import Path

import ik_runs
import inverse_kinematics
import motion
import panda
import pytest
import ur10
import yaml

from mfk.core import config
from mfk.train.config import in_steps

CONFIGS = sorted((Path(panda.__file__).parent / "configs").glob("*.yaml"))
SCRIPTS = {"ur10_default": ("ur10", ur10.PRESETS)}


def _scripts(file: Path):
    return SCRIPTS.get(file.stem, ("panda", panda.PRESETS))


def test_the_documents_names_are_there() -> None:
    names = {file.stem for file in CONFIGS}
    assert names == {
        "panda_default", "ur10_default", "quick_test", "training_defaults",
        "model_transformer", "model_mlp", "model_unet1d",
    }  # fmt: skip


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_each_loads_and_dry_runs(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    name, presets = _scripts(file)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--config", str(file), "--dry-run"])
    if file.stem.startswith("model_"):
        motion.main()
    else:
        inverse_kinematics.main(name, presets, "A test.")
    printed = capfd.readouterr().out
    # The whole output is one YAML file, the rest being comments; each value of the file is in it.
    resolved = yaml.safe_load(printed)
    assert _contains(resolved, yaml.safe_load(file.read_text(encoding="utf-8")))
    assert "parameters: " in printed and "memory" in printed and "steps on cpu" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "presets", "preset"),
    [
        ("panda_default", panda.PRESETS, "documented"),
        ("ur10_default", ur10.PRESETS, "documented"),
        ("quick_test", panda.PRESETS, "quick"),
    ],
)
def test_files_and_presets_are_the_same(file, presets, preset) -> None:
    path = Path(panda.__file__).parent / "configs" / f"{file}.yaml"
    assert config.load_yaml(ik_runs.IKRun, path, base=presets["default"][1]) == presets[preset][1]


def test_the_documents_numbers() -> None:
    for presets, robot, parameters in (
        (panda.PRESETS, "panda", 17_889_543),
        (ur10.PRESETS, "ur10", 17_757_190),
    ):
        documented = presets["documented"][1]
        chain = inverse_kinematics.load_robot(documented.robot)
        model = inverse_kinematics.ik.ik_model(chain, documented.ik.net)
        assert chain.name == robot
        assert sum(p.numel() for p in model.init(0)[0].values()) == parameters
        plan = in_steps(documented.train, None)
        assert (plan.steps, plan.warmup_steps, plan.lr, plan.min_lr) == (390_700, 1_000, 1e-4, 1e-6)
        assert (plan.batch_size, plan.weight_decay, plan.betas, plan.clip) == (256, 1e-5, (0.9, 0.999), 1.0)


def _contains(whole: object, part: object) -> bool:
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(key in whole and _contains(whole[key], value) for key, value in part.items())
    # YAML 1.1, as PyYAML reads it, takes 1e-4 for text.
    return whole == part or (isinstance(part, str) and whole == float(part))
