"""`embedrag merge`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from embedrag.options.command import Command
from embedrag.options.field import Options, option, whole_number


class MergeOptions(Options):
    """Options of `merge.py` / `embedrag merge`."""

    base_model_path: str | None = option(
        None, "base model, folder or hub id; left out: the one that the adapter names", group="merge"
    )
    lora_adapter_path: str = option(
        ..., "adapter folder, or its adapter_model.safetensors", group="merge", min_length=1
    )
    output_path: str = option(..., "folder of the merged model", group="merge", min_length=1)
    training_precision: Literal["float32", "bfloat16"] = option("float32", "type of the merged weights", group="merge")
    merge_onto: Literal["dequantized", "original"] | None = option(
        None,
        "weights that the adapter is added to; left out: dequantized (as in training) for QLoRA, else original",
        group="merge",
    )
    lora_alpha: int | None = option(
        None, "scale of the adapter, where no adapter_config.json tells it", group="merge", ge=1
    )
    quantization_bits: Annotated[Literal[4, 8] | None, BeforeValidator(whole_number)] = option(
        None, "bits of the base in training, where the adapter's folder does not tell", group="merge"
    )
    double_quantization: bool = option(
        False, "the base's 4-bit scales were quantised once more, where the folder does not tell", group="merge"
    )
    no_verify: bool = option(False, "skip the proof (it loads the model) and say so in the record", group="merge")
    overwrite: bool = option(False, "replace the output folder", group="merge")
    trust_remote_code: bool = option(False, "run Python code that comes with the base model", group="merge")


def run(options: MergeOptions) -> int:
    """Do what the options say."""
    from embedrag.merging.merge import run

    return run(options)


COMMAND = Command(MergeOptions, run, "merge an adapter into its base, with proof")
