"""Rewrite the tables of benchmarks/README.md from benchmarks/results.

    python benchmarks/tables.py

Each table stands between two comments, ``<!-- begin NAME -->`` and ``<!-- end NAME -->``, and comes from
``results/NAME.json``. Where there is no such file yet, nothing stands between them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from irf_tables import irf_estimate, irf_models, irf_speed, worlds
from motion_tables import motion_models, stick_memory, stick_models, stick_refine, stream
from soak_tables import soak
from table_lines import Results, claims, machine, table
from vqvae_tables import vqvae_blocks, vqvae_mfeat, vqvae_peers

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Rewrite the file, and say what has no results."""
    path = FOLDER / "README.md"
    path.write_text(rewrite(path.read_text(encoding="utf-8"), FOLDER / "results"), encoding="utf-8")
    for name in TABLES:
        if not (FOLDER / "results" / f"{name}.json").is_file():
            print(f"{name}: no results")


def rewrite(text: str, results: Path) -> str:
    """The text with every table as the results have it.

    Raises:
        ValueError: a table has no place in the text, or a place no table.
    """
    places = re.findall(r"<!-- begin (\w+) -->", text)
    if sorted(places) != sorted(TABLES):
        raise ValueError(f"README: expected a place for each of {sorted(TABLES)}, found {sorted(places)}")
    for name, make in TABLES.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        if end not in rest:
            raise ValueError(f"README: expected {end} after {begin.strip()}")
        after = rest.split(end, 1)[1]
        path = results / f"{name}.json"
        lines: list[str] = []
        if path.is_file():
            first, *more = make(json.loads(path.read_text(encoding="utf-8")))
            lines = [f"[Results](results/{path.name}): {first}", *more]
        text = "\n".join([before + begin.rstrip("\n"), *lines, end]) + after
    return text


def jvp_overhead(results: Results) -> list[str]:
    """One table of losses and one of claims for each cell of the grid."""
    columns = [(mode, matmul) for matmul in ("default", "exact") for mode in ("eager", "jit")]
    lines = [machine(results["versions"], results["repeats"])]
    for cell in results["cells"]:
        times = {(r["loss"], r["share"], r["mode"], r["matmul"]): r for r in cell["table"]}
        rows = []
        for loss, share in dict.fromkeys((r["loss"], r["share"]) for r in cell["table"]):
            found = [times[loss, share, mode, matmul] for mode, matmul in columns]
            rows.append([
                loss,
                f"{100 * share:.0f} %" if share else "",
                f"{found[0]['flops_ratio']:.3f}",
                *(f"{1e3 * r['seconds']:.1f} ms, {r['ratio']:.2f}" for r in found),
            ])  # fmt: skip
        heads = ["loss", "rows r < t", "FLOPs", *(f"{mode}, {matmul}" for mode, matmul in columns)]
        lines += [f"Width {cell['width']}, batch {cell['batch']}:", "", *table(heads, rows, left=2), ""]
        if cell["checks"]:
            lines += claims(cell["checks"])
    return lines


def versus_jax(results: Results) -> list[str]:
    """Matrix products, then the gradients."""
    m, k, n = results["product"]
    speeds = ", ".join(f"{name} {value:.0f}" for name, value in results["gflops"].items())
    worst = max(value for pair in results["differences"].values() for value in pair.values())
    rows = [
        [f"{100 * r['share']:.0f} %", r["case"], f"{1e3 * r['seconds']:.1f}", f"{r['ratio']:.3f}"]
        for r in results["table"]
    ]
    return [
        machine(results["versions"], results["repeats"]),
        f"One product of {m} x {k} by {k} x {n} in GFLOP/s: {speeds}. Width {results['width']}, batch "
        f"{results['batch']}; the gradients differ by at most {worst:.0e} of their norm.",
        "",
        *table(["rows with a JVP", "compiled by", "ms", "over jax.jit"], rows, left=2),
        "",
    ]


