"""Vectors of a file of texts, written as they are computed: memory holds a block of texts, never the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from embedrag.config import EncodeOptions
from embedrag.encoder import TEXTS_PER_BLOCK
from embedrag.errors import RunError, UserError
from embedrag.logs import say
from embedrag.records import TABLE_SUFFIXES, numbered_lines
from embedrag.saved import load_encoder

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


def run(options: EncodeOptions) -> int:
    """`embedrag encode`: [texts, D] float32 into an .npy file, which appears when it is whole."""
    source, output = Path(options.input), Path(options.output)
    if output.exists() and not options.overwrite:
        raise UserError(f"--output {output}: exists; name another file, or replace it with --overwrite")
    if output.suffix != ".npy":
        raise UserError(f"--output {output}: must end in .npy")
    if not source.is_file():
        raise UserError(f"--input {source}: no such file")
    count = sum(1 for _ in read_texts(source, options.field))
    if not count:
        raise UserError(f"--input {source}: no texts in it")
    encoder = load_encoder(
        options.model, options.device, base_name=options.base_model_path, trust_remote_code=options.trust_remote_code
    )
    temporary = output.with_name(f".{output.name}.tmp")
    texts = read_texts(source, options.field)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        shape = (count, encoder.dimension)
        vectors = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        done = 0
        with tqdm(total=count, unit="text", dynamic_ncols=True) as bar:
            while block := list(islice(texts, TEXTS_PER_BLOCK)):
                vectors[done : done + len(block)] = encoder.encode(block, options.role)
                done += len(block)
                bar.update(len(block))
        vectors.flush()
        temporary.replace(output)
    except OSError as error:
        raise RunError(f"--output {output}: not written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)
    say(f"{count:,} vectors of {encoder.dimension} components in {output}")
    return 0


def read_texts(path: Path, field: str) -> Iterator[str]:
    """Texts of a file, in order.

    Args:
        path: JSONL (objects, or bare texts), CSV or TSV with a header, or any other file as one text a line.
        field: key or column of the text.

    Raises:
        UserError: naming file and line.
    """
    if path.suffix in TABLE_SUFFIXES:
        reader = csv.DictReader((line for _, line in numbered_lines(path)), delimiter=TABLE_SUFFIXES[path.suffix])
        for row in reader:
            yield _field(row, field, f"{path}:{reader.line_num}")
        return
    for number, line in numbered_lines(path):
        if path.suffix not in JSON_SUFFIXES:
            yield line.rstrip("\r\n")
        elif line.strip():
            yield _field(_parse(line, f"{path}:{number}"), field, f"{path}:{number}")


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error})") from None


def _field(row: Any, field: str, place: str) -> str:
    value = row.get(field) if isinstance(row, dict) else row
    if not isinstance(value, str):
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{place}: no text under {field!r} (there is {keys}); name the right key with --field")
    return value
