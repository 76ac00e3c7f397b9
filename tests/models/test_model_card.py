"""The card of a model is uploaded with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from embedrag.models.model_card import write_card


@pytest.mark.parametrize(
    ("base", "shown"),
    [
        ("/home/alice/secret/bge-m3", "bge-m3"),
        ("C:\\Users\\alice\\bge-m3", "bge-m3"),
        ("BAAI/bge-m3", "BAAI/bge-m3"),
        ('a: "b" #c', 'a: "b" #c'),
    ],
)
def test_card_names_the_base_without_folders_of_this_machine(base: str, shown: str, tmp_path: Path) -> None:
    files = ["/home/alice/secret/a.jsonl:2", "owner/rows"]
    settings = {"train_dataset": files, "query_prompt": "q | [x]: ", "passage_prompt": "", "epochs": 2}
    write_card(tmp_path, base, settings)
    card = (tmp_path / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == shown
    assert "alice" not in card and "secret" not in card
    assert "a.jsonl:2 owner/rows" in card
    table = [line for line in card.splitlines() if line.startswith("| `")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in table), table
