"""Names that an option had in the past still work, everywhere that a name is read, and are shown nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from embedrag.errors import UserError
from embedrag.options.field import Options, TextList, former_switch, option, renamed
from embedrag.options.parsing import build_parser, parse
from embedrag.options.reference import markdown_table


class Example(Options):
    """An option whose name changed, one that was a switch, and a list."""

    cross_encoder: str | None = option(None, "a model", group="g", aliases=("reranker",), former_names=("score_with",))
    mode: Literal["joint", "separate"] = option(
        "joint", "how", group="g", former_names=("apart",), former_values=former_switch("joint", "separate")
    )
    fields: TextList = option([], "several", group="g", former_names=("columns",))


def read(*words: str) -> Example:
    return parse(Example, words, "example", "", config_file=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--score_with", "m"], {"cross_encoder": "m"}),
        (["--score-with", "m"], {"cross_encoder": "m"}),
        (["--apart"], {"mode": "separate"}),
        (["--apart", "--score_with", "m"], {"mode": "separate", "cross_encoder": "m"}),
        (["--apart", "TRUE"], {"mode": "separate"}),
        (["--apart=0"], {"mode": "joint"}),
        (["--apart", "--mode", "separate"], {"mode": "separate"}),
        (["--columns", "a", "b"], {"fields": ["a", "b"]}),
    ],
)
def test_former_flag_sets_the_option(words: list[str], expected: dict[str, object]) -> None:
    assert read(*words) == Example(**expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"score_with": "m"}, {"cross_encoder": "m"}),
        ({"reranker": "m"}, {"cross_encoder": "m"}),
        ({"apart": True}, {"mode": "separate"}),
        ({"apart": False, "columns": ["a"]}, {"mode": "joint", "fields": ["a"]}),
    ],
)
def test_former_name_works_as_key_of_a_file_as_keyword_and_in_saved_settings(
    values: dict[str, object], expected: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    assert read("--config", str(path)) == Example(**values) == Example(**expected)
    assert renamed(Example, values | {"unknown": 1}) == expected | {"unknown": 1}


def test_flag_under_any_name_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"apart": true, "cross_encoder": "m"}', encoding="utf-8")
    assert read("--config", str(path), "--mode", "joint", "--score_with", "n") == Example(cross_encoder="n")


def test_two_names_of_one_option_must_have_one_value(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"apart": true, "mode": "joint"}', encoding="utf-8")
    for words in (["--config", str(path)], ["--apart", "--mode", "joint"], ["--score_with", "a", "--reranker", "b"]):
        with pytest.raises(UserError):
            read(*words)
    with pytest.raises(UserError, match="`apart` and `mode` are the same option"):
        Example(apart=True, mode="joint")


def test_value_that_a_former_switch_does_not_know_is_reported_with_the_choices_of_today() -> None:
    with pytest.raises(UserError, match="joint, separate"):
        read("--apart", "maybe")


def test_former_names_are_shown_nowhere() -> None:
    parser = build_parser(Example, "example", "", config_file=True)
    shown = parser.format_help() + parser.format_usage() + markdown_table(Example)
    assert "--cross_encoder" in shown and "--reranker" in shown
    assert "score_with" not in shown and "apart" not in shown and "columns" not in shown
    with pytest.raises(UserError) as near:
        read("--score_wit", "m")
    assert "score_with" not in str(near.value).replace("--score_wit", "", 1)
