"""docs/own_loop.md runs as it stands, and has the losses of the trainer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import embedrag

PAGE = Path(__file__).parents[2] / "docs" / "own_loop.md"


def code_of(base: str) -> str:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1].replace('"base"', repr(base))


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
def test_the_loop_of_the_page_has_the_losses_of_the_trainer(
    model: str,
    tmp_path: Path,
    write_jsonl: Callable[..., Path],
    rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    base = request.getfixturevalue(model)
    again = [{"query": f"question {i} again", "pos": [f"answer {i}"], "neg": []} for i in (1, 2)]  # two queries each
    write_jsonl([*rows, *again])
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code_of(base), str(PAGE), "exec"), found)
    result = embedrag.train(
        model_name_or_path=base,
        train_dataset="rows.jsonl",
        output_dir="trainer",
        batch_size=4,
        epochs=2,
        temperature=0.05,
        lr=1e-3,
        finetune_type="lora",
        lora_dropout=0.0,
        warmup_proportion=0.0,
        dtype="float32",
    )
    log = json.loads((result.output_dir / "detailed_training_logs.json").read_text(encoding="utf-8"))
    expected = [row["loss"] for row in log["step_logs"]]
    assert found["losses"] == pytest.approx(expected, rel=2e-4)
    assert len(expected) == 8
    assert expected[0] != pytest.approx(expected[4], rel=1e-2)  # it learns, so the comparison says something
    assert embedrag.load_model("own_adapter").encode(["question 1"], role="query").shape == (1, 64)


def test_the_loop_is_forty_lines_or_fewer() -> None:
    lines = [line for line in code_of("base").splitlines() if line.strip()]
    assert len(lines) <= 40
