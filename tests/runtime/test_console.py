"""Lines and progress bars for people: who writes them, in which spelling, and how they are silenced."""

from __future__ import annotations

import io
import sys

import pytest

from embedrag.runtime.console import Console, console, say


@pytest.fixture
def spelled() -> Console:
    """A console that writes arguments as the command line does."""
    found = Console()
    found.spell = lambda name, value: f"--{name}" if value is None else f"--{name} {value}"
    return found


def test_arguments_are_written_as_the_caller_spells_them(spelled: Console, capsys: pytest.CaptureFixture[str]) -> None:
    say("give `batch_size=8`, or `lr`")
    spelled.say("give `batch_size=8`, or `lr`")
    spelled.say("the text `lr`", verbatim=True)
    assert capsys.readouterr().out.splitlines() == [
        "give `batch_size=8`, or `lr`",
        "give --batch_size 8, or --lr",
        "the text `lr`",
    ]


def test_nothing_is_written_while_it_is_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    with console.silenced():
        say("not seen")
        with console.silenced(), console.progress(3, "row") as bar:
            bar.update()
        say("not seen")
    assert capsys.readouterr() == ("", "")
    say("seen")
    assert capsys.readouterr().out == "seen\n"


def test_only_the_first_of_several_processes_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        say(f"process {rank}")
        with console.progress(1, "row", desc=f"bar {rank}") as bar:
            bar.update()
    output = capsys.readouterr()
    assert output.out == "process 0\n"
    assert "bar 0" in output.err and "bar 1" not in output.err


def test_character_that_the_terminal_can_not_show_becomes_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    say("개 frog")
    assert screen.buffer.getvalue() == b"? frog\n"


def test_control_characters_of_texts_do_not_reach_the_terminal(capsys) -> None:
    say("key \x1b]0;pwned\x07 \x9b31m \u202eright \r over\ttab\nnext", verbatim=True)
    assert capsys.readouterr().out == "key \\x1b]0;pwned\\x07 \\x9b31m \\u202eright \\x0d over\ttab\nnext\n"
