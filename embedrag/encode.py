"""Vectors of a file of texts, written as they are computed: memory holds a block of texts, never the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from embedrag.commands import EncodeOptions
from embedrag.data.rows import titled, whole_text
from embedrag.data.sources import TABLE_SUFFIXES, RowError, numbered_lines, table_rows
from embedrag.errors import UserError
from embedrag.models.embedding_format import DTYPES, View
from embedrag.models.encoder import TEXTS_PER_BLOCK
from embedrag.models.load import load_encoder
from embedrag.runtime.files import check_targets, write_vectors
from embedrag.training.state.run_log import say

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


def run(options: EncodeOptions) -> int:
    """`embedrag encode`: vectors into an .npy file, which appears when it is whole; see `View.stored`."""
    source, output = Path(options.input), Path(options.output)
    check_targets({"--output": options.output}, [options.input], options.overwrite)
    if output.suffix != ".npy":
        raise UserError(f"--output {output}: must end in .npy")
    if not source.is_file():
        raise UserError(f"--input {source}: no such file")
    count = sum(1 for _ in read_texts(source, options.field))
    if not count:
        raise UserError(f"--input {source}: no texts in it")
    encoder = load_encoder(
        options.model, options.device, options.dtype, options.base_model_path, options.trust_remote_code
    )
    if options.dim and options.dim > encoder.dimension:
        raise UserError(f"--dim {options.dim}: the model's vectors have {encoder.dimension} components")
    texts, form = read_texts(source, options.field), View(options.dim, options.precision)
    with tqdm(total=count, unit="text", dynamic_ncols=True) as bar:
        parts = iter(lambda: list(islice(texts, TEXTS_PER_BLOCK)), [])
        stored = (_stored(form, encoder.encode(part, options.role, bar.update)) for part in parts)
        write_vectors(output, stored, (count, form.width(encoder.dimension)), DTYPES[options.precision])
    size = form.bytes(encoder.dimension)
    say(f"{count:,} vectors of {options.dim or encoder.dimension} components, {size:,} bytes each, in {output}")
    return 0


def _stored(form: View, vectors: np.ndarray) -> np.ndarray:
    return vectors if form == View() else form.stored(vectors)  # as the model gives them, normalised or not


def read_texts(path: Path, field: str, titles: bool = False) -> Iterator[str]:
    """Texts of a file, in order.

    Args:
        path: JSONL (objects, or bare texts), CSV or TSV with a header, or any other file as one text a line.
        field: key or column of the text.
        titles: a `title` stands before its text.

    Raises:
        UserError: naming file and line.
    """
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        for place, row in table_rows(path):
            if isinstance(row, RowError):
                raise UserError(f"{place}: {row}")
            yield _field(row, field, place, titles)
        return
    for number, line in numbered_lines(path):
        if suffix not in JSON_SUFFIXES:
            yield line.rstrip("\r\n")
        elif line.strip():
            yield _field(_parse(line, f"{path}:{number}"), field, f"{path}:{number}", titles)


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})") from None


def _field(row: Any, field: str, place: str, titles: bool) -> str:
    value = row.get(field) if isinstance(row, dict) else row
    if not isinstance(value, str):
        if isinstance(value, list):
            raise UserError(f"{place}: a list, where one text is wanted ({field!r}); write a line for each text")
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{place}: no text under {field!r} (there is {keys}); name the right key with --field")
    text = titled(row.get("title"), value) if titles and isinstance(row, dict) else value
    return whole_text(text, place)
