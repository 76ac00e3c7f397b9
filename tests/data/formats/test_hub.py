"""Subsets and splits of hub data sets. A folder that looks like a downloaded data set stands for the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedrag.data.formats.hub import hub_fingerprint, hub_lines, hub_name, hub_rows
from embedrag.data.sources import local_files
from embedrag.errors import UserError
from embedrag.options.field import Source

CARD = """---
configs:
- config_name: pair
  data_files:
  - {split: train, path: pair/train.jsonl}
  - {split: dev, path: pair/dev.jsonl}
- config_name: triplet
  data_files:
  - {split: dev, path: triplet/dev.jsonl}
---
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "owner" / "name"
    for place in ("pair/train", "pair/dev", "triplet/dev"):
        path = folder / f"{place}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"anchor": place, "positive": "p"}) + "\n")
    (folder / "README.md").write_text(CARD)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_subset_and_split_are_read(stream: bool, hub: None) -> None:
    for source, anchor in (("owner/name:pair", "pair/train"), ("owner/name:triplet@dev", "triplet/dev")):
        [(place, row)] = hub_rows(source, stream, "train_dataset")
        assert (place, row["anchor"]) == (f"{source}:1", anchor)
    assert hub_fingerprint("owner/name:pair@dev")
    assert list(hub_lines("owner/name:pair@dev")) == ["data: owner/name: subset pair, split dev"]
    assert list(hub_lines("owner/name")) == ["data: owner/name: its only or default subset, split train"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("owner/name", "name a subset; its subsets are pair, triplet; write one as owner/name:pair"),
        ("owner/name:pari", "no subset pari; did you mean pair?; its subsets are pair, triplet"),
        ("owner/name:triplet", "no split train; its splits are dev; write one as owner/name:triplet@dev"),
        ("owner/name:pair@dve", "no split dve; did you mean dev?; its splits are"),
    ],
)
def test_wrong_subset_or_split_is_answered_with_the_list(source: str, reason: str, stream: bool, hub: None) -> None:
    with pytest.raises(UserError) as error:
        list(hub_rows(source, stream, "train_dataset"))
    assert str(error.value).startswith(f"`train_dataset={source}`: {reason}")


def test_names_weights_and_local_folders_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_files("owner/name:pair@dev") == [] == local_files("owner/name@train[:100]")
    given = Source.model_validate("owner/name:pair@dev:0.5")
    assert (given.path, given.weight) == ("owner/name:pair@dev", 0.5)
    assert Source.model_validate("owner/name:2").weight == 2
    assert hub_name("a/b/c") is None and hub_name("a/b c") is None
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name:pair@dev"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("{}")
    assert [path.name for path in local_files("owner/name:pair@dev")] == ["a.jsonl"]
