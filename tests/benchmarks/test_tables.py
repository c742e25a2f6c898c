"""The tables of benchmarks/README.md are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tables

README = (tables.FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_what_the_results_make_of_it() -> None:
    assert tables.rewrite(README, tables.FOLDER / "results") == README


def test_every_script_and_every_result_has_its_place() -> None:
    shared = {"networks", "timing", "tables", "table_lines", "soak_series"}
    shared |= {f"{system}_tables" for system in ("motion", "irf", "vqvae", "soak")}
    shared |= {f"fuzz_{part}" for part in ("mutators", "data", "runs")}
    for path in tables.FOLDER.glob("*.py"):
        assert path.stem in shared or path.stem in tables.TABLES
        assert path.stem in shared - {"networks"} or f"[{path.name}]({path.name})" in README
    for path in (tables.FOLDER / "results").glob("*.json"):
        assert f"results/{path.name}" in README


def test_other_results_make_another_text(tmp_path: Path) -> None:
    """A figure is read, not kept; without results there is no table, and rewriting twice changes nothing."""
    results = json.loads((tables.FOLDER / "results/fk.json").read_text(encoding="utf-8"))
    results["table"][0]["seconds"] = 123.4567891
    (tmp_path / "fk.json").write_text(json.dumps(results), encoding="utf-8")
    text = tables.rewrite(README, tmp_path)
    assert "| 123456.789 |" in text and "| 123456.789 |" not in README
    assert "<!-- begin generate -->\n<!-- end generate -->" in text
    assert tables.rewrite(text, tmp_path) == text


def test_a_place_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fk"):
        tables.rewrite(README.replace("<!-- begin fk -->", ""), tmp_path)
    with pytest.raises(ValueError, match="end fk"):
        tables.rewrite(README.replace("<!-- end fk -->", ""), tmp_path)
