"""LoRA layers that are fast on a CPU.

With plain autograd, an adapter of rank 8 takes as long as the layer that it adapts: the gradient of B is a product in
a slow order (its transpose is 8 times faster on a CPU), dropout copies the input once for each layer, and the scaled
result is copied again when it is added. Here one function computes the same numbers with the transposed product, a
mask instead of a copy of the input, and the addition inside the product. The layers are still peft's, with their names
and files.

Letters: T tokens, I inputs, O outputs, r rank.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embedrag.models.kernels.fast_dropout import dropout_mask


def speed_up_adapters(model: nn.Module) -> None:
    """Let every plain LoRA layer of a peft model (one adapter, no variant) compute with `add_adapter`."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A and not module.lora_variant:
            module.forward = MethodType(_forward, module)


def add_adapter(result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """Add an adapter: result + scale * dropout(x) @ a.T @ b.T (arXiv 2106.09685).

    Args:
        result: output of the frozen layer, [T, O]; it is overwritten.
        x: input of the layer, [T, I].
        a: [r, I].
        b: [O, r].
        scale: alpha / r.
        dropout: probability that an element of x is set to 0.

    Returns:
        [T, O].
    """
    added: Tensor = _AddAdapter.apply(  # type: ignore[no-untyped-call]
        result, x.to(result.dtype), a.to(result.dtype), b.to(result.dtype), scale, dropout
    )
    return added


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Replaces the `forward` of a LoRA layer of peft."""
    if torch.is_autocast_enabled(x.device.type):
        # Norms return float32 under autocast, and quantised layers return the type of their input.
        x = x.to(torch.get_autocast_dtype(x.device.type))
    flat = x.flatten(0, -2)  # the product of a flat input is not a view, so something can be added to it in place
    result: Tensor = layer.base_layer(flat, *args, **kwargs)
    if not (layer.disable_adapters or layer.merged):
        result = _adapted(layer, flat, result)
    return result.view(*x.shape[:-1], -1)


def _adapted(layer: Any, flat: Tensor, result: Tensor) -> Tensor:
    dropout = layer.lora_dropout["default"]
    probability = dropout.p if isinstance(dropout, nn.Dropout) and layer.training else 0.0
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return add_adapter(result, flat, a, b, layer.scaling["default"], probability)


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
        # Both products with B are written in the fast order. The other order is 2 and 8 times slower on a CPU.
        of_low = F.linear(gradient, (b.T * ctx.scale).contiguous())
        of_x = None
        if ctx.needs_input_grad[1]:
            of_x = of_low @ a
            of_x = of_x if mask is None else of_x.mul_(mask)
        of_a = of_low.T @ (x if mask is None else x * mask)
        of_b = (low.T @ gradient).T * ctx.scale
        return gradient, of_x, of_a, of_b, None, None
