"""The optional parts: what a module asks for comes with the extra that it names, and pages name extras that exist."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

from embedrag.errors import UserError, need

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/*"), *ROOT.glob("embedrag/**/*.py")]


def extras() -> dict[str, set[str]]:
    """Extra -> packages that it brings, by normalised name; the empty name is what everybody gets."""
    found: dict[str, set[str]] = {}
    for line in requires("embedrag") or []:
        package, extra = re.findall(r"^[\w.-]+", line), re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        found.setdefault(extra[1] if extra else "", set()).add(normalised(package[0]))
    return found


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for() -> list[tuple[str, str, str]]:
    """(file, extra, module) of every call of `need`."""
    found = []
    for path in sorted((ROOT / "embedrag").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "need":
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                words = ", ".join(map(ast.unparse, node.args))  # such as: "crawl", *PACKAGES
                extra, *modules = eval(f"[{words}]", vars(importlib.import_module(name)))
                found += [(name, extra, module) for module in modules]
    return found


def test_every_module_that_is_asked_for_comes_with_its_extra() -> None:
    packages, brought = packages_distributions(), extras()
    assert len(asked_for()) > 10
    for name, extra, module in asked_for():
        assert {normalised(package) for package in packages[module]} & brought[extra], (name, extra, module)


def test_development_needs_all_extras_except_those_of_the_site_and_of_an_account() -> None:
    brought = extras()
    for extra in set(brought) - {"", "dev", "docs", "wandb"}:
        assert brought[extra] <= brought["dev"] | brought[""], extra


def test_pages_and_messages_name_extras_that_there_are() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    named = {extra for found in re.findall(r"pip install [^\n]*?\.\[([\w,]+)\]", text) for extra in found.split(",")}
    assert {"demo", "serve", "crawl", "sweep"} <= named <= set(extras())


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(UserError, match=r"no_such_module is not installed: pip install -e '.\[serve\]'"):
        need("serve", "json", "no_such_module")
