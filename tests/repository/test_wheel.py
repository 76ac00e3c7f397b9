"""The package as people install it: a wheel, in an environment that has its dependencies and not this checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Imports every module; optional libraries are all here, so nothing may fail.
IMPORT_ALL = """
import importlib, pkgutil, embedrag
names = [module.name for module in pkgutil.walk_packages(embedrag.__path__, "embedrag.")]
for name in names:
    if name != "embedrag.__main__":
        importlib.import_module(name)
print(embedrag.__file__)
print(*sorted(names), sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.splitlines():
        if name.startswith("embedrag/") or name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
            if (ROOT / name).is_file():  # one that was removed and not yet committed is listed too
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run(pip, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel, and this one's libraries without the checkout among them."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    )
    # A .pth file adds the folder, but not what .pth files in it add: the editable install of the checkout.
    Path(place.stdout.strip(), "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--force-reinstall"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return python


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "embedrag"], cwd=ROOT, capture_output=True, text=True
    )
    wanted = {name for name in files.stdout.splitlines() if (ROOT / name).is_file()}
    held = set(zipfile.ZipFile(wheel).namelist())
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

    place, *names = run(python, "-c", IMPORT_ALL).splitlines()
    assert not Path(place).is_relative_to(ROOT)
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "embedrag").rglob("*.py")
    }
    assert set(names) == {name.removesuffix(".__init__") for name in modules} - {"embedrag"}

    command = python.with_name("embedrag")
    assert "train" in run(command, "--help")
    write_jsonl(rows)
    run(
        command, "train", "--train_dataset", "rows.jsonl", "--output_dir", "run", "--batch_size", "4",
        "--model_name_or_path", tiny_qwen3, "--finetune_type", "lora", "--epochs", "1",
    )  # fmt: skip
    assert json.loads((tmp_path / "run" / "final" / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 8
