"""The tables of motion models and of stick figures; see tables.py."""

from __future__ import annotations

import re

from table_lines import Results, claims, machine, table


def motion_models(results: Results) -> list[str]:
    """A table of errors for each skeleton, one by action, and the commands."""
    lines = [machine(results["versions"]), ""]
    for group, clips in results["held_out"].items():
        runs = [r for r in results["runs"] if r["group"] == group]
        rows, actions = [], {}
        for run in runs:
            better = min(r["mse"] for r in run["results"][:2])
            # Networks of one horizon share their windows, and the baselines on them.
            horizon = (re.findall(r"--horizon (\d+)", run["words"]) or ["8"])[-1]
            for r in run["results"]:
                made = r is run["results"][-1]
                name = run["model"] if made else f"{r['name']}, {horizon} frames"
                if name in actions:
                    continue
                actions[name] = r["by_action"]
                rows.append(
                    [
                        name, f"{r['mse']:.5f}", f"{r['mse'] / better:.3f}", f"{r['position_cm']:.3f}",
                        f"{r['rollout_cm']:.2f}", f"{r['drift_cm'][-1]:.2f}", f"{r['rollout_deg']:.2f}",
                        f"{r['sliding']:.3f}", f"{r['microseconds']:.0f}",
                        f"{run['seconds']:.0f}" if made else "",
                        *("" if r[x] is None else f"{r[x]:.2f}" for x in ("diversity_cm", "best_cm")),
                    ]
                )  # fmt: skip
        heads = [
            "predictor", "mse", "of the better baseline's", "bones cm", "rollout cm", "last frame cm",
            "rollout deg", "feet m/s", "us a frame", "s in all", "samples apart cm", "nearest of 8, cm",
        ]  # fmt: skip
        lines += [f"{group}, held out: {', '.join(clips)}.", "", *table(heads, rows, left=1), ""]
        found = list(actions.values())
        first = found[0]
        rows = [
            [
                action,
                *(f"{of[action][0]:.5f}, {of[action][1]:.2f} ({of[action][2]})" for of in actions.values()),
            ]
            for action in first
        ]
        lines += [*table(["action", *actions], rows, left=1), ""]
    words = [f"- {run['group']}, {run['model']}: `motion.py {run['words']}`" for run in results["runs"]]
    return [*lines, *words, "", *claims(results["claims"])]


def stream(results: Results) -> list[str]:
    """Memory and time of both files."""
    rows = [
        [
            f"{c['frames']:,}",
            f"{c['file_mb']:,.0f}",
            f"{c['written_s']:.1f}",
            f"{c['opened_s']:.1f}",
            f"{c['peak_mb']:.0f}",
            f"{1e3 * c['trained_s'] / c['steps']:.1f}",
        ]
        for c in results["cases"]
    ]
    heads = ["frames", "file MB", "written, s", "opened and measured, s", "peak MB", "ms a step, all in all"]
    size = f"{results['bones']} bones, {results['numbers']} numbers a frame"
    return [
        f"{machine(results['versions'])} {size}, {results['cases'][0]['steps']:,} steps.",
        "",
        *table(heads, rows, left=0),
        "",
        *claims(results["claims"]),
    ]


def stick_models(results: Results) -> list[str]:
    """A table of errors by action for each source of clips."""
    lines = [machine(results["versions"]), ""]
    for run in results["runs"]:
        rows = [
            [
                r["action"], f"{r['frames']:,}",
                *(f"{r[name]:.2e}" for name in ("persistence", "velocity", "model")),
                f"{r['model'] / r['velocity']:.3f}",
                "" if r["accuracy"] is None else f"{100 * r['accuracy']:.1f}",
            ]
            for r in run["actions"]
        ]  # fmt: skip
        heads = [
            "action", "frames", "persistence", "constant velocity", "model", "of constant velocity's",
            "recognised, %",
        ]  # fmt: skip
        lines += [
            f"{run['data']}, {run['clips']} held-out clips, {run['parameters']:,} parameters, "
            f"{run['seconds']:.0f} s of training and report; logistic regression recognises "
            f"{100 * run['regression']:.1f} % of the frames.",
            "",
            *table(heads, rows, left=1),
            "",
        ]
    return [*lines, *claims(results["claims"])]


def stick_refine(results: Results) -> list[str]:
    """A table of jitter, error and speed for each source of clips."""
    lines = [f"{machine(results['versions'])} {results['steps']} steps of training.", ""]
    for run in results["runs"]:
        rows = [["the truth", f"{run['truth_jerk']:.0f}", "", ""]]
        rows += [
            [r["name"], f"{r['jerk']:.0f}", f"{r['mse']:.2e}", f"{r['motions_per_second']:.3g}"]
            for r in run["rows"]
        ]
        rows[1][3] = ""
        lines += [
            f"{run['data']}, {run['windows']} windows.",
            "",
            *table(["", "jitter, units/s^3", "mse", "motions/s"], rows, left=1),
            "",
        ]
    return [*lines, *claims(results["claims"])]


def stick_memory(results: Results) -> list[str]:
    """A table of memory and time, a row for each preset."""
    rows = [
        [r["preset"], f"{r['parameters']:,}", str(r["windows"]), f"{r['peak_gb']:.2f}", f"{r['seconds']:.0f}"]
        for r in results["rows"]
    ]
    heads = ["preset", "parameters", "windows at a time", "peak GB", "s a step of 64 windows"]
    return [machine(results["versions"]), "", *table(heads, rows, left=1), "", *claims(results["claims"])]
