"""Rows from documentation: what is taken, what is left out, and that no code of a package ever runs."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from embedrag.datagen.docstrings import (
    DocPair,
    collect,
    docstrings,
    split_by_module,
    split_docstring,
    to_rows,
    write_retrieval_dataset,
)
from embedrag.errors import UserError

LONG = "It goes on for a while, so that the passage is long enough to be worth finding, which is what matters here."


@pytest.fixture
def write_package(tmp_path, monkeypatch):
    """A function that writes {file name: source} as the importable package `pondlib`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**sources: str) -> None:
        folder = tmp_path / "pondlib"
        for name, source in {"__init__": "", **sources}.items():
            file = folder / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source, encoding="utf-8")
        importlib.invalidate_caches()

    return write


def documented(name: str, summary: str, rest: str = LONG) -> str:
    return f'def {name}():\n    """{summary}\n\n    {rest}\n    """\n\n\n'


def made_pairs(sizes: dict[str, int]) -> list[DocPair]:
    """`sizes` passages in each module."""
    return [
        DocPair(module, f"{module}.f{i}", f"query {i} of {module}", f"passage {i} of {module}")
        for module, size in sizes.items()
        for i in range(size)
    ]


SIZES = {f"lib.part{i}": 1 + i % 4 for i in range(40)}


def test_function_with_two_line_summary_gives_joined_query_and_dedented_passage(write_package):
    write_package(
        frogs=f'def hop(far):\n    """Jump over the\n    nearest leaf.\n\n    {LONG}\n        deeper\n    """\n'
    )
    assert collect(["pondlib"]) == [
        DocPair("pondlib.frogs", "pondlib.frogs.hop", "Jump over the nearest leaf.", f"{LONG}\n    deeper")
    ]


def test_module_class_method_and_guarded_function_are_all_found_in_sorted_order(write_package):
    method = f'    def dive(self):\n        """Go below the surface.\n\n        {LONG} One.\n        """\n'
    toad = f'class Toad:\n    """A heavy sort of frog.\n\n    {LONG} Two.\n    """\n\n{method}\n'
    sit = f'    def sit():\n        """Wait without moving.\n\n        {LONG} Three.\n        """\n'
    write_package(
        frogs=f'"""All life in one pond.\n\n{LONG} Four.\n"""\n\n{toad}try:\n    import x\nexcept ImportError:\n{sit}'
    )
    names = [pair.name.removeprefix("pondlib.") for pair in collect(["pondlib"])]
    assert names == ["frogs", "frogs.Toad", "frogs.Toad.dive", "frogs.sit"]


def test_long_first_paragraph_is_cut_after_its_first_sentence():
    query, passage = split_docstring(f"Open the pond (e.g. in spring). {LONG}\n{LONG}") or ("", "")
    assert query == "Open the pond (e.g. in spring)."
    assert passage == f"{LONG}\n{LONG}"


@pytest.mark.parametrize(
    "signature",
    [
        "abs(input, *, out=None) -> Tensor",
        "pond.abs(input: Optional[Tensor], dims=(0, 1)) -> (Tensor, int)",
        "nditer(\n    op,\n    flags=None,\n)\n--",
        "max(input) -> Tensor\nmax(input, dim) -> Tensor",
        ".. function:: einsum(equation)\n   :noindex:",
    ],
)
def test_signature_before_the_summary_is_skipped(signature):
    assert split_docstring(f"{signature}\n\nTake the sign away from it.\n\n{LONG}") == (
        "Take the sign away from it.",
        LONG,
    )


def test_call_inside_a_sentence_is_not_a_signature():
    assert split_docstring(f"abs(x) gives x without its sign.\n\n{LONG}") == ("abs(x) gives x without its sign.", LONG)


@pytest.mark.parametrize(
    "text",
    [
        f"Too short.\n\n{LONG}",
        f"{'Far too long ' * 20}\n\n{LONG}",
        "A summary of fair length.\n\nBut little behind it.",
        "A summary of fair length.",
        f"A summary that comes twice.\n\nA summary that comes twice.\n{LONG}",
        f">>> print('code is no summary')\n\n{LONG}",
        "",
    ],
)
def test_docstring_without_usable_halves_gives_nothing(text):
    assert split_docstring(text) is None


