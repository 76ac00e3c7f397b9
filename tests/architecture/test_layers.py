"""Imports flow one way, seen by dotted names and inside the wings too; importing does nothing but define."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A wing imports from those above it; wings on one line import nothing of each other.
WINGS = """
errors
runtime options weights losses
data
models
retrieval merging
evaluation datagen
export training
serving
api
commands
cli
"""
RANK = {name: rank for rank, names in enumerate(WINGS.split("\n")) for name in names.split()}


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, anywhere in its text; by dotted names."""
    paths = {dotted(root, path): path for path in sorted((root / "embedrag").rglob("*.py"))}
    return {name: set(imported(path, name, set(paths))) - {name} for name, path in paths.items()}


def dotted(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, own: str, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = own.split(".")[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            # `from a.b import c` imports the module a.b.c, or something of the module a.b
            yield from {name, name.rpartition(".")[0]} & modules if name not in modules else {name}


def wing(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def upwards(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Imports of another wing that is not above the importing one."""
    return {
        (module, other)
        for module, others in graph.items()
        for other in others
        if wing(module) in RANK and wing(other) in RANK
        if wing(module) != wing(other) and RANK[wing(other)] >= RANK[wing(module)]
    }


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other; empty when there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_wings_import_downwards_only() -> None:
    assert upwards(imports(ROOT)) == set()


def test_no_modules_import_each_other() -> None:
    graph = imports(ROOT)
    del graph["embedrag"]  # the face: its imports are for type checkers, and happen when a name is first used
    assert cycle(graph) == []


def test_only_commands_use_the_face() -> None:
    text = {path: path.read_text(encoding="utf-8") for path in (ROOT / "embedrag").rglob("*.py")}
    users = {path.parent.name for path, code in text.items() if re.search(r"^\s*import embedrag$", code, re.MULTILINE)}
    assert users == {"commands"}


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("losses.contrastive", "from embedrag.models.encoder import Encoder", ("losses.contrastive", "models.encoder")),
        ("losses.contrastive", "def f():\n    import embedrag.data.rows", ("losses.contrastive", "data.rows")),
        ("data.rows", "from embedrag.models import encoder", ("data.rows", "models.encoder")),
        ("runtime.files", "from embedrag.options.field import option", ("runtime.files", "options.field")),
        ("data.rows", "from ..models.encoder import Encoder", ("data.rows", "models.encoder")),
    ],
)
def test_a_wrong_import_would_be_found(tmp_path: Path, module: str, text: str, wrong: tuple[str, str]) -> None:
    for name in {module, "models.encoder", "data.rows", "options.field"}:
        path = tmp_path / "embedrag" / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if name == module else "Encoder = option = None", encoding="utf-8")
    assert upwards(imports(tmp_path)) == {tuple(f"embedrag.{name}" for name in wrong)}


def test_a_cycle_inside_a_wing_would_be_found(tmp_path: Path) -> None:
    folder = tmp_path / "embedrag" / "data"
    folder.mkdir(parents=True)
    (folder / "rows.py").write_text("from embedrag.data import text", encoding="utf-8")
    (folder / "text.py").write_text("from embedrag.data.rows import Row", encoding="utf-8")
    assert set(cycle(imports(tmp_path))) == {"embedrag.data.rows", "embedrag.data.text"}


def test_importing_the_command_line_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, embedrag.cli; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"
