"""Vectors of a corpus are kept for the model and its texts, and damaged ones are named and computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedrag.errors import RunError
from embedrag.models.load import load_model
from embedrag.retrieval.vector_cache import cached_vectors, unit
from embedrag.runtime.cache import write_sums


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
    assert len(list(cache.glob("vectors-*/vectors.npy"))) == 4


DAMAGED: dict[str, tuple[Callable[[Path, np.ndarray], object], str]] = {
    "other shape": (lambda path, good: np.save(path, good[:, :3]), "has 236 bytes instead of 2,432"),
    "empty": (lambda path, good: path.write_bytes(b""), "has 0 bytes instead of 2,432"),
    "cut off": (lambda path, good: path.write_bytes(path.read_bytes()[:-9]), "has 2,423 bytes"),
    "other vector": (lambda path, good: np.save(path, good[::-1]), "the checksum of vectors.npy differs"),
    "lost": (lambda path, good: path.unlink(), "vectors.npy is missing"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_vectors_are_named_and_computed_again(
    damage: str, tiny_bert: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, encoder = [f"text {number}" for number in range(9)], load_model(tiny_bert, "cpu")
    good = np.array(cached_vectors(encoder, texts, "passage", cache)[0])
    [path] = cache.glob("vectors-*/vectors.npy")
    spoil, message = DAMAGED[damage]
    spoil(path, good)
    again, found = cached_vectors(encoder, texts, "passage", cache)
    assert not found and np.array_equal(again, good)
    said = capsys.readouterr().out
    assert f"cache: {path.parent} is damaged" in said and message in said and "made again" in said
    assert cached_vectors(encoder, texts, "passage", cache)[1]


def test_vectors_of_another_shape_are_not_used(tiny_bert: str, cache: Path) -> None:
    """The checksums hold; what is in the file is not what this model gives."""
    texts, encoder = ["a", "b"], load_model(tiny_bert, "cpu")
    good = np.array(cached_vectors(encoder, texts, "passage", cache)[0])
    [path] = cache.glob("vectors-*/vectors.npy")
    np.save(path, good[:, :3])
    (path.parent / "checksums.json").unlink()
    write_sums(path.parent)
    assert not cached_vectors(encoder, texts, "passage", cache)[1]


def test_vectors_without_a_direction_are_not_kept(tiny_bert: str, cache: Path, monkeypatch) -> None:
    encoder = load_model(tiny_bert, "cpu")
    monkeypatch.setattr(type(encoder), "blocks", lambda *_: iter([np.zeros((2, encoder.dimension), np.float32)]))
    with pytest.raises(RunError, match="a vector of length 0"):
        cached_vectors(encoder, ["a", "b"], "passage", cache)
    assert not list(cache.iterdir())
