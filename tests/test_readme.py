"""What the README shows works as shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mfk import kinematics
from mfk.tasks import ik_report
from mfk.tasks.ik_compare import SolverResult

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_composition_script() -> None:
    """Twenty lines, imports aside. N(0, 2) to N(0, 1) with correlation: the flow's slope is 1/sqrt(2), and a
    denoiser, or flow matching alone, would have 1/2."""
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in script.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 20
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(script, "README.md", "exec"), names)
    clean, change = names["clean"], names["change"]
    assert isinstance(clean, torch.Tensor) and isinstance(change, torch.Tensor)
    assert clean.std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.07)
    assert change.mean(0).tolist() == pytest.approx([0.5**0.5] * 2, abs=0.05)


@pytest.mark.parametrize(("robot", "rows"), [("panda", 12), ("ur10", 6)])
def test_the_tables_are_those_of_the_committed_reports(robot: str, rows: int) -> None:
    report = json.loads((ROOT / f"benchmarks/results/{robot}_default.json").read_text(encoding="utf-8"))
    _, table = ik_report.table([SolverResult(**result) for result in report["results"]])
    assert sum("| " + " | ".join(row) + " |" in README for row in table) == rows
    assert report["facts"]["this session"].split()[0] + " s until the report" in README.replace("\n", " ")


def test_the_figures_of_memory_and_time_are_the_committed_ones() -> None:
    figures = json.loads((ROOT / "benchmarks/results/train_loop.json").read_text(encoding="utf-8"))
    for name, row in figures["presets"].items():
        line = f"| {name} | {row['estimate_mb']:.0f} | {row['peak_mb']:.0f} | {row['ms_per_step']:.0f} |"
        assert line in README
    assert f"{figures['loop']['ratio']:.3f} times" in README


def test_the_figures_of_the_solver_are_the_committed_ones() -> None:
    tables = json.loads((ROOT / "benchmarks/results/ik_peers.json").read_text(encoding="utf-8"))["tables"]
    shown = {
        "mfk, table starts": "`ik.solve`",
        "mfk, table starts, compiled": "`ik.solve`, `jit=True`",
        "mfk, network starts, compiled": '`ik.solve`, `seeds="network"`, `jit=True`',
        "roboticstoolbox ik_LM": "roboticstoolbox `ik_LM`, C++",
        "Pinocchio, LM in Python": "Pinocchio, Levenberg-Marquardt in Python",
        "pytorch_kinematics PseudoInverseIK": "pytorch_kinematics `PseudoInverseIK`",
    }
    for name, label in shown.items():
        rows = [next(row for row in tables[robot] if row["solver"] == name) for robot in ("panda", "ur10")]
        cells = [f"{row['ms']:.4f} ({100 * row['success_1e-6']:.2f} %)" for row in rows]
        assert f"| {label} | {cells[0]} | {cells[1]} |" in README


def test_the_figures_of_motion_are_the_committed_ones() -> None:
    results = json.loads((ROOT / "benchmarks/results/motion_models.json").read_text(encoding="utf-8"))
    for line in motion_lines(results["runs"]):
        assert line in README
    stream = json.loads((ROOT / "benchmarks/results/stream.json").read_text(encoding="utf-8"))
    small, large = stream["cases"]
    more = large["peak_mb"] - small["peak_mb"]
    assert f"{more:.0f} MB more than {small['frames']:,}" in README.replace("\n", " ")


def motion_lines(runs: list[dict[str, Any]]) -> list[str]:
    """The README's table: next-step errors over the better baseline's, rollouts in cm, mean and last."""
    lines = []
    for group in dict.fromkeys(run["group"] for run in runs):
        here = {run["model"]: run["results"] for run in runs if run["group"] == group}
        ratios = [
            f"{here[model][-1]['mse'] / min(r['mse'] for r in here[model][:2]):.2f}"
            for model in ("transformer", "mlp", "unet1d")
        ]
        *plain, made = here["transformer on its own frames"]
        rollouts = [f"{r['rollout_cm']:.1f}, {r['drift_cm'][-1]:.1f}" for r in (*plain[:2], made)]
        lines.append(f"| {group} | {' | '.join([*ratios, *rollouts])} |")
    return lines


def test_the_figures_of_stick_figures_are_the_committed_ones() -> None:
    found = {
        name: json.loads((ROOT / f"benchmarks/results/stick_{name}.json").read_text(encoding="utf-8"))
        for name in ("models", "refine", "memory", "default")
    }
    for line in stick_lines(found["models"], found["refine"]):
        assert line in README
    flat = README.replace("\n", " ")
    (medium,) = (row for row in found["memory"]["rows"] if row["preset"] == "medium")
    assert f"{medium['peak_gb']:.1f} GB at its peak" in flat
    assert f"{found['models']['runs'][0]['seconds'] / 60:.0f} beside other work" in flat
    quiet = int(found["default"]["facts"]["this session"].removesuffix(" s until the report"))
    assert f"{quiet / 60:.0f} minutes on two cores" in flat


def stick_lines(models: dict[str, Any], refined: dict[str, Any]) -> list[str]:
    """The README's tables: next frames and actions; jitter and error of refinements."""
    lines = []
    for run in models["runs"]:
        every = run["actions"][-1]
        worst = max(row["model"] / row["velocity"] for row in run["actions"][:-1])
        cells = [
            f"{every['velocity']:.1e}", f"{every['model']:.1e}", f"{worst:.2f}",
            f"{100 * every['accuracy']:.1f} % ({100 * run['regression']:.1f} %)",
        ]  # fmt: skip
        lines.append(f"| {run['data']} | {' | '.join(cells)} |")
    for run in refined["runs"]:
        cells = [f"{run['truth_jerk']:.0f}", *(f"{r['jerk']:.0f}, {r['mse']:.1e}" for r in run["rows"])]
        lines.append(f"| {run['data']}: jitter, error | {' | '.join(cells)} |")
    rates = [
        ", ".join(f"{run['rows'][k]['motions_per_second']:,.0f}" for run in refined["runs"])
        for k in (1, 2, 3)
    ]
    lines.append(f"| generated, recorded: windows a second | | | {' | '.join(rates)} |")
    return lines


