"""From an options model to a command line and a config file, and back.

The idea: flags, flat JSON keys and nested JSON keys all end as one dict of raw values, validated once by pydantic,
so every problem is found in one pass and reported with the place it came from. argparse only splits the words.
"""

from __future__ import annotations

import argparse
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from embedrag.errors import UserError, near_miss, raise_all
from embedrag.options.field import Options, as_today, extra, flat_names

Model = TypeVar("Model", bound=Options)

# Blocks of a saved training_config.json that describe the run and are no options.
DESCRIPTIVE_KEYS = {"environment", "quantization"}
_SWITCH: dict[str, Any] = {"nargs": "?", "const": "true"}  # a flag that may stand without a value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


class _Value(argparse.Action):
    """Keep (flag, value); two names of one option with different values are an error."""

    def __init__(self, *args: Any, field: FieldInfo, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.field = field

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Called by argparse for each flag."""
        flag, value = str(option_string), as_today(self.field, str(option_string)[2:], values)
        earlier = getattr(namespace, self.dest)
        if earlier and earlier[0] != flag and earlier[1] != value:
            parser.error(f"{earlier[0]} {earlier[1]} and {flag} {value} are the same option")
        setattr(namespace, self.dest, (flag, value))


def parse(cls: type[Model], argv: Sequence[str], prog: str, description: str, config_file: bool = False) -> Model:
    """Read options from words and, with `config_file`, from the JSON file that `--config` names.

    Args:
        cls: the options model.
        argv: words after the command's name.
        prog: how the command is called, for `--help`.
        description: one line for `--help`.
        config_file: whether `--config FILE` is understood.

    Returns:
        The validated options; the command line wins over the file, the file over the defaults.

    Raises:
        UserError: with all problems together, one a line.
    """
    parser = build_parser(cls, prog, description, config_file)
    namespace, rest = parser.parse_known_args([_underscored(word, parser) for word in argv])
    path = vars(namespace).pop("config", None) if config_file else None
    values = {name: given[1] for name, given in vars(namespace).items() if given is not None}
    free = next((name for name, field in cls.model_fields.items() if extra(field)["positional"]), None)
    if free and rest and not any(word.startswith("-") for word in rest):
        values[free] = [*values.get(free, []), *rest]
        rest = []
    problems = list(_unknown_flags(cls, rest))
    places = {name: f"--{name}" for name in values}
    if path is not None:
        from_file, file_problems = read_config(cls, path)
        problems += file_problems
        places = {name: f"{path}: {key}" for name, (key, _) in from_file.items()} | places
        values = {name: value for name, (_, value) in from_file.items()} | values
    try:
        options = cls.model_validate(values)
    except ValidationError as error:
        problems += [_describe(cls, dict(detail), places) for detail in error.errors()]
        problems += _contradictions(cls, values, error)
    if problems:
        raise UserError("\n".join(problems))
    return options


def build(cls: type[Model], values: Mapping[str, Any]) -> Model:
    """Options from keyword arguments; old names of an option are understood.

    Args:
        cls: the options model.
        values: option name -> value.

    Raises:
        UserError: with all problems together; each names its argument.
    """
    names = config_keys(cls)
    problems = [
        UserError(f"unknown argument{near_miss(key, cls.model_fields)}", key) for key in values if key not in names
    ]
    raise_all(problems)
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        found = []
        for detail in error.errors():
            if not detail["loc"]:
                found.append(UserError(str(detail["msg"]).removeprefix("Value error, ")))
            elif detail["type"] == "missing":
                found.append(UserError("is required", str(detail["loc"][0])))
            else:
                reason = str(detail["msg"]).replace("Input should", "must").removeprefix("Value error, ")
                found.append(UserError(reason, str(detail["loc"][0]), detail["input"]))
        raise_all(found)
        raise


def build_parser(cls: type[Options], prog: str, description: str, config_file: bool) -> argparse.ArgumentParser:
    """An argparse parser with one flag an option, grouped; values stay text, pydantic converts them."""
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
    )
    parser._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")  # its own knows no -1e-4
    if config_file:
        parser.add_argument("--config", metavar="FILE", help="JSON file of options, flat or nested; flags win over it")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in cls.model_fields.items():
        meta = extra(field)
        group = groups.setdefault(meta["group"], parser.add_argument_group(meta["group"]))
        arguments: dict[str, Any] = {"dest": name, "action": _Value, "field": field}
        if _holds(field, list):
            arguments["nargs"] = "+"
        elif field.annotation is bool:
            arguments |= _SWITCH
        flags = [f"--{flag}" for flag in (name, *meta["aliases"])]
        group.add_argument(*flags, **arguments, metavar=_metavar(field), help=_help(field).replace("%", "%%"))
        for former in meta["former_names"]:
            alone = _SWITCH if meta["former_values"] and "nargs" not in arguments else {}
            group.add_argument(f"--{former}", **arguments, **alone, help=argparse.SUPPRESS)
    return parser


def read_config(cls: type[Options], path: str) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """Read a flat or nested config file.

    Args:
        cls: the options model that names the keys.
        path: JSON file.

    Returns:
        Option name -> (key as the file spells it, value), and the problems found (unknown or doubled keys).

    Raises:
        UserError: when the file can't be read as a JSON object.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}; give the path of a JSON file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"--config {path}:{error.lineno}: not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError):
        raise UserError(f"--config {path}: nested too deeply, or a number too long, to be read") from None
    if not isinstance(data, dict):
        raise UserError(f"--config {path}: must hold one JSON object {{…}}, not a {type(data).__name__}")
    keys = config_keys(cls)
    shown = [key for key in keys if key not in _former(cls)]
    found: dict[str, tuple[str, Any]] = {}
    problems = []
    for key, value in _leaves(data, keys):
        if key not in keys:
            problems.append(f"{path}: unknown key {key}{near_miss(key, shown)}")
        elif value is not None:
            name = keys[key]
            value = as_today(cls.model_fields[name], key, value)
            if name in found and found[name][1] != value:
                problems.append(f"{path}: {key} and {found[name][0]} are the same option with different values")
            found[name] = (key, value)
    return found, problems


def config_keys(cls: type[Options]) -> dict[str, str]:
    """Every key a config file may use (flat names, aliases, former and nested names) -> option name."""
    nested = {extra(field)["nested"]: name for name, field in cls.model_fields.items()}
    return flat_names(cls) | {key: name for key, name in nested.items() if key}


def _former(cls: type[Options]) -> set[str]:
    return {name for field in cls.model_fields.values() for name in extra(field)["former_names"]}


def _leaves(data: dict[str, Any], keys: dict[str, str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a config object down to its values; keys are spelled `section.key`."""
    for key, value in data.items():
        if not prefix and key in DESCRIPTIVE_KEYS:
            continue
        path = f"{prefix}{key}"
        if isinstance(value, dict) and path not in keys:
            yield from _leaves(value, keys, f"{path}.")
        else:
            yield path, value


def _underscored(word: str, parser: argparse.ArgumentParser) -> str:
    """A flag written with dashes (`--hard-k`) as it is known; any other word as it is."""
    flag, equals, value = word.partition("=")
    known = f"--{flag[2:].replace('-', '_')}"
    return f"{known}{equals}{value}" if flag.startswith("--") and known in parser._option_string_actions else word


def _unknown_flags(cls: type[Options], rest: list[str]) -> Iterator[str]:
    flags = [flag for name, field in cls.model_fields.items() for flag in (name, *extra(field)["aliases"])]
    previous_unknown = False
    for word in rest:
        if word.startswith("--"):
            flag = word.split("=")[0]
            hint = near_miss(flag.lstrip("-"), ["config", *flags]).replace("mean ", "mean --")
            yield f"unknown flag {flag}{hint}"
            previous_unknown = True
        elif not previous_unknown:
            yield f"unexpected word {word!r}; every value follows its flag"


def _describe(cls: type[Options], detail: dict[str, Any], places: dict[str, str]) -> str:
    """One line for one pydantic error: place, value, what is accepted, near miss."""
    if not detail["loc"]:
        return str(detail["msg"]).removeprefix("Value error, ")
    name = str(detail["loc"][0])
    field = cls.model_fields[name]
    if detail["type"] == "missing":
        nested = extra(field)["nested"]
        return f"--{name} is required" + (f" (or {nested} in the config file)" if nested else "")
    choices = [str(choice) for choice in _choices(field)]
    message = f"must be one of {', '.join(choices)}" if choices else str(detail["msg"]).replace("Input should", "must")
    value = detail["input"]
    return f"{places.get(name, name)} {value!r}: {message}{near_miss(str(value), choices)}"


def _contradictions(cls: type[Options], values: dict[str, Any], error: ValidationError) -> list[str]:
    """Checks between options run only when every option is right by itself; run them without the wrong ones."""
    bad = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
    required = {name for name, field in cls.model_fields.items() if field.is_required()}
    try:
        cls.model_validate({**dict.fromkeys(required, "1"), **{k: v for k, v in values.items() if k not in bad}})
    except ValidationError as second:
        return [_describe(cls, dict(detail), {}) for detail in second.errors() if not detail["loc"] and bad]
    return []


def _holds(field: FieldInfo, kind: type) -> bool:
    """Whether the field's type is `kind[...]`, possibly optional."""
    annotation = field.annotation
    parts = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else [annotation]
    )
    return any(typing.get_origin(_bare(part)) is kind for part in parts)


def _bare(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _choices(field: FieldInfo) -> tuple[Any, ...]:
    return typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()


def _metavar(field: FieldInfo) -> str:
    choices = _choices(field)
    if choices:
        return "{" + ",".join(str(choice) for choice in choices) + "}"
    if field.annotation is bool:
        return "true|false"
    names = {int: "N", float: "X"}
    return next(
        (text for kind, text in names.items() if kind in (field.annotation, *typing.get_args(field.annotation))), "TEXT"
    )


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return ""
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, list):
        return " ".join(str(item) for item in field.default)
    return str(field.default)


def _help(field: FieldInfo) -> str:
    default = _default(field)
    return f"{field.description}" + (f" [{default}]" if default else "")
