"""From a command line and a config file to options.

Flags, flat JSON keys and nested JSON keys all become one dict of raw values, which pydantic checks once. So all
problems are found in one pass, and each is reported with the place that it came from. argparse only splits the words.
"""

from __future__ import annotations

import argparse
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from embedrag.errors import UserError, near_miss, raise_all
from embedrag.options.field import Options, as_today, extra, flat_names
from embedrag.options.problems import REQUIRED, choices

Model = TypeVar("Model", bound=Options)

# Blocks of a saved training_config.json that describe the run and are not options.
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
    leading = list(takewhile(lambda word: not word.startswith("-"), rest))
    if free and leading:
        values[free] = [*values.get(free, []), *leading]
        rest = rest[len(leading) :]
    found = list(_unknown_flags(cls, rest))
    from_file: dict[str, tuple[str, Any]] = {}
    if path is not None:
        from_file, file_problems = read_config(cls, path)
        found += file_problems
    try:
        options = cls(**{name: value for name, (_, value) in from_file.items()} | values)
    except UserError as error:
        keys = {name: key for name, (key, _) in from_file.items() if name not in values}
        found += [_at_its_place(cls, problem, path, keys, config_file) for problem in error.problems]
    raise_all(found)
    return options


def build_parser(cls: type[Options], prog: str, description: str, config_file: bool) -> argparse.ArgumentParser:
    """An argparse parser with one flag an option, grouped; values stay text, pydantic converts them."""
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
    )
    parser._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")  # argparse's has no -1e-4
    if config_file:
        parser.add_argument("--config", metavar="FILE", help="JSON file of options, flat or nested; flags win over it")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in cls.model_fields.items():
        meta = extra(field)
        group = groups.setdefault(meta["group"], parser.add_argument_group(meta["group"]))
        arguments: dict[str, Any] = {"dest": name, "action": _Value, "field": field, "metavar": _metavar(field)}
        if _holds(field, list):
            arguments |= {"nargs": "+", "metavar": (_metavar(field), "more")}
        elif field.annotation is bool:
            arguments |= _SWITCH
        flags = [f"--{flag}" for flag in (name, *meta["aliases"])]
        group.add_argument(*flags, **arguments, help=_help(field).replace("%", "%%"))
        for former in meta["former_names"]:
            alone = _SWITCH if meta["former_values"] and "nargs" not in arguments else {}
            group.add_argument(f"--{former}", **arguments, **alone, help=argparse.SUPPRESS)
    return parser


def read_config(cls: type[Options], path: str) -> tuple[dict[str, tuple[str, Any]], list[UserError]]:
    """Read a flat or nested config file.

    Args:
        cls: the options model that names the keys.
        path: JSON file.

    Returns:
        Option name -> (key as the file spells it, value), and what is wrong with keys (unknown, or given twice).

    Raises:
        UserError: when the file can't be read as a JSON object.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{error.strerror or error}; give the path of a JSON file", "config", path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start}); save it as UTF-8", "config", path) from None
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg}, column {error.colno})"
        raise UserError(reason, "config", f"{path}:{error.lineno}") from None
    except (ValueError, RecursionError):
        raise UserError("is nested too deeply, or has a number that is too long", "config", path) from None
    if not isinstance(data, dict):
        raise UserError(f"must hold one JSON object {{…}}, not a {type(data).__name__}", "config", path)
    keys = config_keys(cls)
    shown = [key for key in keys if key not in _former(cls)]
    found: dict[str, tuple[str, Any]] = {}
    problems = []
    for key, value in _leaves(data, keys):
        if key not in keys:
            problems.append(UserError(f"{path}: unknown key {key}{near_miss(key, shown)}"))
        elif value is not None:
            name = keys[key]
            value = as_today(cls.model_fields[name], key, value)
            if name in found and found[name][1] != value:
                text = f"{path}: {key} and {found[name][0]} are the same option with different values"
                problems.append(UserError(text))
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


def _unknown_flags(cls: type[Options], rest: list[str]) -> Iterator[UserError]:
    flags = [flag for name, field in cls.model_fields.items() for flag in (name, *extra(field)["aliases"])]
    previous_unknown = False
    for word in rest:
        if word.startswith("--"):
            flag = word.split("=")[0]
            hint = near_miss(flag.lstrip("-"), ["config", *flags]).replace("mean ", "mean --")
            yield UserError(f"unknown flag {flag}{hint}")
            previous_unknown = True
        elif not previous_unknown:
            yield UserError(f"unexpected word {word!r}; every value follows its flag")


def _at_its_place(
    cls: type[Options], problem: UserError, path: str | None, keys: Mapping[str, str], config_file: bool
) -> UserError:
    """The problem with the place that the user knows: a value from the file is named by its key in the file."""
    name = problem.argument or ""
    if name in keys:
        value = "" if problem.value is None else f" {problem.value!r}"
        return UserError(f"{path}: {keys[name]}{value}: {problem.reason}")
    if problem.reason == REQUIRED and config_file and extra(cls.model_fields[name])["nested"]:
        return UserError(f"{REQUIRED} (or {extra(cls.model_fields[name])['nested']} in the config file)", name)
    return problem


def _holds(field: FieldInfo, kind: type) -> bool:
    """Whether the field's type is `kind[...]`, possibly optional."""
    return any(typing.get_origin(part) is kind for part in _parts(field.annotation))


def _parts(annotation: Any) -> Iterator[Any]:
    """A type and all types inside it: of `list[int] | None` also `list[int]`, `int` and `None`."""
    yield annotation
    if typing.get_origin(annotation) is not typing.Literal:
        for inner in typing.get_args(annotation):
            yield from _parts(inner)


def _metavar(field: FieldInfo) -> str:
    if accepted := choices(field):
        return "{" + ",".join(str(choice) for choice in accepted) + "}"
    if field.annotation is bool:
        return "true|false"
    names = {int: "N", float: "X"}
    return next((names[part] for part in _parts(field.annotation) if part in (int, float)), "TEXT")


def shown_default(field: FieldInfo) -> str:
    """The default as `--help` and the README show it."""
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
    default = shown_default(field)
    return f"{field.description}" + (f" [{default}]" if default else "")
