"""Learn the vectors of a larger model (embedding distillation, arXiv 2004.09813) without the teacher in memory.

The teacher embeds every text once, before the training. Its vectors stay on the disk and are memory-mapped. They are
rotated so that they lie as close as possible to the vectors of the untrained model, by a matrix with orthonormal
columns (orthogonal Procrustes, Schönemann 1966). Cosines between the teacher's vectors hardly change, and the two
models may have different dimensions. Besides the model, nothing has to be learnt, saved or merged.

Letters: U texts of the store, n texts of a batch, E dimensions of the teacher, D of the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embedrag.data.rows import read_rows, row_texts
from embedrag.data.text import PASSAGE, QUERY
from embedrag.data.token_store import TokenStore
from embedrag.errors import RunError
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.fast_dropout import dropout_on
from embedrag.models.load import load_model
from embedrag.retrieval.vector_cache import cached_vectors
from embedrag.runtime.console import say
from embedrag.runtime.distributed import ProcessGroup
from embedrag.runtime.paths import cache_folder
from embedrag.training.config.options import TrainOptions

ALIGNED_TEXTS = 4096


@dataclass(frozen=True)
class EmbeddingTeacher:
    """The vectors that the student should give to the texts.

    Attributes:
        vectors: [m, E] float32 of queries and of passages, of length 1, memory-mapped.
        place: [U] number of each text in the two arrays, counted through both.
        rotation: [E, D] from the teacher's space to the student's.
        weight: of this loss, added to the contrastive loss.
    """

    vectors: tuple[np.ndarray, np.ndarray]
    place: np.ndarray
    rotation: Tensor
    weight: float

    def of(self, texts: np.ndarray) -> Tensor:
        """[n, E] of some texts of the store."""
        places, split = self.place[texts], len(self.vectors[0])
        # torch aligns its memory, numpy does not, and a product may round by the alignment of its factors.
        vectors = torch.empty(len(texts), self.vectors[0].shape[1])
        found = vectors.numpy()
        found[places < split] = self.vectors[0][places[places < split]]
        found[places >= split] = self.vectors[1][places[places >= split] - split]
        return vectors

    def distance(self, embeddings: Tensor, texts: Tensor) -> Tensor:
        """[n] 1 - cosine to the wanted vectors: half the squared distance of vectors of length 1.

        Args:
            embeddings: [n, D] of the student.
            texts: [n] their numbers in the store, on the host.
        """
        wanted = self.of(texts.numpy()).to(embeddings) @ self.rotation.to(embeddings)
        return 1 - F.cosine_similarity(embeddings, wanted, dim=1)

    def aligned(self, student: Encoder, store: TokenStore) -> EmbeddingTeacher:
        """The same, rotated to the student as it is now, by up to `ALIGNED_TEXTS` texts of the rows."""
        texts = np.unique(store.row_texts[: 4 * ALIGNED_TEXTS])[:ALIGNED_TEXTS]
        with torch.no_grad(), dropout_on(student, False):
            vectors = F.normalize(student(store.batch(texts)).double(), dim=1).cpu()
        return replace(self, rotation=procrustes(self.of(texts).double(), vectors).float())


def procrustes(source: Tensor, target: Tensor) -> Tensor:
    """The matrix [E, D] of orthonormal columns (rows, if D is larger) with the largest trace of (source M)ᵀ target.

    Args:
        source: [n, E].
        target: [n, D].

    >>> angle = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> torch.allclose(procrustes(torch.eye(2), angle), angle)
    True
    """
    left, _, right = torch.linalg.svd(source.T @ target, full_matrices=False)
    rotation: Tensor = left @ right
    return rotation


def teacher_vectors(
    encoder: Encoder, paths: Sequence[str], store: TokenStore, weight: float, cache: Path
) -> EmbeddingTeacher:
    """Embed every text of the store with another model, or find its vectors in the cache. They are not yet rotated.

    Args:
        encoder: the teacher, with its own tokenizer, prompts and lengths.
        paths: the sources of the store.
        store: the rows that are trained on.
        weight: of the loss.
        cache: folder of the vectors.

    Raises:
        RunError: when the sources changed after the store was made.
    """
    numbers: dict[str, list[int]] = {QUERY: [], PASSAGE: []}
    texts: dict[str, list[str]] = {QUERY: [], PASSAGE: []}
    seen = np.zeros(len(store.text_offsets) - 1, bool)
    row = 0
    for place, record in read_rows(paths):
        if row == len(store) or place != store.place(row):  # a row that was held out
            continue
        ids = store.row_texts[store.row_offsets[row] : store.row_offsets[row + 1]]
        for number, (role, text) in zip(ids.tolist(), row_texts(record), strict=True):
            if not seen[number]:
                seen[number] = True
                numbers[role].append(number)
                texts[role].append(text)
        row += 1
    if row != len(store):
        raise RunError(f"{', '.join(paths)}: the data changed since it was tokenised; start again")
    queries, passages = (cached_vectors(encoder, texts[role], role, cache)[0] for role in (QUERY, PASSAGE))
    places = np.full(len(seen), -1)
    places[[*numbers[QUERY], *numbers[PASSAGE]]] = np.arange(len(queries) + len(passages))
    return EmbeddingTeacher((queries, passages), places, torch.eye(encoder.dimension), weight)


def ask_teacher(options: TrainOptions, store: TokenStore, processes: ProcessGroup) -> EmbeddingTeacher:
    """The vectors of the model that `embedding_teacher` names; the model itself is released afterwards."""
    name = options.embedding_teacher or ""
    remote = options.trust_remote_code
    encoder = load_model(name, options.device, "auto", trust_remote_code=remote, argument="embedding_teacher")
    paths = [source.path for source in options.train_dataset or []]
    with processes.main_first():
        teacher = teacher_vectors(
            encoder, paths, store, options.embedding_teacher_weight, cache_folder(options.cache_dir)
        )
    say(f"teacher: {name}, {encoder.dimension} dimensions, {len(teacher.place):,} texts")
    return teacher
