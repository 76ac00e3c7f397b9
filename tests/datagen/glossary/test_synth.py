"""Rows from templates: right particles, nothing twice, and two sides that share no term."""

from __future__ import annotations

import csv
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from embedrag.cli import main
from embedrag.data.rows import read_rows
from embedrag.data.text import identity
from embedrag.datagen.glossary.korean_particles import with_particle
from embedrag.datagen.glossary.llm_writer import parse_list, useful
from embedrag.datagen.glossary.synth import Side
from embedrag.datagen.glossary.synth import synth as synthesise
from embedrag.datagen.glossary.templates import load, shipped
from embedrag.datagen.glossary.terms import groups_of, read_items
from embedrag.errors import UserError
from embedrag.retrieval.analyzer import analyze

DATA = Path(__file__).parents[3] / "datasets"
DOMAINS = {"electronics_ko": (150, 40), "logistics_zh": (60, 15)}
SIDES = ("train", "test")


def synth(folder: Path, *more: str, code: int = 0) -> dict[str, list[dict]]:
    assert main(["synth", "--output_dir", str(folder), *more]) == code
    files = {side: folder / f"{side}.jsonl" for side in SIDES}
    return {side: read(path) for side, path in files.items() if path.exists()}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sources(domain: str) -> list[str]:
    return ["--terms", str(DATA / f"{domain}_terms.csv"), "--acronyms", str(DATA / f"{domain}_acronyms.jsonl")]


