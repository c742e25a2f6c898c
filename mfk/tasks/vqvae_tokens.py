"""Rows as tokens, in Parquet files that any program reads, and back; what the tokens say of each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.core import ranks, tree
from mfk.core.files import replaced_whole
from mfk.core.ranks import Ranks
from mfk.core.types import Tree, describe
from mfk.data.archives import attempt
from mfk.nn import look_up
from mfk.tasks.vqvae import VQVAEConfig, codebook, forward
from mfk.tasks.vqvae_net import VQVAENets

_ROWS = 1024  # a multiple of the rows whose distances are compared
_META = b"mfk_tokens"


class TokenRow(NamedTuple):
    """What the tokens of a category say, in bits."""

    category: str
    features: int
    codes: int  # of all its levels
    used: int
    entropy: float  # mean over the levels, of a token
    joint: float  # of the levels' tokens together
    shared: float  # largest mutual information with a token of another category


def encode(
    nets: VQVAENets,
    config: VQVAEConfig,
    params: Tree,
    state: Tree,
    x: Tensor,
    *,
    here: Ranks | None = None,
) -> Tensor:
    """The tokens [N, J] int64 of prepared rows [N, F], of each category and level.

    Several ranks, which must all call this, share the rows, each told which it is, `here`; all return the
    tokens of all rows.
    """
    tokens = torch.zeros(len(x), len(nets.levels), dtype=torch.int64, device=x.device)
    with torch.no_grad():
        for first, rows in blocks_of(x, here):
            tokens[first : first + len(rows)] = forward(nets, config, params, state, rows).indices
    # Zeros where other ranks have their tokens.
    return tokens if here is None else ranks.add_up(tokens)


def blocks_of(x: Tensor, here: Ranks | None) -> Iterator[tuple[int, Tensor]]:
    """The rows of `x` that fall to a rank, None: all of them, in blocks: number of the first one, rows."""
    rank, count = here or (0, 1)
    for first in range(0, len(x), _ROWS)[rank::count]:
        yield first, x[first : first + _ROWS]


def decode(nets: VQVAENets, config: VQVAEConfig, params: Tree, state: Tree, tokens: Tensor) -> Tensor:
    """The rows [N, F] that tokens [N, J] stand for.

    Raises:
        ValueError: another number of columns, or a token that is none of its codebook's.
        TypeError: tokens that are not int64.
    """
    check_tokens(nets, tokens)
    rows = []
    with torch.no_grad():
        for some in tokens.split(_ROWS):
            codes = []
            for j in range(len(nets.levels)):
                codes.append(look_up(codebook(config, params, state, j), some[:, j]))
            rows.append(nets.model.apply(params["net"], state["buffers"], "decode", codes))
    return torch.cat(rows)


def check_tokens(nets: VQVAENets, tokens: Tensor) -> None:
    """Refuse what is no table of tokens of this network; errors as `decode`."""
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
        raise TypeError(f"tokens: expected an int64 tensor, got {describe(tokens)}")
    if tokens.ndim != 2 or tokens.shape[1] != len(nets.levels) or not len(tokens):
        raise ValueError(f"tokens: expected rows [N, {len(nets.levels)}], got {tuple(tokens.shape)}")
    for name, column, level in zip(column_names(nets), tokens.T, nets.levels, strict=True):
        if not 0 <= int(column.min()) <= int(column.max()) < level.tokens:
            raise ValueError(
                f"tokens: {name}: expected numbers from 0 to {level.tokens - 1}, "
                f"got {int(column.min())} to {int(column.max())}"
            )


def column_names(nets: VQVAENets) -> list[str]:
    """The name of each token: category/level."""
    return [f"{nets.categories[g]}/{level}" for g, level in nets.codebooks]


def tokenizer_id(params: Tree, state: Tree) -> str:
    """What tells a trained network, and with it the meaning of its tokens, from others: a digest."""
    digest = hashlib.sha256()
    for leaf in tree.leaves((params, state)):
        digest.update(leaf.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_tokens(path: Path | str, nets: VQVAENets, tokens: Tensor, tokenizer: str) -> None:
    """Write tokens [N, J] to a Parquet file, a column of int32 for each category and level.

    The file's metadata say how many codes each column has, and whose they are: `tokenizer`, as of
    `tokenizer_id`. A file that is there is replaced as a whole.

    Raises:
        ValueError: another suffix, or no tokens of this network. OSError: the place cannot be written to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if path.suffix != ".parquet":
        raise ValueError(f"{path}: expected a file named .parquet")
    check_tokens(nets, tokens)
    names = column_names(nets)
    codes = {name: level.tokens for name, level in zip(names, nets.levels, strict=True)}
    arrays = [pa.array(column.numpy().astype(np.int32)) for column in tokens.T]
    table = pa.table(arrays, names=names).replace_schema_metadata(
        {_META: json.dumps({"codes": codes, "tokenizer": tokenizer})}
    )
    with replaced_whole(path) as part:
        pq.write_table(table, part)


