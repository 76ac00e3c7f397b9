"""The product of a LoRA layer, written so that it costs what its FLOPs say.

Left to autograd, an adapter of rank 8 costs as much as the layer it adapts: the gradient of B is a product that is
tall and thin in the wrong order (8 times slower than its transpose on a CPU), dropout copies the input once per
layer, and the scaled result is added in further copies. Here the same numbers take one function: the transposed
product, a kept mask in place of a kept copy (layers of one input keep it once), and the addition inside the product.
The layers remain peft's, with their names and files.

Dimensions: T tokens, I inputs, O outputs, r rank.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embedrag.models.kernels.fast_dropout import dropout_mask


def speed_up_adapters(model: nn.Module) -> None:
    """Let every plain LoRA layer of a peft model (one adapter, no variant) compute through `add_adapter`."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A and not module.lora_variant:
            module.forward = MethodType(_forward, module)


def add_adapter(result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """Add an adapter: result + scale * dropout(x) @ a.T @ b.T (arXiv 2106.09685).

    Args:
        result: [T, O] of the frozen layer; overwritten.
        x: [T, I] its input.
        a: [r, I].
        b: [O, r].
        scale: alpha / r.
        dropout: probability that an element of x is left out.
    """
    added: Tensor = _AddAdapter.apply(  # type: ignore[no-untyped-call]
        result, x.to(result.dtype), a.to(result.dtype), b.to(result.dtype), scale, dropout
    )
    return added


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In the place of the `forward` of peft's LoRA layers."""
    if torch.is_autocast_enabled(x.device.type):
        # Norms give float32 there, and quantised layers answer in the precision that they are asked in.
        x = x.to(torch.get_autocast_dtype(x.device.type))
    flat = x.flatten(0, -2)  # the product of a flat input is no view, so it can be added to in place
    result: Tensor = layer.base_layer(flat, *args, **kwargs)
    if not (layer.disable_adapters or layer.merged):
        result = _adapted(layer, flat, result)
    return result.view(*x.shape[:-1], -1)


def _adapted(layer: Any, flat: Tensor, result: Tensor) -> Tensor:
    dropout = layer.lora_dropout["default"]
    rate = dropout.p if isinstance(dropout, nn.Dropout) and layer.training else 0.0
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return add_adapter(result, flat, a, b, layer.scaling["default"], rate)


class _AddAdapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float) -> Tensor:
        mask, kept_scale = dropout_mask(x, dropout) if dropout else (None, 1.0)
        ctx.scale = scale * kept_scale
        low = (x if mask is None else x * mask) @ a.T
        ctx.save_for_backward(x, mask, low, a, b)
        ctx.mark_dirty(result)
        return result.addmm_(low, b.T, alpha=ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, mask, low, a, b = ctx.saved_tensors
        # Both products with B are written in the order that is fast; the other is 2 and 8 times slower on a CPU.
        of_low = F.linear(gradient, (b.T * ctx.scale).contiguous())
        of_x = None
        if ctx.needs_input_grad[1]:
            of_x = of_low @ a
            of_x = of_x if mask is None else of_x.mul_(mask)
        of_a = of_low.T @ (x if mask is None else x * mask)
        of_b = (low.T @ gradient).T * ctx.scale
        return gradient, of_x, of_a, of_b, None, None
