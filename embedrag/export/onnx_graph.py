"""A backbone, its pooling and what follows it as one ONNX graph.

The plain transformers model is exported, with padding and an attention mask, because ONNX has no packed attention.
Pooling uses only the mask, so texts may be padded on either side. Our own programs pad on the right. With padding on
the right, every model gives the same vectors as for single texts; on the left, models with learnt positions do not.

Letters: n texts, L tokens of the longest text, H hidden size, D dimensions of a vector.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedrag.errors import UserError
from embedrag.export.onnx_encoder import OUTPUT
from embedrag.models.encoder import Encoder
from embedrag.models.pooling import pool
from embedrag.runtime.console import quiet

LARGEST_FILE = 1 << 31  # bytes that a protobuf can have; larger weights go to a file of their own
INPUTS = ["input_ids", "attention_mask"]
STATES = "last_hidden_state"


class Graph(nn.Module):
    """The module that is exported: ids and mask in, vectors out."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.backbone = encoder.backbone
        self.pooling = encoder.embedding_config.pooling
        self.head = encoder.head  # named here too, so that its weights are weights of the graph
        self.finish = encoder.finish

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """[n, L] ids and mask -> token vectors [n, L, H] and text vectors [n, D]."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden, self.finish(pool(hidden, attention_mask, self.pooling))


def write_graph(encoder: Encoder, file: Path, model: str = "") -> None:
    """Export an encoder. Afterwards its backbone pads texts.

    Args:
        encoder: float32, on the CPU.
        file: the .onnx file; weights of more than 2 GiB go to a second file in the same folder.
        model: name of the model, for messages.

    Raises:
        UserError: when torch can't export such a model.
    """
    encoder.eval()
    encoder.packed = False
    backbone: Any = encoder.backbone
    backbone.set_attn_implementation("sdpa" if backbone._supports_sdpa else "eager")
    graph = Graph(encoder)
    ids = torch.randint(3, 9, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {0: "texts", 1: "tokens"}
    size = sum(weight.nbytes for weight in graph.state_dict().values())
    try:
        with _silence(), torch.no_grad():
            torch.onnx.export(
                graph,
                (ids, mask),
                file,
                input_names=INPUTS,
                output_names=[STATES, OUTPUT],
                dynamic_shapes=(axes, axes),
                dynamo=True,
                external_data=size > LARGEST_FILE * 0.9,
                verbose=False,
            )
            _without_traces(file)
    except Exception as error:  # under an exporter, the `forward` of a model may fail in any way
        if isinstance(error, OSError) and error.errno:  # of the disk
            raise
        kind = backbone.config.model_type
        while error.__cause__:  # the exporter's own message explains how to report the failure, not its reason
            error = error.__cause__  # type: ignore[assignment]
        words = next(filter(None, map(str.strip, str(error).splitlines())), "")
        raise UserError(
            f"torch can't export a {kind} model ({type(error).__name__}: {words[:200]}); serve it with torch",
            "model",
            model,
        ) from None


def _without_traces(file: Path) -> None:
    """Remove what torch writes about its source code into a graph: paths of this machine, with the user's name."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    graph = model.graph
    values = [*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
    inner = [node for function in model.functions for node in function.node]
    for part in [model, graph, *model.functions, *values, *inner]:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    onnx.save(model, file)


def write_int8(source: Path, target: Path) -> None:
    """Quantise the weights of a graph to 8 bits. Activations are quantised as they come (dynamic quantisation)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _silence():
        quantize_dynamic(
            source,
            target,
            weight_type=QuantType.QUInt8,
            per_channel=True,
            use_external_data_format=source.with_name(f"{source.name}.data").exists(),
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what exporters print: warnings about things that users can't change, and the text of a failing graph."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
