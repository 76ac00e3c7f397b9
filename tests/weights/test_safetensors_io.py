"""Files of weights, read and written by rows, against the library that reads them whole."""

from __future__ import annotations

import copy
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
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
        (b"", "not a file of weights"),
        (b"\xff" * 64, "not a file of weights"),
        (b"\x04" + b"\0" * 7 + b"text", "not a file of weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS .* run `git lfs pull`"),
    ],
)
@pytest.mark.parametrize("kind", [TensorFile, PickledFile])
def test_file_of_another_kind_is_named(kind: type, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        kind(path)


HEADER = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "F16", "shape": [3], "data_offsets": [16, 22]},
}
NUMBERS = st.sampled_from([-8, 0, 1, 2, 3, 7, 8, 16, 18, 22, 24, 2**40, 2**63, 2**64, 10**30, 1.5, "2", None, True])
DAMAGE = st.one_of(
    st.tuples(st.sampled_from("ab"), st.just("data_offsets"), st.lists(NUMBERS, max_size=3)),
    st.tuples(st.sampled_from("ab"), st.just("shape"), st.lists(NUMBERS, max_size=3)),
    st.tuples(st.sampled_from("ab"), st.just("dtype"), st.sampled_from(["F32", "F16", "I64", "F8_E4M3", "X", 1, None])),
    st.tuples(st.sampled_from("ab"), st.just(None), st.sampled_from([None, [], 1, "x", {}])),
)


def with_header(path: Path, header: bytes, size: int = 22) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(size)))
    return path


@settings(max_examples=150)
@given(st.lists(DAMAGE, max_size=3), st.sampled_from([22, 22, 22, 0, 16, 21, 23]))
def test_header_is_accepted_when_the_library_accepts_it_and_read_alike(damage: list[Any], size: int) -> None:
    header: dict[str, Any] = copy.deepcopy(HEADER)
    for name, field, value in damage:
        if field is None or not isinstance(header[name], dict):
            header[name] = value
        else:
            header[name][field] = value
    with tempfile.TemporaryDirectory() as folder:
        path = with_header(Path(folder) / "model.safetensors", json.dumps(header).encode(), size)
        try:
            with safe_open(path, "pt") as library:
                expected = {name: library.get_tensor(name) for name in library.keys()}  # noqa: SIM118
        except Exception:
            with pytest.raises(UserError, match=str(path)):
                TensorFile(path)
            return
        if any(entry["dtype"] == "F8_E4M3" for entry in header.values()):
            return
        file = TensorFile(path)
        assert {name: file.rows(name).tolist() for name in file.names()} == {
            name: tensor.tolist() for name, tensor in expected.items()
        }


ENTRY = '{"dtype":"F32","shape":[4],"data_offsets":[%s,%s]}'


@pytest.mark.parametrize(
    "header",
    [
        "[1]",
        "null",
        "[" * 200_000,
        '{"a":' + ENTRY % (0, 16) + ',"b":' + ENTRY % (0, 16) + "}",  # two tensors on the same bytes
        '{"a":' + ENTRY % (-8, 8) + "}",  # the header as weights
        '{"a":' + ENTRY % (6, 22) + "}",  # a hole
        '{"a":' + ENTRY % ("NaN", 16) + "}",
        '{"a":{"dtype":"F32","shape":[4]}}',
        '{"__metadata__":1,"a":' + ENTRY % (0, 16) + "}",
    ],
)
def test_damaged_header_is_named_with_the_remedy(header: str, tmp_path: Path) -> None:
    size = 16 if "[0,16]" in header or "[-8" in header else 22
    path = with_header(tmp_path / "model.safetensors", header.encode(), size)
    with pytest.raises(UserError, match=f"{path}: damaged.*download it again"):
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


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../other/model.safetensors"}}',
        '{"weight_map": {"a": "/other/model.safetensors"}}',
        '{"weight_map": {"a": "sub/model.safetensors"}}',
        "[" * 100_000,
    ],
)
def test_damaged_index_and_index_that_leaves_the_folder_are_refused(text: str, tmp_path: Path) -> None:
    for folder in ("other", "base", "base/sub"):
        (tmp_path / folder).mkdir()
        save_file({"a": torch.zeros(1)}, tmp_path / folder / "model.safetensors")
    index = tmp_path / "base" / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(UserError, match=rf"{index}: damaged.* Download it again"):
        weight_files(tmp_path / "base")


def test_pickle_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a file of weights"):
        weight_files(tmp_path)
    for content in ({"weight": 5}, {"state_dict": {"weight": torch.ones(1)}}, torch.ones(1)):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="holds more than tensors"):
            weight_files(tmp_path)
