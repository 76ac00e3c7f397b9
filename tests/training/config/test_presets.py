"""Published recipes fill what nobody named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedrag.errors import UserError
from embedrag.options.parsing import parse
from embedrag.training.config.options import TrainOptions
from embedrag.training.config.presets import RECIPES

WORDS = ["--output_dir", "o", "--batch_size", "2"]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_accepted_and_documented(name: str) -> None:
    options = TrainOptions(output_dir="o", batch_size=2, recipe=name)
    assert {key: getattr(options, key) for key in RECIPES[name]} == RECIPES[name]
    text = (Path(__file__).parents[3] / "docs" / "losses.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in text


def test_recipe_fills_what_nobody_named(tmp_path: Path) -> None:
    options = parse(TrainOptions, [*WORDS, "--recipe", "BGE"], "train", "")
    assert (options.temperature, options.neg_nums, options.warmup_proportion) == (0.02, 7, 0.1)
    assert parse(TrainOptions, [*WORDS, "--recipe", "BGE", "--neg_nums", "3"], "train", "").neg_nums == 3
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"recipe": "gte", "temperature": 0.2}), encoding="utf-8")
    options = parse(TrainOptions, [*WORDS, "--config", str(path)], "train", "", config_file=True)
    assert options.temperature == 0.2 and "passage_passage" in options.directions
    with pytest.raises(UserError, match="`recipe=bg`"):
        TrainOptions(output_dir="o", batch_size=2, recipe="bg")


def test_former_name_of_an_option_wins_over_the_recipe_too() -> None:
    options = TrainOptions(output_dir="o", batch_size=2, recipe="gte", further_directions=[])
    assert options.directions == ["query_passage"]
