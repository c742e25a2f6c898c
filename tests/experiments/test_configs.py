"""Every named configuration loads, dry-runs, and is the preset that it says it is."""

from __future__ import annotations

import sys
from pathlib import Path

import ik_runs
import inverse_kinematics
import irf
import motion
import panda
import pytest
import stick
import stick_runs
import torch
import ur10
import vqvae
import vqvae_config
import yaml

from mfk.core import config
from mfk.data import generate_operators
from mfk.tasks.stick_net import stick_nets
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
        "stick_small", "stick_medium", "stick_large",
        "stick_ram_8gb", "stick_ram_16gb", "stick_ram_32gb", "stick_vram_8gb", "stick_vram_16gb",
        "baseline_mlp", "universal_A",
    }  # fmt: skip


# The others of stick figures take long: a dry run measures two steps with the real network.
DRY = [file for file in CONFIGS if not file.stem.startswith("stick_") or file.stem == "stick_ram_8gb"]


@pytest.mark.parametrize("file", DRY, ids=lambda file: file.stem)
def test_each_loads_and_dry_runs(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    name, presets = _scripts(file)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--config", str(file), "--dry-run"])
    monkeypatch.delenv("TRAIN_DATA_PATH", raising=False)
    if file.stem.startswith("model_"):
        motion.main()
    elif file.stem in ("baseline_mlp", "universal_A"):
        sys.argv += ["--samples", "40"]
        irf.main()
    elif file.stem.startswith("stick_"):
        sys.argv += ["--clips", "20", "--device", "cpu"]
        stick.main()
    else:
        inverse_kinematics.main(name, presets, "A test.")
    printed = capfd.readouterr().out
    # The whole output is one YAML file, the rest being comments; each value of the file is in it.
    resolved = yaml.safe_load(printed)
    said = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.stem.startswith("stick_"):
        said["train"]["device"] = "cpu"
    assert _contains(resolved, said)
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


@pytest.mark.parametrize(
    ("name", "sizes", "batch", "accumulate", "device", "parameters"),
    [
        ("small", (256, 6, 8), 64, 64, "auto", 7.2482e6),
        ("medium", (384, 8, 12), 64, 32, "auto", 20.5946e6),
        ("large", (512, 10, 16), 64, 4, "auto", 44.6184e6),
        ("ram_8gb", (192, 4, 8), 64, 64, "auto", 3.0e6),
        ("ram_16gb", (256, 6, 8), 64, 32, "auto", 7.2482e6),
        ("ram_32gb", (384, 8, 12), 64, 16, "auto", 20.5946e6),
        ("vram_8gb", (384, 8, 12), 64, 4, "cuda", 20.5946e6),
        ("vram_16gb", (512, 10, 16), 64, 2, "cuda", 44.6184e6),
    ],
)
def test_the_recipes_of_stick_figures(name, sizes, batch, accumulate, device, parameters) -> None:
    """Read alone, as where there is no CUDA device; the recipe trains 64 windows a step."""
    path = Path(panda.__file__).parent / "configs" / f"stick_{name}.yaml"
    settings = config.load_yaml(stick_runs.StickRun, path, base=stick.PRESETS["default"][1])
    net, plan = settings.net, settings.train
    assert (net.width, net.layers, net.heads, plan.batch_size) == (*sizes, batch)
    assert (plan.accumulate, plan.device) == (accumulate, device)
    nets = stick_nets(settings.net, settings.diffusion, 20)
    with torch.device("meta"):
        counted = sum(p.numel() for p in nets.model.init(0)[0].values())
    assert abs(counted / parameters - 1) < 0.02


TOKENIZERS = sorted((Path(panda.__file__).parent / "configs" / "vqvae").rglob("*.yaml"))


def test_the_documents_names_of_tokenizers_are_there() -> None:
    root = Path(panda.__file__).parent / "configs" / "vqvae"
    assert {file.relative_to(root).as_posix() for file in TOKENIZERS} == {
        "default.yaml", "summary_1k.yaml", "summary_1k_auto.yaml",
        "validation/1k_initial_only.yaml", "validation/1k_architecture_only.yaml",
        "validation/1k_summary_only.yaml", "validation/1k_arch_summary.yaml",
        "validation/1k_arch_summary_highgpu.yaml", "production/10k_arch_summary_400epochs.yaml",
    }  # fmt: skip


@pytest.mark.parametrize("file", TOKENIZERS, ids=lambda file: file.stem)
def test_each_tokenizers_file_says_all_that_it_means(file: Path) -> None:
    settings = vqvae_config.load(file)
    said = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert _contains(config.to_dict(settings), said)
    plan = in_steps(vqvae_config.train_config(settings), per_epoch=15)
    assert plan.steps == 15 * said["training"]["num_epochs"]
    for name in ("initial", "architecture", "summary"):
        is_named = name in file.stem or name[:4] in file.stem.split("_")
        assert (name in settings.families) == (is_named or (file.stem == "default" and name != "initial"))
    rows = "10k" if file.stem == "default" or "10k" in file.stem else "1k"
    assert settings.dataset_path == f"datasets/baseline_{rows}.h5"
    assert (settings.training.category_assignment == "manual") == (file.stem == "summary_1k")


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables of few operators in the place of the named ones."""
    folder = tmp_path_factory.mktemp("operators")
    (folder / "datasets").mkdir()
    few = generate_operators(folder / "datasets" / "baseline_1k.h5", 40, realisations=2)
    (folder / "datasets" / "baseline_10k.h5").symlink_to(few)
    return folder


@pytest.mark.parametrize("file", TOKENIZERS, ids=lambda file: file.stem)
def test_each_tokenizer_dry_runs(
    file: Path, operators: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(operators)
    monkeypatch.setattr(sys, "argv", ["vqvae.py", "--config", str(file), "--dry-run"])
    vqvae.main()
    printed = capfd.readouterr().out
    resolved, said = yaml.safe_load(printed), vqvae_config.load(file)
    assert resolved["train"]["batch_size"] == said.training.batch_size
    assert resolved["data"]["data"] == said.dataset_path and list(resolved["families"]) == list(said.families)
    assert "parameters: " in printed and "memory" in printed and "steps on cpu" in printed
    assert {x.name for x in operators.iterdir()} == {"datasets"}


def test_the_recipe_for_large_gpus() -> None:
    """8 times the batch and 4 times the widths of the other."""
    root = Path(panda.__file__).parent / "configs" / "vqvae" / "validation"
    small, large = (vqvae_config.load(root / f"1k_arch_summary{name}.yaml") for name in ("", "_highgpu"))
    assert large.training.batch_size == 8 * small.training.batch_size
    assert large.model.group_embedding_dim == 4 * small.model.group_embedding_dim
    assert large.model.group_hidden_dim == 4 * small.model.group_hidden_dim
    assert list(large.families) == list(small.families)
    for name, family in small.families.items():
        ours, theirs = large.families[name].encoder_params, family.encoder_params
        assert ours.output_dim == 4 * theirs.output_dim
        assert ours.hidden_dims == tuple(4 * width for width in theirs.hidden_dims)


def _contains(whole: object, part: object) -> bool:
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(key in whole and _contains(whole[key], value) for key, value in part.items())
    # YAML 1.1, as PyYAML reads it, takes 1e-4 for text.
    return whole == part or (isinstance(part, str) and whole == float(part))
