"""Texts as vectors: by hashing their words, which needs no weights, or by a sentence encoder."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mfk.core.types import describe

HASH = "hash"


def hash_text(texts: Sequence[str], width: int = 1024) -> Tensor:
    """Words and pairs of neighbouring words, hashed to one of `width` places with a sign, and counted.

    Words are of two letters or more, in lower case; the same text always gives the same vector, on every
    machine, and there is nothing to be fitted.

    Args:
        texts: at least one word each.
        width: of the vectors, an int >= 2.

    Returns:
        [N, width], float32, each row of L2 norm 1.

    Raises:
        ValueError: a text without words, or of no norm since all its counts cancel; another width.
        TypeError: something else than texts.
        ImportError: scikit-learn is not installed.

    Source: Weinberger et al., Feature Hashing for Large Scale Multitask Learning (2009), as scikit-learn's
    HashingVectorizer has it (MurmurHash3).
    """
    _check_texts(texts)
    if isinstance(width, bool) or not isinstance(width, int) or width < 2:
        raise ValueError(f"width: expected an int >= 2, got {describe(width)}")
    module = _optional("sklearn.feature_extraction.text", "scikit-learn", "stick")
    if not texts:
        return torch.zeros(0, width)
    counter = module.HashingVectorizer(n_features=width, ngram_range=(1, 2), norm="l2")
    found = torch.from_numpy(counter.transform(list(texts)).toarray()).float()
    if len(empty := (found == 0).all(-1).nonzero()):
        place = int(empty[0])
        raise ValueError(f"texts[{place}]: expected words of two letters or more, got {texts[place]!r:.80}")
    return found


def embed_text(texts: Sequence[str], encoder: str = HASH, width: int | None = None) -> Tensor:
    """Texts as vectors of L2 norm 1, by `hash_text` or by a model of sentence-transformers.

    Args:
        texts: what to encode.
        encoder: "hash", or the name or folder of a model, such as BAAI/bge-large-en-v1.5 (1024 numbers).
        width: of the vectors; None: 1024 for "hash", and whatever the model gives.

    Returns:
        [N, width], float32.

    Raises:
        ValueError: as `hash_text`, no encoder, a model that cannot be loaded, or vectors of another width.
        TypeError: something else than texts.
        ImportError: the package that is needed is not installed.
    """
    _check_texts(texts)
    if not isinstance(encoder, str) or not encoder:
        raise ValueError(f"encoder: expected {HASH!r} or the name of a model, got {describe(encoder)}")
    if encoder == HASH:
        return hash_text(texts, 1024 if width is None else width)
    module = _optional("sentence_transformers", "sentence-transformers", "text")
    try:
        model = module.SentenceTransformer(encoder)
    except Exception as error:  # each part of a model has its own class of errors
        raise ValueError(
            "encoder: expected the name or the folder of a model of sentence-transformers, got "
            f"{encoder!r}: {str(error).strip().partition(chr(10))[0]:.300}"
        ) from error
    found = model.encode(
        list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
    )
    vectors = torch.from_numpy(found).float()
    if width is not None and vectors.shape[-1] != width:
        raise ValueError(f"width: expected {vectors.shape[-1]}, which {encoder} gives, got {width}")
    return vectors


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"texts: expected several texts, got {describe(texts)}")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"texts: expected texts only, got {describe(wrong[0])}")


def _optional(module: str, package: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{package} is needed: pip install 'mfk[{extra}]' ({error})") from error
