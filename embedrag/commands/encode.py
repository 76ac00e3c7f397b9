"""Vectors of a file of texts, written as they are computed: memory holds a block of texts, never the file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from embedrag.data.text_files import read_texts
from embedrag.errors import UserError
from embedrag.models.embedding_format import DTYPES, EmbeddingFormat
from embedrag.models.encoder import TEXTS_PER_BLOCK
from embedrag.models.load import load_model
from embedrag.options.command import Command
from embedrag.options.field import HALF, Device, Dtype, Options, Precision, option
from embedrag.runtime.console import say
from embedrag.runtime.files import check_targets, write_vectors


class EncodeOptions(Options):
    """Options of `embedrag encode`."""

    model: str = option(..., "merged folder, adapter folder, or any base model", group="encode", min_length=1)
    input: str = option(
        ..., "texts: JSONL, CSV or TSV (see --field), or plain text, one a line", group="encode", min_length=1
    )
    output: str = option(..., "file for the vectors, .npy, one row a text", group="encode", min_length=1)
    dim: int | None = option(
        None, "keep the first so many components, at length 1 again; left out: all", group="encode", ge=1
    )
    precision: Precision = option(
        "float32", "of the file; int8: 127 steps of the largest component; binary: signs, 8 in a byte", group="encode"
    )
    role: Literal["query", "passage"] = option("passage", "which prompt and length apply", group="encode")
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="encode")
    field: str = option("text", "key or column that holds the text", group="encode", min_length=1)
    device: Device = option("auto", "where to compute", group="encode")
    dtype: Dtype = option("float32", HALF, group="encode")
    overwrite: bool = option(False, "replace the output file", group="encode")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="encode")


def run(options: EncodeOptions) -> int:
    """`embedrag encode`: vectors into an .npy file, which appears when it is whole; see `View.stored`."""
    source, output = Path(options.input), Path(options.output)
    check_targets({"output": options.output}, [options.input], options.overwrite)
    if output.suffix != ".npy":
        raise UserError(f"--output {output}: must end in .npy")
    if not source.is_file():
        raise UserError(f"--input {source}: no such file")
    count = sum(1 for _ in read_texts(source, options.field))
    if not count:
        raise UserError(f"--input {source}: no texts in it")
    encoder = load_model(
        options.model, options.device, options.dtype, options.base_model_path, options.trust_remote_code
    )
    if options.dim and options.dim > encoder.dimension:
        raise UserError(f"--dim {options.dim}: the model's vectors have {encoder.dimension} components")
    texts, form = read_texts(source, options.field), EmbeddingFormat(options.dim, options.precision)
    with tqdm(total=count, unit="text", dynamic_ncols=True) as bar:
        parts = iter(lambda: list(islice(texts, TEXTS_PER_BLOCK)), [])
        stored = (_stored(form, encoder.encode(part, options.role, bar.update)) for part in parts)
        write_vectors(output, stored, (count, form.width(encoder.dimension)), DTYPES[options.precision])
    size = form.bytes(encoder.dimension)
    say(f"{count:,} vectors of {options.dim or encoder.dimension} components, {size:,} bytes each, in {output}")
    return 0


def _stored(form: EmbeddingFormat, vectors: np.ndarray) -> np.ndarray:
    return vectors if form == EmbeddingFormat() else form.stored(vectors)  # as the model gives them, normalised or not


COMMAND = Command(EncodeOptions, run, "write the vectors of a file of texts")
