"""Texts that two models are compared on."""

from __future__ import annotations

from embedrag.models.equivalence import choose_probes


def test_probes_are_of_both_roles_and_of_different_lengths() -> None:
    texts = [("query", "q" * n) for n in range(1, 30)] + [("passage", "p" * n) for n in range(1, 300)]
    probes = choose_probes(texts)
    assert len(probes) == 16
    assert {role for role, _ in probes} == {"query", "passage"}
    lengths = [len(text) for role, text in probes if role == "passage"]
    assert (min(lengths), max(lengths)) == (1, 299)
