"""Read and write safetensors files by rows, so that memory holds a block of rows and never a whole tensor or file.

A file begins with eight bytes that hold the length of the header. The header is JSON: names, types, shapes and
offsets. The bytes of the tensors follow. The safetensors library maps whole files, and mapped pages count as memory of
the process. Plain reads at known offsets do not.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from embedrag.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BLOCK_BYTES = 16 << 20
LFS_POINTER = b"version https://git-lfs"


class TensorFile:
    """A safetensors file, read by rows."""

    def __init__(self, path: Path) -> None:
        """Read the header, after the safetensors library has checked it.

        Raises:
            UserError: the file is cut off or damaged, is no safetensors file, or holds types that are not supported.
        """
        self.path = path
        try:
            with safe_open(path, "pt"):  # maps the file and checks the header; no page of weights is read
                pass
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable(path, str(error)) from None
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            self._header: dict[str, Any] = json.loads(file.read(length))
        self._header.pop("__metadata__", None)
        self._start = 8 + length
        unknown = {entry["dtype"] for entry in self._header.values()} - set(DTYPES)
        if unknown:
            raise UserError(
                f"{path}: holds weights of type {', '.join(sorted(unknown))}; use a base in float16, bfloat16 or "
                "float32"
            )

    def names(self) -> list[str]:
        """Names of the tensors, in the order of the file."""
        return sorted(self._header, key=lambda name: self._header[name]["data_offsets"][0])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._header[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor."""
        return DTYPES[self._header[name]["dtype"]]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor, all rows by default; a scalar counts as one row."""
        shape = self.shape(name)
        count = shape[0] if shape else 1
        stop = count if stop is None else stop
        begin, end = self._header[name]["data_offsets"]
        row = (end - begin) // max(count, 1)
        data = bytearray(row * (stop - start))
        with self.path.open("rb") as file:
            file.seek(self._start + begin + row * start)
            file.readinto(data)
        flat = torch.frombuffer(data, dtype=self.dtype(name)) if data else torch.empty(0, dtype=self.dtype(name))
        return flat.reshape(stop - start, *shape[1:]) if shape else flat.reshape(())


class PickledFile:
    """A `pytorch_model.bin` with the interface of `TensorFile`; it is mapped, and only tensors are unpickled."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            UserError: when it is damaged, or holds more than tensors.
        """
        self.path = path
        try:
            self._tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged and for unsafe files
            raise _unreadable(path, str(error)) from None
        if not isinstance(self._tensors, dict) or not all(map(torch.is_tensor, self._tensors.values())):
            raise UserError(f"{path}: holds more than tensors; save the model's state_dict there, and nothing else")

    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor."""
        return self._tensors[name].dtype

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor."""
        tensor = self._tensors[name]
        return tensor[start:stop] if tensor.ndim else tensor


WeightFile = TensorFile | PickledFile


def weight_files(root: Path) -> list[WeightFile]:
    """The weight files of a model folder, in order of their names; each is checked for damage.

    Raises:
        UserError: when there are none, when the index names one that is missing, or when one is damaged.
    """
    kinds: tuple[tuple[str, type[WeightFile]], ...] = (
        ("model.safetensors", TensorFile),
        ("pytorch_model.bin", PickledFile),
    )
    for name, kind in kinds:
        index = root / f"{name}.index.json"
        if index.is_file():
            return [kind(root / file) for file in _shards(index)]
        if (root / name).is_file():
            return [kind(root / name)]
    raise UserError(f"{root}: no weights there (model.safetensors, its shards, or pytorch_model.bin)")


def _shards(index: Path) -> list[str]:
    """Names of the files that an index names.

    Raises:
        UserError: when the index is damaged, names a file that is missing, or a path out of its folder.
    """
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        places = []
    if not places or not all(isinstance(place, str) and place == Path(place).name for place in places):
        raise UserError(
            f"{index}: damaged; it needs a `weight_map` from names of weights to names of files beside it. Download "
            "it again"
        )
    names = sorted(set(places))
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(f"{index.parent}: {', '.join(absent)} is missing, but {index.name} names it; download it again")
    return names


def _unreadable(path: Path, reason: str) -> UserError:
    """The error about a file of weights that can't be read."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return UserError(f"{path}: is a pointer of Git LFS and not the file itself; run `git lfs pull` there")
    first = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return UserError(f"{path}: damaged, cut off, or not a file of weights ({first}); download it again")


def blocks(shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[int, int]]:
    """Cut the rows of a tensor into blocks [start, stop) of at most `BLOCK_BYTES`, or of one row if a row is larger.

    >>> blocks((2, 3), torch.float32)
    [(0, 2)]
    """
    if not shape:
        return [(0, 1)]
    row = torch.Size(shape[1:]).numel() * dtype.itemsize
    step = max(1, BLOCK_BYTES // max(row, 1))
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def write_tensors(
    path: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], pieces: Iterable[tuple[str, Tensor]]
) -> int:
    """Write a safetensors file from tensors that come in blocks of rows.

    Args:
        path: the file.
        layout: name of each tensor -> its type and shape, in the order of the file.
        pieces: (name, rows), tensor after tensor in the order of `layout`, rows from first to last.

    Returns:
        Number of bytes of the tensors.

    Raises:
        ValueError: when the pieces do not make up exactly the layout.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    written = 0
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, rows in pieces:
            if rows.dtype != layout[name][0] or not header[name]["data_offsets"][0] <= written < offset + 1:
                raise ValueError(f"{name}: the layout has no such piece at this place")
            data = rows.contiguous().reshape(-1).view(torch.uint8).numpy()
            written += file.write(data.data)
    if written != offset:
        raise ValueError(f"{path}: {written} bytes written, but the layout has {offset}")
    return written
