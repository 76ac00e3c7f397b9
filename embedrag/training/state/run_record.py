"""The descriptions that a run writes: on the screen, in its logs and in training_config.json."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from embedrag import __version__
from embedrag.models.base_model import Base
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.encoder import Encoder
from embedrag.models.lora import parameter_counts
from embedrag.models.pooling import POOLING
from embedrag.models.quantization import QuantizationConfig
from embedrag.runtime.console import say
from embedrag.runtime.device import describe, dtype_name, kernels_of
from embedrag.training.config.options import TrainOptions

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors")


@dataclass(frozen=True)
class RunRecord:
    """What a run writes about itself.

    Attributes:
        asked: the options as they were asked for, before models and machine filled them in.
        settings: content of training_config.json.
        model_info: block of that name in the logs.
        probes: (role, text) pairs that a merge is checked with.
    """

    asked: dict[str, Any]
    settings: dict[str, Any]
    model_info: dict[str, Any]
    probes: list[tuple[str, str]]


def record_of(
    asked: dict[str, Any],
    options: TrainOptions,
    encoder: Encoder,
    info: dict[str, Any],
    probes: list[tuple[str, str]],
) -> RunRecord:
    """The record of a run; `options` are filled in, `info` comes from `model_info`."""
    return RunRecord(asked, run_settings(options, encoder), info, probes)


def model_info(encoder: Encoder, options: TrainOptions) -> dict[str, Any]:
    """Block of that name in the logs."""
    total, trainable = parameter_counts(encoder)
    quantization = QuantizationConfig.of(encoder.backbone)
    lora = {"r": options.lora_r, "alpha": options.lora_alpha, "dropout": options.lora_dropout}
    return {
        "finetune_type": options.finetune_type,
        "quantization_bits": quantization.bits if quantization else None,
        "total_parameters": total,
        "trainable_parameters": trainable,
        "trainable_percentage": 100 * trainable / total,
        "lora_config": None if options.finetune_type == "full" else lora,
    }


def shown_tests(results: dict[str, float | bool | None]) -> str:
    """The results of the self-tests in one line."""

    def shown(value: float | bool | None) -> str:
        return "does not apply" if value is None else f"{value:.0e}" if isinstance(value, float) else str(value).lower()

    return ", ".join(f"{name} {shown(value)}" for name, value in results.items())


def say_model(
    base: Base,
    embedding_config: EmbeddingConfig,
    options: TrainOptions,
    device: torch.device,
    dtype: torch.dtype,
    info: dict[str, Any],
) -> None:
    """Say what is trained, how texts are cut, and where it computes."""
    bits = info["quantization_bits"]
    kind = options.finetune_type + (f" ({bits}-bit)" if bits else "")
    say(
        f"model: {options.model_name_or_path} ({base.config.model_type}), {kind}; trainable "
        f"{info['trainable_parameters']:,} of {info['total_parameters']:,} parameters "
        f"({info['trainable_percentage']:.2f} %)"
    )
    config = embedding_config
    say(
        f"model: pooling {config.pooling}, query ≤ {config.query_max_len} and passage ≤ {config.passage_max_len} "
        f"tokens, prompts {config.shown_prompts()}"
    )
    if config.head:
        state = "trained" if options.finetune_type == "full" else "not trained: the adapters leave them as they are"
        say(f"model: after the pooling {', '.join(map(str, config.head))}; {state}")
    say(f"device: {describe(device)}, {dtype_name(dtype)}; seed {options.seed}, lr {options.lr:g}")


def embedding_options(embedding_config: EmbeddingConfig) -> dict[str, Any]:
    """The settled embedding config as options, so that the saved settings repeat the run."""
    return {
        # Several joined poolings have no option; they come from the base alone.
        "pooling": embedding_config.pooling if embedding_config.pooling in POOLING else "auto",
        "query_prompt": embedding_config.query_prompt,
        "passage_prompt": embedding_config.passage_prompt,
        "query_max_len": embedding_config.query_max_len,
        "passage_max_len": embedding_config.passage_max_len,
        "max_seq_length": None,
    }


def run_settings(options: TrainOptions, encoder: Encoder) -> dict[str, Any]:
    """Content of training_config.json: all options (it can be given to --config again), environment, quantisation."""
    settings: dict[str, Any] = options.model_dump()
    settings["environment"] = environment(encoder.device)
    if quantization := QuantizationConfig.of(encoder.backbone):
        settings["quantization"] = quantization.record()
    return settings


def environment(device: torch.device) -> dict[str, str]:
    """What the last digits of a result depend on besides options, data and model: versions and processor."""
    versions = {name: version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    named = {"embedrag": __version__, "python": platform.python_version(), **versions}
    return named | {"kernels": kernels_of(device)}
