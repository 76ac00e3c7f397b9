"""`embedrag mine`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, model_validator

from embedrag.options.command import Command
from embedrag.options.field import HALF, Device, Dtype, Options, TextList, as_list, option


class MineOptions(Options):
    """Options of `embedrag mine`."""

    train_dataset: TextList = option(..., "rows in any shape that training reads", group="mine")
    corpus: str | None = option(
        None,
        "where negatives are looked for: JSONL, CSV, TSV (see --field), plain text, or a folder with corpus.jsonl; "
        "left out: the passages of the rows",
        group="mine",
        min_length=1,
    )
    field: str = option("text", "key or column of the corpus that holds the text", group="mine", min_length=1)
    output: str = option(..., "JSONL file of rows with new negatives and teacher_scores", group="mine", min_length=1)
    model: str | None = option(None, "model or adapter folder, or hub id, that ranks the corpus", group="mine")
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="mine")
    bm25: bool = option(False, "rank by words (BM25) and not by a model", group="mine")
    neg_nums: int = option(7, "negatives of a row, at most", group="mine", ge=1)
    range: Annotated[list[int], BeforeValidator(as_list)] = option(
        [10, 100],
        "two ranks: negatives are taken behind the first and up to the second, positives not counted",
        group="mine",
        min_length=2,
        max_length=2,
    )
    max_positive_ratio: float = option(
        0.95, "a negative must score below so much of the weakest positive", group="mine", gt=0
    )
    score_with: str | None = option(
        None, "cross-encoder that scores positives and candidates, and decides among them", group="mine"
    )
    cache_dir: str | None = option(
        None, "where vectors of corpora are kept; left out: $EMBEDRAG_CACHE or ~/.cache/embedrag", group="mine"
    )
    device: Device = option("auto", "where to compute", group="mine")
    dtype: Dtype = option("float32", HALF, group="mine")
    overwrite: bool = option(False, "replace the output file", group="mine")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="mine")

    @model_validator(mode="after")
    def _agree(self) -> MineOptions:
        problems = []
        if bool(self.model) == self.bm25:
            problems.append("name either --model or --bm25, which ranks the corpus")
        if not 0 <= self.range[0] < self.range[1]:
            problems.append("--range must be two ranks, the smaller first, such as 10 100")
        elif self.range[1] - self.range[0] < self.neg_nums:
            problems.append(f"--range {self.range[0]} {self.range[1]} has fewer ranks than --neg_nums {self.neg_nums}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def run(options: MineOptions) -> int:
    """Do what the options say."""
    from embedrag.retrieval.mining import run

    return run(options)


COMMAND = Command(MineOptions, run, "find hard negatives for training rows")
