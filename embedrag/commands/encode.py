"""`embedrag encode`."""

from __future__ import annotations

from typing import Literal

from embedrag.options.command import Command
from embedrag.options.field import HALF, Device, Dtype, Options, Precision, option
from embedrag.runtime.console import say


class EncodeOptions(Options):
    """Options of `embedrag encode`."""

    model: str = option(..., "merged folder, adapter folder, or any base model", group="encode", min_length=1)
    input: str = option(
        ...,
        "texts: a file of any format that training reads (see --field), or plain text, one on each line",
        group="encode",
        min_length=1,
    )
    output: str = option(..., ".npy file for the vectors, one row for each text", group="encode", min_length=1)
    dim: int | None = option(
        None, "keep only the first N dimensions, scaled to length 1; default: all", group="encode", ge=1
    )
    precision: Precision = option(
        "float32",
        "numbers in the file; int8: 127 steps from zero to a vector's largest number; binary: only signs, 8 in a byte",
        group="encode",
    )
    role: Literal["query", "passage"] = option("passage", "decides the prompt and the maximum length", group="encode")
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="encode")
    field: str = option("text", "key or column that holds the text", group="encode", min_length=1)
    device: Device = option("auto", "where to compute", group="encode")
    dtype: Dtype = option("float32", HALF, group="encode")
    overwrite: bool = option(False, "replace the output file", group="encode")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="encode")


def run(options: EncodeOptions) -> int:
    """`embedrag encode`: write the file of vectors, and print what it holds."""
    from embedrag.retrieval.encode_file import encode_file

    for line in encode_file(**options.model_dump()).lines():
        say(line)
    return 0


COMMAND = Command(EncodeOptions, run, "write the vectors of a file of texts")
