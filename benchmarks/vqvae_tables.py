"""The tables of tokenizers; see tables.py."""

from __future__ import annotations

from table_lines import Results, claims, machine, table

HEADS = ("", "quality", "utilisation", "perplexity", "topo pre", "topo post", "orthogonality", "s in all")


def vqvae_blocks(results: Results) -> list[str]:
    """A row for each run, held-out rows and those trained on, under the original's figures."""
    original = results["original"]
    rows = [
        [
            "original",
            f"{original['quality']:.3f}",
            f"{100 * original['utilisation']:.0f} %",
            "",
            f"{original['topo_pre']:.2f}",
            f"{original['topo_post']:.2f}",
            "",
            "",
        ]
    ]
    for run in results["runs"]:
        for rows_of in ("held out", "trained on"):
            score = run[rows_of]
            rows.append(
                [
                    f"seed {run['seed']}, {rows_of}",
                    f"{score['quality']:.4f}",
                    f"{100 * score['utilisation']:.1f} %",
                    f"{100 * score['perplexity']:.1f} %",
                    f"{score['topo_pre']:.3f}",
                    f"{score['topo_post']:.3f}",
                    f"{score['orthogonality']:.3f}",
                    f"{run['seconds']:.0f}" if rows_of == "held out" else "",
                ]
            )
    first = results["runs"][0]
    facts = first["facts"]
    return [
        machine(results["versions"]),
        f"Codebooks: {facts['codebooks']}; {facts['network']}; {first['held out']['bits']:.0f} bits a row.",
        "",
        *table(HEADS, rows, left=1),
        "",
        *claims(results["claims"]),
    ]


def vqvae_mfeat(results: Results) -> list[str]:
    """A row for each method, a column for each run."""
    runs = results["runs"]
    lines = [
        machine(results["versions"]),
        " ".join(
            f"Seed {run['seed']}: codebooks {run['facts']['codebooks']}, "
            f"{run['held out']['bits']:.0f} bits a row, {run['features']} features, {run['seconds']:.0f} s."
            for run in runs
        ),
    ]
    for run in runs:
        rows = [[name, f"{error:.4f}"] for name, error in sorted(run["errors"].items(), key=lambda x: x[1])]
        lines += ["", *table([f"seed {run['seed']}", "mean squared error"], rows, left=1)]
    return [*lines, "", *claims(results["claims"])]


def vqvae_peers(results: Results) -> list[str]:
    """Rows as they are, the autoencoder, and times."""
    quality = [
        [where, row["by"], f"{row['mse']:.4f}", f"{100 * row['used']:.1f} %"]
        for where, rows in (("rows as they are", results["fixed"]), ("autoencoder", results["learned"]))
        for row in rows
    ]
    steps = [
        [row["case"], row["by"], f"{1e6 * row['seconds']:.0f}", f"{row['ratio']:.2f}"]
        for row in results["steps"]
    ]
    package = "vector-quantize-pytorch"
    return [
        f"{machine(results['versions'], results['repeats'])} {package} {results['versions'][package]}.",
        "",
        *table(["", "quantiser", "mean squared error", "codes in use"], quality, left=2),
        "",
        *table(["a step of", "quantiser", "us", "ratio"], steps, left=2),
        "",
        *claims(results["claims"]),
    ]
