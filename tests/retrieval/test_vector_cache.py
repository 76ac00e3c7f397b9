"""Vectors of a corpus are kept for the model and its texts, and a damaged file is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedrag.errors import RunError, UserError
from embedrag.models.load import load_model
from embedrag.retrieval.vector_cache import cached_vectors, unit


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_vectors_are_kept_for_the_model_and_its_texts(tiny_bert: str, tiny_qwen3: str, cache: Path) -> None:
    texts, encoder = ["a frog", "a heron"], load_model(tiny_bert, "cpu")
    first, found = cached_vectors(encoder, texts, "passage", cache)
    assert not found and np.array_equal(first, unit(encoder.encode(texts, "passage")))
    again, found = cached_vectors(load_model(tiny_bert, "cpu"), texts, "passage", cache)
    assert found and np.array_equal(again, first)
    for model, other, role in (
        (tiny_qwen3, texts, "passage"),
        (tiny_bert, texts[:1], "passage"),
        (tiny_bert, texts, "query"),
    ):
        assert not cached_vectors(load_model(model, "cpu"), other, role, cache)[1]
    assert len(list(cache.glob("vectors-*.npy"))) == 4


DAMAGED: dict[str, tuple[Callable[[Path, np.ndarray], object], str]] = {
    "other shape": (lambda path, good: np.save(path, good[:, :3]), r"holds float32 \[9, 3\]"),
    "empty": (lambda path, good: path.write_bytes(b""), "damaged"),
    "archive": (lambda path, good: np.savez(path.open("wb"), good), "damaged"),
    "cut off": (lambda path, good: path.write_bytes(path.read_bytes()[:-9]), "damaged"),
    "not a number": (lambda path, good: np.save(path, np.where(np.arange(9) == 6, np.nan, good.T).T), r"vector 7 is"),
    "zeros": (lambda path, good: np.save(path, good * (np.arange(9) < 8)[:, None]), r"vector 9 is not of length 1"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_vectors_in_the_cache_are_named_by_their_file(damage: str, tiny_bert: str, cache: Path) -> None:
    texts, encoder = [f"text {number}" for number in range(9)], load_model(tiny_bert, "cpu")
    good = np.array(cached_vectors(encoder, texts, "passage", cache)[0])
    [path] = cache.glob("vectors-*.npy")
    spoil, message = DAMAGED[damage]
    spoil(path, good)
    with pytest.raises(UserError, match=f"{path.name}: .*{message}.*remove the file"):
        cached_vectors(encoder, texts, "passage", cache)


def test_vectors_without_a_direction_are_not_kept(tiny_bert: str, cache: Path, monkeypatch) -> None:
    encoder = load_model(tiny_bert, "cpu")
    monkeypatch.setattr(type(encoder), "blocks", lambda *_: iter([np.zeros((2, encoder.dimension), np.float32)]))
    with pytest.raises(RunError, match="a vector of length 0"):
        cached_vectors(encoder, ["a", "b"], "passage", cache)
    assert not list(cache.iterdir())