@pytest.fixture(scope="module", params=DOMAINS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, synth(folder, *sources(request.param), "--test-split", "0.2")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "terms.csv"
    things = ["pump", "valve", "motor", "lens", "relay", "coil"]
    lines = [
        f"{name},the part {number} of a machine that is called number {number}" for number, name in enumerate(things)
    ]
    path.write_text("\n".join(["term,definition", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("word", "particle", "expected"),
    [
        ("저항", "은", "저항은"),
        ("전류", "은", "전류는"),
        ("전류", "는", "전류는"),
        ("저항", "가", "저항이"),
        ("전류", "이", "전류가"),
        ("저항", "를", "저항을"),
        ("전압계", "을", "전압계를"),
        ("칩", "와", "칩과"),
        ("회로", "과", "회로와"),
        ("칩", "으로", "칩으로"),
        ("회로", "으로", "회로로"),
        ("코일", "으로", "코일로"),
        ("코일", "은", "코일은"),
        ("LED", "은", "LED는"),
        ("IC", "을", "IC를"),
        ("DRAM", "이", "DRAM이"),
        ("PCM", "으로", "PCM으로"),
        ("PLL", "은", "PLL은"),
        ("PLL", "으로", "PLL로"),
        ("SNR", "으로", "SNR로"),
        ("SNR", "과", "SNR과"),
        ("GaN", "은", "GaN은"),
        ("USB 3", "은", "USB 3은"),
        ("5G", "이", "5G가"),
        ("DDR4", "을", "DDR4를"),
        ("DDR1", "으로", "DDR1로"),
        ("RS-232", "와", "RS-232와"),
        ("CAN 2.0", "은", "CAN 2.0은"),
        ("10", "으로", "10으로"),
        ("chip", "은", "chip은"),
        ("block", "이", "block이"),
        ("coil", "으로", "coil로"),
        ("Module", "을", "Module을"),
        ("Direct Current", "은", "Direct Current는"),
        ("Modulation", "을", "Modulation을"),
        ("Finite State Machine", "이", "Finite State Machine이"),
        ("bit", "을", "bit를"),
        ("MOSFET", "은", "MOSFET은"),
        ("JFET", "은", "JFET은"),
        ("8bit", "은", "8bit는"),
        ("NET", "은", "NET는"),
        ("C#", "은", "C#은"),
        ("C++", "은", "C++는"),
        ("web", "은", "web은"),
        ("app", "은", "app은"),
        ("LiDAR", "은", "LiDAR는"),
        ("LASER", "은", "LASER는"),
        ("NOR", "은", "NOR는"),
        ("MP3", "은", "MP3는"),
        ("DDR3", "은", "DDR3은"),
        ("Integrated Circuit", "은", "Integrated Circuit은"),
        ("Network", "이", "Network가"),
        ("Amplifier", "을", "Amplifier를"),
        ("발광 다이오드(LED)", "은", "발광 다이오드(LED)는"),
        ("집적 회로 (칩)", "을", "집적 회로 (칩)를"),
        ("kΩ", "은", "kΩ은"),
        ("전류.", "을", "전류.를"),
        ("저항", "이란", "저항이란"),
        ("전류", "이란", "전류란"),
        ("코일", "이라는", "코일이라는"),
        ("", "은", "는"),
    ],
)
def test_particle_follows_the_sound(word: str, particle: str, expected: str) -> None:
    assert with_particle(word, particle) == expected


@pytest.mark.parametrize("domain", DOMAINS)
def test_shipped_definitions_are_many_different_and_of_fair_length(domain: str) -> None:
    with (DATA / f"{domain}_terms.csv").open(encoding="utf-8", newline="") as file:
        terms = list(csv.DictReader(file))
    acronyms = read(DATA / f"{domain}_acronyms.jsonl")
    assert len(terms) >= DOMAINS[domain][0] and len(acronyms) >= DOMAINS[domain][1]
    assert len({identity(row["term"]) for row in terms}) == len(terms) and all(row["category"] for row in terms)
    assert len({row["acronym"] for row in acronyms}) == len(acronyms)
    named = {row["term"] for row in terms}
    assert all(row["term"] in named for row in acronyms if "term" in row and domain == "electronics_ko")
    texts = [row["definition"] for row in (*terms, *acronyms)]
    assert len({identity(text) for text in texts}) == len(texts)
    assert all(18 <= len(text) <= 200 and text.endswith(("。", ".")) for text in texts)
    for first, second in combinations([frozenset(analyze(text)) for text in texts], 2):
        assert len(first & second) < 0.5 * len(first | second), first & second


def leak(train: list[dict], test: list[dict]) -> set[int]:
    """Texts of the training rows that the test rows have too, and names of test terms that were trained on."""
    texts = {identity(row[key]) for row in train for key in ("query", "positive", "negative")}
    names = {identity(row[key]) for row in train for key in ("term", "acronym", "full") if key in row}
    asked = {identity(row[key]) for row in test for key in ("query", "positive", "negative")}
    asked_names = {identity(row[key]) for row in test for key in ("term", "acronym", "full") if key in row}
    return (texts | names) & (asked | asked_names)


def test_sides_share_no_term_acronym_or_definition(made: tuple[str, Path, dict]) -> None:
    domain, _, rows = made
    assert leak(rows["train"], rows["test"]) == set()
    assert leak(rows["train"][1::2], rows["train"][::2])  # split by row and not by term, it would be found
    train = {identity(row[key]) for row in rows["train"] for key in ("term", "acronym", "positive") if key in row}
    for row in read(DATA / f"{domain}_acronyms.jsonl"):  # an acronym stays with the term it stands for
        together = {identity(row.get("term", row["full"])), identity(row["acronym"])}
        assert together <= train or not together & train
        assert together <= train or identity(row["definition"]) not in train


def test_counts_kinds_and_share_are_as_asked(made: tuple[str, Path, dict]) -> None:
    _, _, rows = made
    items = {side: Counter(row.get("acronym", f"term {row['term']}") for row in rows[side]) for side in SIDES}
    for side in SIDES:
        for name, count in items[side].items():
            assert count == (6 if name.startswith("term ") else 8), name
    share = len(items["test"]) / (len(items["train"]) + len(items["test"]))
    assert 0.17 <= share <= 0.21
    kinds = {row["type"] for row in rows["train"]}
    assert kinds == {kind.type for kind in load("ko").kinds}
    assert all({"query", "positive", "negative", "term", "type"} <= set(row) for row in rows["train"])


def test_no_row_comes_twice_and_no_negative_is_an_answer(made: tuple[str, Path, dict]) -> None:
    _, folder, rows = made
    for side in SIDES:
        seen = Counter((identity(row["query"]), identity(row["positive"])) for row in rows[side])
        assert set(seen.values()) == {1}
        own: dict[str, set[int]] = {}
        for row in rows[side]:
            own.setdefault(row["term"], set()).add(identity(row["positive"]))
        for row in rows[side]:
            assert identity(row["negative"]) not in own[row["term"]] | {identity(row["query"])}
        path = str(folder / f"{side}.jsonl")
        assert len(list(read_rows([path]))) == len(rows[side])
        assert main(["check", path]) == 0


def test_columns_can_be_named_and_a_missing_header_is_reported(tmp_path: Path, write_jsonl: Any, capsys) -> None:
    path = tmp_path / "t.csv"
    rows = [f"pump {i},x,a machine with number {i} for water" for i in range(6)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    synth(tmp_path / "out", "--terms", str(path), code=2)
    assert "give the numbers of the columns" in capsys.readouterr().err
    path.write_text("\n".join(["kurz,y,lang", *rows]) + "\n", encoding="utf-8")
    made = synth(tmp_path / "out", "--terms", str(path), "--columns", "kurz", "lang")
    assert {row["term"] for side in SIDES for row in made[side]} == {f"pump {i}" for i in range(6)}
    lines = write_jsonl([{"term": "a", "definition": "b"}], "t.jsonl")
    synth(tmp_path / "new", "--terms", str(lines), "--columns", "kurz", "lang", code=2)
    assert "--columns kurz lang: is for a table in --terms" in capsys.readouterr().err


def test_letters_without_templates_are_said(tmp_path: Path, write_jsonl: Any, capsys) -> None:
    japanese = [{"term": f"コンデンサ{i}", "definition": f"電荷をためる部品の{i}番目である"} for i in range(4)]
    english = [{"term": f"Hangul {i}", "definition": f"letters ({i}) of Korea, called 한글 there"} for i in range(4)]
    for rows, said in ((japanese, True), (english, False)):
        synth(tmp_path / str(said), "--terms", str(write_jsonl(rows, "t.jsonl")))
        out = capsys.readouterr().out
        assert "templates: en" in out and ("no templates for this script" in out) == said


def test_answer_inside_a_word_does_not_cost_a_row(tmp_path: Path, write_jsonl: Any) -> None:
    terms = [
        {"term": "AI", "definition": "what machines do that seem to think"},
        {"term": "lamp", "definition": "a lamp is a thing that glows"},
        {"term": "저항", "definition": "온도로 저항이 변하는 소자"},
    ]
    kind = {"type": "back", "queries": ["explain: {definition}"], "positive": "{term}"}
    templates = tmp_path / "back.json"
    templates.write_text(json.dumps({"kinds": [kind]}), encoding="utf-8")
    more = ["--terms", str(write_jsonl(terms, "t.jsonl")), "--templates", str(templates), "--test-split", "0"]
    assert [row["term"] for row in synth(tmp_path / "out", *more)["train"]] == ["AI"]


def test_many_doubled_rows_are_counted(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [{"term": f"term {i % 3000}", "definition": f"thing number {i % 3000}."} for i in range(6000)]
    items, notes = read_items(str(write_jsonl(rows, "t.jsonl")), None)
    assert len(items) == 3000 and "same as an earlier row: 3,000" in notes[0]


def test_same_seed_gives_the_same_files_and_another_seed_others(small: Path, tmp_path: Path) -> None:
    one, two, three = (
        synth(tmp_path / str(number), "--terms", str(small), "--seed", seed)
        for number, seed in enumerate(("1", "1", "2"))
    )
    assert one == two != three
    assert [(tmp_path / n / "train.jsonl").read_bytes() for n in ("0", "1")][0].count(b"\n") == len(one["train"])


def test_order_of_the_terms_does_not_change_the_split(small: Path, tmp_path: Path) -> None:
    lines = small.read_text().splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    first, second = (synth(tmp_path / p.stem, "--terms", str(p)) for p in (small, turned))
    assert {row["term"] for row in first["test"]} == {row["term"] for row in second["test"]}


def test_everything_that_shares_a_text_is_one_group(tmp_path: Path, write_jsonl: Any) -> None:
    terms = [
        {"term": f"alpha{i} (AL{i})", "definition": f"thing number {i} that glows when it is warm"} for i in range(8)
    ]
    terms += [{"term": "AL3", "definition": "thing number 5 that glows when it is warm"}]
    terms += [{"term": f"ohm{i} (unit)", "definition": f"measure number {i} of a wire"} for i in range(6)]
    acronyms = [{"acronym": f"al{i}", "full": f"alpha{i}", "definition": f"glowing part {i}"} for i in range(8)]
    more = ["--terms", str(write_jsonl(terms, "t.jsonl")), "--acronyms", str(write_jsonl(acronyms, "a.jsonl"))]
    apart = False
    for seed in range(8):
        rows = synth(tmp_path / str(seed), *more, "--seed", str(seed), "--test-split", "0.4")
        sides = {row["term"]: side for side in SIDES for row in rows[side]}
        assert all(sides[f"alpha{i} (AL{i})"] == sides[f"alpha{i}"] for i in range(8))
        assert sides["alpha3"] == sides["alpha5"] == sides["AL3"]
        apart |= {sides[f"ohm{i} (unit)"] for i in range(6)} == set(SIDES)  # "unit" is no name of anything
        for side in SIDES:
            both = [row for row in rows[side] if row["term"] in ("alpha3", "AL3")]
            assert all("thing number 5" not in row.get("negative", "") for row in both)
    assert apart


def test_spacing_and_punctuation_do_not_separate_terms_but_signs_such_as_plus_do(
    tmp_path: Path, write_jsonl: Any
) -> None:
    pairs = [
        ("압전 효과", "압력을 주면 전압이 생기는 현상"),
        ("압전효과", "눌린 결정에 전하가 나타나는 일"),
        ("Light-Emitting Diodes", "a lamp made of a junction"),
        ("light emitting diode", "a part that glows"),
        ("LEDs", "small lamps in rows"),
        ("LED", "a small lamp"),
        ("fuse", "a wire that melts."),
        ("cut-out", "A wire that melts"),
        ("C++", "a language with classes"),
        ("C#", "a language of a company"),
        ("ratio 1.5", "three halves"),
        ("ratio 15", "three fives"),
    ]
    path = write_jsonl([{"term": term, "definition": text} for term, text in pairs], "t.jsonl")
    items, _ = read_items(str(path), None, None)
    groups = groups_of(items)
    assert [groups[i] == groups[i + 1] for i in range(0, len(pairs), 2)] == [True, True, True, True, False, False]
    for seed in range(6):
        rows = synth(tmp_path / str(seed), "--terms", str(path), "--seed", str(seed), "--test-split", "0.4")
        sides = {row["term"]: side for side in SIDES for row in rows[side]}
        assert all(sides[pairs[i][0]] == sides[pairs[i + 1][0]] for i in range(0, 8, 2))


@pytest.mark.parametrize(("domain", "least"), [("electronics_ko", 0.45), ("logistics_zh", 0.4)])
def test_near_things_are_of_the_same_category(domain: str, least: float) -> None:
    items, _ = read_items(*sources(domain)[1::2], None)
    near = Side(items, groups_of(items), 1)._near
    named = [(item, other) for item, others in zip(items, near, strict=True) for other in others[:5]]
    same = [
        item.fields["category"] == items[n].fields.get("category") for item, n in named if "category" in item.fields
    ]
    assert sum(same) / len(same) > least


def test_a_term_whose_templates_run_out_gives_fewer_rows_and_is_named(small: Path, tmp_path: Path, capsys) -> None:
    templates = tmp_path / "few.json"
    kind = {"type": "plain", "queries": ["what is {term}?", "{term}"], "positive": "{definition}"}
    templates.write_text(json.dumps({"kinds": [kind]}), encoding="utf-8")
    rows = synth(tmp_path / "out", "--terms", str(small), "--templates", str(templates), "--pairs-per-term", "5")
    assert len(rows["train"]) == 2 * 5 and len(rows["test"]) == 2
    assert "train: 5 have fewer rows than asked for" in (said := capsys.readouterr().out)
    assert "test: 2 rows have no negative" in said


def test_without_a_test_share_there_is_no_test_file(small: Path, tmp_path: Path) -> None:
    synth(tmp_path / "out", "--terms", str(small))
    rows = synth(tmp_path / "out", "--terms", str(small), "--test_split", "0", "--overwrite")
    assert set(rows) == {"train"} and len(rows["train"]) == 36


@pytest.mark.parametrize("language", shipped())
def test_shipped_templates_have_all_kinds(language: str) -> None:
    templates = load(language)
    assert {kind.type for kind in templates.kinds} == {kind.type for kind in load("ko").kinds}
    assert templates.llm_prompt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "templates.json:1: not JSON"),
        ("[]", 'must hold {"kinds"'),
        ('{"kinds": [{"type": "a", "queries": ["{trem}?"], "positive": "{definition}"}]}', "did you mean term?"),
        ('{"kinds": [{"type": "a", "queries": ["{term:x}"], "positive": "{definition}"}]}', "unknown particle x"),
        ('{"kinds": [{"type": "a", "queries": ["what?"], "positive": "{definition}"}]}', "has no field"),
        ('{"kinds": [{"type": "a", "querys": ["{term}"], "positive": "x"}]}', "did you mean queries?"),
        ('{"kinds": [{"type": "a", "queries": ["{full}"], "positive": "{acronym}"}]}', "none of its kinds fits"),
    ],
)
def test_faulty_templates_are_named(text: str, message: str, small: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "templates.json"
    path.write_text(text, encoding="utf-8")
    assert synth(tmp_path / "out", "--terms", str(small), "--templates", str(path), code=2) == {}
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "a.jsonl:2: not JSON"),
        ("[1]", "a.jsonl:2: must be an object"),
        ('{"acronym": "B", "ful": "b", "definition": "x"}', "a.jsonl:2: no key full"),
        ('{"acronym": "B", "full": " ", "definition": "x"}', "a.jsonl:2: full is blank"),
        ('{"acronym": 3, "full": "b", "definition": "x"}', "a.jsonl:2: acronym must be a text"),
    ],
)
def test_faulty_acronyms_are_named_by_line(row: str, message: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"acronym": "A", "full": "aa", "definition": "first"}\n' + row + "\n", encoding="utf-8")
    assert synth(tmp_path / "out", "--acronyms", str(path), code=2) == {}
    assert message in capsys.readouterr().err


