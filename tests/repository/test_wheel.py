"""The package as people install it: a wheel, in an environment that has its dependencies and not this checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# One process does all of it, because each import of torch takes seconds. Optional libraries are installed here, so no
# module may fail.
IMPORT_ALL_AND_TRAIN = """
import importlib, pkgutil, sys, embedrag
names = [module.name for module in pkgutil.walk_packages(embedrag.__path__, "embedrag.")]
for name in names:
    if name != "embedrag.__main__":
        importlib.import_module(name)
print("FILE", embedrag.__file__)
print("MODULES", *names)
sys.exit(importlib.import_module("embedrag.cli").main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the package from its wheel, and the libraries of this one without the checkout."""
    folder = tmp_path_factory.mktemp("clean")
    source = folder / "source"
    for name in tracked("embedrag", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    # A .pth file adds the folder, but not what .pth files in it add: the editable install of the checkout.
    libraries(python).joinpath("libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--force-reinstall"]
    subprocess.run([*pip, "--no-compile", str(source)], check=True, capture_output=True)  # builds the wheel on the way
    return python


def tracked(*paths: str) -> list[str]:
    """Files that git has or would have; one that was removed and not yet committed is listed by git too."""
    words = ["git", "ls-files", "-co", "--exclude-standard", *paths]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


def libraries(python: Path) -> Path:
    """The folder of its packages."""
    return next((python.parent.parent / "lib").glob("python*/site-packages"))


def test_the_wheel_holds_every_file_of_the_package(python: Path) -> None:
    held = {path.relative_to(libraries(python)).as_posix() for path in libraries(python).rglob("*")}
    wanted = set(tracked("embedrag"))
    assert wanted - held == set()
    assert len(wanted) > 90


@pytest.mark.slow
def test_an_installed_wheel_imports_every_module_and_trains_from_another_folder(
    python: Path, tmp_path: Path, tiny_qwen3: str, write_jsonl: Callable[..., Path], rows: list[dict[str, object]]
) -> None:
    def run(*words: str | Path) -> str:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ended = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert "train" in run(python.with_name("embedrag"), "--help")
    write_jsonl(rows)
    said = run(
        python, "-c", IMPORT_ALL_AND_TRAIN,
        "train", "--train_dataset", "rows.jsonl", "--output_dir", "run", "--batch_size", "4",
        "--model_name_or_path", tiny_qwen3, "--finetune_type", "lora", "--epochs", "1",
    ).splitlines()  # fmt: skip
    place, names = (next(line for line in said if line.startswith(word)).split()[1:] for word in ("FILE", "MODULES"))
    assert Path(*place).is_relative_to(libraries(python))
    modules = {name.removesuffix(".py").replace("/", ".") for name in tracked("embedrag") if name.endswith(".py")}
    assert set(names) == {name.removesuffix(".__init__") for name in modules} - {"embedrag"}
    assert json.loads((tmp_path / "run" / "final" / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 8
