"""What is wrong with the values of options, in plain words: errors that name the argument.

pydantic finds all problems of a model in one pass. Here each of them becomes a `UserError` with the argument, its value
and what is accepted.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from embedrag.errors import UserError, near_miss

REQUIRED = "is required"
REASONS = {
    "missing": REQUIRED,
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "finite_number": "must be finite",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "list_type": "must be a list",
    "extra_forbidden": "is unknown",
}


def problems(cls: type[BaseModel], values: Mapping[str, Any], error: ValidationError) -> Iterator[UserError]:
    """Everything that is wrong with the values of a model.

    Args:
        cls: the model.
        values: what it was given.
        error: what pydantic found.

    Yields:
        An error for each problem, also for values that contradict each other (pydantic compares values only when each
        single value is right).
    """
    found = [_error(cls, dict(detail)) for detail in error.errors()]
    yield from found
    bad = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
    if bad:
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        right = {**dict.fromkeys(required, "1"), **{name: value for name, value in values.items() if name not in bad}}
        try:
            BaseModel.__init__(cls.__new__(cls), **right)
        except UserError as contradictions:
            yield from contradictions.problems
        except ValidationError as second:
            yield from (_error(cls, dict(detail)) for detail in second.errors() if not detail["loc"])


def choices(field: FieldInfo) -> tuple[Any, ...]:
    """The values that an option accepts, or that each word of a list may have; empty when it takes others too.

    >>> class Example(BaseModel):
    ...     kind: list[typing.Literal["a", "b"]] | None = None
    ...     number: int | None = None
    >>> choices(Example.model_fields["kind"]), choices(Example.model_fields["number"])
    (('a', 'b'), ())
    """
    return _literals(field.annotation)


def _literals(annotation: Any) -> tuple[Any, ...]:
    kind, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if kind is typing.Literal:
        return parts
    if kind is typing.Annotated:
        return _literals(parts[0])
    if kind in (typing.Union, types.UnionType, list):
        return tuple(value for part in parts for value in _literals(part))
    return ()


def _error(cls: type[BaseModel], detail: dict[str, Any]) -> UserError:
    """One problem as pydantic describes it, in our words."""
    if not detail["loc"]:
        return UserError(str(detail["msg"]).removeprefix("Value error, "))
    name, value = str(detail["loc"][0]), detail["input"]
    field = cls.model_fields.get(name)
    if field is None:
        return UserError(f"{REASONS['extra_forbidden']}{near_miss(name, cls.model_fields)}", name, value)
    accepted = [str(choice) for choice in choices(field)]
    if accepted and detail["type"] == "literal_error":
        return UserError(f"must be one of {', '.join(accepted)}{near_miss(str(value), accepted)}", name, value)
    reason = REASONS.get(detail["type"])
    reason = reason.format(**detail.get("ctx", {})) if reason else _first_small(detail["msg"])
    inner = [part for part in detail["loc"][1:] if isinstance(part, str)]  # a key of a data set's object
    if inner:
        return UserError(f"{'.'.join(inner)} {value!r}: {reason}", name)
    return UserError(reason, name, None if reason == REQUIRED else value)


def _first_small(message: str) -> str:
    """A message of pydantic with a small first letter, because it stands after a colon."""
    text = message.removeprefix("Value error, ").replace("Input should", "must")
    return text[:1].lower() + text[1:]
