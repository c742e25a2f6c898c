"""Estimate the New Keynesian economy from US data, through an emulator and through the exact solver."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irf_runs import settings_of, trained
from places import check_folder
from torch import Tensor

from mfk import train
from mfk.core.files import write_atomically
from mfk.data.worlds import WORLDS
from mfk.tasks import irf_estimate
from mfk.tasks.irf_drawing import draw_estimates
from mfk.tasks.irf_emulator import emulator
from mfk.tasks.irf_estimate import Estimate, Problem
from mfk.tasks.irf_identify import identify
from mfk.tasks.irf_query import ask
from mfk.tasks.report_tables import print_rows

_WORLD = "nk"


@dataclass(frozen=True)
class EstimateNK:
    """Fit parameters of nk to a VAR's responses on US data, through the emulator and through the solver."""

    checkpoint: Path
    """Folder of a run that knows nk, or of one of its checkpoints; of a single emulator, of all shocks: an
    ensemble is refused, and an emulator of one shock."""
    free: tuple[str, ...] = ("sigma", "kappa", "phi_pi", "phi_y", "rho_i", "sigma_m")
    """Parameters to estimate, between the world's bounds; the others have their defaults. Those that move no
    response to a monetary shock are refused; of the default ones phi_pi, phi_y, rho_i and sigma_m are told in
    two combinations alone."""
    horizon: int = 20
    """Last quarter of the responses that are fitted."""
    lags: int = 4
    """Of the vector autoregression."""
    draws: int = 4_096
    """Economies that are tried at once, to begin with."""
    starts: int = 8
    """The best of these that L-BFGS-B begins from."""
    seed: int = 0
    """Of the draws."""
    out: Path | None = None
    """Folder of the report; None: estimate/ in the run's folder."""


def estimate(given: EstimateNK) -> dict[str, Any]:
    """Do it, print and write what came out; the figures."""
    settings = settings_of(given.checkpoint)
    nets, found = trained(settings, given.checkpoint)
    if _WORLD not in (names := [world.name for world in nets.worlds]):
        raise ValueError(f"checkpoint: expected a run that knows {_WORLD}, got one of {', '.join(names)}")
    if nets.config.shock is not None:
        raise ValueError("checkpoint: expected an emulator of all shocks, got one of a single shock")
    if len(found.members) > 1:
        raise ValueError("checkpoint: expected a single emulator, got an ensemble")
    if given.horizon > nets.horizon:
        raise ValueError(f"horizon: expected at most the emulator's {nets.horizon}, got {given.horizon}")
    out = given.out or train.run_of(given.checkpoint) / "estimate"
    check_folder("--out", out)
    world = WORLDS[_WORLD]
    target = irf_estimate.measured_monetary_policy(given.horizon, given.lags)
    problem = irf_estimate.make_problem(world, target, "monetary", given.free)
    ways = {"solver": world.irf, "emulator": emulator(nets, *found.members[0], _WORLD)}
    ends = {
        name: irf_estimate.estimate(problem, respond, draws=given.draws, starts=given.starts, seed=given.seed)
        for name, respond in ways.items()
    }
    exact = {name: float(irf_estimate.distance(problem, world.irf, end.theta)) for name, end in ends.items()}
    answer = ask(nets, found.members, _WORLD, ends["emulator"].theta[None], warn=False)
    figures = {
        "target": target.words,
        "numbers": int(target.deviation.isfinite().sum()),
        "network": f"{settings.net.arch}, step {found.step}",
        "ratio": exact["emulator"] / exact["solver"],
        "out_of_range": answer.reasons[0],
        **{name: _figures(problem, end, exact[name]) for name, end in ends.items()},
    }
    _show(problem, figures)
    written = out / "estimate.json"
    out.mkdir(parents=True, exist_ok=True)
    record = figures | {"versions": train.versions(settings.train.seed)}
    write_atomically(written, json.dumps(record, indent=1, allow_nan=False) + "\n")
    picture = draw_estimates(
        out / "estimate.png",
        target.response,
        target.deviation,
        {name: _responses(problem, end.theta) for name, end in ends.items()},
        target.words,
    )
    print(f"wrote {written}, {picture}")
    return figures


