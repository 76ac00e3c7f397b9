"""Code of other people runs only when the caller trusts it, and nobody is asked on standard input."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedrag

ROOT = Path(embedrag.__file__).parent
LOADERS = {"from_pretrained", "from_config"}
# Our own functions that load something.
OURS = {
    "CrossEncoder",
    "describe_adapter_base",
    "describe_base",
    "embed_merged",
    "embed_trained",
    "load_adapter_tokenizer",
    "load_backbone",
    "load_model",
    "load_onnx_encoder",
    "load_tokenizer",
    "plain_vectors",
    "quantized_layers",
    "trainable_backbone",
}
# It reads a JSON file and has no such argument.
HARMLESS = {"PeftConfig"}


def loading_calls(source: str) -> Iterator[tuple[ast.Call, bool]]:
    """Calls that load a model, a configuration or a tokenizer, and whether they say what is trusted."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, (ast.FunctionDef, ast.Module)):
            continue
        keys = {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)}
        for call in ast.walk(function):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr not in LOADERS or ast.unparse(call.func.value) in HARMLESS:
                continue
            names = {keyword.arg for keyword in call.keywords}
            handed_on = None in names and "trust_remote_code" in keys  # **settings
            yield call, "trust_remote_code" in names or handed_on


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_call_that_loads_something_says_what_is_trusted(path: Path) -> None:
    silent = [f"line {call.lineno}" for call, says in loading_calls(path.read_text(encoding="utf-8")) if not says]
    assert not silent, f"{path}: {', '.join(silent)}: without trust_remote_code, transformers asks on standard input"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_trusted_is_passed_on(path: Path) -> None:
    silent = [
        f"line {call.lineno}: {ast.unparse(call)}"
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in OURS
        and not any(word in ast.unparse(call) for word in ("trust", "remote"))
    ]
    assert not silent, f"{path}: {silent}"


def test_the_search_finds_calls_that_say_nothing() -> None:
    found = [
        says for _, says in loading_calls("def f(settings):\n    return AutoModel.from_pretrained('x', **settings)")
    ]
    assert found and not any(found)
    assert sum(len(list(loading_calls(path.read_text(encoding="utf-8")))) for path in ROOT.rglob("*.py")) >= 6