def test_wrong_flags_and_lists_too_short_to_split_are_errors(small: Path, tmp_path: Path, capsys) -> None:
    single = tmp_path / "single.csv"
    single.write_text("term,definition\na,something\n")
    for more, message in (
        ([], "name --terms, --acronyms or both"),
        (["--terms", str(small), "--llm_model", "x"], "go together"),
        (["--terms", "nowhere.csv"], "--terms nowhere.csv: no such file"),
        (["--terms", str(small), "--templates", "xx"], "one of en, ko, zh"),
        (["--terms", str(single)], "can't be split"),
        (["--terms", str(small), "--llm_base_url", "localhost:1", "--llm_model", "x"], "give an address"),
    ):
        synth(tmp_path / "out", *more, code=2)
        assert message in capsys.readouterr().err


def test_function_returns_what_it_wrote_and_names_its_arguments(small: Path, tmp_path: Path) -> None:
    result = synthesise(tmp_path / "out", terms=str(small), pairs_per_term=20)
    assert result.output_dir == tmp_path / "out" and result.language_model is None and result.test is not None
    assert (result.train.terms, result.train.acronyms, result.test.terms) == (5, 0, 1)
    assert result.train.rows == sum(result.train.kinds.values()) == len(read(tmp_path / "out" / "train.jsonl"))
    assert len(result.train.short) == 5 and result.test.without_negative == result.test.rows
    for argument, value in {"terms": "none.csv", "templates": "none.json"}.items():
        with pytest.raises(UserError) as error:
            synthesise(tmp_path / "new", **{"terms": str(small), "acronyms": None, argument: value})
        assert (error.value.argument, error.value.value) == (argument, value)
    with pytest.raises(UserError, match=r"`output_dir=.*train.jsonl`: exists.*\n.*test.jsonl`: exists"):
        synthesise(tmp_path / "out", terms=str(small))