def test_private_names_are_skipped_but_private_modules_are_read(write_package):
    hidden = f'class _Hidden:\n    """Nobody should see this.\n\n    {LONG} One.\n    """\n\n'
    method = f'    def seen(self):\n        """Inside something private.\n\n        {LONG} Two.\n        """\n\n'
    source = (
        hidden
        + method
        + documented("_helper", "Helps from behind the scenes.")
        + documented("swim", "Cross the pond by swimming.")
    )
    write_package(_impl=source)
    assert [pair.name for pair in collect(["pondlib"])] == ["pondlib._impl.swim"]


def test_repeated_passage_or_query_is_kept_once(write_package):
    write_package(
        a=documented("one", "The first of its kind.") + documented("two", "Another way to say it."),
        b=documented("three", "The first of its kind.", f"{LONG} Other words."),
        c=documented("four", "Something else entirely.", f"{LONG} New words."),
    )
    assert [pair.name for pair in collect(["pondlib", "pondlib"])] == ["pondlib.a.one", "pondlib.c.four"]


def test_module_that_raises_on_import_is_still_read_and_not_run(write_package):
    write_package(trap='raise RuntimeError("was run")\n' + documented("snap", "Close the trap quickly."))
    assert [pair.query for pair in collect(["pondlib"])] == ["Close the trap quickly."]
    assert not [name for name in sys.modules if name.startswith("pondlib")]


def test_broken_file_and_test_folder_are_passed_over(write_package):
    good = documented("swim", "Cross the pond by swimming.")
    write_package(broken="def (:\n", good=good, **{"tests/test_swim": documented("test_swim", "Check that it swims.")})
    assert [pair.module for pair in collect(["pondlib"])] == ["pondlib.good"]


def test_documentation_attached_to_c_functions_is_found(write_package):
    source = f'''
add_docstr(pond.abs, r"""
abs(x) -> Tensor

Take the sign away from it.
""" + r"""
Args:
    {{input}}

{LONG} {{{{x}}}}
""".format(**common))
conv = _add_docstr(pond._conv, """conv(x) -> Tensor\\n\\nSlide a window over it.\\n\\n{LONG} One.""")
add_newdoc("pond.core", "nditer", ("reset", """Go back to the start.\\n\\n{LONG} Two."""))
add_newdoc("pond.core", "nditer", ("__next__", """Go on to what follows.\\n\\n{LONG} Three."""))
'''
    write_package(_docs=source)
    pairs = {pair.name: pair for pair in collect(["pondlib"])}
    assert list(pairs) == ["pond.abs", "pond.core.nditer.reset", "pondlib._docs.conv"]
    assert pairs["pond.abs"].query == "Take the sign away from it."
    assert pairs["pond.abs"].passage == f"Args:\n\n{LONG} {{x}}"


@pytest.mark.parametrize("package", ["no_such_package_here", "json.decoder"])
def test_unknown_package_is_an_error_that_names_it_and_the_remedy(package):
    with pytest.raises(UserError, match=rf"{package}.*pip install"):
        collect([package])


def test_package_without_python_source_is_an_error_that_names_it():
    with pytest.raises(UserError, match="`packages`: sys has no Python source"):
        collect(["sys"])


def test_json_of_the_standard_library_gives_its_known_summary():
    pairs = {pair.name: pair for pair in collect(["json"])}
    assert pairs["json.loads"].query.startswith("Deserialize ``s``")
    assert "object_hook" in pairs["json.loads"].passage
    assert pairs["json.decoder.JSONDecoder.raw_decode"].module == "json.decoder"


def test_same_packages_in_another_order_give_the_same_pairs():
    pairs = collect(["json", "email"])
    assert pairs == collect(["email", "json"])
    assert len({pair.query for pair in pairs}) == len({pair.passage for pair in pairs}) == len(pairs)


