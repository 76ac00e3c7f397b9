"""JSON is read however it is laid out, and one faulty value costs no other."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedrag.data.formats import json_values as module
from embedrag.data.formats.json_values import json_values
from embedrag.data.formats.lines import RowError
from embedrag.errors import UserError

ROW: dict[str, Any] = {"query": "q", "pos": ["p"]}
COMMA = "not JSON (Expecting ',' delimiter"
LINE, PRETTY = json.dumps(ROW), json.dumps(ROW, indent=4)


def read(path: Path) -> list[tuple[int, Any]]:
    return [(line, str(value) if isinstance(value, RowError) else value) for line, value in json_values(path)]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (f"{LINE}\n\n{LINE}", [1, 3]),
        (f"{LINE}{LINE}\n{LINE}", [1, 1, 2]),
        (f"{PRETTY}\n{PRETTY}\n", [1, 7]),
        (f"{PRETTY}{PRETTY}\n\n{LINE}", [1, 6, 13]),
        (f"[{LINE}]", [1]),
        (f"[\n{LINE},\n{LINE}\n]\n", [2, 3]),
        (json.dumps([ROW, ROW], indent=2), [2, 8]),
        (f"{LINE}\r{LINE}\r", [1, 1]),
        (f"\ufeff{PRETTY}", [1]),
        (f"\ufeff[{PRETTY}]", [1]),
        ("[]", []),
        ("", []),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_every_layout_gives_the_values_and_their_lines(content: str, lines: list[int], encoding: str, write) -> None:
    path = write((content.removeprefix("\ufeff") if encoding == "utf-16" else content).encode(encoding))
    assert read(path) == [(line, ROW) for line in lines]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (f'{LINE}\n{{"query": "q", "pos": ["p"\n{LINE}', [(1, ROW), (2, "not JSON (it is cut off)"), (3, ROW)]),
        (
            f'{LINE}\n{{"a": 1 "b": 2}}\n{LINE}',
            [(1, ROW), (2, f"{COMMA}, column 9)"), (3, ROW)],
        ),
        (f"{LINE}\nquery: q\n{LINE}", [(1, ROW), (2, "not JSON (Expecting value, column 1)"), (3, ROW)]),
        (f"{PRETTY.replace('],', ']')}\n{PRETTY}", None),
        (f"{PRETTY.replace(',', '')}\n{PRETTY}", [(3, f"{COMMA}, column 5)"), (7, ROW)]),
        ('{"a": 1, "a": 2}\n' + LINE, [(1, "the key 'a' occurs twice in one object; keep one of them"), (2, ROW)]),
        ('[{"a": {"b": 1, "b": 2}},' + LINE + "]", None),
        ('{"query": "q', [(1, "not JSON (Unterminated string starting at, column 11)")]),
        (f'{{"x": {"1" * 5000}}}\n{LINE}', [(1, "nested too deeply, or has a number that is too long"), (2, ROW)]),
    ],
)
def test_a_faulty_value_is_named_and_the_others_are_read(content: str, found: Any, write) -> None:
    values = read(write(content))
    assert values[-1][1] == ROW or content.endswith('"q')
    assert found is None or values == found


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f"[{LINE}", ":1: not JSON (it is cut off)"),
        (f"[{LINE}\n{LINE}]", ':2: not JSON (a comma or ] is missing, at \'{"query": "q", "pos"\')'),
        (f"[{LINE},\n{{1}}]", ":2: not JSON (Expecting property name enclosed in double quotes"),
        (f"[{LINE}] x", ":1: not JSON (there is more after the end of the array, at 'x')"),
    ],
)
def test_array_that_can_not_be_read_further_is_named_by_its_line(content: str, reason: str, write) -> None:
    path = write(content)
    with pytest.raises(UserError) as error:
        read(path)
    assert f"{path}{reason}" in str(error.value)


@settings(max_examples=40)
@given(
    values=st.lists(st.dictionaries(st.text(max_size=9), st.text(max_size=30), min_size=1), min_size=1, max_size=5),
    indent=st.sampled_from([None, 1]),
    block=st.integers(1, 40),
)
def test_blocks_of_any_size_give_the_same_values(values, indent, block, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("any") / "rows.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        assert [value for _, value in json_values(path)] == values
    path.write_text("\n".join(json.dumps(value, indent=indent) for value in values), encoding="utf-8")
    assert [value for _, value in json_values(path)] == values


def test_value_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VALUE", 1 << 20)
    monkeypatch.setattr(module, "BLOCK", 1 << 18)
    for start in ("{\n", "["):
        path = tmp_path / "bomb.json.gz"
        with gzip.open(path, "wb") as file:
            file.write(start.encode() + b'{"a": [' * (start == "[") + b'"a": [\n' * (start != "["))
            file.write(b"1,\n" * (1 << 20))
        with pytest.raises(UserError, match="one JSON value of more than 1 MiB"):
            read(path)
