"""The fast LoRA layers compute what peft's own do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embedrag.models.backbone import trainable_backbone
from embedrag.models.base_model import describe_base
from embedrag.models.kernels.fast_dropout import FastDropout
from embedrag.models.kernels.fast_lora import add_adapter
from embedrag.models.lora import LoraSettings
from embedrag.models.quantization import QuantizationConfig

CPU = torch.device("cpu")


def tensors(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Result [5, 4], x [5, 7], A [2, 7], B [4, 2]."""
    torch.manual_seed(0)
    shapes = [(5, 4), (5, 7), (2, 7), (4, 2)]
    return [torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes]


def test_value_and_gradients_equal_the_obvious_form() -> None:
    result, x, a, b = tensors()
    expected = result + 3.0 * (x @ a.T) @ b.T
    expected.square().sum().backward()
    gradients = [tensor.grad.clone() for tensor in (result, x, a, b)]
    for tensor in (result, x, a, b):
        tensor.grad = None
    found = add_adapter(result * 1, x, a, b, 3.0)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    torch.testing.assert_close([tensor.grad for tensor in (result, x, a, b)], gradients)


def test_dropout_leaves_out_the_same_elements_forward_and_backward() -> None:
    result, x, a, b = tensors()
    torch.manual_seed(5)
    dropped = FastDropout(0.4)(x)
    expected = result + 3.0 * (dropped @ a.T) @ b.T
    expected.square().sum().backward()
    gradients = [tensor.grad.clone() for tensor in (x, a, b)]
    for tensor in (x, a, b):
        tensor.grad = None
    torch.manual_seed(5)
    found = add_adapter(result * 1, x, a, b, 3.0, dropout=0.4)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    torch.testing.assert_close([tensor.grad for tensor in (x, a, b)], gradients)
    assert not torch.allclose(add_adapter(result * 1, x, a, b, 3.0), expected)


def test_input_that_needs_no_gradient_gets_none() -> None:
    result, x, a, b = tensors()
    add_adapter(result.detach(), x.detach(), a, b, 3.0).sum().backward()
    assert x.grad is None and a.grad is not None and b.grad is not None


@pytest.mark.parametrize(("kind", "bits"), [("lora", 4), ("qlora", 4), ("qlora", 8)])
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
def test_adapted_model_equals_the_one_with_the_layers_of_peft(
    model: str, kind: str, bits: int, request: pytest.FixtureRequest
) -> None:
    fast = adapted(request.getfixturevalue(model), kind, bits)
    slow = adapted(request.getfixturevalue(model), kind, bits)
    patched = [module for module in slow.modules() if "forward" in vars(module)]
    assert len(patched) == sum(".lora_A." in name for name, _ in fast.named_parameters())
    for module in patched:
        del module.forward
    ids = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 3]])
    results = []
    for backbone in (fast, slow):
        states = backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum().backward()
        results.append((states, {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}))
    tolerance = 1e-5 if kind == "lora" else 2e-2  # the quantised product itself rounds to bfloat16 or int8
    torch.testing.assert_close(results[0][0], results[1][0], atol=tolerance, rtol=tolerance)
    largest = max(float(gradient.norm()) for gradient in results[1][1].values())
    for name, gradient in results[1][1].items():
        assert float((results[0][1][name] - gradient).norm()) < 3 * tolerance * largest


def test_switched_off_adapters_leave_the_base(tiny_bert: str) -> None:
    backbone = adapted(tiny_bert, "lora")
    ids = torch.tensor([[1, 5, 6, 7]])
    base = trainable_backbone(describe_base(tiny_bert), torch.float32, CPU, LoraSettings(dropout=0.0))  # B is zero
    with torch.no_grad(), backbone.disable_adapter():
        torch.testing.assert_close(backbone(input_ids=ids)[0], base(input_ids=ids)[0])
    assert not torch.allclose(backbone(input_ids=ids)[0], base(input_ids=ids)[0])


def test_adapter_of_fast_layers_is_read_by_plain_peft(tiny_bert: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    backbone = adapted(tiny_bert, "lora").eval()
    backbone.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), tmp_path).eval()
    ids = torch.tensor([[1, 5, 6, 7]])
    torch.testing.assert_close(backbone(input_ids=ids)[0], theirs(input_ids=ids)[0])


def adapted(model: str, kind: str, bits: int = 4) -> nn.Module:
    """With adapters that do something."""
    torch.manual_seed(0)
    quantization = QuantizationConfig(bits) if kind == "qlora" else None
    backbone = trainable_backbone(describe_base(model), torch.float32, CPU, LoraSettings(dropout=0.0), quantization)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    return backbone
