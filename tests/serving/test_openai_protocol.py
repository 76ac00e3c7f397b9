"""The bodies of answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedrag.serving.openai_protocol import EmbeddingsRequest, answer_bytes, embeddings_body


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 257)])
def test_answer_is_never_longer_than_the_room_it_takes(shape: tuple[int, int], encoding_format: Any) -> None:
    draw = np.random.default_rng(0)
    request = EmbeddingsRequest(input=["a"] * shape[0], encoding_format=encoding_format, normalize=False)
    for vectors in (-(2.0 ** draw.uniform(-120, 120, shape)), -draw.random(shape) * 1e-4, -draw.random(shape)):
        body = embeddings_body(request, vectors.astype(np.float32), 10**12, "m")
        assert len(body) <= answer_bytes(*shape, encoding_format)
