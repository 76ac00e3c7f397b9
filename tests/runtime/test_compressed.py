"""Compressed files are read as what they hold, whatever they are called; damaged ones are named."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from embedrag.errors import UserError
from embedrag.runtime.compressed import COMPRESSIONS, open_bytes, open_text, without_compression

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
}
TEXT = "연못\n" * 50_000


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl{}"])
def test_every_compression_is_unpacked_also_without_its_suffix_and_in_several_parts(
    suffix: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name.format(suffix)
    path.write_bytes(PACKERS[suffix](TEXT.encode()) * 2)
    with open_text(path) as file:
        assert file.readline() == "연못\n" and len(file.read()) == 2 * len(TEXT) - 3
    assert without_compression(path).name == "rows.jsonl"


@pytest.mark.parametrize("content", [b"", b"\x1f", b"BZh9 is a text\n", "\ufeff연못".encode()])
def test_file_that_is_not_compressed_is_read_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    with open_bytes(path) as file:
        assert file.read() == content


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("cut", [True, False])
def test_damaged_file_is_named(suffix: str, cut: bool, tmp_path: Path) -> None:
    path, packed = tmp_path / f"rows.jsonl{suffix}", PACKERS[suffix](bytes(range(256)) * 2_000)
    path.write_bytes(packed[: len(packed) // 2] if cut else packed[:6] + b"damage" + packed[12:])
    with pytest.raises(UserError, match=rf"rows.jsonl{suffix}: the {suffix} data is damaged or cut off"):
        with open_bytes(path) as file:
            while file.read(1000):
                pass


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.gz: No such file"), open_bytes(tmp_path / "none.gz"):
        pass
