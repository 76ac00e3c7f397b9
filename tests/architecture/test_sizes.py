"""A newcomer can look the house over, and its import costs nothing.

That means few files in a folder, no long file, and nothing hidden in the `__init__` of a wing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AT_THE_TOP = 5  # Python files
IN_A_FOLDER = 17  # files of any kind
LINES = 400
MODULES = 40  # that `import embedrag` may load
HEAVY = ("torch", "numpy", "transformers")


def faults(package: Path) -> Iterator[str]:
    """Everything about files and folders of a package that is against the rules."""
    if len(list(package.glob("*.py"))) > AT_THE_TOP:
        yield f"{package.name} has more than {AT_THE_TOP} Python files"
    folders = [package, *(path for path in package.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    for folder in folders:
        files = [path for path in folder.iterdir() if path.is_file()]
        if sum(path.name != "__init__.py" for path in files) > IN_A_FOLDER:
            yield f"{folder.name} has more than {IN_A_FOLDER} files"
        for path in files:
            if path.suffix == ".py" and len(path.read_text(encoding="utf-8").splitlines()) > LINES:
                yield f"{path.name} has more than {LINES} lines"
            if path.name == "__init__.py" and folder != package and path.read_text(encoding="utf-8").strip():
                yield f"the __init__ of {folder.name} is not empty"


def test_no_folder_and_no_file_is_too_large_to_look_over() -> None:
    assert list(faults(ROOT / "embedrag")) == []


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({f"m{n}.py": "" for n in range(AT_THE_TOP + 1)}, "embedrag has more than 5 Python files"),
        ({f"data/m{n}.py": "" for n in range(IN_A_FOLDER + 1)}, "data has more than 17 files"),
        ({f"data/checks/m{n}.html": "" for n in range(IN_A_FOLDER + 1)}, "checks has more than 17 files"),
        ({"data/rows.py": "#\n" * (LINES + 1)}, "rows.py has more than 400 lines"),
        ({"data/checks/__init__.py": "from embedrag.data.rows import Row\n"}, "the __init__ of checks is not empty"),
    ],
)
def test_file_that_is_too_large_would_be_found(tmp_path: Path, files: dict[str, str], fault: str) -> None:
    package = tmp_path / "embedrag"
    good = {"__init__.py": "VERSION = 1\n", "data/__init__.py": "", "data/rows.py": "#\n" * LINES}
    good |= {f"data/__pycache__/m{n}.pyc": "" for n in range(20)}
    for name, text in good.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert list(faults(package)) == []
    for name, text in files.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text)
    assert list(faults(package)) == [fault]


def loaded(code: str) -> set[str]:
    """Modules that a fresh Python has loaded after some code."""
    words = [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    return set(json.loads(ended.stdout.splitlines()[-1]))


def test_importing_the_package_loads_next_to_nothing() -> None:
    more = loaded("import embedrag") - loaded("")
    assert "embedrag" in more
    assert len(more) <= MODULES, sorted(more)


def test_importing_the_command_line_and_every_command_loads_nothing_heavy() -> None:
    names = [path.stem for path in (ROOT / "embedrag" / "commands").glob("*.py") if path.stem != "__init__"]
    assert len(names) > 10
    modules = loaded("import embedrag.cli\n" + "\n".join(f"import embedrag.commands.{name}" for name in names))
    if modules & set(HEAVY):
        found = {name: loaded(f"import embedrag.commands.{name}") & set(HEAVY) for name in ("train", *names)}
        pytest.fail(f"loaded by { ({name: heavy for name, heavy in found.items() if heavy}) }")
    assert "embedrag.commands.train" in modules


def test_something_heavy_would_be_found() -> None:
    assert loaded("import embedrag.models.pooling") & set(HEAVY)