def test_the_figures_of_impulse_responses_are_the_committed_ones() -> None:
    found = {
        name: json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
        for name in ("irf_models", "irf_speed", "irf_estimate")
    }
    for line in irf_lines(found["irf_models"]):
        assert line in README
    flat = README.replace("\n", " ")
    for words in irf_words(**found):
        assert words in flat


def irf_lines(models: dict[str, Any]) -> list[str]:
    """The README's table: held-out errors of each world, of the networks."""
    own = {run["splits"][0]["world"]: run for run in models["own"]}
    theirs = {run["splits"][0]["world"]: run for run in reversed(models["documented"])}  # the first shock's
    lines = []
    for world in own:
        shared = [row for row in models["universal"]["splits"] if row["world"] == world]
        (first,) = (row["nrmse"] for row in theirs[world]["splits"] if row["split"] == "test_interpolation")
        cells = [first, own[world]["splits"][0]["nrmse"], *(row["nrmse"] for row in shared)]
        lines.append(f"| {world} | {' | '.join(f'{x:.4f}' for x in cells)} |")
    return lines


def irf_words(
    irf_models: dict[str, Any], irf_speed: dict[str, Any], irf_estimate: dict[str, Any]
) -> list[str]:
    """The README's sentences about speed, estimates and an ensemble's error bars."""
    each = {row["case"]: 1e6 * row["seconds"] / row["rows"] for row in irf_speed["table"]}
    qz, exact, small = (
        each[name]
        for name in ("nk: ordered QZ, each by itself", "nk: solver, 10,000", "nk, small: compiled, 10,000")
    )
    ways = irf_estimate["estimates"]["nk"]
    inside, _, corner = irf_models["ensemble"]["splits"]
    return [
        f"{qz:.0f} us by an ordered QZ decomposition, {exact:.1f} us by mfk's closed form, "
        f"{small:.1f} us by a small emulator (NRMSE {irf_speed['errors']['nk, small']:.3f})",
        f"{ways['emulator']['exact_distance']:.2f} against {ways['solver']['exact_distance']:.2f}",
        f"{ways['emulator']['seconds_search']:.1f} s against {ways['solver']['seconds_search']:.1f} s",
        f"hold {100 * inside['covered_by_bars']:.1f} % of the held-out numbers, "
        f"{100 * corner['covered_by_bars']:.1f} % of those in the corner",
    ]


