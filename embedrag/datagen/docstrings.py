"""Training rows from the documentation of installed Python packages. Every machine already has this data.

The first sentence of a docstring says what a thing does: it becomes the query. The rest says how it does it: it
becomes the passage. The source files are parsed and never imported, because importing the whole standard library
opens a browser and draws windows, and importing torch takes seconds. The price is that documentation written in C is
not seen, except when a package attaches it from Python, as in `add_docstr(torch.abs, "...")` or
`add_newdoc("numpy._core", "nditer", "...")`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import random
import re
import sys
import sysconfig
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.runtime.files import check_targets, write_atomic, write_lines

QUERY_CHARACTERS = (20, 200)
PASSAGE_CHARACTERS = 80
SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "lib2to3", "__pycache__", "site-packages", "_vendor"})

# A call signature that is followed by a return type at most: `abs(input, *, out=None) -> Tensor`. It may cover several
# lines, be a Sphinx directive, or be closed by numpy's `--`.
_SIGNATURE = re.compile(
    r"(?:\.\. \w+:: ?)?[\w.]+\((?:[^()]|\([^()]*\))*\)[ \t]*(?:(?:->|=>)[^\n]*|:)?[ \t]*(?:\n\s*--)?[ \t]*(?:\n|$)"
)
_NO_SUMMARY = re.compile(r"[ \t]*:\w+:[^`\n]*(?:\n|$)|[=*~-]{3,}\n")  # a directive's option, the line above a heading
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\w\.\w\.)(?<!vs\.)(?<!\s\d\.)\s+")
# What ends the prose of a first paragraph: a bullet, a section heading, an indented line, code.
_NO_PROSE = re.compile(r"\n(?=[-*+>.|=~^]|:(?![\w:]+:`)|\s|\d+[.)] |[A-Z][\w ]{,30}:+\s|[A-Z]\w+\n-{3})")
# A line with nothing but a placeholder, which the package fills in when it is imported: `    {input}`.
_PLACEHOLDER = re.compile(r"^[ \t]*\{\w+\}[ \t]*\n?", re.MULTILINE)


@dataclass(frozen=True)
class DocPair:
    """The documentation of one module, class or function.

    Attributes:
        module: dotted name of the module that it was read from.
        name: dotted name of the thing itself.
        query: its summary, on one line.
        passage: the rest of its documentation.
    """

    module: str
    name: str
    query: str
    passage: str


@dataclass(frozen=True)
class DocstringsResult:
    """What `docstrings` wrote.

    Attributes:
        output: the JSONL file.
        rows: how many rows it has.
    """

    output: Path
    rows: int


def docstrings(
    packages: Sequence[str], output: str | Path, *, neg_nums: int = 4, seed: int = 42, overwrite: bool = False
) -> DocstringsResult:
    """Write training rows from the documentation of installed packages.

    Args:
        packages: top-level names as they are imported; `stdlib` is the whole standard library.
        output: JSONL file to write.
        neg_nums: hard negatives of each row.
        seed: of the draws of negatives.
        overwrite: replace the file if it exists.

    Raises:
        UserError: when a package is not installed or has no Python source, or when the file exists.
        RunError: when the file can't be written.
    """
    path = Path(output).expanduser()
    check_targets({"output": str(output)}, [], overwrite)
    rows = to_rows(collect(packages), neg_nums, seed)
    write_lines(path, rows)
    return DocstringsResult(path, len(rows))


def collect(packages: Sequence[str]) -> list[DocPair]:
    """Read the documentation of installed packages.

    Args:
        packages: top-level names as they are imported; `stdlib` is the whole standard library.

    Returns:
        Pairs sorted by module and name. No query and no passage occurs twice.

    Raises:
        UserError: when a package is not installed, or has no Python source.
    """
    found = []
    for module, path in sorted({file for package in packages for file in _source_files(package)}):
        for name, text in _documented(module, _parse(path)):
            if parts := split_docstring(text):
                found.append(DocPair(module, name, *parts))
    return _without_repeats(sorted(found, key=lambda pair: (pair.module, pair.name, pair.query)))


def split_docstring(text: str) -> tuple[str, str] | None:
    r"""Cut a docstring, as it stands in the source, into (summary, rest); None when one of them does not fit.

    The summary must have 20 to 200 characters and begin like a sentence; the rest must have 80 characters or more.

    >>> split_docstring("area(r) -> float\n\nArea of a circle\nof radius r.\n\nNote: " + "r is a length. " * 6)[0]
    'Area of a circle of radius r.'
    """
    text = _PLACEHOLDER.sub("", inspect.cleandoc(text))
    while lead := _SIGNATURE.match(text) or _NO_SUMMARY.match(text):
        text = inspect.cleandoc("\n" + text[lead.end() :])
    head, _, rest = text.partition("\n\n")
    head, *lists = _NO_PROSE.split(head, maxsplit=1)
    head, *sentences = _SENTENCE_END.split(head, maxsplit=1)
    query = _one_line(head)
    passage = textwrap.dedent("\n\n".join(part.strip("\n") for part in [*sentences, *lists, rest] if part)).strip()
    fits = QUERY_CHARACTERS[0] <= len(query) <= QUERY_CHARACTERS[1] and len(passage) >= PASSAGE_CHARACTERS
    is_prose = re.match(r"[\w`'\"(*:@]", query) and not _one_line(passage).startswith(query)
    return (query, passage) if fits and is_prose else None


def split_by_module(pairs: Sequence[DocPair], held_out_share: float, seed: int) -> tuple[list[DocPair], list[DocPair]]:
    """Split so that no module is on both sides.

    Modules are taken in the order of a hash of seed and name. A module that is too large for what is left of the
    held-out part stays in the training part.

    Args:
        pairs: what `collect` returned.
        held_out_share: the largest share of the pairs that may be held out, 0 to 1.
        seed: another seed gives another split.

    Returns:
        (training pairs, held-out pairs), each in the order given.
    """
    sizes = Counter(pair.module for pair in pairs)
    held_out, room = set[str](), held_out_share * len(pairs)
    for module in sorted(sizes, key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name)):
        if sizes[module] <= room:
            held_out.add(module)
            room -= sizes[module]
    return [p for p in pairs if p.module not in held_out], [p for p in pairs if p.module in held_out]


def to_rows(pairs: Sequence[DocPair], neg_nums: int, seed: int) -> list[dict[str, Any]]:
    """Training rows with hard negatives: passages of the same module, then of its package, then of larger packages.

    Args:
        pairs: one side of the split; negatives are drawn only from this side.
        neg_nums: negatives of a row; a row has fewer only when `pairs` has no more.
        seed: another seed gives other negatives.

    Returns:
        Rows `{"query", "pos": [passage], "neg": [...], "module", "name"}` in the order of `pairs`.
    """
    by_group: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        for group in _groups(pair.module):
            by_group[group].append(pair.passage)
    rows = []
    for pair in pairs:
        rng = random.Random(f"{seed}:{pair.name}:{pair.query}")
        neg = _draw(pair.passage, [by_group[group] for group in _groups(pair.module)], neg_nums, rng)
        rows.append({"query": pair.query, "pos": [pair.passage], "neg": neg, "module": pair.module, "name": pair.name})
    return rows


def write_retrieval_dataset(folder: Path, pairs: Sequence[DocPair], held_out: Sequence[DocPair]) -> None:
    """Write a retrieval data set in the BEIR layout: each held-out query, to be searched in all passages.

    Args:
        folder: for corpus.jsonl, queries.jsonl and qrels/test.tsv.
        pairs: all pairs; their passages are the corpus.
        held_out: those that give the queries.

    Raises:
        RunError: when a file can't be written.
    """
    number = {pair.passage: f"d{index}" for index, pair in enumerate(pairs)}
    write_lines(folder / "corpus.jsonl", [{"_id": key, "title": "", "text": text} for text, key in number.items()])
    queries = [{"_id": f"q{index}", "text": pair.query} for index, pair in enumerate(held_out)]
    write_lines(folder / "queries.jsonl", queries)
    lines = [f"q{index}\t{number[pair.passage]}\t1" for index, pair in enumerate(held_out)]
    write_atomic(folder / "qrels" / "test.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines]))


def _groups(module: str) -> list[str]:
    """Names of groups, the nearest first: `json:` (the file alone), `json` (the package), empty (everything)."""
    parts = module.split(".")
    return [f"{module}:", *(".".join(parts[:size]) for size in range(len(parts), -1, -1))]


def _draw(positive: str, pools: Iterable[list[str]], wanted: int, rng: random.Random) -> list[str]:
    """Draw different passages, never the positive, from the nearest pool first."""
    drawn: list[str] = []
    for pool in pools:
        if len(drawn) < wanted:
            fresh = [text for text in dict.fromkeys(pool) if text != positive and text not in drawn]
            drawn += rng.sample(fresh, min(wanted - len(drawn), len(fresh)))
    return drawn


def _source_files(package: str) -> Iterator[tuple[str, Path]]:
    """(dotted module name, path) of every source file of a package. Nothing of it is imported."""
    roots = _locate(package)
    files = [(root.parent, file) for root in roots for file in ([root] if root.is_file() else root.rglob("*.py"))]
    files = [(base, file) for base, file in files if file.suffix == ".py"]
    if not files:
        raise UserError(
            f"{package} has no Python source files to read documentation from; name another package", "packages"
        )
    for base, file in files:
        parts = file.relative_to(base).with_suffix("").parts
        if not SKIPPED_FOLDERS.intersection(parts[:-1]):
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def _locate(package: str) -> list[Path]:
    """Folders and files of a top-level package. A dotted name is refused: finding it would import its parents."""
    if package == "stdlib":
        folder = Path(sysconfig.get_path("stdlib"))
        return [path for path in folder.iterdir() if path.stem in sys.stdlib_module_names - SKIPPED_FOLDERS]
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        name = package.partition(".")[0]
        raise UserError(
            f"no top-level package {package!r} is installed; try pip install {name} and the name {name}", "packages"
        )
    return [Path(folder) for folder in spec.submodule_search_locations or [spec.origin or ""]]


def _parse(path: Path) -> ast.Module:
    """Syntax tree of a file; an empty one when this Python can't parse it (a template, a newer syntax)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            return ast.Module(body=[], type_ignores=[])


