"""README.md, docs/options.md and their translations are in step: only the words differ.

Structure, code, links, figures and options are the same.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt

from tests.repository import test_readme
from tests.repository.test_readme import (
    LANGUAGES,
    OPTIONS,
    README,
    ROOT,
    TABLE,
    TRANSLATIONS,
    read_translation,
    translated_options,
    translated_readme,
    translation_problems,
    with_tables,
)

ENGLISH = README.read_text(encoding="utf-8")
ENGLISH_OPTIONS = OPTIONS.read_text(encoding="utf-8")
FIGURE = re.compile(r"(?<![A-Za-z\d.,])\d+(?:[.,]\d+)*")  # of names such as int8 none

OF_A_LANGUAGE = re.compile(rf"^(?:\.\./)+|translations/|\.(?:{'|'.join(LANGUAGES)})(?=\.md)")

each_language = pytest.mark.parametrize("language", LANGUAGES)


class Section(NamedTuple):
    """What is the same in every language, from one heading to the next."""

    level: str
    blocks: list[tuple[str, str]]  # code blocks: language and content, in order
    shape: list[str]  # tags of paragraphs, lists, tables, bold words, in order
    links: list[str]  # and pictures
    code: list[str]  # flags, file names and values in backticks
    figures: list[str]


def sections(text: str) -> list[Section]:
    found: list[Section] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "heading_open":
            found.append(Section(token.tag, [], [], [], [], []))
        elif token.type in ("fence", "code_block"):
            found[-1].blocks.append((token.info, token.content))
        elif token.nesting == 1:
            found[-1].shape.append(token.tag)
        for child in token.children or []:
            if child.type == "link_open":  # to the page of the same language, from its folder
                found[-1].links.append(OF_A_LANGUAGE.sub("", child.attrs["href"]))
            elif child.type == "image":
                found[-1].links.append(child.attrs["src"])
            elif child.type == "strong_open":
                found[-1].shape.append(child.tag)
            elif child.type == "code_inline":
                found[-1].code.append(child.content)
            elif child.type == "text":
                found[-1].figures.extend(FIGURE.findall(child.content))
    for section in found:
        for part in (section.links, section.code, section.figures):
            part.sort()  # the order of words is the language's own
    return found


def differences(english: str, translated: str) -> list[str]:
    ours, theirs = sections(english), sections(translated)
    levels = [section.level for section in ours], [section.level for section in theirs]
    if levels[0] != levels[1]:
        return [f"level: {' '.join(levels[0])} in English, {' '.join(levels[1])} in the translation"]
    found = []
    for number, pair in enumerate(zip(ours, theirs, strict=True), start=1):
        for name, here, there in zip(Section._fields, *pair, strict=True):
            if here != there:
                lacking, further = Counter(here) - Counter(there), Counter(there) - Counter(here)
                found.append(f"{name} of section {number}: lacks {list(lacking)}, has besides {list(further)}")
    return found


def read_options(language: str) -> str:
    return translated_options(language).read_text(encoding="utf-8")


def without_tables(text: str) -> str:
    return TABLE.sub("", text)


def option_rows(text: str, required: str) -> list[tuple[str, ...]]:
    rows = []
    for table in TABLE.finditer(text):
        for line in re.findall(r"^\| `--.*", table[0], re.M):
            flags, default = (cell.strip() for cell in line.split("|")[1:3])
            rows.append((table[2], flags, "required" if default == required else default))
    return rows


@each_language
def test_translation_has_the_structure_code_links_and_figures_of_the_english_text(language: str) -> None:
    assert differences(ENGLISH, translated_readme(language).read_text(encoding="utf-8")) == []
    assert differences(without_tables(ENGLISH_OPTIONS), without_tables(read_options(language))) == []


@each_language
@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("\n## ", "\n### ", "level"),
        ("\n## ", "\n**", "level"),
        ("```bash", "```sh", "blocks"),
        ("--neg_nums 4", "--neg_nums 5", "blocks"),
        ("mean loss of each epoch", "每個 epoch 的平均損失", "blocks"),
        ("\n- ", " ", "shape"),
        ("**", "** ", "shape"),
        ("(docs/speed.md)", "(docs/sped.md)", "links"),
        ("[datasets/](datasets/README.md)", "datasets/", "links"),
        ("docs/images/base_against_tuned.svg", "docs/images/base.svg", "links"),
        ("`evaluation.ipynb`", "`evaluation.py`", "code"),
        ("24 GB", "32 GB", "figures"),
    ],
)
def test_change_in_a_translation_is_named(language: str, old: str, new: str, named: str) -> None:
    text = translated_readme(language).read_text(encoding="utf-8")
    changed = text.replace(old, new, 1)
    assert changed != text
    assert any(line.startswith(named) for line in differences(ENGLISH, changed))


@each_language
def test_option_tables_have_the_options_and_defaults_of_the_english_ones_in_order(language: str) -> None:
    text = read_options(language)
    required = read_translation(language)["words"]["required"]
    rows = option_rows(ENGLISH_OPTIONS, "required")
    assert ("train", "`--lr`, `--learning_rate`", "") in rows
    assert ("merge", "`--output_path`", "required") in rows
    assert option_rows(text, required) == rows
    first, second = re.findall(r"^\| `--.*\n", text, re.M)[:2]
    assert option_rows(text.replace(first + second, second + first), required) != rows
    assert option_rows(text.replace("| 0.02 |", "| 0.03 |"), required) != rows
    assert option_rows(text.replace(f"| {required} |", "|  |", 1), required) != rows
    assert option_rows(text.replace(first, ""), required) != rows


@each_language
def test_option_tables_are_made_from_the_translated_meanings(language: str) -> None:
    text, translation = read_options(language), read_translation(language)
    assert with_tables(text, translation) == text, "run make readme"
    translation["options"]["train"]["seed"]["meaning"] = "another meaning"
    assert with_tables(text, translation) != text
    assert not re.search(r"\bone of\b|\brequired\b", "".join(table[0] for table in TABLE.finditer(text)))


@each_language
def test_every_option_has_an_up_to_date_translation(language: str) -> None:
    assert list(translation_problems(read_translation(language))) == []


def test_missing_old_and_left_over_translations_are_named() -> None:
    whole = read_translation(LANGUAGES[0])
    missing, old, left_over, of_no_table = (copy.deepcopy(whole) for _ in range(4))
    del missing["options"]["train"]["pooling"]
    old["options"]["merge"]["lora_alpha"]["of"] = "00000000"
    left_over["options"]["train"]["gone"] = whole["options"]["train"]["seed"]
    of_no_table["options"]["encode"] = {"model": whole["options"]["train"]["seed"]}
    fingerprint = whole["options"]["train"]["pooling"]["of"]
    [problem] = translation_problems(missing)
    assert problem.startswith(f'train: pooling has no translation; add "of": "{fingerprint}"')
    [problem] = translation_problems(old)
    assert problem.startswith("merge: lora_alpha translates an older text")
    assert list(translation_problems(left_over)) == ["train: gone is no option any more; remove it"]
    assert list(translation_problems(of_no_table)) == ["encode: model is no option any more; remove it"]


def test_make_readme_with_a_missing_translation_writes_the_tables_and_names_it(tmp_path: Path) -> None:
    shutil.copytree(TRANSLATIONS, tmp_path / "docs" / "translations")
    (tmp_path / "tests" / "repository").mkdir(parents=True)
    script = shutil.copy(test_readme.__file__, tmp_path / "tests" / "repository")
    shutil.copy(OPTIONS, tmp_path / "docs")
    file = tmp_path / "docs" / "translations" / "ko.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"pooling":', '"poling":'), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1
    assert [line.split(" ")[:3] for line in done.stderr.splitlines()] == [
        ["docs/translations/ko.json:", "train:", "pooling"],
        ["docs/translations/ko.json:", "train:", "poling"],
    ]
    written = tmp_path / "docs" / "translations"
    assert "how token vectors become one" in (written / "options.ko.md").read_text(encoding="utf-8")
    assert (written / "options.zh-TW.md").read_bytes() == translated_options("zh-TW").read_bytes()


READMES = {README, *map(translated_readme, LANGUAGES)}
OPTIONS_PAGES = {OPTIONS, *map(translated_options, LANGUAGES)}


@pytest.mark.parametrize("path", sorted(READMES | OPTIONS_PAGES), ids=lambda path: path.name)
def test_language_line_links_to_the_other_languages(path: Path) -> None:
    line = path.read_text(encoding="utf-8").splitlines()[2]
    others = (READMES if path in READMES else OPTIONS_PAGES) - {path}
    assert {(path.parent / link).resolve() for link in re.findall(r"\((.+?)\)", line)} == others