def test_split_leaves_no_module_on_both_sides_and_loses_nothing():
    pairs = made_pairs(SIZES)
    train, held_out = split_by_module(pairs, 0.25, seed=1)
    assert not {pair.module for pair in train} & {pair.module for pair in held_out}
    assert sorted(train + held_out, key=pairs.index) == pairs
    assert 0.2 * len(pairs) <= len(held_out) <= 0.25 * len(pairs)


def test_split_depends_on_the_seed_and_on_nothing_else():
    pairs = made_pairs(SIZES)
    held_out = split_by_module(pairs, 0.25, seed=1)[1]
    assert set(held_out) == set(split_by_module(pairs[::-1], 0.25, seed=1)[1])
    assert held_out != split_by_module(pairs, 0.25, seed=2)[1]
    # Written down once: python's hash() would give other modules in every process.
    assert split_by_module(made_pairs(dict.fromkeys("abcdef", 1)), 0.34, seed=0)[1] == made_pairs({"d": 1, "f": 1})


def test_module_larger_than_the_share_stays_in_training():
    train, held_out = split_by_module(made_pairs({"huge": 90, **{f"m{i}": 1 for i in range(10)}}), 0.05, seed=0)
    assert len(held_out) == 5 and len(train) == 95


def test_negatives_never_equal_the_positive_and_come_from_the_module_first():
    pairs = made_pairs({"lib.big": 8, "lib.small": 2, "other.far": 5})
    pairs.append(DocPair("lib.big", "lib.big.copy", "same passage again", "passage 0 of lib.big"))
    for row in to_rows(pairs, 3, seed=0):
        assert len(set(row["neg"])) == 3 and row["pos"][0] not in row["neg"]
        if row["module"] == "lib.big":
            assert all(text.endswith("of lib.big") for text in row["neg"])
        if row["module"] == "lib.small":
            own = [text for text in row["neg"] if text.endswith("of lib.small")]
            assert len(own) == 1 and all("of lib." in text for text in row["neg"])


def test_rows_are_the_same_for_one_seed_and_differ_for_another():
    pairs = made_pairs({"lib.big": 30})
    assert to_rows(pairs, 4, seed=0) == to_rows(pairs, 4, seed=0) != to_rows(pairs, 4, seed=1)
    assert to_rows(pairs, 4, seed=0)[7] == to_rows(pairs, 4, seed=0)[7]
    assert set(to_rows(pairs, 4, seed=0)[0]) == {"query", "pos", "neg", "module", "name"}


def test_too_few_passages_give_fewer_negatives_instead_of_repeats():
    assert [row["neg"] for row in to_rows(made_pairs({"a": 2}), 5, seed=0)] == [["passage 1 of a"], ["passage 0 of a"]]
    assert to_rows(made_pairs({"a": 1}), 5, seed=0)[0]["neg"] == []


def test_rows_are_written_and_an_existing_file_is_replaced_on_request_only(write_package, tmp_path):
    write_package(frogs=documented("hop", "Jump over the nearest leaf.") + documented("sit", "Wait.", LONG))
    output = tmp_path / "rows.jsonl"
    result = docstrings(["pondlib"], output, neg_nums=1)
    assert (result.output, result.rows) == (output, 1)
    assert json.loads(output.read_text())["name"] == "pondlib.frogs.hop"
    with pytest.raises(UserError, match="exists; .*`overwrite`") as error:
        docstrings(["pondlib"], output)
    assert error.value.argument == "output"
    assert docstrings(["pondlib"], output, overwrite=True).rows == 1


def test_retrieval_dataset_asks_the_held_out_queries_of_all_passages(tmp_path):
    pairs = made_pairs({"a": 2, "b": 1})
    write_retrieval_dataset(tmp_path, pairs, pairs[2:])
    corpus = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert [row["text"] for row in corpus] == [pair.passage for pair in pairs]
    assert json.loads((tmp_path / "queries.jsonl").read_text()) == {"_id": "q0", "text": "query 0 of b"}
    assert (tmp_path / "qrels" / "test.tsv").read_text().splitlines()[1:] == ["q0\td2\t1"]
