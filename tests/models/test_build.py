"""A model for one's own training loop: it trains, it starts as the trainer's model, and what it learnt can be saved."""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from embedrag.data.token_batch import TokenBatch
from embedrag.errors import UserError
from embedrag.merging.merge import merge
from embedrag.models.build import FINETUNE_TYPES, build_model
from embedrag.models.load import load_model
from embedrag.models.lora import INITS, without_gradient
from embedrag.models.pooling import POOLING
from embedrag.models.quantization import QUANTIZERS
from embedrag.models.save import save_model
from embedrag.training.config.options import TrainOptions
from embedrag.training.preflight import preflight
from embedrag.training.setup import setup
from tests.families import TEXTS

KINDS = [("full", 4), ("lora", 4), ("qlora", 4), ("qlora", 8)]


@pytest.mark.parametrize(("kind", "bits"), KINDS)
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_qwen3"])
def test_one_step_changes_the_vectors_and_a_saved_model_gives_the_same(
    name: str, kind: str, bits: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    model = build_model(folder, kind, quantization_bits=bits, query_prompt="q: ", query_max_len=20, device="cpu")
    assert model.training and model.packed
    before = model.encode(TEXTS, "query")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    vectors = model(TokenBatch.from_lists(model.tokenizer("query", TEXTS)))
    assert vectors.shape == (len(TEXTS), model.dimension) and vectors.requires_grad
    (vectors @ vectors.T).sum().backward()
    assert without_gradient(model.backbone) == []
    optimizer.step()
    after = model.encode(TEXTS, "query")
    assert np.abs(after - before).max() > 1e-3
    save_model(model, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), "cpu")
    # In training the products with 4-bit weights are bfloat16, and a loaded model computes in float32.
    np.testing.assert_allclose(again.encode(TEXTS, "query"), after, atol=1e-5 if kind != "qlora" else 2e-2)
    if kind == "qlora":
        report = merge(tmp_path / "saved", tmp_path / "merged")
        assert report.onto == "dequantized" and report.record["quantization"]["bits"] == bits


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_vectors_equal_those_of_the_trainer_before_its_first_step(
    kind: str, bits: int, tiny_bert: str, rows: list[dict], write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    options = TrainOptions(
        model_name_or_path=tiny_bert,
        finetune_type=kind,
        quantization_bits=bits,
        train_dataset=[str(write_jsonl(rows))],
        output_dir=str(tmp_path / "out"),
        batch_size=2,
        device="cpu",
        dtype="float32",
        passage_prompt="passage: ",
        no_self_test=True,
    )
    trainer = setup(preflight(options)).objective.encoder
    model = build_model(tiny_bert, kind, quantization_bits=bits, passage_prompt="passage: ", device="cpu")
    assert model.embedding_config == trainer.embedding_config
    assert np.array_equal(model.encode(TEXTS, "passage"), trainer.encode(TEXTS, "passage"))
    trained = [{n for n, p in encoder.named_parameters() if p.requires_grad} for encoder in (model, trainer)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"finetune_type": "lorra"}, "`finetune_type=lorra`: must be one of full, lora, qlora; did you mean lora?"),
        ({"quantization_bits": 5}, "`quantization_bits=5`: must be one of 4, 8"),
        ({"pooling": "median"}, "`pooling=median`: must be one of cls, max, mean, mean_sqrt_len"),
        ({"lora_r": 0}, "`lora_r=0`: must be 1 or more"),
        ({"query_max_len": 1}, "`query_max_len=1`: must be 2 or more"),
        ({"model_name_or_path": "./none"}, "`model_name_or_path=./none`: no such folder"),
        ({"lora_top_layers": 9}, "`lora_top_layers=9`: the model has 2 layers"),
        ({"lora_target_modules": ["q_proj"]}, "`lora_target_modules=q_proj`: the model has no such linear layer"),
    ],
)
def test_wrong_argument_is_named(arguments: dict, message: str, tiny_bert: str) -> None:
    with pytest.raises(UserError) as error:
        build_model(**{"model_name_or_path": tiny_bert, "device": "cpu", **arguments})
    assert str(error.value).startswith(message)


def test_choices_of_the_options_are_those_of_the_registries() -> None:
    def choices(name: str) -> set[object]:
        return set(typing.get_args(TrainOptions.model_fields[name].annotation))

    assert choices("finetune_type") == set(FINETUNE_TYPES)
    assert choices("quantization_bits") == set(QUANTIZERS)
    assert choices("lora_init") == set(INITS)
    assert choices("pooling") == {"auto", *POOLING}
