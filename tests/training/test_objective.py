"""Trainings with the further terms and forms, from the flag to the figures; what makes no sense is refused by flag."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedrag.cli import main
from tests.training.state.test_resume import losses

SCORED: list[dict[str, Any]] = [
    {
        "query": f"question {i}",
        "pos": [f"answer {i}"],
        "neg": [f"distractor {i}-{j}" for j in range(3)],
        "teacher_scores": [4.0, 1.0, 0.5 * i, -1.0],
    }
    for i in range(12)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SCORED), encoding="utf-8")
    return path


def command(model: str, data: Path, output: Path, *words: str) -> list[str]:
    fixed = ["--model_name_or_path", model, "--train_dataset", str(data), "--output_dir", str(output), "--use_cpu"]
    fixed += ["--finetune_type", "lora", "--lr", "3e-3", "--batch_size", "4", "--temperature", "0.1", "--epochs", "2"]
    return ["train", *fixed, "--dtype", "float32", "--lora_dropout", "0", "--no_self_test", *words]


def train(model: str, data: Path, output: Path, *words: str) -> int:
    return main(command(model, data, output, *words))


RECIPES = {
    "symmetric": ["--directions", "query_passage", "passage_query", "--partition_mode", "separate"],
    "all directions": ["--directions", "query_passage", "passage_query", "query_query", "passage_passage"],
    "hardness": ["--hardness_strength", "5", "--hardness_mode", "own"],
    "margin": ["--false_negative_margin", "-0.3"],
    "guided": ["--false_negative_margin", "-0.3", "--false_negative_guide", "base"],
    "kl": ["--distillation", "kl", "--distillation_weight", "1"],
    "margin_mse": ["--distillation", "margin_mse", "--teacher_temperature", "2"],
    "matryoshka": ["--matryoshka_dims", "64", "32", "16", "--matryoshka_weights", "1", "0.5", "0.5"],
    "rounded": ["--embedding_precisions", "int8", "binary"],
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipe_trains_and_is_not_the_plain_loss(name: str, tiny_bert: str, data: Path, tmp_path: Path) -> None:
    assert train(tiny_bert, data, tmp_path / "plain", "--epochs", "1") == 0
    assert train(tiny_bert, data, tmp_path / "out", "--epochs", "1", *RECIPES[name]) == 0
    plain, found = losses(tmp_path / "plain"), losses(tmp_path / "out")
    assert all(np.isfinite(row[3]) for row in found)
    assert [row[3] for row in plain] != [row[3] for row in found]


def test_run_with_all_options_resumes_bit_for_bit_and_its_formats_are_scored(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*RECIPES["all directions"], *RECIPES["hardness"], *RECIPES["guided"], "--distillation", "kl"]
    words += ["--matryoshka_dims", "64", "16", *RECIPES["rounded"], "--token_budget", "40", "--merge"]
    assert train(tiny_bert, data, tmp_path / "out", *words) == 0
    capsys.readouterr()
    merged, output = tmp_path / "out" / "merged", tmp_path / "metrics.json"
    assert main(["evaluate", "--model", str(merged), "--data", str(data), "--output", str(output)]) == 0
    assert "| bytes a vector |" in capsys.readouterr().out.replace("   ", " ").replace("  ", " ")
    result = json.loads(output.read_text())
    shapes = [(form["dim"], form["precision"], form["bytes"]) for form in result["forms"]]
    assert shapes == [
        (64, "float32", 256), (64, "int8", 64), (64, "binary", 8),
        (16, "float32", 64), (16, "int8", 16), (16, "binary", 2),
    ]  # fmt: skip
    assert result["forms"][0]["ndcg@10"] == pytest.approx(result["ndcg@10"])


def test_form_is_scored_as_its_stored_vectors_would_be(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    from embedrag.data.retrieval_dataset import load_retrieval_dataset
    from embedrag.evaluation.evaluator import score
    from embedrag.models.embedding_format import EmbeddingFormat
    from embedrag.models.load import load_model

    encoder, rows = load_model(tiny_bert, "cpu"), load_retrieval_dataset(str(data))
    form = EmbeddingFormat(16, "binary")
    scores = score(encoder, rows, [10], forms=[form])
    sides = []
    for texts, role in ((rows.queries, "query"), (rows.passages, "passage")):
        bits = np.unpackbits(form.stored(encoder.encode(texts, role)), axis=1)
        sides.append(2.0 * bits - 1)
    ranks = []
    for query, relevant in zip(sides[0], rows.relevant, strict=True):
        cosines = sides[1] @ query
        own = cosines[next(iter(relevant))]
        # ties come in the order of trec_eval; bits tie often, so the rank is only known to lie between two
        ranks.append(((cosines > own).sum(), (cosines >= own).sum() - 1))
    bounds = [np.mean([1 / (1 + rank[side]) if rank[side] < 10 else 0 for rank in ranks]) for side in (1, 0)]
    assert bounds[0] - 1e-9 <= scores.forms[0][1]["mrr@10"] <= bounds[1] + 1e-9


@pytest.mark.parametrize(
    ("precision", "dtype", "width"), [("float32", "<f4", 20), ("int8", "|i1", 20), ("binary", "|u1", 3)]
)
def test_encode_writes_the_form_that_is_asked_for(precision, dtype, width, tiny_bert, data, tmp_path, capsys) -> None:
    out = tmp_path / "vectors.npy"
    words = [
        "encode",
        "--model",
        tiny_bert,
        "--input",
        str(data),
        "--field",
        "query",
        "--output",
        str(out),
        "--dim",
        "20",
    ]
    assert main([*words, "--precision", precision]) == 0
    vectors = np.load(out)
    assert vectors.shape == (12, width) and vectors.dtype == np.dtype(dtype)
    assert f"{width * np.dtype(dtype).itemsize} bytes each" in capsys.readouterr().out
    assert main([*words[:-1], "65", "--overwrite"]) == 2
    assert "--dim 65: must be from 1 to 64, the dimensions of the model's vectors" in capsys.readouterr().err


def test_distillation_without_scores_and_dimensions_beyond_the_model_are_named(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.jsonl"
    rows = [{name: value for name, value in row.items() if name != "teacher_scores"} for row in SCORED]
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert train(tiny_bert, plain, tmp_path / "out", "--distillation", "kl") == 2
    assert "--distillation kl: no row has teacher_scores" in capsys.readouterr().err
    assert train(tiny_bert, data, tmp_path / "out", "--matryoshka_dims", "65", "64") == 2
    assert "--matryoshka_dims 65: the model's vectors have 64 dimensions" in capsys.readouterr().err
    rows[3]["teacher_scores"] = [1.0, 2.0]
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert train(tiny_bert, plain, tmp_path / "out") == 2
    assert "plain.jsonl:4: teacher_scores must be a list of 4 numbers" in capsys.readouterr().err


# Adapters


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_qwen3"])
@pytest.mark.parametrize("words", [["--lora_top_layers", "1"], ["--use_rslora", "--lora_plus_ratio", "16"]])
def test_adapter_variants_train_merge_and_prove_themselves(words, base: str, data: Path, tmp_path, request) -> None:
    assert train(request.getfixturevalue(base), data, tmp_path / "out", "--merge", *words) == 0
    tensors = load_file(tmp_path / "out" / "final" / "adapter_model.safetensors")
    layers = {int(re.split(r"\.layers?\.", name)[1].split(".")[0]) for name in tensors}
    assert layers == ({1} if "--lora_top_layers" in words else {0, 1})
    record = json.loads((tmp_path / "out" / "merged" / "merge_config.json").read_text())
    assert record["verification"]["merged_to_trained"]["min_cosine"] > 0.9999
    assert record["use_rslora"] is ("--use_rslora" in words)


@pytest.mark.parametrize(("model", "bottom_name"), [("tiny_bert", "layer.0"), ("tiny_qwen3", "layers.0")])
def test_frozen_layers_below_have_no_graph(model: str, bottom_name: str, request: pytest.FixtureRequest) -> None:
    from tests.training.test_grad_cache import batch_of_5

    seen = {}
    for count in (1, 2):
        encoder = encoder_of_top(request.getfixturevalue(model), count)
        bottom = next(module for name, module in encoder.named_modules() if name.endswith(bottom_name))
        bottom.register_forward_hook(
            lambda _, __, output, count=count: seen.update({count: states(output).requires_grad})
        )
        encoder(batch_of_5().tokens)
    assert seen == {1: False, 2: True}


def states(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def encoder_of_top(model: str, layers: int) -> Any:
    from embedrag.models.backbone import trainable_backbone
    from embedrag.models.base_model import describe_base, resolve_embedding_config
    from embedrag.models.encoder import Encoder
    from embedrag.models.lora import LoraSettings
    from embedrag.models.tokenizer import load_tokenizer

    base = describe_base(model)
    embedding_config = resolve_embedding_config(base)[0]
    backbone = trainable_backbone(base, torch.float32, torch.device("cpu"), LoraSettings(top_layers=layers))
    return Encoder(backbone, load_tokenizer(base, embedding_config), embedding_config).train()


def test_more_layers_than_there_are_and_adapters_of_a_full_fine_tune_are_refused(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_bert, data, tmp_path / "out", "--lora_top_layers", "3") == 2
    assert "--lora_top_layers 3: the model has 2 layers" in capsys.readouterr().err
    assert train(tiny_bert, data, tmp_path / "out", "--finetune_type", "full", "--use_rslora") == 2
    assert "--use_rslora: is for adapters" in capsys.readouterr().err


def test_temperature_goes_to_its_end_by_equal_factors(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import embedrag.training.objective

    real, seen = embedrag.training.objective.contrastive, []

    def watched(query: Any, passage: Any, pairs: Any, terms: Any, rows: Any) -> Any:
        seen.append(terms.temperature)
        return real(query, passage, pairs, terms, rows)

    monkeypatch.setattr(embedrag.training.objective, "contrastive", watched)
    assert train(tiny_bert, data, tmp_path / "out", "--temperature_end", "0.0125") == 0
    assert seen == pytest.approx([0.1 * (1 / 8) ** (step / 5) for step in range(6)])
    seen.clear()
    assert train(tiny_bert, data, tmp_path / "plain") == 0
    assert seen == [0.1] * 6