def _documented(name: str, node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of a module or class, and of everything public in it."""
    if text := ast.get_docstring(node, clean=False):
        yield name, text
    for child in _statements(node.body):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            if text := ast.get_docstring(child, clean=False):
                yield f"{name}.{child.name}", text
        elif isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _documented(f"{name}.{child.name}", child)
        elif isinstance(child, (ast.Expr, ast.Assign)) and isinstance(child.value, ast.Call):
            yield from _attached(name, child, child.value)


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Statements of a body, with those under `if` and `try`."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from _statements(getattr(node, part, []))


def _attached(module: str, node: ast.Expr | ast.Assign, call: ast.Call) -> Iterator[tuple[str, str]]:
    """Documentation given to a C function: `add_docstr(torch.abs, "...")`, `add_newdoc(place, name, "...")`."""
    if not re.search(r"add_(docstr|newdoc)", ast.unparse(call.func)) or len(call.args) < 2:
        return
    *owners, text = call.args
    if isinstance(text, ast.Tuple) and len(text.elts) == 2:  # ("method", "its documentation")
        owners, text = [*owners, text.elts[0]], text.elts[1]
    if isinstance(node, ast.Assign):  # conv1d = _add_docstr(torch.conv1d, "...")
        owners = node.targets
    words = [str(owner.value) if isinstance(owner, ast.Constant) else ast.unparse(owner) for owner in owners]
    name = ".".join(word for word in words if re.fullmatch(r"[\w.]+", word))
    if not name.rpartition(".")[2].startswith("_"):
        yield name if "." in name else f"{module}.{name}", _literal(text)


def _literal(node: ast.expr) -> str:
    """Text of string literals joined by `+`, without `.format(...)`; empty for any other expression."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _literal(node.left) + _literal(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _literal(node.func.value).replace("{{", "{").replace("}}", "}")
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _without_repeats(pairs: Iterable[DocPair]) -> list[DocPair]:
    """Keep the first of all pairs that share a query or a passage. Inherited and copied documentation is common."""
    kept, seen = [], set[tuple[str, str]]()
    for pair in pairs:
        keys = {("query", _one_line(pair.query).casefold()), ("passage", _one_line(pair.passage).casefold())}
        if not keys & seen:
            kept.append(pair)
            seen |= keys
    return kept


def _one_line(text: str) -> str:
    return " ".join(text.split())