def versus_eager_peers(results: Results) -> list[str]:
    """One row for each peer and each kind of matrix product."""
    rows = [
        [
            r["by"], r["matmul"], f"{1e3 * r['seconds']:.1f}", f"{r['mfk_same_matmul']:.3f}",
            f"{r['mfk_own_matmul']:.3f}",
        ]
        for r in results["table"]
    ]  # fmt: skip
    heads = ["gradient by", "matrix products", "ms", "mfk over it, same products", "mfk over it, mfk's own"]
    return [
        machine(results["versions"], results["repeats"]),
        f"Width {results['width']}, batch {results['batch']}; the gradients differ by at most "
        f"{results['largest_difference']:.0e} of their norm.",
        "",
        *table(heads, rows, left=2),
        "",
    ]


def startup(results: Results) -> list[str]:
    """One row for each task, cold and warm."""
    parts = {
        "imports": "imports, s",
        "make_task": "task and batch",
        "trace": "trace",
        "compile": "compile",
        "first_call": "first call",
        "until_first_gradient": "process to first gradient",
        "second_call": "second call",
    }
    rows = [
        [
            f"{r['task']}, {r['parameters'] / 1e6:.1f}M parameters", r["cache"], str(r["batch"]),
            *(f"{r[name]:.2f}" for name in parts),
        ]
        for r in results["table"]
    ]  # fmt: skip
    return [
        machine(results["versions"], results["repeats"]),
        "",
        *table(["network", "cache", "batch", *parts.values()], rows, left=2),
        "",
        *claims(results["checks"]),
    ]


def optimizer(results: Results) -> list[str]:
    """Two groups, each with its own reference."""
    rows = [
        [r["group"], r["case"], f"{1e3 * r['seconds']:.1f}", f"{r['ratio']:.2f}"] for r in results["table"]
    ]
    return [
        machine(results["versions"], results["repeats"]),
        f"{results['parameters']:,} parameters in {results['leaves']} leaves.",
        "",
        *table(["step", "by", "ms", "over torch, fused"], rows, left=2),
        "",
    ]


def train_loop(results: Results) -> list[str]:
    """Memory and time of each preset, and the loop beside the bare steps."""
    rows = [
        [
            name, f"{r['estimate_mb']:.0f}", f"{r['peak_mb']:.0f}", f"{r['ms_per_step']:.0f}",
            f"{r['rows_per_second']:,.0f}",
        ]
        for name, r in results["presets"].items()
    ]  # fmt: skip
    loop = results["loop"]
    return [
        machine(results["versions"]),
        f"{loop['steps']} steps with validations, checkpoints and logs take {loop['ratio']:.3f} times as "
        "long as the bare steps.",
        "",
        *table(["preset", "estimate, MB", "peak, MB", "ms per step", "rows per second"], rows, left=1),
        "",
    ]


def precision(results: Results) -> list[str]:
    """One row for each run of the sweep."""
    rows = [
        [
            r["values"]["precision"], r["values"]["seed"], f"{r['validation']['position_mm']:.4f}",
            f"{r['validation']['rotation_deg']:.4f}", f"{100 * r['validation']['within_5mm_5deg']:.2f} %",
        ]
        for r in results["runs"]
    ]  # fmt: skip
    return [
        machine(results["facts"]),
        "",
        *table(["precision", "seed", "position, mm", "rotation, deg", "5 mm, 5 deg"], rows, left=1),
        "",
    ]


def generate(results: Results) -> list[str]:
    """One row for each way to make a file."""
    rows = [
        [
            r["case"], f"{r['rows']:,}", f"{r['file_mb']:.0f}", f"{r['seconds']:.2f}",
            f"{r['rows_per_second']:,.0f}", f"{r['peak_mb']:.0f}",
        ]
        for r in results["table"]
    ]  # fmt: skip
    return [
        machine(results["versions"], results["repeats"]),
        f"Safe blocks over all at once: {results['seconds_ratio_to_all_at_once']:.2f} times the seconds; "
        f"four times the rows: {results['peak_ratio_of_four_times_the_rows']:.2f} times the peak memory.",
        "",
        *table(["case", "rows", "file, MB", "s", "rows per second", "peak, MB"], rows, left=1),
        "",
    ]


