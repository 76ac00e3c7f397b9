"""Imports flow one way, and importing does nothing but define."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def layers() -> dict[str, int]:
    """Module -> number of its layer, as docs/architecture.md draws them."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if line.startswith("    ")]
    return {name: number for number, names in enumerate(lines) for name in names}


def own_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("embedrag"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found - {"__version__"}


def test_every_module_imports_only_from_layers_above_it() -> None:
    order = layers()
    problems = []
    for path in sorted((ROOT / "embedrag").rglob("*.py")):
        parts = path.relative_to(ROOT / "embedrag").parts
        module = parts[0].removesuffix(".py")
        if module.startswith("__"):
            continue
        assert module in order, f"docs/architecture.md does not place {module}"
        # demo rows are built on demand when no data set is named: a late import, and the only one upwards
        upwards = {name for name in own_imports(path) if order[name] >= order[module] and name != module}
        problems += [f"{module} -> {name}" for name in upwards - ({"tools"} if module == "data" else set())]
    assert problems == []


def test_a_wrong_import_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "pooling.py"
    wrong.write_text("from embedrag.loop import train\n")
    assert layers()["loop"] > layers()["pooling"]
    assert own_imports(wrong) == {"loop"}


def test_importing_the_command_line_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, embedrag.cli; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"