def read_tokens(path: Path | str, nets: VQVAENets, tokenizer: str) -> Tensor:
    """The tokens [N, J] of a file of `write_tokens`, of this network.

    A file of another program says not whose its tokens are: columns of these names in range are taken.

    Raises:
        FileNotFoundError: it is not there. ValueError: it is damaged, or of another network.
    """
    import pyarrow as pa

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    table = attempt(path, _table, path)
    names = column_names(nets)
    if table.column_names != names:
        raise ValueError(
            f"{path}: expected the columns {', '.join(names)}; got {', '.join(table.column_names)}"
        )
    said = (table.schema.metadata or {}).get(_META)
    if said is not None and (came := _tokenizer(path, said)) != tokenizer:
        raise ValueError(
            f"{path}: expected tokens of this tokenizer, {tokenizer}; they are another's, or of "
            f"another time in its training: {came}"
        )
    columns = []
    for name in names:
        column = table.column(name)
        if not pa.types.is_integer(column.type) or column.null_count:
            came = f"{column.type}, missing in {column.null_count:,}"
            raise ValueError(f"{path}: {name}: expected whole numbers in every row, got {came}")
        columns.append(torch.from_numpy(column.to_numpy().astype(np.int64)))
    tokens = torch.stack(columns, -1)
    try:
        check_tokens(nets, tokens)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return tokens


def _table(path: Path) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read(use_threads=False)


def _tokenizer(path: Path, said: bytes) -> str:
    try:
        return str(json.loads(said)["tokenizer"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path}: its metadata {_META.decode()} is damaged") from None


def token_statistics(nets: VQVAENets, tokens: Tensor) -> list[TokenRow]:
    """What the tokens [N, J] of each category say, and how much of it others say too; plug-in estimates."""
    check_tokens(nets, tokens)
    columns = tokens.numpy().T
    entropies = [_entropy(column) for column in columns]
    rows = []
    for g, category in enumerate(nets.categories):
        own = [j for j, (k, _) in enumerate(nets.codebooks) if k == g]
        others = [j for j, (k, _) in enumerate(nets.codebooks) if k != g]
        shared = [
            entropies[i] + entropies[j] - _entropy(columns[i] * nets.levels[j].tokens + columns[j])
            for i in own
            for j in others
        ]
        rows.append(
            TokenRow(
                category,
                len(nets.groups[g]),
                sum(nets.levels[j].tokens for j in own),
                sum(len(np.unique(columns[j])) for j in own),
                sum(entropies[j] for j in own) / len(own),
                _entropy(np.unique(columns[own], axis=1, return_inverse=True)[1].ravel()),
                max(shared, default=0.0),
            )
        )
    return rows


def _entropy(numbers: np.ndarray) -> float:
    """Of small numbers >= 0, one a row, in bits."""
    counts = np.bincount(numbers)
    share = counts[counts > 0] / len(numbers)
    return float(-(share * np.log2(share)).sum())
