"""The vectors of a file of texts, written while they are computed: memory holds one block of texts at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from embedrag.data.text import PASSAGE, QUERY
from embedrag.data.text_files import read_texts
from embedrag.errors import UserError, check_choice
from embedrag.models.embedding_format import DTYPES, EmbeddingFormat
from embedrag.models.encoder import TEXTS_PER_BLOCK, TextEncoder
from embedrag.models.load import check_model_path, load_model
from embedrag.runtime.console import console
from embedrag.runtime.files import check_targets, write_vectors, written_in_place


@dataclass(frozen=True)
class EncodedFile:
    """A file of vectors.

    Attributes:
        output: the .npy file.
        texts: number of vectors, one for each text.
        dimensions: of a vector.
        bytes: of a vector.
    """

    output: Path
    texts: int
    dimensions: int
    bytes: int

    def lines(self) -> Iterator[str]:
        """The result as text for a terminal."""
        yield f"{self.texts:,} vectors of {self.dimensions} dimensions, {self.bytes:,} bytes each, in {self.output}"


def encode_file(
    model: TextEncoder | str | Path,
    input: str | Path,
    output: str | Path,
    *,
    dim: int | None = None,
    precision: str = "float32",
    role: str = PASSAGE,
    base_model_path: str | Path | None = None,
    field: str = "text",
    device: str = "auto",
    dtype: str = "float32",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> EncodedFile:
    """Write the vectors of all texts of a file, in order. The output appears when it is whole.

    Args:
        model: the model, or its folder or hub id.
        input: the texts: a file of any format that training reads, or any other file as one text on each line; a pipe
            is held in memory.
        output: .npy file, or a pipe: [n, D] of the precision's type, with one row for each text.
        dim: keep this many of the first dimensions, and scale the vector to length 1 again; None: all dimensions.
        precision: of the stored numbers, see `EmbeddingFormat`.
        role: `query` or `passage`; it decides the prompt and the maximum length.
        base_model_path: base of an adapter, when it has moved.
        field: key or column of `input` that holds the text.
        device: where to compute: `auto`, `cuda`, `mps` or `cpu`.
        dtype: of the computation: `auto`, `float32`, `float16` or `bfloat16`.
        overwrite: replace the output file.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        UserError: naming the argument that is wrong, or file and line of a text.
        RunError: when the file can't be written; no part of it is left.
    """
    source, target = Path(input).expanduser(), Path(output).expanduser()
    check_choice("precision", precision, DTYPES)
    check_choice("role", role, (QUERY, PASSAGE))
    check_targets({"output": str(output)}, [str(input)], overwrite)
    if target.suffix != ".npy" and not written_in_place(target):
        raise UserError("must end in .npy", "output", output)
    if not source.exists() or source.is_dir():
        raise UserError("no such file", "input", input)
    if isinstance(model, (str, Path)):
        check_model_path(model)
    read: Callable[[], Iterable[str]] = partial(read_texts, source, field)
    if not source.is_file():  # a pipe can't be read twice
        read = list(read()).copy
    count = sum(1 for _ in read())
    if not count:
        raise UserError("no texts in it", "input", input)
    if isinstance(model, (str, Path)):
        model = load_model(model, device, dtype, base_model_path, trust_remote_code)
    if dim is not None and not 1 <= dim <= model.dimension:
        raise UserError(f"must be from 1 to {model.dimension}, the dimensions of the model's vectors", "dim", dim)
    form = EmbeddingFormat(dim, precision)
    with console.progress(count, "text") as bar:
        vectors = _blocks(model, iter(read()), role, form, bar.update)
        write_vectors(target, vectors, (count, form.width(model.dimension)), DTYPES[precision])
    return EncodedFile(target, count, dim or model.dimension, form.bytes(model.dimension))


def _blocks(
    encoder: TextEncoder, texts: Iterator[str], role: str, form: EmbeddingFormat, progress: Callable[[int], object]
) -> Iterator[np.ndarray]:
    """The stored vectors of one block of texts after the other."""
    while block := list(islice(texts, TEXTS_PER_BLOCK)):
        vectors = encoder.encode(block, role, progress)
        # If neither a dimension nor a precision is asked for, vectors are stored unchanged, of any length.
        yield vectors if form == EmbeddingFormat() else form.stored(vectors)
