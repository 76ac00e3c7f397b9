"""The page of an evaluation: every part is there when its data are, texts stay texts, nothing is loaded."""

from __future__ import annotations

import base64
import copy
import errno
import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from embedrag.errors import RunError
from embedrag.evaluation.report.formatting import cut
from embedrag.evaluation.report.html import forgetting, headline, render, write_html
from embedrag.evaluation.report.plots import drawings

EVIL = (
    '</script><script>document.title="hacked"</script><img src=x onerror="document.title=\'hacked\'">'
    '<b>bold</b> <a href="javascript:alert(1)">link</a> &lt;i&gt; {{ 7 * 7 }} %{x} \u2028'
)
LONG = "The heron stands in the reeds and looks for frogs. " * 20 + "The end."
CJK = "青蛙在池塘边，연못가의 개구리，カエル"
VOID = {"meta", "link", "img", "br", "input", "hr"}


def compared(metric: str, base: float, gain: float, verdict: str) -> dict[str, Any]:
    ends = {"low": gain - 0.02, "high": gain + 0.02, "p_value": 0.0002 if verdict != "no clear difference" else 0.4}
    return {"metric": metric, "base": base, "tuned": base + gain, "difference": gain, **ends, "verdict": verdict}


def example(query: str, base: float, tuned: float) -> dict[str, Any]:
    texts = {"relevant": LONG, "base_first": CJK, "tuned_first": LONG}
    return {"query": query, "base": base, "tuned": tuned, **texts}


FULL: dict[str, Any] = {
    "model": "outputs/final <x>",
    "baseline": "all-MiniLM-L6-v2",
    "data": "datasets/pond",
    "queries": 1450,
    "passages": 12345,
    "metric": "ndcg@10",
    "verdict": "better",
    "ndcg@10": 0.643,
    "recall@10": 0.7,
    "triplet_accuracy": 0.93,
    "mean_positive_score": 0.61,
    "mean_negative_score": 0.12,
    "baseline_metrics": {"triplet_accuracy": 0.84},
    "comparison": [compared("ndcg@10", 0.514, 0.129, "better"), compared("recall@10", 0.7, 0.0, "no clear difference")],
    "won": [example(EVIL, 0.0, 1.0), example(CJK, 0.3, 0.9)],
    "lost": [],
    "general": {
        "data": "datasets/general",
        "queries": 300,
        "comparison": [compared("ndcg@10", 0.4, -0.05, "worse")],
        "verdict": "worse",
    },
    "histograms": {
        "edges": [-1.0, -0.5, 0.0, 0.5, 1.0],
        "model": {"positive": [0, 0, 1, 3], "negative": [0, 2, 2, 0]},
        "baseline": {"positive": [0, 0, 2, 2], "negative": [0, 1, 3, 0]},
    },
    "map": {
        "points": [
            {"x": 0.1, "y": 0.2, "kind": "query", "text": EVIL, "pair": 0},
            {"x": 0.2, "y": 0.3, "kind": "passage", "text": CJK * 30, "pair": 0},
            {"x": 0.5, "y": 0.9, "kind": "query", "text": "alone", "pair": 1},
        ]
    },
    "curve": [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": float("nan")},
        {"step": 3, "loss": 1.0},
        {"step": 3, "loss": None, "ndcg@10": 0.6},
    ],
    "date": "2025-01-31",
    "versions": {"embedrag": "2.0", "torch": "2.13.0"},
}
PLOTS = {"bars", "differences", "histogram-baseline", "histogram-model", "curve", "map"}


def without(*keys: str) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in FULL.items() if key not in keys}


OWN = without("baseline", "baseline_metrics", "verdict", "comparison", "won", "lost", "general")
OWN["histograms"].pop("baseline")


