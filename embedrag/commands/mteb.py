"""`embedrag mteb`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from embedrag.options.command import Command
from embedrag.options.field import HALF, Device, Dtype, Options, TextList, as_list, option


class MtebOptions(Options):
    """Options of `embedrag mteb`."""

    model: str = option(..., "model or adapter folder, or hub id", group="mteb", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="mteb")
    baseline: str | None = option(None, "model to compare with, usually the base", group="mteb")
    tasks: TextList = option(..., "names of tasks, as mteb spells them (SciFact NFCorpus)", group="mteb", min_length=1)
    languages: Annotated[list[str] | None, BeforeValidator(as_list)] = option(
        None, "only subsets in these languages, ISO 639-3 codes (deu); left out: all of a task's", group="mteb"
    )
    output_dir: str | None = option(
        None, "folder for mteb's JSON; tasks that it holds of this very model are not run again", group="mteb"
    )
    device: Device = option("auto", "where to compute", group="mteb")
    dtype: Dtype = option("float32", HALF, group="mteb")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="mteb")


def run(options: MtebOptions) -> int:
    """Do what the options say."""
    from embedrag.evaluation.mteb_adapter import run

    return run(options)


COMMAND = Command(MtebOptions, run, "score a model on tasks of MTEB (needs mteb)")
