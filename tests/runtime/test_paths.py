"""Where computed things are kept, and which paths of other people are followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedrag.runtime.paths import belongs_to, cache_folder, copy_code, is_inner_path


def test_a_named_folder_comes_before_the_variable_and_that_before_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("EMBEDRAG_CACHE", "~/variable")
    assert cache_folder("~/named") == Path("/home/me/named")
    assert cache_folder(None) == Path("/home/me/variable")
    monkeypatch.delenv("EMBEDRAG_CACHE")
    assert cache_folder(None) == Path("/home/me/.cache/embedrag")


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("", True),
        ("1_Pooling", True),
        ("a/./b.json", True),
        ("..", False),
        ("a/../../b", False),
        ("/etc", False),
        ("..\\secret", False),
        ("C:/secret", False),
        ("a\0b", False),
        (None, False),
        (3, False),
    ],
)
def test_path_in_a_file_may_not_lead_out_of_its_folder(name: object, inner: bool) -> None:
    assert is_inner_path(name) is inner


def test_code_is_copied_from_a_folder_and_from_the_cache_of_the_hub_but_no_link_out_of_it_is_followed(
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    plain, snapshot, blobs = (
        tmp_path / name for name in ("plain", "hub/models--a--b/snapshots/1", "hub/models--a--b/blobs")
    )
    for folder in (plain, snapshot, blobs):
        folder.mkdir(parents=True)
    (plain / "own.py").write_text("plain")
    (plain / "twin.py").symlink_to("own.py")
    (blobs / "0f").write_text("blob")
    (snapshot / "own.py").symlink_to("../../blobs/0f")
    (tmp_path / "hub" / "models--c--d").mkdir()
    (tmp_path / "hub" / "models--c--d" / "other.py").write_text("another model")
    (snapshot / "other.py").symlink_to("../../../models--c--d/other.py")
    for folder in (plain, snapshot):
        (folder / "leak.py").symlink_to(secret)
        (folder / "gone.py").symlink_to("nothing")
        (folder / "folder.py").mkdir()
    for source, expected in ((plain, {"own.py": "plain", "twin.py": "plain"}), (snapshot, {"own.py": "blob"})):
        target = tmp_path / f"copy of {source.name}"
        target.mkdir()
        copy_code(source, target)
        assert {path.name: path.read_text() for path in target.iterdir()} == expected
    linked = tmp_path / "linked"
    linked.symlink_to(plain)
    assert belongs_to(linked / "own.py", linked)
    assert not belongs_to(plain / "leak.py", plain)
