"""experiments/irf.py as a user runs it."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import irf as script
import irf_runs
import numpy as np
import pytest
import torch
import yaml
import zarr

from mfk import train
from mfk.core import config
from mfk.data import IRFDataset
from mfk.data.worlds import WORLDS
from mfk.tasks.irf_net import irf_nets

pytestmark = pytest.mark.fast

CONFIGS = Path(script.__file__).parent / "configs"
TINY = [
    "quick", "--trunk-dim", "8", "--trunk-layers", "1", "--samples", "40", "--epochs", "3",
    "--warmup-epochs", "1", "--batch-size", "32", "--validate-every-epochs", "1", "--threads", "1",
]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["irf.py", *words])
    try:
        script.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def figures(folder: Path) -> list[dict[str, float]]:
    """A run's history without what depends on the clock."""
    clock = ("time", "train/samples_per_second")
    return [{k: x for k, x in r.items() if k not in clock} for r in train.read_history(folder)]


def test_from_a_data_set_to_a_report_and_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "--root", "v1", "--worlds", "nk", "lss", "--samples", "40"]
    assert run(monkeypatch, *words) == 0
    assert "wrote" in capsys.readouterr().out and len(IRFDataset("v1", ["nk"])) == 32
    words = [word for word in TINY if word not in ("--samples", "40")]
    words += ["--data", "v1", "--worlds", "nk", "lss", "--out", "run"]
    assert run(monkeypatch, *words) == 0
    report = json.loads(Path("run/report.json").read_text(encoding="utf-8"))
    assert len(report["results"]) == 3 * 3 * (3 + 2) and len(report["splits"]) == 3 * 2
    assert {r["split"] for r in report["splits"]} == {
        "test_interpolation", "test_extrapolation_slice", "test_extrapolation_corner",
    }  # fmt: skip
    assert all(len(r["by_period"]) == 41 for r in report["results"])
    for name in ("report.md", "responses_nk.png", "responses_lss.png", "data.txt", "history.jsonl"):
        assert (Path("run") / name).stat().st_size > 0
    # Evaluated again to the same figures; on a changed data set not at all.
    assert run(monkeypatch, "evaluate", "--checkpoint", "run") == 0
    again = json.loads(Path("run/evaluation/report.json").read_text(encoding="utf-8"))
    assert again["results"] == report["results"] and again["splits"] == report["splits"]
    # Not on responses of another length, nor from another folder, where the data are not.
    shutil.copytree("v1", "short")
    for world in ("nk", "lss"):
        whole = np.asarray(zarr.open_array(f"v1/{world}/irfs.zarr", mode="r")[:])
        zarr.create_array(f"short/{world}/irfs.zarr", data=whole[:, :, :21], overwrite=True)
    capsys.readouterr()
    assert run(monkeypatch, "evaluate", "--checkpoint", "run", "--data", "short") == 2
    assert "data: short: expected responses in periods 0 to 40" in capsys.readouterr().err
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run(monkeypatch, "evaluate", "--checkpoint", "../run") == 2
    assert f"data: there is no folder v1, seen from {tmp_path}" in capsys.readouterr().err
    assert run(monkeypatch, "evaluate", "--checkpoint", "../run", "--data", "../v1") == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    manifest = Path("v1/manifest.json")
    manifest.write_text(manifest.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert run(monkeypatch, "evaluate", "--checkpoint", "run") == 2
    assert "changed since the run began" in capsys.readouterr().err
    # A query in range, and one that is not.
    words = ["ask", "--checkpoint", "run", "--world", "nk", "--theta", "phi_pi=3.6", "--out", "a.csv"]
    assert run(monkeypatch, *words) == 0
    printed = capsys.readouterr()
    assert "monetary" in printed.out and "warning: out of the training's range: phi_pi 3.6" in printed.err
    with Path("a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    theta = torch.tensor(WORLDS["nk"].parameters.defaults, dtype=torch.float64)
    theta[3] = 3.6
    assert len(rows) == 3 * 41 * 3
    assert float(rows[4]["exact"]) == pytest.approx(float(WORLDS["nk"].irf(theta)[0, 1, 1]), rel=1e-12)
    for more, message in (
        (["--theta", "phi=1"], "theta: expected NAME=NUMBER"),
        (["--theta", "kappa=0.1", "kappa=0.2"], "theta: expected each parameter once, got kappa twice"),
        (["--periods", "42"], "periods: expected 1 to 41, as many as the emulator knows, got 42"),
        (["--periods", "0"], "periods: expected 1 to 41"),
        (["--out", "nowhere/x.csv"], "--out: nowhere/x.csv: expected the folder nowhere to be there"),
        (["--out", "run"], "--out: run: expected a file, got a folder"),
    ):
        assert run(monkeypatch, "ask", "--checkpoint", "run", *more) == 2
        printed = capsys.readouterr()
        assert message in printed.err and printed.out == ""
    assert run(monkeypatch, "ask", "--checkpoint", "run", "--periods", "41") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3 * (2 + 41)
    # What is not finite has no solution, whether it enters or not.
    words = ["ask", "--checkpoint", "run", "--theta", "r_ss=nan", "--out", "b.csv"]
    assert run(monkeypatch, *words) == 0
    assert "no stable solution" in capsys.readouterr().err
    with Path("b.csv").open(encoding="utf-8", newline="") as file:
        assert all(row["exact"] == "nan" for row in csv.DictReader(file))
    assert run(monkeypatch, "evaluate", "--checkpoint", "run", "--out", "v1/manifest.json") == 2
    assert "--out: v1/manifest.json: expected a folder, got the file" in capsys.readouterr().err
    assert run(monkeypatch, "ask", "--checkpoint", "run", "--world", "var") == 2
    assert "world: expected one of nk, lss, got 'var'" in capsys.readouterr().err


def test_one_seed_twice_is_one_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*TINY, "--worlds", "lss", "--sobolev", "0.1", "--no-plots"]
    for name in ("a", "b"):
        assert run(monkeypatch, *words, "--out", str(tmp_path / name)) == 0
    assert run(monkeypatch, *words, "--seed", "1", "--out", str(tmp_path / "c")) == 0
    a, b, c = (figures(tmp_path / name) for name in "abc")
    assert a == b and a != c
    reports = [json.loads((tmp_path / name / "report.json").read_text())["results"] for name in "ab"]
    assert reports[0] == reports[1]
    found = [irf_runs.trained(irf_runs.settings_of(tmp_path / name), tmp_path / name)[1] for name in "ab"]
    ours, theirs = (one.members[0][0] for one in found)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_ensemble_says_how_sure_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, "--worlds", "nk", "--members", "2", "--no-plots", "--out", str(tmp_path / "run")]
    assert run(monkeypatch, *words) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert all(0 < r["covered"] < 1 for r in report["splits"])
    assert "2 of them" in report["facts"]["network"]
    words = ["ask", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "answer.csv")]
    assert run(monkeypatch, *words) == 0
    factor = report["splits"][0]["factor"]
    assert f"times {factor:.2f}, which holds 95 % of the validation" in capsys.readouterr().out
    with (tmp_path / "answer.csv").open(encoding="utf-8") as file:
        assert all(float(row["bar"]) >= 0 for row in csv.DictReader(file))


