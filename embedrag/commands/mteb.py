"""`embedrag mteb`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from embedrag.errors import raise_all
from embedrag.options.command import Command
from embedrag.options.field import HALF, Device, Dtype, Options, TextList, as_list, option
from embedrag.runtime.console import say


class MtebOptions(Options):
    """Options of `embedrag mteb`."""

    model: str = option(..., "model or adapter folder, or hub id", group="mteb", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="mteb")
    baseline: str | None = option(None, "model to compare with, usually the base", group="mteb")
    tasks: TextList = option(..., "names of tasks, as mteb spells them (SciFact NFCorpus)", group="mteb", min_length=1)
    languages: Annotated[list[str] | None, BeforeValidator(as_list)] = option(
        None, "only subsets in these languages, ISO 639-3 codes (deu); default: all subsets of a task", group="mteb"
    )
    output_dir: str | None = option(
        None, "folder for mteb's JSON; a task is not run again if its result for the same model is there", group="mteb"
    )
    device: Device = option("auto", "where to compute", group="mteb")
    dtype: Dtype = option("float32", HALF, group="mteb")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="mteb")


def run(options: MtebOptions) -> int:
    """`embedrag mteb`: a table on the screen and, with `--output_dir`, mteb's own JSON files."""
    from embedrag.evaluation.mteb_adapter import evaluate_on_mteb

    result = evaluate_on_mteb(**options.model_dump())
    for line in result.lines():
        say(line)
    raise_all(result.problems.values())
    return 0


COMMAND = Command(MtebOptions, run, "score a model on tasks of MTEB (needs mteb)")
