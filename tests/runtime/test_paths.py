"""Where computed things are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedrag.runtime.paths import cache_folder


def test_a_named_folder_comes_before_the_variable_and_that_before_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("EMBEDRAG_CACHE", "~/variable")
    assert cache_folder("~/named") == Path("/home/me/named")
    assert cache_folder(None) == Path("/home/me/variable")
    monkeypatch.delenv("EMBEDRAG_CACHE")
    assert cache_folder(None) == Path("/home/me/.cache/embedrag")