@pytest.mark.parametrize("arch", ["universal", "pooled"])
def test_one_network_for_all(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*TINY, "--arch", arch, "--no-plots", "--out", str(tmp_path / "run")]
    if arch == "pooled":
        words += ["--trunk-dim", "256", "--trunk-layers", "3", "--widths", "8"]
    assert run(monkeypatch, *words) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert len(report["splits"]) == 9


@pytest.mark.parametrize("name", ["baseline_mlp", "universal_A"])
def test_the_documents_configurations(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = CONFIGS / f"{name}.yaml"
    default, preset = script.PRESETS["default"][1], script.PRESETS[name][1]
    assert config.load_yaml(irf_runs.IRFRun, file, base=default) == preset
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "--config", str(file), "--samples", "40", "--dry-run") == 0
    printed = capfd.readouterr().out
    assert yaml.safe_load(printed)["net"]["arch"] == preset.net.arch and "parameters: " in printed
    assert not list(tmp_path.iterdir())


def test_the_documents_numbers() -> None:
    preset = script.PRESETS["baseline_mlp"][1]
    nets = irf_nets(preset.net, [WORLDS[name] for name in preset.data.worlds], 40)
    assert sum(p.numel() for p in nets.model.init(0)[0].values()) == 167_409
    t = preset.train
    assert (t.lr, t.weight_decay, t.batch_size, t.epochs, t.clip, t.warmup_epochs) == (
        1e-4,
        0.01,
        64,
        100,
        1.0,
        5,
    )
    assert (t.patience, t.min_delta, t.checkpoint_every_epochs, t.log_every, t.seed) == (10, 1e-4, 10, 50, 42)
    assert t.min_lr == pytest.approx(0.01 * t.lr)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--worlds", "nk", "rbc"], "worlds: expected names of nk, var, lss, got 'rbc'"),
        (["--samples", "3"], "samples: expected at least 6, got 3"),
        (["--data", "nowhere", "--samples", "10000"], "data: there is no folder nowhere, seen from "),
        (["evaluate", "--checkpoint", "nowhere"], "nowhere is not the folder of a run"),
        (["generate", "--root", "v1", "--worlds", "rbc"], "worlds: expected worlds or names of nk, var, lss"),
    ],
)
def test_mistakes(
    words: list[str],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *words) == 2
    assert what in capsys.readouterr().err


