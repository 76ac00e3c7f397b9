"""Files of weights, read and written by rows, against the library that reads them whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from embedrag.errors import UserError
from embedrag.weights import safetensors_io
from embedrag.weights.safetensors_io import PickledFile, TensorFile, blocks, weight_files, write_tensors

TENSORS = {
    "matrix": torch.arange(30, dtype=torch.float32).reshape(10, 3),
    "half": torch.arange(8, dtype=torch.bfloat16).reshape(2, 2, 2),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 4),
}


@pytest.mark.parametrize("kind", [TensorFile, PickledFile])
def test_rows_are_those_of_the_whole_tensor(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save_file(TENSORS, path) if kind is TensorFile else torch.save(TENSORS, path)
    file = kind(path)
    assert set(file.names()) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert (file.shape(name), file.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(file.rows(name), tensor)
    assert torch.equal(file.rows("matrix", 4, 9), TENSORS["matrix"][4:9])


def test_file_written_in_blocks_is_read_by_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_io, "BLOCK_BYTES", 40)
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    assert blocks((10, 3), torch.float32) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    pieces = [
        (name, tensor[start:stop] if tensor.ndim else tensor)
        for name, tensor in TENSORS.items()
        for start, stop in blocks(tuple(tensor.shape), tensor.dtype)
    ]
    path = tmp_path / "out.safetensors"
    assert write_tensors(path, layout, pieces) == sum(t.numel() * t.itemsize for t in TENSORS.values())
    found = load_file(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    with pytest.raises(ValueError, match="but the layout has"):
        write_tensors(path, layout, pieces[:-1])
    with pytest.raises(ValueError, match="has no such piece at this place"):
        write_tensors(path, layout, reversed(pieces))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut off, or not a safetensors file"),
        (b"\xff" * 64, "cut off, or not a safetensors file"),
        (b"\x04" + b"\0" * 7 + b"text", "its header is not JSON"),
    ],
)
def test_file_of_another_kind_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        TensorFile(path)


def test_weights_of_a_type_that_nothing_computes_with_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, path)
    with pytest.raises(UserError, match="holds weights of type F8_E4M3"):
        TensorFile(path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights there"):
        weight_files(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="two.safetensors is missing"):
        weight_files(tmp_path)


def test_pickle_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="can't be read as weights"):
        weight_files(tmp_path)
