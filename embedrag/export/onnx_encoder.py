"""An exported model as an encoder: ONNX Runtime in the place of torch, with the same texts, roles and vectors.

The graph pools and normalises itself. Texts are padded, sorted by length in chunks of near-equal lengths.

Dimensions: n texts, D components.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from embedrag.data.token_batch import TokenBatch
from embedrag.errors import UserError, need
from embedrag.models.artifacts import EXPORT_CONFIG, ONNX_FILES
from embedrag.models.base_model import describe_base
from embedrag.models.chunking import CHUNK_TOKENS, plan_padded
from embedrag.models.encoder import TextEncoder
from embedrag.models.load import read_json, saved_embedding_config
from embedrag.models.tokenizer import TextTokenizer, load_tokenizer

LENGTHS = ("query_max_len", "passage_max_len")  # that it keeps
SHRINK_SECONDS = 5  # after which memory of larger batches is given back, with the next one
OUTPUT = "sentence_embedding"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxEncoder(TextEncoder):
    """A graph with `input_ids` and `attention_mask`, its tokenizer, and nothing of torch's model."""

    def __init__(self, file: Path, tokenizer: TextTokenizer, device: str = "auto") -> None:
        """Load the graph.

        Args:
            file: the .onnx file.
            tokenizer: texts -> ids.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            UserError: when it can't be read, or ONNX Runtime can't compute there.
        """
        import onnxruntime

        self.tokenizer = tokenizer
        self._device = _pick(device, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False  # one is kept for each shape, and every batch has another
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores alone
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=list(dict.fromkeys([PROVIDERS[self._device], PROVIDERS["cpu"]]))
            )
        except Exception as error:  # of no common class
            raise UserError(f"{file}: ONNX Runtime can't read it ({str(error).splitlines()[0]})") from None
        outputs = {output.name: output.shape for output in self._session.get_outputs()}
        if OUTPUT not in outputs:
            raise UserError(f"{file}: no output {OUTPUT}; write it with embedrag export")
        self._dimension = int(outputs[OUTPUT][-1])
        used = self._session.get_providers()[0]  # a library of CUDA's may be missing; the session then has the CPU
        if used != PROVIDERS[self._device]:
            if device != "auto":
                raise UserError(f"--device {device}: ONNX Runtime can't compute there; it would take {used}")
            self._device = "cpu"
        self._shrunk = time.monotonic()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self._device)

    @property
    def dimension(self) -> int:
        """D, length of a vector."""
        return self._dimension

    def vectors(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors of n texts that are token ids: [n, D] float32."""
        tokens = TokenBatch.from_lists(ids)
        order = tokens.lengths.argsort(descending=True, stable=True)
        found = np.empty((len(tokens), self._dimension), np.float32)
        for start, stop in plan_padded(tokens.lengths[order].tolist(), CHUNK_TOKENS[self._device]):
            found[order[start:stop].numpy()] = self.rectangle(tokens.select(order[start:stop]))
        return found

    def rectangle(self, tokens: TokenBatch) -> np.ndarray:
        """[n, D] of texts in one call, all padded to the longest."""
        import onnxruntime

        ids, mask = tokens.padded(self.tokenizer.tokenizer.pad_token_id or 0)
        settings = None
        if self._device == "cpu" and time.monotonic() - self._shrunk > SHRINK_SECONDS:
            settings = onnxruntime.RunOptions()
            settings.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            self._shrunk = time.monotonic()
        inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        found: np.ndarray = self._session.run([OUTPUT], inputs, settings)[0]
        return found


def load_onnx_encoder(
    name: str, backend: str = "onnx", device: str = "auto", trust_remote_code: bool = False
) -> OnnxEncoder:
    """Open an exported folder.

    Args:
        name: the folder.
        backend: `onnx` or `onnx_int8`.
        device: `auto`, `cpu` or `cuda`.
        trust_remote_code: run code that comes with its configuration.

    Raises:
        UserError: when it is no such folder.
    """
    need("onnx", "onnxruntime")
    file = onnx_file(name, backend)
    base = describe_base(name, trust_remote_code, argument="model")
    path = Path(base.name) / EXPORT_CONFIG
    lengths = read_json(path).get("lengths")
    if not isinstance(lengths, dict) or set(lengths) != set(LENGTHS):
        raise UserError(f"{path}: no lengths in it; the export is damaged")
    embedding_config = replace(saved_embedding_config(Path(base.name), base), **lengths)
    tokenizer = load_tokenizer(base, embedding_config, trust_remote_code=trust_remote_code, argument="model")
    return OnnxEncoder(file, tokenizer, device)


def onnx_file(name: str, backend: str) -> Path:
    """The file of a backend in a folder; UserError when there is none."""
    need("onnx", "onnxruntime")
    folder = Path(name).expanduser()
    file = folder / ONNX_FILES[backend]
    if not file.is_file() or not (folder / EXPORT_CONFIG).is_file():
        how = "embedrag export" + (" --int8" if backend == "onnx_int8" else "")
        raise UserError(
            f"--model {name}: no export with {ONNX_FILES[backend]}; write it with {how}, or use --backend torch"
        )
    return file


def _pick(device: str, available: list[str]) -> str:
    if device == "auto":
        return "cuda" if PROVIDERS["cuda"] in available else "cpu"
    if PROVIDERS.get(device) not in available:
        raise UserError(f"--device {device}: ONNX Runtime has none here; it has {', '.join(available)}")
    return device
