"""Texts become schedules, and vectors."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from mfk.data import ACTION_WORDS, ACTIONS, action_schedule, embed_text, hash_text


def said(text: str, frames: int = 120) -> list[tuple[str | None, int]]:
    return [(a if a is None else ACTIONS[a], first) for a, first in action_schedule(text, frames)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a person walks then jumps", [("walk", 0), ("jump", 60)]),
        ("Someone is running, then waves and then sits", [("run", 0), ("wave", 40), ("sit", 80)]),
        ("a person kicks a ball", [("kicking", 0)]),
        ("a person kicks", [("kick", 0)]),
        (
            "she walks like a zombie, dances salsa; claps.",
            [("zombie_walk", 0), ("dance_salsa", 40), ("clap", 80)],
        ),
        ("a person thinks, and runs", [(None, 0), ("run", 60)]),
        ("the crawler stands still", [("idle", 0)]),
        ("a person starts jogging. Then, sprinting", [("run", 0), ("sprint", 60)]),
        ("authentic walking", [("walk", 0)]),
    ],
)
def test_clauses_in_their_order(text: str, expected: list[tuple[str | None, int]]):
    assert said(text) == expected


def test_every_phrase_means_its_action_and_no_other():
    phrases = [phrase for words in ACTION_WORDS.values() for phrase in words]
    assert len(phrases) == len({*phrases})
    for action, words in ACTION_WORDS.items():
        assert len(words) % 3 == 0
        for phrase in words:
            assert said(f"a person {phrase}") == [(action, 0)]
    assert [*ACTION_WORDS] == [*ACTIONS]


def test_frames_are_spread_evenly():
    assert [first for _, first in said("walk, run, jump", 100)] == [0, 33, 66]
    assert [first for _, first in said("walk, run, jump", 3)] == [0, 1, 2]


def test_bad_texts_are_named():
    for text in ("", "  ", ", then ."):
        with pytest.raises(ValueError, match=r"text: expected words, got"):
            action_schedule(text, 10)
    with pytest.raises(ValueError, match=r"text: expected at most a clause for each of 1 frames, got 2"):
        action_schedule("walk then run", 1)
    with pytest.raises(ValueError, match=r"frames: expected an int >= 1, got 0"):
        action_schedule("walk then run", 0)
    with pytest.raises(TypeError, match=r"text: expected a text"):
        action_schedule(3, 10)  # type: ignore[arg-type]


def test_hashed_texts_are_what_counting_words_and_pairs_gives():
    texts = pytest.importorskip("sklearn.feature_extraction.text")
    sentences = ["a person walks then jumps", "the person waves", "a person walks then jumps"]
    found = hash_text(sentences, 4096)
    assert found.shape == (3, 4096) and found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=-1), torch.ones(3))
    assert torch.equal(found[0], found[2])
    # At this width nothing collides: inner products are those of counts.
    counts = texts.CountVectorizer(ngram_range=(1, 2)).fit_transform(sentences).toarray()
    counts = torch.from_numpy(counts).float()
    counts = counts / counts.norm(dim=-1, keepdim=True)
    assert torch.allclose(found @ found.T, counts @ counts.T, atol=1e-6)


def test_hashes_do_not_change_between_versions():
    pytest.importorskip("sklearn")
    found = hash_text(["walks"], 1024)[0]
    assert found.nonzero().flatten().tolist() == [860]
    assert float(found[860]) == -1.0
    assert hash_text([], 16).shape == (0, 16)
    assert torch.equal(embed_text(["walks"])[0], found)


def test_what_cannot_be_hashed_is_named():
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=r"texts\[1\]: expected words of two letters or more, got 'a'"):
        hash_text(["walks", "a"])
    with pytest.raises(ValueError, match=r"width: expected an int >= 2, got 0"):
        hash_text(["walks"], 0)
    with pytest.raises(TypeError, match=r"texts: expected several texts, got 'walks'"):
        hash_text("walks")
    with pytest.raises(ValueError, match=r"encoder: expected 'hash' or the name of a model"):
        embed_text(["walks"], encoder="")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ImportError, match=r"scikit-learn is needed: pip install 'mfk\[stick\]'"):
        hash_text(["walks"])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"sentence-transformers is needed: pip install 'mfk\[text\]'"):
        embed_text(["walks"], encoder="some/model")


def test_a_sentence_encoder_is_asked_for_vectors_of_norm_one(monkeypatch: pytest.MonkeyPatch):
    class Model:
        def __init__(self, name: str) -> None:
            self.name = name
            if name == "no/model":
                raise OSError("couldn't find it\nRead on.")

        def encode(self, texts: list[str], **options: bool):
            assert options["normalize_embeddings"] and self.name == "some/model"
            return torch.eye(4)[: len(texts)].numpy()

    fake = type(sys)("sentence_transformers")
    fake.SentenceTransformer = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake)
    assert importlib.import_module("sentence_transformers") is fake
    assert torch.equal(embed_text(["one", "two"], encoder="some/model"), torch.eye(4)[:2])
    with pytest.raises(ValueError, match=r"width: expected 4, which some/model gives, got 8"):
        embed_text(["one"], encoder="some/model", width=8)
    with pytest.raises(
        ValueError, match=r"^encoder: .* the folder of a model .*'no/model': couldn't find it$"
    ):
        embed_text(["one"], encoder="no/model")