class Page(HTMLParser):
    """Tags with their attributes, texts by the `id` they stand under, scripts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str | None]] = []
        self.texts: dict[str, str] = {}
        self.scripts: list[str] = []
        self.styles = ""
        self.feed(source)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id")))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1][0] if self.open else ""
        if inside == "script":
            self.scripts[-1] += data
        elif inside == "style":
            self.styles += data
        else:
            for name in ["body", *(identity for _, identity in self.open if identity)]:
                self.texts[name] = self.texts.get(name, "") + data

    @property
    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.tags if "id" in attributes}

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(FULL))


def test_full_result_has_every_part_and_every_plot(full: Page) -> None:
    parts = {"verdict", "general", "metrics", "histograms", "training", "map", "won", "lost", "table", "reading"}
    assert parts <= full.ids
    assert set(full.figures) == PLOTS == {name[7:] for name in full.ids if name.startswith("figure-")}
    text = " ".join(full.texts["body"].split())
    assert "The tuned model is better" in text
    assert "nDCG@10 0.514 → 0.643, +0.129 (95 % interval +0.109 … +0.149, p < 0.001, 1,450 queries)" in text
    assert "Something was forgotten (general set general): nDCG@10 0.400 → 0.350, −0.050 (95 %" in text
    assert "12,345 passages" in text and "torch 2.13.0" in text and "2025-01-31" in text
    assert "No query lost." in full.texts["lost"]
    assert "0.840 0.930 +0.090" in " ".join(re.sub(r"(\d{3})(?=[+0])", r"\1 ", full.texts["table"]).split())


@pytest.mark.parametrize(
    ("key", "gone"),
    [
        ("comparison", {"figure-differences"}),
        ("won", {"won"}),
        ("lost", {"lost"}),
        ("general", {"general"}),
        ("histograms", {"histograms", "figure-histogram-model", "figure-histogram-baseline"}),
        ("map", {"map", "figure-map", "picked"}),
        ("curve", {"training", "figure-curve"}),
    ],
)
def test_part_without_data_is_left_out_and_the_others_stay(key: str, gone: set[str], full: Page) -> None:
    assert full.ids - Page(render(without(key))).ids == gone


def test_forms_of_the_vectors_are_a_table_and_those_without_a_figure_are_left_out(full: Page) -> None:
    assert "forms" not in full.ids
    forms = [
        {"dim": 384, "precision": "float32", "bytes": 1536, "ndcg@10": 0.643},
        {"dim": 64, "precision": "int8", "bytes": 64, "ndcg@10": 0.5914},
        {"dim": 64, "precision": "binary", "bytes": 8},
    ]
    text = " ".join(Page(render(FULL | {"forms": forms})).texts["forms"].split())
    assert "1,536" in text and "0.643" in text
    assert "0.591" in text and "binary" not in text


def test_without_a_baseline_only_the_models_own_figures_are_shown() -> None:
    page = Page(render(OWN))
    assert set(page.figures) == {"bars", "histogram-model", "curve", "map"}
    assert "nDCG@10 0.643 (1,450 queries)" in page.texts["verdict"]
    assert [trace["name"] for trace in page.figures["bars"]["data"]] == ["Model"]
    for word in ("Tuned", "Base", "interval", "tuned"):
        assert word not in page.texts["body"]


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"comparison": [], "won": [], "lost": [], "general": {}, "histograms": {}, "map": {}, "curve": []},
        {"comparison": None, "general": None, "histograms": None, "map": None, "curve": None, "won": None},
        {"ndcg@10": float("nan"), "comparison": [{"metric": "ndcg@10", "base": None, "tuned": 0.4}]},
        {"histograms": {"edges": [0, 1], "model": {"positive": [1, 2], "negative": [0]}}, "won": [{}]},
        {"comparison": [{"metric": "mrr@5", "base": 0.1, "tuned": 0.2}], "general": {"verdict": "better"}},
        {"curve": [{"loss": 1.0}, {"step": 1}], "map": {"points": [{"x": 1}, {"x": 1, "y": 2, "kind": "query"}]}},
    ],
    ids=["empty", "hollow", "none", "not-a-number", "wrong-lengths", "bare-rows", "half-rows"],
)
def test_result_with_holes_still_gives_a_whole_page(result: dict[str, Any]) -> None:
    page = Page(render(result))
    assert {"verdict", "reading"} <= page.ids
    assert "NaN" not in page.scripts[0] and "None" not in page.texts["body"] and "nan" not in page.texts["body"]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("better", "The tuned model is better"),
        ("worse", "The tuned model is worse"),
        ("no clear difference", "No clear difference between the tuned model and the base"),
    ],
)
def test_headline_says_the_verdict_in_words(verdict: str, words: str) -> None:
    row = {"metric": "mrr@5", "base": 0.5, "tuned": 0.49, "p_value": 0.0412}
    result = {"metric": "mrr@5", "verdict": verdict, "comparison": [row], "queries": 9}
    assert headline(result) == (words, "MRR@5 0.500 → 0.490, −0.010 (p = 0.041, 9 queries)")
    assert headline(result | {"comparison": []}) == (words, "")


def test_forgetting_without_a_known_verdict_is_not_shown() -> None:
    assert forgetting({}, "ndcg@10") is None
    assert forgetting({"verdict": "no clear difference"}, "ndcg@10") == (
        "no clear difference",
        "No forgetting seen",
        "",
    )


def test_texts_of_users_become_neither_tags_nor_scripts_nor_handlers(full: Page) -> None:
    assert len(full.scripts) == 3 and "hacked" not in "".join(full.scripts[1:])
    assert not {"img", "iframe", "a", "object", "base", "form"} & {tag for tag, _ in full.tags}
    assert not [name for _, attributes in full.tags for name in attributes if name.startswith("on")]
    assert EVIL in full.texts["won"], "shown as it is, braces of templates included"
    assert "<x>" in full.texts["body"]


def test_hover_labels_show_tags_as_text_and_cut_long_texts(full: Page) -> None:
    passages, queries = full.figures["map"]["data"][1:]
    label = queries["hovertext"][0]
    assert re.findall(r"<[^>]*>", label.replace("<br>", "")) == ["<b>", "</b>"], "only our own"
    assert "&lt;/script&gt;&lt;script&gt;" in label.replace("<br>", "") and "&amp;lt;i&amp;gt;" in label
    assert passages["hovertext"][0].endswith("…") and max(map(len, passages["hovertext"][0].split("<br>"))) <= 30
    assert passages["customdata"][0][1] == CJK * 30, "the whole text is read under the map"


def test_json_in_the_page_holds_no_sign_that_could_end_its_tag(full: Page) -> None:
    assert not set("<>&\u2028\u2029") & set(full.scripts[0])
    assert full.figures["map"]["data"][2]["customdata"][0][1] == EVIL


def test_policy_lets_just_the_two_scripts_run_and_nothing_load(full: Page) -> None:
    policy = next(a["content"] for t, a in full.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in full.scripts[1:]]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert policy.startswith("default-src 'none';") and "http" not in policy and "unsafe-eval" not in policy
    links = [value for _, attributes in full.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links == ["data:,"] and "url(" not in full.styles and "@import" not in full.styles


def test_long_text_is_cut_and_whole_on_hover_and_when_opened(full: Page) -> None:
    titles = [attributes.get("title") or "" for tag, attributes in full.tags if tag == "summary"]
    assert LONG in titles
    assert cut(LONG, 120) in full.texts["won"] and LONG in full.texts["won"]
    assert "✓ the relevant passage" in full.texts["won"]


def test_texts_that_are_not_valid_unicode_do_not_stop_the_page(tmp_path: Path) -> None:
    points = [{"x": 0, "y": 0, "kind": "query", "text": "half \ud83d", "pair": 0}]
    write_html(FULL | {"won": [example("half \ud83d", 0, 1)], "map": {"points": points}}, tmp_path / "page.html")
    assert "half ?" in Page((tmp_path / "page.html").read_text(encoding="utf-8")).texts["won"]


def test_figures_are_what_plotly_knows(full: Page) -> None:
    import plotly.graph_objects as go

    for figure in full.figures.values():
        go.Figure(figure)  # refuses unknown names and values
    with pytest.raises(ValueError):
        go.Figure({"data": [{"type": "bar", "hovrtext": []}]})


@pytest.mark.parametrize("result", [FULL, OWN, {}], ids=["full", "own", "empty"])
def test_drawings_of_a_notebook_are_the_pages_figures_with_titles_and_plain_colours(result: dict[str, Any]) -> None:
    made = drawings(result)
    assert set(made) == set(Page(render(result)).figures)
    for drawing in made.values():
        assert drawing.layout.title.text and "var(" not in drawing.to_json()
        assert drawing.layout.font.color == "#1b1f27", "the light one"
    if result is FULL:
        assert made["differences"].data[-1].marker.color == ("#177a43", "#6b7280")
        assert "&lt;/script&gt;" in made["map"].data[2].hovertext[0].replace("<br>", "")


def test_figures_show_the_numbers_of_the_result(full: Page) -> None:
    bars, differences = full.figures["bars"], full.figures["differences"]
    assert [trace["x"] for trace in bars["data"]] == [[0.514, 0.7], [0.643, 0.7]]
    assert bars["data"][0]["y"] == differences["data"][-1]["y"] == ["<b>nDCG@10</b>", "Recall@10"]
    assert differences["data"][0]["x"] == pytest.approx([0.109, 0.149])
    assert differences["data"][-1]["marker"]["color"] == ["var(--better)", "var(--unclear)"]
    assert full.figures["histogram-model"]["data"][1]["y"] == [0, 0, 25, 75]
    assert full.figures["histogram-model"]["layout"] == full.figures["histogram-baseline"]["layout"]
    loss, metric = full.figures["curve"]["data"]
    assert (loss["x"], loss["y"], metric["x"], metric["y"]) == ([1, 3], [2.0, 1.0], [3], [0.6])
    assert full.figures["map"]["data"][0]["x"] == [0.1, 0.2, None], "a line for the whole pair only"


def test_every_colour_of_the_figures_is_defined_for_light_and_dark(full: Page) -> None:
    for name in set(re.findall(r"var\(--(\w+)\)", full.scripts[0])):
        assert full.styles.count(f"--{name}: #") == 2, name


def test_page_names_no_folder_of_this_machine() -> None:
    """The page is made to be sent to others, and a path shows the name of the user."""
    home = "/home/zaphod/secret-project"
    result = FULL | {"model": f"{home}/out/final", "baseline": f"{home}/base", "data": "C:\\Users\\zaphod\\beir"}
    result["general"] = FULL["general"] | {"data": f"{home}/general/"}
    page = render(result)
    assert "zaphod" not in page and "secret-project" not in page
    assert "Model: final" in page and "data: beir" in page and "(general set general)" in page
    assert "Model: BAAI/bge-m3" in render(FULL | {"model": "BAAI/bge-m3"}), "a name of the hub stays whole"


def test_every_figure_of_the_tables_has_its_name_on_a_phone(full: Page) -> None:
    """There the heading of a table is hidden, and each row is a block; otherwise the last columns lie outside."""
    page = render(FULL)
    for section in re.findall(r'<section class="figures".*?</section>', page, re.S):
        for row in re.findall(r"<tr>(<td.*?)</tr>", section, re.S):
            cells = re.findall(r"<td([^>]*)>([^<]*)", row)
            assert all("data-title" in attributes for attributes, text in cells[1:] if text.strip()), row
    narrow = full.styles[full.styles.index("@media (max-width: 46rem)") :]
    assert ".figures thead { display: none; }" in narrow and "attr(data-title)" in narrow


def test_legend_of_the_map_is_not_below_its_tool_bar(full: Page) -> None:
    assert full.figures["map"]["layout"]["legend"]["yanchor"] == "top"
    assert full.figures["map"]["layout"]["legend"]["y"] == 0


def test_page_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    write_html({"model": "first"}, path)
    assert list(tmp_path.iterdir()) == [path]
    before = path.read_bytes()

    def full(written: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("embedrag.runtime.files._flush", full)
    with pytest.raises(RunError, match="page.html: not written .No space left"):
        write_html(FULL, path)
    assert path.read_bytes() == before


def test_importing_the_module_loads_neither_plotly_nor_jinja() -> None:
    code = (
        "import sys, embedrag.evaluation.report.html; print(sorted({'plotly', 'jinja2', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --- in a browser ---

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOVER = """<script>
addEventListener("load", () => setTimeout(() => {
  Plotly.Fx.hover("figure-map", [{curveNumber: 2, pointNumber: 0}]);
}, 300));
</script></body>"""


@pytest.fixture(scope="session")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: HTML -> (the tags after the scripts have run, what the console said)."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no chromium found; the page was not looked at in a browser")
    folder = tmp_path_factory.mktemp("browser")

    def open_page(source: str) -> tuple[str, str]:
        path = folder / "page.html"
        path.write_text(source, encoding="utf-8")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", "--no-first-run"]
        flags += ["--enable-logging=stderr", "--virtual-time-budget=4000", f"--user-data-dir={folder / 'profile'}"]
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
        found = subprocess.run([program, *flags, path.as_uri()], capture_output=True, timeout=100, check=True)
        console = [line for line in found.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
        return found.stdout.decode(), "\n".join(console)

    return open_page


@pytest.mark.slow
def test_browser_draws_every_plot_without_a_word_on_the_console(browse: Any) -> None:
    tags, console = browse(render(FULL))
    assert console == ""
    assert "<title>The tuned model is better – outputs/final &lt;x&gt;</title>" in tags
    for name in PLOTS:
        plot = tags[tags.index(f'id="figure-{name}"') :]
        assert 'class="main-svg"' in plot[:2000], name
    assert tags.count('class="main-svg"') >= 2 * len(PLOTS)


@pytest.mark.slow
def test_browser_runs_no_text_even_without_the_policy_and_shows_it_in_the_hover_label(browse: Any) -> None:
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render(FULL))
    tags, console = browse(source.removesuffix("\n").removesuffix("</html>").rstrip().removesuffix("</body>") + HOVER)
    assert console == "" and "<title>hacked" not in tags
    plot = tags[tags.index('id="figure-map"') :]
    label = plot[plot.index('class="hoverlayer"') :].partition("</svg>")[0]
    assert "hovertext" in label and "&lt;script&gt;" in re.sub(r"</tspan><tspan[^>]*>", "", label)
    assert "<script" not in label and "<img" not in label and "<a " not in label


@pytest.mark.slow
def test_browser_would_notice_a_script_that_is_not_ours(browse: Any) -> None:
    tags, console = browse(render(FULL).replace("</body>", '<script>document.title="hacked"</script></body>'))
    assert "Content Security Policy" in console and "<title>hacked" not in tags
