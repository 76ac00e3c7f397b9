"""Half precision as GPUs compute it, on this CPU: under autocast a norm returns float32 there, but not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from embedrag.data.token_batch import TokenBatch
from embedrag.merging.merge import merge
from embedrag.models.build import build_model
from embedrag.models.kernels import packed_attention as attention
from embedrag.models.load import load_model
from embedrag.models.quantization import QuantizationConfig, product_dtype, stored_dtype
from embedrag.models.save import save_model


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    real = F.layer_norm

    def layer_norm(input: Tensor, shape: list[int], weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return real(input, shape, weight, bias, eps)
        with torch.autocast("cpu", enabled=False):
            return real(input.float(), shape, weight.float(), None if bias is None else bias.float(), eps)

    monkeypatch.setattr(F, "layer_norm", layer_norm)


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize(("kind", "bits"), [("full", 4), ("lora", 4), ("qlora", 4), ("qlora", 8)])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_qwen3"])
def test_training_is_packed_in_one_precision_and_its_merge_is_proved(
    name: str, kind: str, bits: int, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    real = attention._by_length

    def spy(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            seen.add((q.dtype, k.dtype, v.dtype))
        return real(q, k, v, *rest)

    monkeypatch.setattr(attention, "_by_length", spy)
    torch.manual_seed(0)
    folder = request.getfixturevalue(name)
    model = build_model(folder, kind, quantization_bits=bits, lora_dropout=0.05, dtype="bfloat16", device="cpu")
    queries = [f"question {i} " * (1 + i % 3) for i in range(12)]
    tokens = TokenBatch.from_lists(
        model.tokenizer("query", queries) + model.tokenizer("passage", [f"answer {i}" for i in range(12)])
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(8):
        query, passage = model(tokens).chunk(2)
        loss = F.cross_entropy(query @ passage.T / 0.05, torch.arange(12))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert seen == {(torch.bfloat16,) * 3}
    assert sum(losses[-3:]) < sum(losses[:3])
    if kind != "full":
        save_model(model, tmp_path / "adapter")
        assert merge(tmp_path / "adapter", tmp_path / "merged").proof


def test_quantised_base_of_few_bits_computes_in_the_precision_asked_for(tiny_qwen3: str, tmp_path: Path) -> None:
    model = build_model(tiny_qwen3, "qlora", dtype="bfloat16", device="cpu")
    config = QuantizationConfig.of(model.backbone)
    assert config and config.storage_dtype == config.compute_dtype == torch.bfloat16
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    save_model(model, tmp_path / "adapter")
    encoder = load_model(str(tmp_path / "adapter"), "cpu")
    seen = []
    encoder.backbone.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state.dtype))
    encoder.encode(["a text"], "query")
    assert seen == [torch.float32]
    floats = {p.dtype for p in encoder.backbone.parameters() if p.is_floating_point()}
    assert floats == {torch.float32}


def test_types_of_frozen_weights_and_of_their_products_follow_from_the_computation() -> None:
    types = [torch.float32, torch.bfloat16, torch.float16]
    assert list(map(stored_dtype, types)) == [torch.float32, torch.bfloat16, torch.float32]
    assert list(map(product_dtype, types)) == [torch.bfloat16, torch.bfloat16, torch.float16]