class Stub(ThreadingHTTPServer):
    """An OpenAI-compatible server that answers from a list of (status, text); the last one is repeated."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, str]] = []
        self.asked: list[dict[str, Any]] = []

    @property
    def flags(self) -> list[str]:
        return [
            "--llm_base_url",
            f"http://127.0.0.1:{self.server_port}/v1",
            "--llm_model",
            "stub",
            "--llm_queries",
            "3",
        ]


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body | {"path": self.path, "key": self.headers["Authorization"]})
        answers = self.server.answers
        status, text = answers.pop(0) if len(answers) > 1 else answers[0]
        term = body["messages"][0]["content"].split("Term: ")[1].splitlines()[0]
        message = {"role": "assistant", "content": text.replace("TERM", term)}
        data = {"id": "1", "object": "chat.completion", "created": 0, "model": "stub"}
        data["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        if text == "<html>":
            data = {"page": 1}
        if status != 200:
            data = {"error": {"message": text}}
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(data).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    stub = Stub()
    thread = threading.Thread(target=stub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield stub
    stub.shutdown()
    stub.server_close()
    thread.join()


def test_a_language_model_writes_queries_and_an_answered_one_is_not_asked_again(
    small: Path, tmp_path: Path, server: Stub
) -> None:
    copied = "the part 0 of a machine that is called number 0"
    server.answers = [(200, f'Sure:\n```json\n["who needs a TERM?", "Who  needs a TERM?", "?!", "{copied}",]\n```')]
    rows = synth(tmp_path / "out", "--terms", str(small), *server.flags)
    written = [row for side in SIDES for row in rows[side] if row["type"] == "llm_query"]
    assert {row["query"] for row in written} == {f"who needs a {row['term']}?" for row in written}
    assert len(written) == 6
    assert len(server.asked) == 6 and server.asked[0]["path"] == "/v1/chat/completions"
    assert server.asked[0]["key"] == "Bearer a-key" and server.asked[0]["model"] == "stub"
    assert not {row["query"] for row in rows["train"]} & {row["query"] for row in rows["test"]}
    assert synth(tmp_path / "out", "--terms", str(small), *server.flags, "--overwrite") == rows
    assert len(server.asked) == 6


def test_a_query_that_fits_two_things_is_dropped(small: Path, tmp_path: Path, server: Stub, capsys) -> None:
    server.answers = [(200, '["what is this part?", "why a TERM?"]')]
    rows = synth(tmp_path / "out", "--terms", str(small), *server.flags)
    written = [row["query"] for side in SIDES for row in rows[side] if row["type"] == "llm_query"]
    assert len(written) == 6 and all(query.startswith("why a ") for query in written)
    assert "6 more dropped because they fit several things" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_where_it_was(small: Path, tmp_path: Path, server: Stub, capsys) -> None:
    good = (200, '["why a TERM?"]')
    server.answers = [good, good, (401, "no")]
    assert synth(tmp_path / "out", "--terms", str(small), *server.flags, code=1) == {}
    assert "OPENAI_API_KEY" in (error := capsys.readouterr().err) and "2 answers are kept" in error
    with (tmp_path / "out" / "llm_queries.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    server.answers = [good]
    rows = synth(tmp_path / "out", "--terms", str(small), *server.flags)
    assert len(server.asked) == 3 + 4
    assert sum(row["type"] == "llm_query" for side in SIDES for row in rows[side]) == 6


def test_a_busy_server_is_asked_again_and_a_useless_answer_counts(
    small: Path, tmp_path: Path, server: Stub, capsys
) -> None:
    server.answers = [(500, "busy"), (200, "I can't."), (200, "no list"), (200, '["why a TERM?"]')]
    synth(tmp_path / "out", "--terms", str(small), *server.flags)
    assert "1 definitions without a readable answer" in capsys.readouterr().out


def test_a_dead_or_slow_server_is_a_clear_error(
    small: Path, tmp_path: Path, server: Stub, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("embedrag.datagen.glossary.llm_writer.RETRIES", 0)
    flags = ["--llm_base_url", "http://127.0.0.1:1", "--llm_model", "x"]
    synth(tmp_path / "out", "--terms", str(small), *flags, code=1)
    assert "http://127.0.0.1:1/v1: the server can't be reached" in capsys.readouterr().err
    server.answers = [(404, "no such model")]
    synth(tmp_path / "out", "--terms", str(small), *server.flags, code=1)
    assert "no model stub" in capsys.readouterr().err
    server.answers = [(400, "bad words")]
    synth(tmp_path / "out", "--terms", str(small), *server.flags, code=1)
    assert "bad words" in capsys.readouterr().err
    server.answers = [(200, "<html>")]
    synth(tmp_path / "out", "--terms", str(small), *server.flags, code=1)
    assert "as an OpenAI-compatible server does" in capsys.readouterr().err
    monkeypatch.setattr(Handler, "do_POST", lambda self: threading.Event().wait(0.4))
    synth(tmp_path / "out", "--terms", str(small), *server.flags, "--llm_timeout", "0.1", code=1)
    assert "--llm_timeout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('["a b", "c"]', ["a b", "c"]),
        ('<think>[1]</think>Here: ["a b"] enjoy', ["a b"]),
        ('{"queries": ["a b", {"query": "c d"}, 3, null]}', ["a b", "c d"]),
        ('["a b", "c d"', []),
        ('["a "quoted" b", "c d"]', ["a ", " b", "c d"]),
        ('- "a b"\n* c d\n\nGood luck', ["a b", "c d"]),
        ("1) 무엇인가?\n2) 왜?", ["무엇인가?", "왜?"]),
        ("nothing", []),
        ("", []),
    ],
)
def test_faulty_lists_of_language_models_are_read(answer: str, expected: list[str]) -> None:
    assert parse_list(answer) == [text.strip() for text in expected]


def test_short_queries_with_the_words_of_the_definition_are_not_copies() -> None:
    definition = "전류의 흐름을 방해하는 정도를 나타내는 양이며, 단위는 옴이다. 길이가 길수록 커진다."
    assert useful(["전류의 흐름을 방해하는 양은?", definition.rstrip("."), "123?", "  "], definition) == [
        "전류의 흐름을 방해하는 양은?"
    ]


def test_answers_that_changed_on_the_disk_are_asked_for_again(tmp_path: Path) -> None:
    from embedrag.datagen.glossary.llm_writer import _read, _sum

    path = tmp_path / "answers.jsonl"
    rows = [{"key": str(n), "queries": [f"why {n}?"], "sum": _sum(str(n), [f"why {n}?"])} for n in range(3)]
    rows[1]["queries"] = ["why 7?"]
    del rows[2]["sum"]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join([*lines, "[]", "null", lines[0][:-9]]))
    assert _read(path) == {"0": ["why 0?"], "2": ["why 2?"]}, "a line of an earlier version has no checksum"
