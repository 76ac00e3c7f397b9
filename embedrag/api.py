"""The functions of `embedrag` that join several wings; `embedrag.__init__` lists where the others are defined.

Arguments have the names of the flags. Nothing here prints except through `embedrag.console`, and nothing exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedrag.errors import UserError
from embedrag.options.field import renamed
from embedrag.training.config.options import TrainOptions

if TYPE_CHECKING:
    from embedrag.data.checks.report import DataReport
    from embedrag.training.run import RunResult


def train(options: TrainOptions | None = None, **settings: Any) -> RunResult:
    """Fine-tune an embedding model.

    Args:
        options: all settings; None: only `settings` count.
        **settings: the fields of `TrainOptions` by name, the flags of `embedrag train`. They win over `options`.

    Returns:
        The folder of the trained model, its figures, and whether it beats its base.

    Raises:
        UserError: naming the argument that is wrong; nothing was written.
        RunError: the run went wrong; earlier checkpoints are whole.

    Example:
        ```python
        result = embedrag.train(
            model_name_or_path="base",
            train_dataset="rows.jsonl",
            output_dir="out",
            batch_size=4,
            finetune_type="lora",
            epochs=1,
        )
        result.model, result.metrics["final_loss"]
        ```
    """
    from embedrag.training.run import train as run

    if options is not None and not isinstance(options, TrainOptions):
        raise UserError("must be TrainOptions; give single settings by name, a dict of them as **settings", "options")
    given = options.model_dump(exclude_unset=True) if options else {}
    return run(TrainOptions(**given | renamed(TrainOptions, settings)))


def check(
    train_dataset: str | Path | Sequence[str | Path],
    *,
    eval: str | Path | None = None,
    model: str | Path | None = None,
    query_max_len: int | None = None,
    passage_max_len: int | None = None,
    fix: str | Path | None = None,
    stream: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> DataReport:
    """Find what is wrong with training data.

    Args:
        train_dataset: files of rows, folders or hub ids, as training reads them.
        eval: evaluation set that must not occur in the training data: a folder with a retrieval set
            (`folder@dev` is its split dev), or a file of rows.
        model: its tokenizer measures the texts; its weights are not read.
        query_max_len: longest query in tokens; None: as in training.
        passage_max_len: longest passage in tokens; None: as in training.
        fix: JSONL file for the rows without their faults.
        stream: read a hub data set as a stream instead of downloading it whole.
        overwrite: `fix` may be replaced.
        trust_remote_code: run Python code that comes with the model.

    Returns:
        Counts, lengths and every kind of fault, with the first places of each.

    Raises:
        UserError: naming the argument, or the file and line.

    Example:
        ```python
        report = embedrag.check("rows.jsonl")
        report.rows, report.clean
        ```
    """
    from embedrag.data.checks.report import check_data

    measure = _measure(str(model), query_max_len, passage_max_len, trust_remote_code) if model else {}
    return check_data(train_dataset, eval=eval, fix=fix, stream=stream, overwrite=overwrite, **measure)


def _measure(
    model: str, query_max_len: int | None, passage_max_len: int | None, trust_remote_code: bool
) -> dict[str, Any]:
    """The tokenizer of a model with its prompts, which cuts nothing here, and the lengths to which training cuts."""
    from embedrag.models.base_model import describe_base, model_name, resolve_embedding_config
    from embedrag.models.load import describe_adapter_base, load_adapter_tokenizer, saved_embedding_config
    from embedrag.models.tokenizer import load_tokenizer
    from embedrag.runtime.console import say
    from embedrag.weights.adapter_file import adapter_in

    file = adapter_in(Path(model_name(model, "model")).expanduser())
    if file:
        base = describe_adapter_base(file.parent, None, trust_remote_code, "model")
        base = replace(base, embedding_config=saved_embedding_config(file.parent, base, "model"))
    else:
        base = describe_base(model, trust_remote_code, argument="model")
    embedding_config, notices = resolve_embedding_config(
        base, query_max_len=query_max_len, passage_max_len=passage_max_len
    )
    for line in notices:
        say(line)
    if file:
        tokenizer = load_adapter_tokenizer(file.parent, base, embedding_config, trust_remote_code, "model")
    else:
        tokenizer = load_tokenizer(base, embedding_config, trust_remote_code=trust_remote_code, argument="model")
    lengths = {"query_max_len": embedding_config.query_max_len, "passage_max_len": embedding_config.passage_max_len}
    return {"tokenizer": tokenizer.uncut(), **lengths}
