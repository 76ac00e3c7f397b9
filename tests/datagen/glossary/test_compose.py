"""Tables of any delimiter and encoding become training rows, and no negative is an answer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from embedrag.cli import main
from embedrag.data.formats.encodings import detect
from embedrag.data.formats.tables import DELIMITERS
from embedrag.data.rows import read_rows
from embedrag.data.text import identity
from embedrag.datagen.glossary.compose import ComposeResult
from embedrag.datagen.glossary.compose import compose as compose_rows
from embedrag.datagen.glossary.tables import read_table
from embedrag.errors import UserError
from tests.data.conftest import write_xlsx

ROOT = Path(__file__).parents[3]
KOREAN = [
    ("저항기", "전류를 제한하거나, 전압을 나누는 데 쓰는 수동 부품이다."),
    ("축전기", "두 전극 사이에 전하를 모아 두는 부품이다; 직류는 막는다."),
    ("다이오드", "한쪽 방향으로만 전류를 흘리는 | 두 단자 소자이다."),
    ("퓨즈", "지나친 전류가 흐르면 녹아 끊어지는 보호 부품이다."),
]
CHINESE = [
    ("仓储", "在仓库中保管货物，并管理入库和出库的活动。"),
    ("提单", "承运人签发的货物收据; 也是物权凭证。"),
    ("托盘", "便于叉车搬运的平台状器具。"),
]
TRADITIONAL = [
    ("倉儲", "在倉庫中保管貨物，並管理入庫和出庫的活動。"),
    ("提單", "承運人簽發的貨物收據; 也是物權憑證。"),
    ("棧板", "便於堆高機搬運的平臺狀器具。"),
]
HEADERS = {"ko": ("용어", "정의"), "zh": ("术语", "定义"), "tw": ("術語", "定義")}
TEXTS = {"ko": KOREAN, "zh": CHINESE, "tw": TRADITIONAL}
ENCODINGS = [
    *((language, name) for language in TEXTS for name in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")),
    ("ko", "cp949"),
    ("ko", "euc-kr"),
    ("zh", "gb18030"),
    ("zh", "gb2312"),
    ("tw", "big5"),
]


def write(path: Path, rows: list[tuple[str, ...]], encoding: str = "utf-8", delimiter: str = ",") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def compose(source: Path, *more: str, code: int = 0) -> list[dict]:
    output = source.with_name("pairs.jsonl")
    assert main(["compose", "--input", str(source), "--output", str(output), *more]) == code
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] if not code else []


@pytest.mark.parametrize("delimiter", DELIMITERS, ids=list(DELIMITERS.values()))
@pytest.mark.parametrize(("language", "encoding"), ENCODINGS)
def test_every_encoding_and_delimiter_gives_the_same_pairs(
    language: str, encoding: str, delimiter: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "table.csv", [HEADERS[language], *TEXTS[language]], encoding, delimiter)
    table = read_table(path)
    assert [(pair.term, pair.definition) for pair in table.pairs] == TEXTS[language]
    assert table.layout.delimiter == delimiter and not table.faults


@pytest.mark.parametrize(
    ("name", "encoding", "known"),
    [("electronics_ko_terms.csv", "cp949", "cp949"), ("logistics_zh_terms.csv", "gb18030", "gb18030")],
)
def test_shipped_glossaries_are_known_in_their_national_encoding(name: str, encoding: str, known: str) -> None:
    text = (ROOT / "datasets" / name).read_text(encoding="utf-8")
    assert detect(text.encode(encoding)) == known
    lines = text.splitlines()
    found = [detect("\n".join(lines[i : i + 3]).encode(encoding)) for i in range(0, len(lines) - 3, 3)]
    assert found.count(known) == len(found)


def test_unknown_encoding_is_an_error_and_the_flag_settles_it(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "t.csv", [("term", "definition"), ("café", "où l'on boit"), ("thé", "à l'eau")], "latin-1")
    compose(path, code=2)
    assert "--encoding" in capsys.readouterr().err
    assert compose(path, "--encoding", "latin-1")[0]["query"] == "café"
    compose(path, "--encoding", "latin-11", "--overwrite", code=2)
    assert "latin-11: unknown" in capsys.readouterr().err
    compose(path, "--encoding", "utf-8", "--overwrite", code=2)
    assert f"{path}:2: not utf-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "header",
    [
        ("Term", "Definition"),
        (" anchor ", "POSITIVE"),
        ("용어", "뜻"),
        ("词条", "释义"),
        ("用語", "説明"),
        ("id", "definition", "term"),
    ],
)
def test_columns_are_found_by_name(header: tuple[str, ...], tmp_path: Path) -> None:
    given = {name.strip().lower() for name in header}
    rows = [("7", text, term) if "id" in given else (term, text) for term, text in KOREAN]
    assert [row["query"] for row in compose(write(tmp_path / "t.csv", [header, *rows]))] == [t for t, _ in KOREAN]


@pytest.mark.parametrize(
    ("header", "term", "definition"),
    [
        (("title", "term", "definition"), 1, 2),
        (("name", "description", "term", "definition"), 2, 3),
        (("용어 설명", "번호", "용어명"), 2, 0),
        (("약어", "원어", "뜻풀이"), 0, 2),
        (("编号", "中文名称", "定义与说明"), 1, 2),
        (("term_id", "name", "description"), 1, 2),
    ],
)
def test_surest_column_is_taken_in_any_order(
    header: tuple[str, ...], term: int, definition: int, tmp_path: Path
) -> None:
    cells = tuple(f"cell {place}" for place in range(len(header)))
    (pair,) = read_table(write(tmp_path / "t.csv", [header, cells])).pairs
    assert (pair.term, pair.definition) == (cells[term], cells[definition])


def test_headings_that_name_no_text_are_an_error(tmp_path: Path, capsys) -> None:
    compose(write(tmp_path / "t.csv", [("term_id", "definition_source"), ("1", "book")]), code=2)
    assert "no columns term and definition" in capsys.readouterr().err


def test_columns_can_be_named_and_missing_ones_are_an_error_that_lists_those_there(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "t.csv", [("kurz", "lang", "x"), *[(*pair, "") for pair in KOREAN]])
    compose(path, code=2)
    assert f"{path}:1: no columns term and definition" in (error := capsys.readouterr().err)
    assert "kurz, lang, x" in error and "--columns" in error
    compose(path, "--columns", "kurz", "lnag", code=2)
    assert "did you mean lang?" in capsys.readouterr().err
    assert compose(path, "--columns", "lang", "kurz")[0]["pos"] == ["저항기"]


@pytest.mark.parametrize(
    "text",
    [
        "term,definition,\nLED,a lamp,\nfuse,a wire,\n",
        "term,definition\nLED,a lamp,,\nfuse,a wire\n",
        "sep=;\r\nterm;definition\r\nLED;a lamp\r\nfuse;a wire\r\n",
        '"term";"definition"\n"LED";"a lamp"\n"fuse";"a wire"\n',
        '"term"\t"definition"\n"LED"\t"a lamp"\n"fuse"\t"a wire"\n',
        "term, old;term;definition\nx;LED;a lamp\ny;fuse;a wire\n",
    ],
)
def test_tables_of_spreadsheets_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    table = read_table(path)
    assert [(p.term, p.definition) for p in table.pairs] == [("LED", "a lamp"), ("fuse", "a wire")] and not table.faults


@pytest.mark.parametrize(
    "text",
    [
        "Glossary 2024,,\n\nterm,definition,note\nLED,a lamp,\nfuse,a wire,\n",
        "전자 용어집 2024,,\n용어,정의,비고\nLED,a lamp,\nfuse,a wire,\n",
        "A,B\nterm,definition\nLED,a lamp\nfuse,a wire\n",
        '"term,definition"\n"LED,a lamp"\n"fuse,a wire"\n',
        "abbr,definition\nLED,a lamp\nfuse,a wire\n",
        "<b>term</b>,definition\n<i>LED</i>,a&nbsp;lamp\nfuse,<p>a wire</p>\n".replace("<b>term</b>", "term"),
    ],
)
def test_shapes_of_glossaries_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    table = read_table(path)
    assert [(p.term, p.definition) for p in table.pairs] == [("LED", "a lamp"), ("fuse", "a wire")] and not table.faults


def test_table_without_a_header_is_read_by_the_numbers_of_its_columns(tmp_path: Path, capsys) -> None:
    path = tmp_path / "t.csv"
    path.write_text("1,LED,a lamp,\n\n2,fuse,a wire\n3,coil,wound wire,see fuse\n", encoding="utf-8")
    compose(path, code=2)
    assert "give the numbers of the columns: --columns 1 2" in capsys.readouterr().err
    rows = compose(path, "--columns", "2", "3")
    assert [(row["query"], row["pos"]) for row in rows] == [
        ("LED", ["a lamp"]),
        ("fuse", ["a wire"]),
        ("coil", ["wound wire"]),
    ]
    assert "no header" in capsys.readouterr().out
    compose(path, "--columns", "2", "9", "--overwrite", code=2)
    assert "the table has 3 columns" in capsys.readouterr().err
    path.write_text("term,definition\nLED,a lamp\nfuse,a wire\n", encoding="utf-8")  # numbers beside a header
    assert [row["query"] for row in compose(path, "--columns", "1", "2", "--overwrite")] == ["LED", "fuse"]


def test_html_in_cells_becomes_text_and_is_counted(tmp_path: Path, capsys) -> None:
    rows = [
        ("term", "definition"),
        ("<b>light</b>", "<p>goes 3&nbsp;×&nbsp;10<sup>8</sup> m/s,</p><p>as <a href='x'>Maxwell</a> found</p>"),
        ("<ruby>抵抗<rt>ていこう</rt></ruby>", "limits a current; NUL\0 inside"),
        ("generic", "List<String> is one, if a < b"),
    ]
    found = {row["query"]: row["pos"][0] for row in compose(write(tmp_path / "t.csv", rows))}
    assert found == {
        "light": "goes 3 × 10^8 m/s, as Maxwell found",
        "抵抗": "limits a current; NUL inside",
        "generic": rows[3][1],
    }
    assert "HTML became plain text in 2 rows" in capsys.readouterr().out


def test_workbook_is_read_also_under_another_name(tmp_path: Path, capsys) -> None:
    rows: list[list[object]] = [["A glossary"], ["term", "definition"], ["LED", "a lamp"], ["fuse", "a wire"]]
    path = write_xlsx(tmp_path / "book.xlsx", {"Terms": rows, "Other": [["x"], ["y"]]})
    assert [row["query"] for row in compose(path)] == ["LED", "fuse"]
    assert "read as workbook; 1 lines above the header are left out" in capsys.readouterr().out
    assert [row["query"] for row in compose(Path(f"{path}:Terms"), "--overwrite")] == ["LED", "fuse"]
    compose(Path(f"{path}:Term"), "--overwrite", code=2)
    assert "no sheet Term; did you mean Terms?" in capsys.readouterr().err
    assert [row["query"] for row in compose(path.rename(tmp_path / "book.csv"), "--overwrite")] == ["LED", "fuse"]


def test_quotes_between_tabs_are_letters_when_they_do_not_quote_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('term\tdefinition\ndisk\t"hard" store\nfuse\ta wire\n', encoding="utf-8")
    assert [pair.definition for pair in read_table(path).pairs] == ['"hard" store', "a wire"]
    path.write_text('term\tdefinition\ndisk\t"a ""hard""\tstore"\n', encoding="utf-8")
    assert [pair.definition for pair in read_table(path).pairs] == ['a "hard" store']


def test_few_letters_leave_doubt_about_the_encoding(tmp_path: Path, capsys) -> None:
    rows = [("term", "definition"), ("LED", "발광"), ("IC", "lamp")]
    path = write(tmp_path / "t.csv", rows, "cp949")
    compose(path, code=2)
    assert "name the encoding with --encoding" in capsys.readouterr().err
    assert compose(path, "--encoding", "cp949")[0]["pos"] == ["발광"]
    assert read_table(write(path, [*rows, ("퓨즈", "지나친 전류를 막는 선")], "cp949")).layout.encoding == "cp949"


def test_faulty_rows_are_counted_and_named_by_line(tmp_path: Path, capsys) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        '\nterm,definition\na,"first\nline"\nb,\n,c\n\nd,one,too many\nA,first  LINE\ne,E\nf,second text\n',
        encoding="utf-8",
    )
    assert [row["query"] for row in compose(path)] == ["a", "f"]
    said = capsys.readouterr().out
    assert f"empty cell: 2 ({path}:5, {path}:6)" in said
    assert f"not the 2 cells of the header: 1 ({path}:8)" in said
    assert f"same as an earlier row: 1 ({path}:9)" in said
    assert f"repeats the term: 1 ({path}:10)" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("term,definition\n", "no row has both a term and a definition"),
        ("term,definition\na,\n", "no row has both a term and a definition"),
        ('term,definition\na,b\nc,"open\n', ":3: not a readable table"),
        ('"term,definition\n', ":1: the header can't be read"),
    ],
)
def test_files_without_a_readable_row_are_errors(text: str, message: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    compose(path, code=2)
    assert message in (error := capsys.readouterr().err) and str(path) in error
    assert not (tmp_path / "pairs.jsonl").exists()


def test_no_negative_is_an_answer_and_near_ones_come_first(tmp_path: Path) -> None:
    rows = [(f"pump {i}", f"moves water of pond {i} through a pipe") for i in range(6)]
    rows += [("frog", "sits by the pond"), ("FROG ", "jumps through a pipe of water"), ("toad", "Sits  by the POND")]
    found = {row["query"]: row for row in compose(write(tmp_path / "t.csv", [("term", "definition"), *rows]))}
    assert len(found) == 8
    assert found["frog"]["pos"] == ["sits by the pond", "jumps through a pipe of water"]
    for row in found.values():
        barred = {identity(text) for text in (*row["pos"], row["query"])}
        assert not barred & {identity(text) for text in row["neg"]}
        assert len(row["neg"]) == len({identity(text) for text in row["neg"]}) == 3
    assert found["pump 3"]["neg"][0].startswith("moves water")


def test_definition_of_a_synonym_is_not_a_negative(tmp_path: Path) -> None:
    rows = [
        ("LED", "전류를 흘리면 빛을 내는 반도체 소자"),
        ("발광 다이오드(LED)", "전류를 흘리면, 빛을 내는 반도체 소자이다."),
        ("발광다이오드", "전류를 흘리면 빛을 내는 반도체 소자."),
        ("capacitor", "stores charge between two plates"),
        ("condenser", "Stores charge between two plates."),
        ("condenser", "an old name of a part that stores charge"),
        ("C", "a language of plates"),
        ("C++", "a language of charge"),
        ("레이저", "한 빛깔의 빛을 내는 소자"),
    ]
    found = {row["query"]: row for row in compose(write(tmp_path / "t.csv", [("term", "definition"), *rows]))}
    light, charge = {text for _, text in rows[:3]}, {text for _, text in rows[3:6]}
    for name in ("LED", "발광 다이오드(LED)", "발광다이오드"):
        assert rows[8][1] in found[name]["neg"] and not light & set(found[name]["neg"])
    for name in ("capacitor", "condenser"):
        assert rows[7][1] in found[name]["neg"] and not charge & set(found[name]["neg"])
    assert found["C++"]["neg"][0] == rows[6][1]  # another thing, though only signs tell them apart


def test_negatives_of_the_table_come_first_and_rows_without_any_are_counted(tmp_path: Path, capsys) -> None:
    rows = [
        ("anchor", "positive", "negative"),
        ("pump", "moves water through a pipe", "sings in the morning"),
        ("valve", "closes a pipe for water", "Moves water, through a pipe."),
        ("pump", "a machine for water", "A machine for water"),
        ("zither", "quietly plucked instrument", ""),
    ]
    pump, valve, zither = compose(write(tmp_path / "t.csv", rows), "--hard_k", "2")
    assert pump["neg"] == ["sings in the morning", rows[2][1]]
    assert valve["neg"][0] == rows[2][2] and len(valve["neg"]) == 2
    assert rows[1][1] not in valve["neg"]  # the same text twice
    assert zither["neg"] == []
    assert "1 have fewer than 2 negatives, 1 have none" in capsys.readouterr().out


def test_function_returns_what_it_wrote_and_names_its_arguments(tmp_path: Path) -> None:
    path, output = write(tmp_path / "t.csv", [HEADERS["zh"], *CHINESE]), tmp_path / "pairs.jsonl"
    assert compose_rows(path, output, hard_k=9) == ComposeResult(output, rows=3, pairs=3, short=3, without_negatives=0)
    for argument, more in {
        "input": {"input": "none.csv", "output": "new.jsonl"},
        "output": {"input": path, "output": output},
        "encoding": {"input": path, "output": "new.jsonl", "encoding": "utf8x"},
    }.items():
        with pytest.raises(UserError) as error:
            compose_rows(**more)
        assert (error.value.argument, error.value.value) == (argument, str(more[argument]))


class Letters:
    """An encoder whose vectors count the letters of a text."""

    device = torch.device("cpu")

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        return np.array(
            [np.bincount([ord(letter) % 64 for letter in text], minlength=64) for text in texts], np.float32
        )


def test_negatives_of_a_model_follow_the_same_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedrag.datagen.glossary.compose.load_model", lambda *_, **__: Letters())
    rows = [("stone", "a stone"), ("toner", "one toner"), ("STONE", "the stone"), ("fig", "zig"), ("jig", "quick")]
    found = compose(write(tmp_path / "t.csv", [("term", "definition"), *rows]), "--model", "x", "--hard_k", "2")
    assert [len(row["neg"]) for row in found] == [2, 2, 2, 2]
    assert found[0]["pos"] == ["a stone", "the stone"] and found[0]["neg"][0] == "one toner"
    assert found[2]["neg"][0] == "quick"


@pytest.mark.slow
def test_a_real_model_finds_negatives_and_a_missing_one_is_an_error(tmp_path: Path, tiny_bert: str, capsys) -> None:
    path = write(tmp_path / "t.csv", [("term", "definition"), *KOREAN, ("저항기", KOREAN[3][1])])
    rows = compose(path, "--model", tiny_bert, "--hard_k", "2", "--device", "cpu")
    assert [len(row["neg"]) for row in rows] == [2, 2, 2, 2]
    assert not set(rows[0]["pos"]) & set(rows[0]["neg"]) and len(rows[0]["pos"]) == 2
    compose(path, "--model", str(tmp_path / "nowhere"), "--overwrite", code=2)
    assert "nowhere" in (error := capsys.readouterr().err) and "--model_name_or_path" not in error


@pytest.mark.parametrize("flag", ["--hard-k", "--hard_k", "--hard-k="])
def test_flags_may_have_dashes(flag: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [("term", "definition"), *KOREAN])
    words = [f"{flag}1"] if flag.endswith("=") else [flag, "1"]
    assert {len(row["neg"]) for row in compose(path, *words)} == {1}


def test_shipped_glossary_gives_rows_that_training_reads_and_check_calls_clean(tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    source = ROOT / "datasets" / "electronics_ko_terms.csv"
    assert main(["compose", "--input", str(source), "--output", str(output), "--hard-k", "3"]) == 0
    records = [record for _, record in read_rows([str(output)])]
    assert len(records) >= 150 and all(len(record.neg) == 3 and record.dropped == 0 for record in records)
    assert main(["check", str(output)]) == 0
    assert main(["compose", "--input", str(source), "--output", str(source), "--overwrite"]) == 2
