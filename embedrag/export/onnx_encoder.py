"""An exported model as an encoder: ONNX Runtime instead of torch, for the same texts, roles and vectors.

The graph itself pools and normalises. Texts are sorted by length and padded in chunks of nearly equal lengths.

Letters: n texts, D dimensions of a vector.
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

LENGTHS = ("query_max_len", "passage_max_len")  # kept in export_config.json
SHRINK_SECONDS = 5  # after this time the next batch gives back the memory that larger batches took
OUTPUT = "sentence_embedding"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxEncoder(TextEncoder):
    """An ONNX graph from `input_ids` and `attention_mask` to vectors, and its tokenizer. There is no torch model."""

    def __init__(self, file: Path, tokenizer: TextTokenizer, device: str = "auto") -> None:
        """Load the graph.

        Args:
            file: the .onnx file.
            tokenizer: texts -> ids.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            UserError: the file can't be read, or ONNX Runtime can't compute on the device.
        """
        import onnxruntime

        self.tokenizer = tokenizer
        self._device = _pick(device, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False  # a plan is kept for each shape, and every batch has a different one
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads use no core
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=list(dict.fromkeys([PROVIDERS[self._device], PROVIDERS["cpu"]]))
            )
        except Exception as error:  # its errors have no common class
            raise UserError(f"{file}: ONNX Runtime can't read it ({str(error).splitlines()[0]})") from None
        outputs = {output.name: output.shape for output in self._session.get_outputs()}
        if OUTPUT not in outputs:
            raise UserError(f"{file}: no output {OUTPUT}; write it with embedrag export")
        self._dimension = int(outputs[OUTPUT][-1])
        used = self._session.get_providers()[0]  # if a library of CUDA is missing, the session uses the CPU
        if used != PROVIDERS[self._device]:
            if device != "auto":
                raise UserError(f"ONNX Runtime can't use this device; it would use {used}", "device", device)
            self._device = "cpu"
        self._shrunk = time.monotonic()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self._device)

    @property
    def dimension(self) -> int:
        """D, the number of dimensions of a vector."""
        return self._dimension

    def vectors(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors of n texts given as token ids, in any order and of any lengths: [n, D] float32."""
        tokens = TokenBatch.from_lists(ids)
        order = tokens.lengths.argsort(descending=True, stable=True)
        found = np.empty((len(tokens), self._dimension), np.float32)
        for start, stop in plan_padded(tokens.lengths[order].tolist(), CHUNK_TOKENS[self._device]):
            found[order[start:stop].numpy()] = self.batch(tokens.select(order[start:stop]))
        return found

    def batch(self, tokens: TokenBatch) -> np.ndarray:
        """Vectors [n, D] float32 of texts in one call, all padded to the longest."""
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
    """Open a folder that `export` wrote.

    Args:
        name: the folder; messages call it `model`.
        backend: `onnx` or `onnx_int8`.
        device: `auto`, `cpu` or `cuda`.
        trust_remote_code: run Python code that comes with its configuration.

    Raises:
        UserError: it is not such a folder, or it is damaged.
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
    """The file of a backend in a folder; UserError when the folder has none."""
    need("onnx", "onnxruntime")
    folder = Path(name).expanduser()
    file = folder / ONNX_FILES[backend]
    if not file.is_file() or not (folder / EXPORT_CONFIG).is_file():
        how = "embedrag export" + (" --int8" if backend == "onnx_int8" else "")
        reason = f"no export with {ONNX_FILES[backend]}; write it with {how}, or use `backend=torch`"
        raise UserError(reason, "model", name)
    return file


def _pick(device: str, available: list[str]) -> str:
    if device == "auto":
        return "cuda" if PROVIDERS["cuda"] in available else "cpu"
    if PROVIDERS.get(device) not in available:
        raise UserError(f"ONNX Runtime has no such device here; it has {', '.join(available)}", "device", device)
    return device