def fk(results: Results) -> list[str]:
    """One row for each function, dtype, batch and number of threads."""
    rows = [
        [
            r["case"], f"{r['rows']:,}", str(r["threads"]), f"{1e3 * r['seconds']:.3f}",
            f"{r['microseconds_per_row']:.3f}",
        ]
        for r in results["table"]
    ]  # fmt: skip
    return [
        machine(results["machine"], results["repeats"]),
        f"`forward` of 10,000 rows in float64 is {results['ratio_to_pinocchio_loop']:.1f} times as fast as "
        f"Pinocchio's loop, {results['ratio_to_pinocchio_loop_with_poses']:.1f} times where that copies its "
        f"poses; they differ by at most {results['largest_difference']:.0e}.",
        "",
        *table(["case", "rows", "threads", "ms", "us per row"], rows, left=1),
        "",
    ]


def ik_peers(results: Results) -> list[str]:
    """One table a robot, and the claims."""
    head = machine(results["versions"], results["repeats"])
    packages = [f"{p} {results['versions'][p]}" for p in PEERS if p in results["versions"]]
    lines = [f"{head} {results['poses']:,} poses. {', '.join(packages)}.", ""]
    for robot, rows in results["tables"].items():
        cells = [
            [
                row["solver"],
                f"{100 * row['success_1e-6']:.2f} %",
                f"{100 * row['success_1mm_0.1deg']:.2f} %",
                f"{row['false_claims']}",
                f"{row['ms']:.4f}",
                f"{row['ms_batch_100']:.3f}",
                f"{row['ms_batch_1']:.3f}",
            ]
            for row in rows
        ]
        heads = [robot, "at 1e-6", "1 mm, 0.1 deg", "false claims", "ms, all", "ms, 100 at once", "ms, one"]
        lines += [*table(heads, cells, left=1), ""]
    lines += [f"Left out: {line}." for line in results["left_out"]]
    return lines + claims(results["checks"])


def ik_network(results: Results) -> list[str]:
    """One table a robot, the published figures, and the claims."""
    lines = [f"{machine(results['versions'])} {results['poses']:,} poses.", ""]
    for robot, rows in results["tables"].items():
        cells = [
            [
                row["references"],
                row["solver"],
                f"{row['mm']:.3f}",
                f"{row['median_mm']:.3f}",
                f"{row['deg']:.3f}",
                f"{100 * row['within_5mm_5deg']:.2f} %",
                f"{row['us']:.1f}",
            ]
            for row in rows
        ]
        heads = [f"{robot}, references", "solver", "mm", "median mm", "deg", "5 mm, 5 deg", "us/pose"]
        lines += [*table(heads, cells, left=2), ""]
    published = [[name, f"{mm:.2f}", f"{deg:.2f}"] for name, (mm, deg) in results["published"].items()]
    lines += [*table(["published, Panda", "mm", "deg"], published, left=1), ""]
    return lines + claims(results["checks"])


def ik_ablation(results: Results) -> list[str]:
    """A row for each change."""
    sigmas = ("0.1", "0.3", "0.5")
    rows = [
        [row["variant"], f"{row['parameters']:,}"]
        + [x for s in sigmas for x in (f"{row[f'mm_{s}']:.2f}", f"{100 * row[f'within_{s}']:.1f} %")]
        + [f"{row['us']:.0f}"]
        for row in results["table"]
    ]
    heads = [
        "variant",
        "parameters",
        *(x for s in sigmas for x in (f"mm, {s} rad", "5 mm, 5 deg")),
        "us/pose",
    ]
    return [
        f"{machine(results['versions'])} {results['steps']:,} steps each, {results['poses']:,} poses.",
        "",
        *table(heads, rows, left=1),
        "",
    ]