def test_the_figures_of_tokenizers_are_the_committed_ones() -> None:
    found = {
        name: json.loads((ROOT / f"benchmarks/results/vqvae_{name}.json").read_text(encoding="utf-8"))
        for name in ("default", "blocks", "mfeat", "peers")
    }
    for line in token_lines(found["default"], found["blocks"]):
        assert line in README
    flat = README.replace("\n", " ")
    for words in token_words(found["mfeat"], found["peers"]):
        assert words in flat
    assert f"({found['default']['facts']['this session']}, on one core)" in flat


def token_lines(default: dict[str, Any], blocks: dict[str, Any]) -> list[str]:
    """The README's table: held-out figures of the default run, of known blocks, and the original's."""
    rows = {
        "10,000 operators, the default": default["scores"]["held out"],
        "six blocks of two factors, N = 5,000": blocks["runs"][0]["held out"],
        "the original on such blocks": {"bits": None, "orthogonality": None, **blocks["original"]},
    }
    lines = []
    for name, r in rows.items():
        bits = "" if r["bits"] is None else f"{r['bits']:.0f}"
        apart = "" if r["orthogonality"] is None else f"{r['orthogonality']:.3f}"
        share, topo = f"{100 * r['utilisation']:.0f} %", f"{r['topo_pre']:.3f}, {r['topo_post']:.3f}"
        lines.append(f"| {name} | {bits} | {r['quality']:.3f} | {share} | {apart} | {topo} |")
    return lines


def token_words(mfeat: dict[str, Any], peers: dict[str, Any]) -> list[str]:
    """The README's sentences about digits, and about another library's quantisation."""
    features, components = (claim["value"] for claim in mfeat["claims"][:2])
    shares = [claim["value"] for claim in peers["claims"] if claim["what"].endswith("seconds / theirs")]
    return [
        f"is {features:.2f} of the best product-quantised k-means'",
        f"but {components:.1f} times that",
        f"in {min(shares):.2f} to {max(shares):.2f} of its time",
    ]


def test_the_solver_as_it_is_shown(tmp_path: Path) -> None:
    (script,) = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    (tmp_path / "robot.urdf").write_text(kinematics.urdf_text("ur10"), encoding="utf-8")
    q0 = torch.tensor([0.0, -0.3, 0.0, -2.2, 0.0, 2.0, 0.7], dtype=torch.float64)
    names: dict[str, Any] = {"q0": q0, "poses": kinematics.forward(kinematics.panda(), q0.expand(3, 7))}
    script = script.replace('"robot.urdf"', repr(str(tmp_path / "robot.urdf"))).replace(", jit=True", "")
    exec(compile(script, "README.md", "exec"), names)
    assert bool(names["found"].converged.all()) and bool(names["path"].reached.all())
    assert bool(names["near"].converged.all()) and int(names["every"].converged.sum()) == 50


def test_the_two_commands_are_there_once() -> None:
    for end in ("pytest -q", "experiments/panda.py"):
        assert len(re.findall(rf"^python3 -m venv .*{re.escape(end)}$", README, re.MULTILINE)) == 1
