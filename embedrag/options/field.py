"""How an option is defined: default, help, checks, names on the command line and in files.

The options of a command are one pydantic model. The command line, flat and nested config files, `--help`, the option
tables of the docs and the saved `training_config.json` are all derived from it (see `embedrag.options.parsing`).
Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from embedrag.errors import UserError, raise_all
from embedrag.options.problems import problems

# Whether a resumed run may have another value than before. fixed: no, it would be another run; reported: yes, and a
# line says so; free: yes, because nothing that is learnt depends on it.
Resume = Literal["fixed", "reported", "free"]


def option(
    default: Any,
    text: str,
    *,
    group: str,
    nested: str = "",
    aliases: tuple[str, ...] = (),
    former_names: tuple[str, ...] = (),
    former_values: Callable[[Any], Any] | None = None,
    positional: bool = False,
    resume: Resume | None = None,
    **checks: Any,
) -> Any:
    """One option.

    Args:
        default: the value when the command line and the file give none; `...` makes the option required.
        text: one line for `--help` and the docs.
        group: heading under which `--help` lists it.
        nested: its key in the nested config file, e.g. `train.batch_size`.
        aliases: further flag names (and flat keys) that mean the same.
        former_names: names that the option had in the past. They still work, and are no longer shown.
        former_values: converts a value that was given under a former name into today's value. A former flag without a
            word gives it `true`.
        positional: words without a flag are its values; it is a list, and a command has at most one.
        resume: for options of a training: whether a resumed run may have another value, see `Resume`.
        **checks: pydantic constraints such as `ge=1`.
    """
    return Field(
        default,
        description=text,
        json_schema_extra={
            "group": group,
            "nested": nested,
            "aliases": list(aliases),
            "former_names": list(former_names),
            "former_values": cast("Any", former_values),
            "positional": positional,
            "resume": resume,
        },
        **checks,
    )


def as_list(value: Any) -> Any:
    """A single value as a list of one."""
    return [value] if value is not None and not isinstance(value, (list, tuple)) else value


def lower(value: Any) -> Any:
    """A text in lower case."""
    return value.lower() if isinstance(value, str) else value


def whole_number(value: Any) -> Any:
    """A text of digits as the number, for options that take some numbers only."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def former_switch(off: Any, on: Any) -> Callable[[Any], Any]:
    """`former_values` of an option that was true or false: what these two are called today.

    A word that is neither is returned unchanged, and refused like any other wrong value.
    """

    def today(value: Any) -> Any:
        try:
            return on if TypeAdapter(bool).validate_python(value) else off
        except ValidationError:
            return value

    return today


SmallLetters = BeforeValidator(lower)
OneOrMore = BeforeValidator(as_list)
TextList = Annotated[list[str], OneOrMore]
Device = Annotated[Literal["auto", "cuda", "mps", "cpu"], SmallLetters]
HALF = "precision of the computation; auto: bfloat16 on GPUs that have it, else float16 there; float32 elsewhere"
Precision = Literal["float32", "int8", "binary"]  # of stored vectors
Dtype = Annotated[Literal["auto", "float32", "float16", "bfloat16"], SmallLetters]


class Source(BaseModel):
    """A data set of a training, written `rows.jsonl`, `rows.jsonl:2` or as an object with these keys.

    Attributes:
        path: a file, a folder of files or a hub id.
        weight: how often each of its rows comes in an epoch.
        query_prompt: text before its queries; None: the prompt of the training.
        passage_prompt: text before its passages; None: the prompt of the training.
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


SourceList = Annotated[list[Source], OneOrMore]


class Options(BaseModel):
    """Base of every command's options: unknown names are errors, numbers are finite.

    Raises:
        UserError: by the constructor, with all problems of the values.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    if not TYPE_CHECKING:  # type checkers know the fields as arguments

        def __init__(self, **values: Any) -> None:
            """Check all values, given under any name of their option.

            Raises:
                UserError: with every problem; each names its argument.
            """
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise_all(problems(type(self), values, error))

    @model_validator(mode="before")
    @classmethod
    def _any_name(cls, values: Any) -> Any:
        return renamed(cls, values) if isinstance(values, dict) else values

    @field_validator("*", mode="before")
    @classmethod
    def _plain_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Paths are texts, and a truth value is not a number."""
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, (list, tuple)):
            return [os.fspath(part) if isinstance(part, os.PathLike) else part for part in value]
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("must not be true or false")
        return value


def extra(field: FieldInfo) -> dict[str, Any]:
    """What `option` attached to a field: group, nested key, names, resume rule."""
    return cast("dict[str, Any]", field.json_schema_extra)


def flat_names(cls: type[Options]) -> dict[str, str]:
    """Every name of every option (its own, its aliases, its former ones) -> its own name."""
    return {
        key: name
        for name, field in cls.model_fields.items()
        for key in (name, *extra(field)["aliases"], *extra(field)["former_names"])
    }


def renamed(cls: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values under the names that the options have today; unknown keys stay as they are.

    Args:
        cls: the options model.
        values: by any of their names, for example as an earlier version saved them.

    Raises:
        UserError: when two names of one option have different values.
    """
    names, given = flat_names(cls), dict[str, str]()
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = names.get(key, key)
        if name in names:
            value = as_today(cls.model_fields[name], key, value)
        if name in found and found[name] != value:
            raise UserError(f"`{given[name]}` and `{key}` are the same option, and their values differ; give one")
        found[name], given[name] = value, key
    return found


def as_today(field: FieldInfo, key: str, value: Any) -> Any:
    """The value of an option as it is written today.

    Args:
        field: of the option.
        key: the name under which the value was given.
        value: as given.
    """
    former_values = extra(field)["former_values"]
    return former_values(value) if former_values and key in extra(field)["former_names"] else value