def ik_track(results: Results) -> list[str]:
    """Poses a second."""
    rows = [
        [
            row["robot"],
            row["step"],
            f"{row['poses_per_second']:,.0f}",
            f"{100 * row['reached']:.1f} %",
            f"{row['worst_mm']:.1e}",
        ]
        for row in results["table"]
    ]
    heads = ["robot", "step", "poses a second", "reached", "worst mm"]
    return [
        f"{machine(results['versions'], results['repeats'])} A path of {results['poses']:,} poses.",
        "",
        *table(heads, rows, left=2),
        "",
        *claims(results["checks"]),
    ]


PEERS = ("roboticstoolbox-python", "pytorch-kinematics", "pin")


def fuzz(results: Results) -> list[str]:
    """One row for each reader."""
    versions = results["versions"]
    used = [f"{name} {versions[name]}" for name in ("hypothesis", "h5py", "pyarrow", "zarr", "PyYAML")]
    rows = [
        [
            r["reader"], f"{r['inputs']:,}", f"{r['results']:,}", f"{sum(r['errors'].values()):,}",
            f"{r['found']:,}", f"{r['slowest_s']:.2f}",
        ]
        for r in results["table"]
    ]  # fmt: skip
    heads = ["reader", "inputs", "correct results", "own errors", "others", "slowest, s"]
    lines = [machine(versions), f"Seed {results['seed']}; {', '.join(used)}.", ""]
    return [*lines, *table(heads, rows, left=1), "", *claims(results["checks"])]


def ranks(results: Results) -> list[str]:
    """How near to one process, what is sent and what it takes; the memory of a large model."""
    rows = [
        [
            r["system"], r["mode"], str(r["ranks"]),
            *(f"{r[name]:.1e}" for name in ("largest", "norm", "gradient")),
            f"{100 * r['validation']:.4f} %", f"{r['milliseconds']:.1f}", f"{r['kilobytes']:,.0f}",
        ]
        for r in results["table"]
    ]  # fmt: skip
    heads = [
        "system", "mode", "processes", "largest", "norm", "first gradient", "validation's loss", "ms a step",
        "sent, kB",
    ]  # fmt: skip
    lines = [machine(results["versions"]), f"{results['steps']} steps of {results['batch']} rows.", ""]
    lines += [*table(heads, rows, left=2), ""]
    if results["memory"]:
        held = [
            [m["kind"], str(m["ranks"]), f"{m['megabytes']:,.0f}", f"{m['seconds']:.1f}"]
            for m in results["memory"]
        ]
        size = results["memory"][0]["parameters"]
        lines += [f"`stick.py large`, {size:,} parameters, 8 windows a step, memory beyond the data's:", ""]
        lines += [*table(["", "processes", "MB a process", "s a step"], held, left=1), ""]
    return [*lines, *claims(results["checks"])]


def soak_vqvae(results: Results) -> list[str]:
    """The soak of tokenizers alone."""
    return soak(results)


TABLES: dict[str, Callable[[Results], list[str]]] = {
    make.__name__: make
    for make in (
        jvp_overhead,
        versus_jax,
        versus_eager_peers,
        startup,
        optimizer,
        train_loop,
        precision,
        generate,
        fk,
        ik_peers,
        ik_network,
        ik_ablation,
        ik_track,
        motion_models,
        stream,
        stick_models,
        stick_refine,
        stick_memory,
        worlds,
        irf_models,
        irf_speed,
        irf_estimate,
        vqvae_blocks,
        vqvae_mfeat,
        vqvae_peers,
        fuzz,
        soak,
        soak_vqvae,
        ranks,
    )
}


if __name__ == "__main__":
    main()
