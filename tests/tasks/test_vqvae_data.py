"""From a table to the rows that a tokenizer sees, and back; nothing that is held out says how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_tables import Tokenizer, arrays, write_table

from mfk.data.cleaning import CleaningConfig
from mfk.data.families import FamilyTable, open_families
from mfk.tasks import vqvae_data
from mfk.tasks.vqvae_categories import CategoryConfig, categories_of
from mfk.tasks.vqvae_data import VQVAEData, VQVAEDataConfig, open_vqvae, part
from mfk.tasks.vqvae_net import FamilyConfig, LevelSetting, VQVAENetConfig, vqvae_nets
from mfk.tasks.vqvae_preparation import (
    columns_of,
    feature_names,
    feature_values,
    fit_preparation,
    from_json,
    prepare,
    restore,
    to_json,
)

WHOLE = CleaningConfig(percentiles=None)


def opened(path: Path, seed: int = 0, families: Any = None, **config: Any) -> VQVAEData:
    return open_vqvae(VQVAEDataConfig(path, **config), families, seed)


def test_rows_by_hand(tmp_path: Path) -> None:
    """Standardised by training rows; a feature in time by all its frames together."""
    data = opened(write_table(tmp_path / "a.npz"), cleaning=WHOLE)
    table, held = arrays(), data.val_rows
    kept = np.setdiff1d(np.arange(60), held)
    assert len(held) == 6 and len(data.train) == 54 and (np.diff(held) > 0).all()
    columns = [table["alpha"][:, i] for i in range(5)] + [table["beta"][:, i] for i in range(4)]
    x = np.empty((60, 9 + 18))
    for i, column in enumerate(columns):
        own = column.astype(np.float64)
        x[:, i] = (own - own[kept].mean()) / own[kept].std()
    for d in range(3):
        own = table["waves"][:, :, d].astype(np.float64)
        x[:, 9 + 6 * d : 15 + 6 * d] = (own - own[kept].mean()) / own[kept].std()
    assert np.allclose(data.train.numpy(), x[kept], atol=1e-5)
    assert np.allclose(data.val.numpy(), x[held], atol=1e-5)
    assert feature_names(data.prepared)[4:6] == ["alpha::alpha_4", "beta::beta_0"]
    assert columns_of(data.prepared)["waves"] == [list(range(9 + 6 * d, 15 + 6 * d)) for d in range(3)]
    values = feature_values(data.train, data.prepared)
    assert values.shape == (54, 12) and np.allclose(values[:, 10], x[kept][:, 15:21].mean(1), atol=1e-5)


def test_rows_that_are_held_out_say_nothing(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.npz")
    before = opened(path)
    wild = arrays()
    for values in wild.values():
        values[before.val_rows] *= 100
        values[before.val_rows] += 5
    np.savez(path, **wild)  # pyright: ignore[reportArgumentType]
    after = opened(path)
    assert to_json(after.prepared) == to_json(before.prepared) and after.report == before.report
    assert torch.equal(after.train, before.train) and not torch.equal(after.val, before.val)
    assert np.array_equal(after.val_rows, before.val_rows)
    settings = CategoryConfig()
    a, b = (categories_of(settings, {}, data).assignment for data in (before, after))
    assert np.array_equal(a, b)


def test_the_split_is_the_seeds(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.npz")
    one, two, other = opened(path), opened(path), opened(path, seed=1)
    assert np.array_equal(one.val_rows, two.val_rows) and not np.array_equal(one.val_rows, other.val_rows)
    assert len(opened(path, validation_share=0.3).val) == 18
    first = opened(path, max_samples=20)
    assert len(first.train) == 17 and len(first.val) == 3  # of three rows distances can be compared
    chosen = opened(path, families=("waves", "beta"))
    assert list(chosen.prepared.families) == ["waves", "beta"] and chosen.train.shape == (54, 22)


def test_constants_and_copies_are_dropped_and_said(tmp_path: Path) -> None:
    table = arrays()
    alpha, beta, waves = table["alpha"], table["beta"], table["waves"]
    alpha[:, 1] = 3.0
    beta[:, 2] = -2 * alpha[:, 0] + 1  # a copy across families
    waves[:, :, 1] = 0.5
    path = tmp_path / "a.npz"
    np.savez(path, alpha=alpha, beta=beta, waves=waves)
    data = opened(path, cleaning=WHOLE)
    names = feature_names(data.prepared)
    assert "alpha::alpha_1" not in names and "waves::waves_1" not in names
    assert len({"alpha::alpha_0", "beta::beta_2"} & {*names}) == 1 and len(names) == 9
    text = "\n".join(data.report)
    assert all(name in text for name in ("alpha::alpha_1", "waves::waves_1"))
    assert data.train.shape == (54, 4 + 3 + 2 * 6) or data.train.shape == (54, 3 + 4 + 2 * 6)
    assert data.prepared.features["alpha"] == tuple(f"alpha_{i}" for i in range(5))


def test_restore_undoes_prepare(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.npz")
    data = opened(path, cleaning=WHOLE)
    table = open_families(path)
    back = restore(prepare(table, data.prepared), data.prepared)
    assert back.names == table.names
    for name, values in table.families.items():
        assert back.families[name].shape == values.shape and back.families[name].dtype == np.float32
        assert np.allclose(back.families[name], values, rtol=1e-5, atol=1e-5)
    # Of what was cut off, the bound; of what was dropped, nothing.
    cut = opened(path).prepared
    assert not np.allclose(restore(prepare(table, cut), cut).families["beta"], table.families["beta"])
    again = prepare(restore(prepare(table, cut), cut), cut)
    assert torch.allclose(again, prepare(table, cut), atol=1e-4)


def test_as_text_and_back_to_the_last_bit(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.npz")
    for cleaning in (WHOLE, CleaningConfig(), CleaningConfig(nan="median")):
        prepared = opened(path, cleaning=cleaning).prepared
        text = to_json(prepared)
        back = from_json(text, "a.json")
        assert back.families == prepared.families and back.features == prepared.features
        assert np.array_equal(back.mean, prepared.mean) and np.array_equal(back.std, prepared.std)
        for block, one in prepared.cleaning.items():
            for ours, theirs in zip(one, back.cleaning[block], strict=True):
                assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=True)
        assert to_json(back) == text
        table = open_families(path)
        assert torch.equal(prepare(table, back), prepare(table, prepared))
    data = json.loads(text)  # pyright: ignore[reportPossiblyUnboundVariable]
    for wrong in ("{}", "[1]", "x", json.dumps(data | {"mean": [1.0]}), json.dumps(data | {"families": 3})):
        with pytest.raises(ValueError, match=r"^a\.json: expected"):
            from_json(wrong, "a.json")


def test_missing_values(tmp_path: Path) -> None:
    table = arrays()
    table["beta"][3, 1] = np.nan
    path = tmp_path / "a.npz"
    np.savez(path, **table)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=rf"{path}: .*beta::beta_1"):
        opened(path)
    policies: Any = (("median", 27), ("zero", 27), ("drop_feature", 26))
    for nan, width in policies:
        data = opened(path, cleaning=CleaningConfig(nan=nan))
        assert data.train.shape[1] == width and bool(data.train.isfinite().all())
        assert any("beta::beta_1" in line for line in data.report)


def test_other_tables_are_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.npz")
    prepared, table = opened(path).prepared, open_families(path)
    families, names = table
    less = {name: x for name, x in families.items() if name != "beta"}
    with pytest.raises(ValueError, match="family beta: expected it in the table, got alpha, waves"):
        prepare(FamilyTable(less, {name: names[name] for name in less}), prepared)
    message = "family beta: expected the training's 4 features, got 4; missing beta_0, .*; unknown a, "
    with pytest.raises(ValueError, match=message):
        prepare(FamilyTable(families, names | {"beta": tuple("abcd")}), prepared)
    with pytest.raises(ValueError, match="family beta: expected the training's 4 features, got 3"):
        short = families | {"beta": families["beta"][:, :3]}
        prepare(FamilyTable(short, names | {"beta": names["beta"][:3]}), prepared)
    turned = FamilyTable(
        families | {"beta": families["beta"][:, ::-1]}, names | {"beta": names["beta"][::-1]}
    )
    assert torch.equal(prepare(turned, prepared), prepare(table, prepared))  # by name
    with pytest.raises(ValueError, match="family waves: expected 6 frames, got shape"):
        prepare(FamilyTable(families | {"waves": families["waves"][:, :5]}, names), prepared)
    with pytest.raises(ValueError, match="family alpha: expected no frames"):
        prepare(FamilyTable(families | {"alpha": families["alpha"][:, None]}, names), prepared)
    # More families, in another order, are left aside.
    more = {"new": families["beta"], **{name: families[name] for name in reversed(families)}}
    own = names | {"new": names["beta"]}
    assert torch.equal(prepare(FamilyTable(more, own), prepared), prepare(table, prepared))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: {name: x[:1] for name, x in t.items()}, "expected at least 8 rows, got 1"),
        (lambda t: {name: x[:7] for name, x in t.items()}, "expected at least 8 rows, got 7"),
        (lambda t: t | {"beta": t["beta"][:, :0]}, "beta"),
        (lambda t: t | {"beta": t["beta"][:0]}, "beta"),
        (lambda t: t | {"beta": np.ones((60, 4), np.float32)}, "family beta: cleaning leaves none of its 4"),
        (lambda t: {name: np.ones_like(x) for name, x in t.items()}, "none of .* is left"),
        (lambda t: t | {"beta": t["beta"] + np.float32(np.inf)}, "beta"),
    ],
)
def test_tables_of_which_nothing_can_be_learned(tmp_path: Path, change: Any, error: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **change(arrays()))
    with pytest.raises(ValueError, match=rf"{path}: .*{error}"):
        opened(path)


def test_shares_that_leave_nothing(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.npz")
    for share in (0.0, 1.0, float("nan"), -0.1):
        with pytest.raises(ValueError, match="validation_share: expected a number between 0 and 1"):
            opened(path, validation_share=share)
    with pytest.raises(ValueError, match=r"validation_share: 0\.98 leaves 1 of 60 rows"):
        opened(path, validation_share=0.98)


def test_a_part_of_a_table_is_fitted_alone() -> None:
    table = FamilyTable({"a": arrays()["alpha"]}, {"a": tuple("vwxyz")})
    rows = np.arange(0, 60, 2)
    prepared, _ = fit_preparation(part(table, rows), WHOLE)
    assert np.allclose(prepared.mean, table.families["a"][rows].astype(np.float64).mean(0), atol=1e-7)


def test_categories_found_listed_or_of_one_feature(tmp_path: Path) -> None:
    data = opened(write_table(tmp_path / "a.npz"))
    found = categories_of(CategoryConfig(num_categories_auto=3, min_features_per_category=1), {}, data)
    assert len(found.names) == 3
    mapping = {"static": ["alpha::*", "beta::*"], "in_time": ["waves::*"]}
    listed = categories_of(CategoryConfig("manual"), mapping, data)
    assert listed.names == ("static", "in_time") and listed.assignment.tolist() == [0] * 9 + [1] * 3
    for few in (1, 2):
        np.savez(tmp_path / "b.npz", only=arrays()["alpha"][:, 1 : 1 + few])
        assert (
            categories_of(CategoryConfig(), {}, opened(tmp_path / "b.npz")).assignment.tolist() == [0] * few
        )
    for config, given, error in (
        (CategoryConfig("manual"), {}, "category_mapping: category_assignment manual needs it"),
        (CategoryConfig(), mapping, "category_mapping: no effect"),
        (CategoryConfig("manual", num_categories_auto=3), mapping, "num_categories_auto.*no effect"),
        (CategoryConfig("manual"), {"a": ["alpha::*"]}, "beta::beta_0"),
        (CategoryConfig(num_categories_auto=13), {}, "num_categories_auto: expected a number from 1 to 12"),
    ):
        with pytest.raises(ValueError, match=error):
            categories_of(config, given, data)


def test_networks_that_are_refused(tmp_path: Path) -> None:
    made = Tokenizer(tmp_path)
    own = (made.data.prepared, made.categories, 54)
    cnn = FamilyConfig("TemporalCNNEncoder")
    for families, levels, error in (
        ({"gamma": FamilyConfig()}, (), "families: expected families of the table, alpha, beta, waves"),
        ({"alpha": cnn}, (), r"families\.alpha\.encoder: TemporalCNNEncoder needs a family \[N, T, D\]"),
        ({}, (LevelSetting(4, 55),), "levels: category a: expected at most 54 codes, one a row, got 55"),
    ):
        with pytest.raises(ValueError, match=error):
            vqvae_nets(VQVAENetConfig(), families, levels, *own)
    # Sizes that nobody asked for are no mistake.
    few = vqvae_nets(VQVAENetConfig(), {}, (), made.data.prepared, made.categories, 5)
    assert max(level.tokens for level in few.levels) == 5
    assert vqvae_nets(VQVAENetConfig(), {"waves": cnn}, (LevelSetting(4, 54),), *own).groups
    short = made.categories._replace(assignment=made.categories.assignment[:5])
    with pytest.raises(ValueError, match="categories: expected each of 12 features in one, got 5"):
        vqvae_nets(VQVAENetConfig(), {}, (), made.data.prepared, short, 54)


def test_the_record_tells_files_apart(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.npz")
    one = vqvae_data.data_record(VQVAEDataConfig(path))
    write_table(path, seed=1)
    assert vqvae_data.data_record(VQVAEDataConfig(path)) != one and str(path) in one
