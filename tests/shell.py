"""Shell commands of the documentation, run one by one in this process, because each start of torch costs seconds.

Only what these pages use is understood: `NAME=$(command)`, `$NAME`, continued lines, comments and quotes.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from embedrag.cli import main

ROOT = Path(__file__).parents[1]
ASSIGNMENT = re.compile(r"(\w+)=\$\((.*)\)")
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def bash_blocks(page: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def run_script(script: str, folder: Path, variables: Mapping[str, str]) -> list[str]:
    """Run a script in the current folder.

    Args:
        script: lines as a page has them.
        folder: the current folder; it gets the folders of a checkout that the page reads, where it lacks them.
        variables: keep their values whatever the script assigns to them, so that a test can name a smaller model.

    Returns:
        The commands of this package that were run, by name.
    """
    assert Path.cwd() == folder
    for name in ("datasets", "configs"):
        if not (folder / name).exists():
            shutil.copytree(ROOT / name, folder / name)
    known = dict(variables)
    done = []
    for line in lines(script):
        if found := ASSIGNMENT.fullmatch(line):
            known.setdefault(found[1], bash(found[2], folder))
            continue
        words = shlex.split(re.sub(r"\$(\w+)", lambda found: known[found[1]], line))
        if argv := arguments(words):
            assert main(argv, script=words[1].endswith(".py")) == 0, line
            done.append(argv[0])
        else:
            bash(line, folder)
    return done


def lines(script: str) -> Iterator[str]:
    """Commands, one a line, without comments."""
    for line in script.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def arguments(words: list[str]) -> list[str]:
    """What `embedrag` gets of `python train.py …`, `python -m embedrag …` or `embedrag …`; empty for other programs."""
    match words:
        case ["python", "-m", "embedrag", *rest] | ["embedrag", *rest]:
            return rest
        case ["python", script, *rest] if script.endswith(".py"):
            assert (ROOT / script).is_file()
            return [script.removesuffix(".py"), *rest]
    return []


def bash(line: str, folder: Path) -> str:
    ended = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{line}\n{ended.stderr[-3000:]}"
    return ended.stdout.strip()