def test_an_estimate_through_the_emulator_and_the_solver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("statsmodels")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *TINY, "--worlds", "nk", "--no-plots", "--out", "run") == 0
    words = [
        "estimate",
        "--checkpoint",
        "run",
        "--draws",
        "64",
        "--starts",
        "2",
        "--free",
        "kappa",
        "phi_pi",
        "rho_i",
        "sigma_m",
    ]
    assert run(monkeypatch, *words) == 0
    printed = capsys.readouterr().out
    assert (
        "exact J at the emulator's optimum" in printed
        and "searches end within 0.1 % of the least J" in printed
    )
    assert "through the solver, not identified: phi_pi, rho_i, sigma_m: the responses tell 2 comb" in printed
    found = json.loads(Path("run/estimate/estimate.json").read_text(encoding="utf-8"))
    assert found["ratio"] >= 1 - 1e-9 and found["numbers"] == 61
    assert found["ratio"] == found["emulator"]["exact_distance"] / found["solver"]["exact_distance"]
    for way in (found["solver"], found["emulator"]):
        assert set(way["theta"]) == {"kappa", "phi_pi", "rho_i", "sigma_m"}
        told = [*way["standard_errors"], *way["at_bound"], *way["not_identified"]]
        assert sorted(told) == sorted(way["theta"]) and all(x > 0 for x in way["standard_errors"].values())
        assert way["starts_theta"][0] == way["theta"] and len(way["starts_theta"]) == 2
        assert all(low <= way["theta"][name] <= high for name, (low, high) in way["spread"].items())
    assert found["solver"]["not_identified"] == ["phi_pi", "rho_i", "sigma_m"]
    assert found["solver"]["combinations_identified"] == 2
    assert Path("run/estimate/estimate.png").stat().st_size > 0
    assert run(monkeypatch, *words[:3], "--free", "kapa") == 2
    assert "free: expected some of sigma" in capsys.readouterr().err
    for more, message in (
        (
            ["--free", "sigma", "r_ss", "rho_u"],
            "free: expected parameters that move the response to 'monetary', got r_ss, rho_u, which do not",
        ),
        (["--lags", "60"], "lags: expected at most 29 with 121 quarters of data, got 60"),
        (["--horizon", "41"], "horizon: expected at most the emulator's 40, got 41"),
        (["--out", "run/config.yaml"], "--out: run/config.yaml: expected a folder, got the file"),
    ):
        assert run(monkeypatch, *words[:3], *more) == 2
        assert message in capsys.readouterr().err
    assert run(monkeypatch, *TINY, "--worlds", "lss", "--no-plots", "--out", "other") == 0
    assert run(monkeypatch, "estimate", "--checkpoint", "other") == 2
    assert "checkpoint: expected a run that knows nk" in capsys.readouterr().err
