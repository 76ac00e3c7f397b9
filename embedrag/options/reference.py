"""The options as Markdown tables, for the docs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from embedrag.options.field import Options, extra
from embedrag.options.parsing import shown_default
from embedrag.options.problems import choices


@dataclass(frozen=True)
class TableWords:
    """The words of an options table that are not texts of the options, in one language.

    Attributes:
        heading: the first line of the table.
        required: stands for the default of an option that has none.
        nested: how the nested key follows the meaning; `{}` is the key.
        choices: how the accepted values follow it; `{}` is their list.
        comma: between two of them.
    """

    heading: str
    required: str
    nested: str
    choices: str
    comma: str


ENGLISH = TableWords("| flag | default | meaning |", "required", " ({})", "; one of {}", ", ")


def markdown_table(cls: type[Options], meanings: Mapping[str, str] | None = None, words: TableWords = ENGLISH) -> str:
    """The options as a Markdown table, for the docs.

    Args:
        cls: the options model.
        meanings: option name -> its meaning in another language; an option without one keeps its help text.
        words: the rest of the table in that language.

    Returns:
        A heading and a line for each option, in the order of the model.
    """
    rows = [words.heading, "|---|---|---|"]
    for name, field in cls.model_fields.items():
        meta = extra(field)
        flags = ", ".join(f"`--{flag}`" for flag in (name, *meta["aliases"]))
        default = words.required if field.is_required() else shown_default(field)
        text = (meanings or {}).get(name, str(field.description))
        if meta["nested"]:
            text += words.nested.format(f"`{meta['nested']}`")
        if accepted := choices(field):
            text += words.choices.format(words.comma.join(f"`{choice}`" for choice in accepted))
        rows.append(f"| {flags} | {default} | {text} |")
    return "\n".join(rows)
