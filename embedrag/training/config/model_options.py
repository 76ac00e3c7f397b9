"""Options of a training about the model: the base model and its adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from embedrag.options.field import OneOrMore, Options, SmallLetters, option, whole_number

DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"


class ModelOptions(Options):
    """The first part of `embedrag.training.config.options.TrainOptions`."""

    recipe: Annotated[Literal["mnrl", "bge", "e5", "gist", "gte", "qwen3"] | None, SmallLetters] = option(
        None,
        "settings of a published recipe (docs/losses.md); a config file and flags win over them",
        group="model",
        resume="free",  # what it sets is compared option by option
    )

    # Model
    model_name_or_path: str = option(
        DEFAULT_MODEL,
        "base model: hub id or folder; a sentence-transformers folder keeps its pooling, prompts and lengths",
        group="model",
        nested="model_id",
        resume="fixed",
        min_length=1,
    )
    tokenizer_id: str | None = option(
        None,
        "tokenizer (hub id or folder), if it is not the base model's own",
        group="model",
        nested="tokenizer_id",
        resume="fixed",
    )
    finetune_type: Annotated[Literal["qlora", "lora", "full"], SmallLetters] = option(
        "qlora",
        "what is trained: LoRA adapters on a quantised base (qlora), LoRA adapters (lora), or all weights (full)",
        group="model",
        resume="fixed",
    )
    quantization_bits: Annotated[Literal[4, 8], BeforeValidator(whole_number)] = option(
        4, "bits per weight of the quantised base (qlora); 4 is nf4", group="model", resume="fixed"
    )
    double_quantization: bool = option(
        False,
        "quantise the scales of the 4-bit weights too (qlora): a little less memory",
        group="model",
        resume="fixed",
    )
    pooling: Annotated[
        Literal["auto", "last_token", "mean", "cls", "max", "weighted_mean", "mean_sqrt_len"], SmallLetters
    ] = option(
        "auto",
        "how token vectors become one vector; auto follows the model (decoders: last_token)",
        group="model",
        resume="fixed",
    )
    query_prompt: str | None = option(
        None, "text put before every query; left out: the base model's own prompt", group="model", resume="fixed"
    )
    passage_prompt: str | None = option(
        None, "text put before every passage; left out: the base model's own prompt", group="model", resume="fixed"
    )
    trust_remote_code: bool = option(
        False,
        "run Python code that comes with the base model",
        group="model",
        nested="hf.trust_remote_code",
        resume="free",
    )
    local_files_only: bool = option(
        False,
        "never ask a hub; use only what is on this disk",
        group="model",
        nested="hf.local_files_only",
        resume="free",
    )

    # LoRA
    lora_r: int = option(
        8,
        "rank of the adapters: a higher one can learn more, and takes more memory",
        group="LoRA",
        resume="fixed",
        ge=1,
    )
    lora_alpha: int = option(
        32, "scale of the adapters: their output is multiplied by alpha / r", group="LoRA", resume="fixed", ge=1
    )
    lora_dropout: float = option(
        0.1, "dropout on the input of the adapters", group="LoRA", resume="reported", ge=0, lt=1
    )
    lora_target_modules: Annotated[list[str] | None, OneOrMore] = option(
        None,
        "names of the layers that get adapters; left out: all linear layers of the backbone",
        group="LoRA",
        resume="fixed",
    )
    lora_top_layers: int | None = option(
        None,
        "put adapters into the last N layers only, which is faster; left out: into all layers",
        group="LoRA",
        resume="fixed",
        ge=1,
    )
    lora_plus_ratio: float = option(
        1.0,
        "learning rate of the adapters' matrix B, as a multiple of that of A (LoRA+ advises 16)",
        group="LoRA",
        resume="fixed",
        ge=1,
    )
    use_rslora: bool = option(
        False, "scale the adapters by alpha / sqrt(r), for high ranks (rsLoRA)", group="LoRA", resume="fixed"
    )
    use_dora: bool = option(
        False, "train length and direction of the weights separately (DoRA); slower", group="LoRA", resume="fixed"
    )
    lora_init: Annotated[Literal["default", "pissa", "loftq"], SmallLetters] = option(
        "default",
        "start of the adapters: no change of the base (default), the largest directions of its weights (pissa, for "
        "lora), or what 4-bit quantisation took away (loftq, for qlora)",
        group="LoRA",
        resume="fixed",
    )
