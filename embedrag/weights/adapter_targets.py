"""Which tensor of a base each part of an adapter changes, and whether the two belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from embedrag.errors import UserError
from embedrag.weights.adapter_file import CONFIG, HEADS, WITH_PEFT, Adapter
from embedrag.weights.name_matching import match_names
from embedrag.weights.tensor_changes import TensorChange


def match_adapter(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], base_name: str
) -> dict[str, tuple[str, TensorChange]]:
    """Find the tensor of the base that each part of an adapter changes.

    Args:
        adapter: from `read_adapter`.
        shapes: name of each tensor of the base -> its shape.
        base_name: of the base, for messages.

    Returns:
        Name of a tensor -> its name in the adapter, and what is done to it.

    Raises:
        UserError: when a part has no tensor in the base, or one of another shape. The message says what is
            known about the base.
    """
    changes = adapter.by_tensor()
    found, missing = match_names({name: name for name in changes}, shapes)
    trained_on = adapter.config.get("base_model_name_or_path")
    facts = f"{CONFIG} names the base {trained_on}" if trained_on else f"{CONFIG} does not name the adapter's base"
    end = f"The base is {base_name}; {facts}. Nothing was written"
    if without := [name for name in missing if name in adapter.added]:
        raise UserError(
            f"lora_bias trained biases of layers that have none in the base ({_some(without)}), so no merged model can "
            "hold them; serve base and adapter with peft. Nothing was written"
        )
    if missing:
        raise UserError(
            f"{len(missing)} of {len(changes)} adapter tensors have no target in the base: {_some(missing)}. {end}"
        )
    if len(set(found.values())) < len(found):
        raise UserError(f"two adapter tensors have the same target in the base. {end}")
    lows = [(change.low_rank, shapes[found[name]]) for name, change in changes.items() if change.low_rank]
    transposed = bool(adapter.config.get("fan_in_fan_out")) or any(
        low.shape == shape[::-1] != shape for low, shape in lows if not low.embedding
    )
    matched: dict[str, tuple[str, TensorChange]] = {}
    for name, change in changes.items():
        if change.low_rank and transposed and not change.low_rank.embedding:
            if change.low_rank.magnitude is not None:
                raise UserError(f"{name} is stored transposed, and DoRA rescales it; {WITH_PEFT}. Nothing was written")
            change.low_rank = replace(change.low_rank, transposed=True)
        matched[found[name]] = (name, change)
    _check_shapes(matched, shapes, end)
    _check_biases(adapter, matched, shapes)
    return matched


def _check_shapes(
    matched: Mapping[str, tuple[str, TensorChange]], shapes: Mapping[str, tuple[int, ...]], end: str
) -> None:
    wrong = []
    for target, (name, change) in matched.items():
        shape = shapes[target]
        expected = [tuple(part.shape) for part in (change.replaced, change.added) if part is not None]
        expected += [change.low_rank.shape] if change.low_rank else []
        for own in expected:
            if own != shape and own[1:] == shape[1:] and "embed" in name:
                raise UserError(
                    f"the training changed the vocabulary: {name} has {own[0]:,} tokens, and {shape[0]:,} in the base. "
                    f"Change the base's too (resize_token_embeddings({own[0]}) of transformers), save it, and name it "
                    "as `base_model_path`. Nothing was written"
                )
        wrong += [f"{name} {own} on {shape}" for own in expected if own != shape]
        if change.tokens and (max(change.tokens.indices) >= shape[0] or change.tokens.values.shape[1:] != shape[1:]):
            wrong.append(f"new vectors of the tokens {_some(map(str, change.tokens.indices))} on {name} {shape}")
    if wrong:
        raise UserError(f"{len(wrong)} adapter tensors do not fit the base: {_some(wrong, '; ')}. {end}")


def _check_biases(
    adapter: Adapter, matched: Mapping[str, tuple[str, TensorChange]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Some versions of peft do not save the biases that they train."""
    kind = adapter.config.get("bias") or "none"
    if kind == "none":
        return
    own = {target.removesuffix("weight") + "bias" for target, (_, change) in matched.items() if change.low_rank}
    biases = {name for name, shape in shapes.items() if name.endswith(".bias") and len(shape) == 1}
    trained = {name for name in biases if not HEADS.match(name)} if kind == "all" else own & biases
    if lost := sorted(trained - set(matched)):
        raise UserError(
            f"bias={kind} trained {len(trained)} biases of the base, but the file lacks {len(lost)} of them: "
            f"{_some(lost)}. Some versions of peft do not save them (huggingface/peft#3306), and without them the "
            "model is another one; save the adapter again with a newer peft. Nothing was written"
        )


def _some(names: Iterable[str], separator: str = ", ") -> str:
    listed = list(names)
    return separator.join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
