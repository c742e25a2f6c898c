"""Tokens: what plain pyarrow reads, what they decode to, what they say of each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from family_tables import Tokenizer
from sklearn.metrics import mutual_info_score

from mfk.tasks.vqvae import forward
from mfk.tasks.vqvae_drawing import draw_codebooks
from mfk.tasks.vqvae_net import LevelSetting
from mfk.tasks.vqvae_tokens import (
    decode,
    encode,
    read_tokens,
    token_statistics,
    tokenizer_id,
    write_tokens,
)


@pytest.mark.parametrize("use_ema", [True, False])
def test_there_and_back(tmp_path: Path, use_ema: bool) -> None:
    made = Tokenizer(tmp_path, use_ema=use_ema, dead_code_reset_interval=None, dtype=torch.float32)
    if not use_ema:  # what has been learned is not what the averages hold
        made.params["codes"] = {j: codes + 0.1 for j, codes in made.params["codes"].items()}
    own = (made.nets, made.config, made.params, made.state)
    tokens = encode(*own, made.x)
    parts = forward(*own, made.x)
    assert torch.equal(tokens, parts.indices) and torch.equal(decode(*own, tokens), parts.decoded)
    file = tmp_path / "tokens.parquet"
    write_tokens(file, made.nets, tokens, "mine")
    table = pq.read_table(file)
    assert table.column_names == ["a/0", "a/1", "b/0", "b/1", "c/0", "c/1"]
    assert {field.type for field in table.schema} == {pa.int32()} and table.num_rows == 54
    assert np.array_equal(np.stack([c.to_numpy() for c in table.columns], 1), tokens.numpy())
    assert torch.equal(read_tokens(file, made.nets, "mine"), tokens)


def test_tokens_of_another_network_are_refused(tmp_path: Path) -> None:
    made = Tokenizer(tmp_path, dtype=torch.float32)
    own = (made.nets, made.config, made.params, made.state)
    tokens = encode(*own, made.x)
    file = tmp_path / "tokens.parquet"
    write_tokens(file, made.nets, tokens, "mine")
    other = Tokenizer(tmp_path, levels=(LevelSetting(3, 6),), dtype=torch.float32)
    with pytest.raises(ValueError, match=rf"{file}: expected the columns a/0, b/0, c/0; got a/0, a/1"):
        read_tokens(file, other.nets, "mine")
    smaller = Tokenizer(tmp_path, levels=(LevelSetting(3, 2), LevelSetting(2, 2)), dtype=torch.float32)
    with pytest.raises(ValueError, match=rf"{file}: tokens: ./.: expected numbers from 0 to 1, got 0 to"):
        read_tokens(file, smaller.nets, "mine")
    # Of as many codes every token is one of its own, but the file is another network's.
    with pytest.raises(ValueError, match=rf"{file}: expected tokens of this tokenizer, yours; .*: mine"):
        read_tokens(file, made.nets, "yours")
    larger = made.state["books"]["3"].codes + 1e-6
    books = made.state["books"] | {"3": made.state["books"]["3"]._replace(codes=larger)}
    name = tokenizer_id(made.params, made.state)
    assert name == tokenizer_id(made.params, made.state)
    assert name != tokenizer_id(made.params, made.state | {"books": books})
    names = pq.read_table(file).column_names
    for values, error in (
        ([0.5] * 2, "a/0: expected whole numbers"),
        ([None, 1], "a/0: expected whole numbers in every row"),
        ([0, -1], "a/0: expected numbers from 0 to 5, got -1"),
        (np.array([], np.int32), "expected rows"),
    ):
        pq.write_table(pa.table({name: values for name in names}), tmp_path / "wrong.parquet")
        with pytest.raises(ValueError, match=rf"wrong\.parquet: .*{error}"):
            read_tokens(tmp_path / "wrong.parquet", made.nets, "mine")
    (tmp_path / "cut.parquet").write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cut\.parquet: the file is damaged"):
        read_tokens(tmp_path / "cut.parquet", made.nets, "mine")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_tokens(tmp_path / "none.parquet", made.nets, "mine")
    with pytest.raises(TypeError, match="tokens: expected an int64 tensor"):
        decode(*own, tokens.int())
    with pytest.raises(ValueError, match=r"tokens: expected rows \[N, 6\]"):
        decode(*own, tokens[:, :5])
    with pytest.raises(ValueError, match=r"expected a file named \.parquet"):
        write_tokens(tmp_path / "a.csv", made.nets, tokens, "mine")


def test_tokens_that_a_program_wrote_without_our_metadata(tmp_path: Path) -> None:
    """Whole numbers of any width under the right names are tokens."""
    made = Tokenizer(tmp_path, dtype=torch.float32)
    tokens = encode(made.nets, made.config, made.params, made.state, made.x)
    names = ["a/0", "a/1", "b/0", "b/1", "c/0", "c/1"]
    pq.write_table(
        pa.table({n: c.numpy().astype(np.uint8) for n, c in zip(names, tokens.T, strict=True)}),
        tmp_path / "t.parquet",
    )
    assert torch.equal(read_tokens(tmp_path / "t.parquet", made.nets, "mine"), tokens)


def test_what_tokens_say_by_scikit_learn(tmp_path: Path) -> None:
    made = Tokenizer(tmp_path, dtype=torch.float32)
    tokens = encode(made.nets, made.config, made.params, made.state, made.x)
    t = tokens.numpy()
    rows = token_statistics(made.nets, tokens)
    assert [r.category for r in rows] == ["a", "b", "c"]

    def bits(a: Any, b: Any) -> float:
        return mutual_info_score(a, b) / np.log(2)

    for g, row in enumerate(rows):
        own, others = [2 * g, 2 * g + 1], [j for j in range(6) if j // 2 != g]
        assert (row.codes, row.used) == (10, sum(len(set(t[:, j])) for j in own))
        assert row.features == len(made.nets.groups[g])
        assert row.entropy == pytest.approx(np.mean([bits(t[:, j], t[:, j]) for j in own]))
        both = t[:, own[0]] * 100 + t[:, own[1]]
        assert row.joint == pytest.approx(bits(both, both))
        assert row.shared == pytest.approx(max(bits(t[:, i], t[:, j]) for i in own for j in others))


@pytest.mark.parametrize("levels", [(LevelSetting(1, 2),), (LevelSetting(2, 6), LevelSetting(1, 3))])
def test_pictures_of_codebooks_of_any_size(tmp_path: Path, levels: Any) -> None:
    made = Tokenizer(tmp_path, levels=levels, dtype=torch.float32)
    path = draw_codebooks(tmp_path / "a.png", made.nets, made.config, made.params, made.state)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_by_umap_says_what_it_needs(tmp_path: Path) -> None:
    made = Tokenizer(tmp_path, dtype=torch.float32)
    try:
        import umap  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        with pytest.raises(ModuleNotFoundError, match=r"pip install \"mfk\[umap\]\""):
            draw_codebooks(tmp_path / "a.png", made.nets, made.config, made.params, made.state, "umap")
        assert not (tmp_path / "a.png").exists()
