"""Files of weights that bitsandbytes quantised (`…-bnb-4bit` and others), read as plain weights.

Such a file holds a weight as packed integers, and beside it what gives the numbers back: `absmax`, `quant_map` and
`quant_state…` for 4 bits, `SCB` for 8 bits. The numbers are those that bitsandbytes itself gives, bit for bit.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedrag.errors import UserError
from embedrag.weights.safetensors_io import WeightFile

STATE = re.compile(r"^(?P<weight>.+)\.quant_state\.bitsandbytes__\w+$")
SCALES = re.compile(r"^(?P<layer>.+)\.SCB$")


class DequantizedFile:
    """A file of weights with the interface of `TensorFile`; quantised weights are read as floating-point numbers."""

    def __init__(self, file: WeightFile, places: Mapping[str, WeightFile], quantized: set[str]) -> None:
        """Read the shapes of the quantised weights.

        Args:
            file: the file.
            places: name of each tensor of the model -> its file; a weight and its scales may be in two files.
            quantized: names of the quantised weights.
        """
        self.path: Path = file.path
        self._file, self._places = file, places
        self._names = [name for name in file.names() if not _belongs_to_weight(name, quantized)]
        self._last: tuple[str, Tensor] | None = None
        self._states = {name: self._state(name) for name in self._names if name in quantized}

    def names(self) -> list[str]:
        """Names of the weights."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight; that of a quantised weight before it was packed."""
        return tuple(self._states.get(name, {}).get("shape") or self._file.shape(name))

    def dtype(self, name: str) -> torch.dtype:
        """Type of a weight; of a quantised one, the type that it had before."""
        return self._states[name]["dtype"] if name in self._states else self._file.dtype(name)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a weight. A quantised weight is dequantised whole and kept until the next one."""
        if name not in self._states:
            return self._file.rows(name, start, stop)
        if self._last is None or self._last[0] != name:
            self._last = name, self._dequantized(name)
        return self._last[1][start:stop]

    def _state(self, name: str) -> dict[str, Any]:
        """Shape and type of a quantised weight."""
        try:
            key = next((key for key in self._places if key.startswith(f"{name}.quant_state.")), None)
            if key is None:
                return {"shape": self._file.shape(name), "dtype": torch.float16}
            state = json.loads(bytes(self._places[key].rows(key).tolist()))
            return {"shape": [int(size) for size in state["shape"]], "dtype": getattr(torch, state["dtype"])}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(name, error) from None

    def _dequantized(self, name: str) -> Tensor:
        from bitsandbytes import functional

        parts = {key: file.rows(key) for key, file in self._places.items() if key.startswith(f"{name}.")}
        try:
            if not parts:
                scales = f"{name.removesuffix('weight')}SCB"
                stored, scale = self._file.rows(name), self._places[scales].rows(scales)
                return functional.int8_vectorwise_dequant(stored, scale)  # type: ignore[no-any-return]
            state = functional.QuantState.from_dict(parts, torch.device("cpu"))
            weight: Tensor = functional.dequantize_4bit(self._file.rows(name), state)
            return weight.reshape(self.shape(name))
        except (ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
            raise self._damaged(name, error) from None

    def _damaged(self, name: str, error: Exception) -> UserError:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return UserError(f"{self.path}: the quantised weight {name} is damaged ({first}); download the model again")


def dequantized(files: Sequence[WeightFile]) -> list[WeightFile | DequantizedFile]:
    """The files of a model, with quantised weights read as plain ones; files without such weights as they are.

    Raises:
        UserError: bitsandbytes is missing, or the file is damaged.
    """
    places = {name: file for file in files for name in file.names()}
    names = quantized_names(places)
    if not names:
        return list(files)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{files[0].path}: holds weights of bitsandbytes; pip install bitsandbytes")
    return [DequantizedFile(file, places, names) for file in files]


def _belongs_to_weight(name: str, quantized: set[str]) -> bool:
    """Whether a tensor holds scales of a quantised weight."""
    layer, _, last = name.rpartition(".")
    if last in ("SCB", "weight_format"):
        return f"{layer}.weight" in quantized
    weight, dot, _ = name.partition(".weight.")
    return bool(dot) and f"{weight}.weight" in quantized


def quantized_names(tensors: Mapping[str, Any] | Sequence[str]) -> set[str]:
    """Names of the weights that bitsandbytes quantised, among the names of all tensors of a model."""
    found = {match["weight"] for name in tensors if (match := STATE.match(name))}
    return found | {f"{match['layer']}.weight" for name in tensors if (match := SCALES.match(name))}


def quantization_of(config: Any) -> dict[str, Any] | None:
    """How the weights of a model are quantised already, from its configuration.

    Args:
        config: of transformers.

    Returns:
        The settings of bitsandbytes, as in config.json; None for a model that is not quantised.

    Raises:
        UserError: another program quantised it.
    """
    settings = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if not settings:
        return None
    if not isinstance(settings, dict):
        settings = settings.to_dict()
    method = settings.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in settings else "an unknown method")
    method = str(getattr(method, "value", method))
    if not method.startswith("bitsandbytes"):
        raise UserError(
            f"its weights are quantised already ({method}), and such weights can be neither trained nor merged here; "
            "name the model that it was made from, with weights in float32, bfloat16 or float16"
        )
    return dict(settings)
