"""How an option is defined: default, help, checks, names on the command line and in files.

A command's options are one pydantic model. The command line, flat and nested config files, `--help`, the README
table and the saved `training_config.json` are all derived from it (see `embedrag.options.parsing`). Nothing heavy is
imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

# Whether a run that goes on from a checkpoint may have another value than it had.
# fixed: no, it would be another run; reported: yes, and the change is said; free: yes, nothing that is learnt changes.
Resume = Literal["fixed", "reported", "free"]


def option(
    default: Any,
    text: str,
    *,
    group: str,
    nested: str = "",
    aliases: tuple[str, ...] = (),
    positional: bool = False,
    resume: Resume | None = None,
    **checks: Any,
) -> Any:
    """One option.

    Args:
        default: value when neither command line nor file names it; `...` makes it required.
        text: one line for `--help` and the README.
        group: heading under which `--help` lists it.
        nested: its key in the nested config file, e.g. `train.batch_size`.
        aliases: further flag names (and flat keys) that mean the same.
        positional: words that follow no flag are its values; a list, at most one a command.
        resume: whether a training that goes on may have another value, see `Resume`; for options of a training.
        **checks: pydantic constraints such as `ge=1`.
    """
    return Field(
        default,
        description=text,
        json_schema_extra={
            "group": group,
            "nested": nested,
            "aliases": list(aliases),
            "positional": positional,
            "resume": resume,
        },
        **checks,
    )


def as_list(value: Any) -> Any:
    """A single text or object as a list of one."""
    return [value] if isinstance(value, (str, dict)) else value


def lower(value: Any) -> Any:
    """A text in small letters."""
    return value.lower() if isinstance(value, str) else value


def whole_number(value: Any) -> Any:
    """A text of digits as the number, for options that take some numbers only."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


TextList = Annotated[list[str], BeforeValidator(as_list)]
Device = Annotated[Literal["auto", "cuda", "mps", "cpu"], BeforeValidator(lower)]
HALF = "precision of the computation; auto: bfloat16 on GPUs that have it, else float16 there; float32 elsewhere"
Precision = Literal["float32", "int8", "binary"]  # of stored vectors
Dtype = Annotated[Literal["auto", "float32", "float16", "bfloat16"], BeforeValidator(lower)]


class Source(BaseModel):
    """A data set of a training, written `rows.jsonl`, `rows.jsonl:2` or as an object with these keys.

    Attributes:
        path: a file, a folder of files or a hub id.
        weight: how often its rows come in an epoch.
        query_prompt: text before its queries; None: the one of all.
        passage_prompt: text before its passages; None: the one of all.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    path: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0)
    query_prompt: str | None = None
    passage_prompt: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.startswith("{") and value.endswith("}"):
            try:
                return json.loads(value)
            except ValueError as error:
                raise ValueError(f"not a JSON object ({error})") from None
        weighted = re.fullmatch(r"(.+):(\d+|\d*\.\d+)", value, re.DOTALL)
        if weighted and not _exists(value):
            return {"path": weighted[1], "weight": float(weighted[2])}
        return {"path": value}

    @model_serializer
    def _as_written(self) -> str | dict[str, Any]:
        written = str(self)
        if Source.model_validate(written) == self:
            return written
        return {name: value for name, value in self if value is not None}

    def __str__(self) -> str:
        return self.path if self.weight == 1 else f"{self.path}:{self.weight:g}"


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except OSError:
        return False


SourceList = Annotated[list[Source], BeforeValidator(as_list)]


class Options(BaseModel):
    """Base of every command's options: unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("true/false is no value for this option")
        return value
