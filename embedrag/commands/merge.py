"""`embedrag merge`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

import embedrag
from embedrag.options.command import Command
from embedrag.options.field import Options, option, whole_number
from embedrag.runtime.console import say


class MergeOptions(Options):
    """Options of `merge.py` / `embedrag merge`."""

    base_model_path: str | None = option(
        None, "base model, a folder or a hub id; default: the base that the adapter names", group="merge"
    )
    lora_adapter_path: str = option(
        ..., "the adapter's folder, or its adapter_model.safetensors", group="merge", min_length=1
    )
    output_path: str = option(..., "folder of the merged model", group="merge", min_length=1)
    training_precision: Literal["float32", "bfloat16"] = option("float32", "type of the merged weights", group="merge")
    merge_onto: Literal["dequantized", "original"] | None = option(
        None,
        "weights that the adapter is added to; default: dequantized for QLoRA, as in training, otherwise original",
        group="merge",
    )
    lora_alpha: int | None = option(
        None, "alpha of the adapter; needed only when there is no adapter_config.json", group="merge", ge=1
    )
    quantization_bits: Annotated[Literal[4, 8] | None, BeforeValidator(whole_number)] = option(
        None,
        "bits that the base was quantised to in training; needed only when the adapter's folder does not record them",
        group="merge",
    )
    double_quantization: bool = option(
        False, "the 4-bit scales were quantised too; needed only when the folder does not record it", group="merge"
    )
    no_verify: bool = option(False, "skip the proof, which loads the models", group="merge")
    overwrite: bool = option(False, "replace the output folder, if it holds a merged model", group="merge")
    trust_remote_code: bool = option(False, "run Python code that comes with the base model", group="merge")


def run(options: MergeOptions) -> int:
    """`embedrag merge`: write the merged model, and print the proof."""
    report = embedrag.merge(verify=not options.no_verify, **options.model_dump(exclude={"no_verify"}))
    for line in report.lines():
        say(line)
    return 0


COMMAND = Command(MergeOptions, run, "merge an adapter into its base, with proof")
