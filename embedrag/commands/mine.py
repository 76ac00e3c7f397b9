"""`embedrag mine`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

import embedrag
from embedrag.options.command import Command
from embedrag.options.field import HALF, Device, Dtype, Options, TextList, as_list, option
from embedrag.runtime.console import say


class MineOptions(Options):
    """Options of `embedrag mine`."""

    train_dataset: TextList = option(..., "rows in any shape that training reads", group="mine")
    corpus: str | None = option(
        None,
        "where negatives are searched: a file of any format that training reads (see --field), plain text, or a folder "
        "with a retrieval set; default: the passages of the rows",
        group="mine",
        min_length=1,
    )
    field: str = option("text", "key or column of the corpus that holds the text", group="mine", min_length=1)
    output: str = option(..., "JSONL file for the rows with new negatives and scores", group="mine", min_length=1)
    model: str | None = option(None, "model or adapter folder, or hub id, that ranks the corpus", group="mine")
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="mine")
    bm25: bool = option(False, "rank the corpus by words (BM25) instead of a model", group="mine")
    neg_nums: int = option(7, "negatives of a row, at most", group="mine", ge=1)
    range: Annotated[list[int], BeforeValidator(as_list)] = option(
        [10, 100],
        "two ranks: negatives are the passages after the first rank, up to the second; positives are not counted",
        group="mine",
        min_length=2,
        max_length=2,
    )
    max_positive_ratio: float = option(
        0.95, "a negative must score below this share of the score of the weakest positive", group="mine", gt=0
    )
    cross_encoder: str | None = option(
        None,
        "cross-encoder, a folder or hub id, that scores positives and candidates; its scores then decide",
        group="mine",
        former_names=("score_with",),
    )
    cache_dir: str | None = option(
        None, "where the vectors of corpora are kept; default: $EMBEDRAG_CACHE or ~/.cache/embedrag", group="mine"
    )
    device: Device = option("auto", "where to compute", group="mine")
    dtype: Dtype = option("float32", HALF, group="mine")
    overwrite: bool = option(False, "replace the output file", group="mine")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="mine")


def run(options: MineOptions) -> int:
    """`embedrag mine`: write the rows with their new negatives, and print what was found."""
    for line in embedrag.mine(**options.model_dump()).lines():
        say(line)
    return 0


COMMAND = Command(MineOptions, run, "find hard negatives for training rows")
