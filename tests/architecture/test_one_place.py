"""One kind of change touches one place: what a registry holds is what the options accept.

The options list their choices by themselves, because `--help` must not import torch. Here they are held against the
registries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from embedrag import cli
from embedrag.data.sources import FORMATS
from embedrag.errors import UserError
from embedrag.evaluation.metrics import METRICS
from embedrag.losses.contrastive import DIRECTIONS, PARTITION_MODES
from embedrag.losses.distillation import DISTANCES
from embedrag.losses.masking import HARDNESS_MODES
from embedrag.models.artifacts import ONNX_FILES
from embedrag.models.build import FINETUNE_TYPES
from embedrag.models.embedding_format import DTYPES
from embedrag.models.lora import INITS
from embedrag.models.pooling import POOLING
from embedrag.models.quantization import QUANTIZERS
from embedrag.options.problems import choices
from embedrag.training.config.options import LEARNING_RATES, TrainOptions
from embedrag.training.config.presets import RECIPES
from embedrag.training.optimizer import BITSANDBYTES, TORCH

# Option -> what it accepts, in every command that has an option of this name.
REGISTRIES: dict[str, Iterable[object]] = {
    "pooling": ["auto", *POOLING],
    "optimizer": [*TORCH, *BITSANDBYTES],
    "finetune_type": FINETUNE_TYPES,
    "quantization_bits": QUANTIZERS,
    "lora_init": INITS,
    "recipe": RECIPES,
    "directions": DIRECTIONS,
    "partition_mode": PARTITION_MODES,
    "hardness_mode": HARDNESS_MODES,
    "distillation": DISTANCES,
    "embedding_precisions": set(DTYPES) - {"float32"},  # float32 is always trained
    "precision": DTYPES,
    "precisions": DTYPES,
    "backend": ["torch", *ONNX_FILES],
}
# Options with a choice between two or three ways that stand in one function and have no registry.
WITHOUT = {
    "attention",
    "candidates",
    "device",
    "dtype",
    "false_negative_guide",
    "log_with",
    "merge_onto",
    "on_nonfinite",
    "role",
    "training_precision",
}


def options_with_choices() -> Iterator[tuple[str, str, set[object]]]:
    for command in cli.COMMANDS:
        for name, field in cli.load_command(command).options.model_fields.items():
            if choices(field):
                yield command, name, set(choices(field))


@pytest.mark.parametrize(("command", "option", "accepted"), list(options_with_choices()))
def test_option_accepts_what_its_registry_holds(command: str, option: str, accepted: set[object]) -> None:
    assert option in REGISTRIES or option in WITHOUT, "hold the choices against a registry, or name the option above"
    if option in REGISTRIES:
        assert accepted == set(REGISTRIES[option])


def test_every_registry_is_that_of_an_option() -> None:
    assert {*REGISTRIES, *WITHOUT} == {name for _, name, _ in options_with_choices()}


def test_the_deciding_metric_may_be_each_of_the_registry_and_no_other() -> None:
    for name in METRICS:
        assert TrainOptions(output_dir="o", batch_size=1, metric_for_best=f"{name}@10").metric_for_best
    with pytest.raises(UserError) as refused:
        TrainOptions(output_dir="o", batch_size=1, metric_for_best="f1@10")
    assert [name for name in METRICS if name not in str(refused.value)] == []
    assert [name for name in METRICS if name not in str(TrainOptions.model_fields["metric_for_best"].description)] == []


def test_every_file_format_is_named_where_data_is_asked_for() -> None:
    text = str(TrainOptions.model_fields["train_dataset"].description)
    assert [form.name for form in FORMATS.values() if form.name not in text] == []


def test_every_kind_of_fine_tuning_has_a_learning_rate() -> None:
    assert set(LEARNING_RATES) == set(FINETUNE_TYPES)
