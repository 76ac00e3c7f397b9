"""How an option is defined: default, help, checks, names on the command line and in files.

A command's options are one pydantic model. The command line, flat and nested config files, `--help`, the README
table and the saved `training_config.json` are all derived from it (see `embedrag.options`). Nothing heavy is
imported here, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)


def option(
    default: Any,
    text: str,
    *,
    group: str,
    nested: str = "",
    aliases: tuple[str, ...] = (),
    positional: bool = False,
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
        **checks: pydantic constraints such as `ge=1`.
    """
    return Field(
        default,
        description=text,
        json_schema_extra={"group": group, "nested": nested, "aliases": list(aliases), "positional": positional},
        **checks,
    )


def as_list(value: Any) -> Any:
    """A single text as a list of one."""
    return [value] if isinstance(value, str) else value


def lower(value: Any) -> Any:
    """A text in small letters."""
    return value.lower() if isinstance(value, str) else value


def whole_number(value: Any) -> Any:
    """A text of digits as the number, for options that take some numbers only."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


Device = Annotated[Literal["auto", "cuda", "mps", "cpu"], BeforeValidator(lower)]
TextList = Annotated[list[str], BeforeValidator(as_list)]


class Options(BaseModel):
    """Base of every command's options: unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("true/false is no value for this option")
        return value