def _responses(problem: Problem, theta: Tensor) -> Tensor:
    """Exact ones, [H + 1, V]."""
    return problem.world.irf(theta)[problem.shock, : len(problem.target.response)]


def _figures(problem: Problem, end: Estimate, exact: float) -> dict[str, Any]:
    told = identify(problem.world, problem.shock, problem.free, end.theta, problem.target.deviation)
    return {
        "theta": _named(problem, end.theta),
        "standard_errors": told.deviation,
        "at_bound": list(told.at_bound),
        "not_identified": list(told.unidentified),
        "combinations_identified": told.combinations,
        "distance": end.distance,
        "exact_distance": exact,
        "draws": end.draws,
        "seconds_draws": end.seconds_draws,
        "evaluations": end.evaluations,
        "seconds_search": end.seconds_search,
        "starts": end.starts,
        "starts_theta": [_named(problem, theta) for theta in end.ends],
        "nearly_as_good": len(nearly := irf_estimate.nearly_as_good(end)),
        "spread": {
            name: [low, high]
            for (name, low), high in zip(
                _named(problem, nearly.amin(0)).items(), _named(problem, nearly.amax(0)).values(), strict=True
            )
        },
    }


def _named(problem: Problem, theta: Tensor) -> dict[str, float]:
    """The free ones of parameters [P]."""
    names = problem.world.parameters.names
    return {name: float(theta[names.index(name)]) for name in problem.free}


def _show(problem: Problem, figures: dict[str, Any]) -> None:
    ways = [figures[name] for name in ("solver", "emulator")]
    rows = [[name, *(_told(way, name) for way in ways)] for name in problem.free]
    rows += [
        ["J, as minimised", *(f"{way['distance']:.3f}" for way in ways)],
        ["J, exact", *(f"{way['exact_distance']:.3f}" for way in ways)],
        [f"s for {ways[0]['draws']:,} draws", *(f"{way['seconds_draws']:.2f}" for way in ways)],
        [
            f"s for {len(ways[0]['starts'])} searches (evaluations)",
            *(f"{way['seconds_search']:.2f} ({way['evaluations']})" for way in ways),
        ],
    ]
    title = f"{figures['target']}: J of {figures['numbers']} numbers"
    print_rows(["", "through the solver", "through the emulator"], rows, title)
    print(f"exact J at the emulator's optimum / at the solver's: {figures['ratio']:.4f}")
    for reason in figures["out_of_range"]:
        print(f"warning: the emulator's optimum is out of its training's range: {reason}")
    print(
        "±: a standard error, by the exact responses' derivatives, as if the errors of the measured numbers "
        "were independent; what is at a bound of the world's prior counts as fixed"
    )
    for label, way in zip(("solver", "emulator"), ways, strict=True):
        if lost := way["not_identified"]:
            known = way["combinations_identified"]
            what = f"{known} combination{'s' * (known != 1)} of these alone" if known else "nothing of these"
            print(f"through the {label}, not identified: {', '.join(lost)}: the responses tell {what}")
        print(
            f"through the {label}, {way['nearly_as_good']} of {len(way['starts'])} searches end within 0.1 % "
            "of the least J: "
            + ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in way["spread"].items())
        )


def _told(way: dict[str, Any], name: str) -> str:
    """An estimate in words: with its error, or why it has none."""
    value = f"{way['theta'][name]:.4g}"
    if name in way["at_bound"]:
        return f"{value} (at a bound)"
    error = way["standard_errors"].get(name)
    return f"{value} (not identified)" if error is None else f"{value} ± {error:.2g}"
