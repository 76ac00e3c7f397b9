"""The playground: rankings are those of the vectors, any text stays text, mistakes are named."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import os
import queue
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedrag.cli import main
from embedrag.models.load import load_model
from embedrag.retrieval.vector_cache import unit
from embedrag.serving import playground as playground_module
from embedrag.serving.playground import compare

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
DOCUMENTS = [
    "A heron stands in the reeds and waits for frogs.",
    "The frog jumps into the pond when the heron moves.",
    "An operational amplifier amplifies the difference of two voltages.",
    "연산 증폭기는 두 입력 전압의 차이를 증폭한다.",
    "저항은 전류의 흐름을 방해하는 성질이다.",
    "提单是承运人签发的货物收据。",
    HOSTILE,
    "ضفدع يجلس بجانب البركة",
    *(f"Document {n} speaks of {word}. " * (1 + 8 * (n % 3)) for n, word in enumerate(["tea", "rain", "law"] * 4)),
]
QUERY = "Which bird eats frogs?"


class Page:
    """A running playground and what it ranks."""

    def __init__(self, address: str, models: dict[str, str]) -> None:
        self.address, self.models = address, models

    def get(self, query: str) -> str:
        answer = httpx.get(self.address, params={"q": query}, timeout=60)
        assert answer.status_code == 200
        return str(answer.text)


@pytest.fixture(scope="module")
def playground(minilm: str, tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page, served by a thread: a base that knows nothing, MiniLM as the tuned model."""
    folder = tmp_path_factory.mktemp("playground")
    data = folder / "corpus.jsonl"
    data.write_text("".join(json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate(DOCUMENTS)))
    lines: queue.Queue[str] = queue.Queue()
    servers: list[uvicorn.Server] = []
    real = uvicorn.Server.run
    with ThreadPoolExecutor(1) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(playground_module, "say", lines.put)
            patch.setattr("uvicorn.Server.run", lambda self, sockets: (servers.append(self), real(self, sockets)))
            running = pool.submit(
                playground_module.playground, minilm, str(folder), baseline=tiny_bert, port=0, device="cpu"
            )
            address = None
            while address is None:
                match = re.search(r"http://\S+", lines.get(timeout=60))
                address = match and match[0]
            while not servers:
                time.sleep(0.01)
        yield Page(address, {"base": tiny_bert, "tuned": minilm})
        servers[0].should_exit = True
        running.result(timeout=30)


def shown(page: str) -> dict[str, list[tuple[str, float, int, int]]]:
    """(text, score, rank by the base, rank by the tuned model) of each ranking of a page."""
    found: dict[str, list[tuple[str, float, int, int]]] = {}
    for side in ("base", "tuned"):
        part = page.split(f'<section class="{side}"')[1].split("</section>")[0]
        rows = re.findall(
            r'<summary dir="auto">(.*?)</summary>.*?class="score">([-\d.]+)<.*?<small>(\d+) → (\d+)<', part, re.S
        )
        found[side] = [(html.unescape(text), float(score), int(base), int(tuned)) for text, score, base, tuned in rows]
    return found


def test_compare_ranks_as_a_count_of_better_documents_does() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (2, 40)) / 4  # many ties
    documents = [f"text {n}" for n in range(40)]
    sides = compare(documents, *scores, shown=7)

    def rank(side: int, document: int) -> int:
        better = [n for n in range(40) if (-scores[side][n], n) < (-scores[side][document], document)]
        return 1 + len(better)

    for side, hits in enumerate(sides):
        assert [rank(side, hit.document) for hit in hits] == list(range(1, 8))
        for hit in hits:
            assert hit.text == documents[hit.document] and hit.score == 100 * scores[side][hit.document]
            assert (hit.base, hit.tuned) == (rank(0, hit.document), rank(1, hit.document))
            assert hit.gain == hit.base - hit.tuned


def test_page_shows_the_ranking_of_both_models(playground: Page) -> None:
    found = shown(playground.get(QUERY))
    ranks = {}
    for side, model in playground.models.items():
        encoder = load_model(model, "cpu")
        cosines = unit(encoder.encode(DOCUMENTS, "passage")) @ unit(encoder.encode([QUERY], "query"))[0]
        order = np.argsort(-cosines, kind="stable")
        ranks[side] = {DOCUMENTS[n]: place for place, n in enumerate(order, 1)}
        assert [row[0] for row in found[side]] == [DOCUMENTS[n] for n in order[:10]]
        np.testing.assert_allclose([row[1] for row in found[side]], 100 * cosines[order[:10]], atol=0.06)
    for rows in found.values():
        assert all((base, tuned) == (ranks["base"][text], ranks["tuned"][text]) for text, _, base, tuned in rows)
    assert found["tuned"][0][0] in DOCUMENTS[:2]
    assert found["base"] != found["tuned"], "a page that shows one model twice would pass the rest"


@pytest.mark.parametrize("query", [HOSTILE, '"><b>', "{{ 7*7 }}", "개구리를 먹는 새?", "ضفدع", "a" * 5000])
def test_any_query_is_answered_and_stays_text(query: str, playground: Page) -> None:
    page = playground.get(query)
    assert f'value="{html.escape(query).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")}"' in page
    assert "<script" not in page and "<img" not in page
    assert len(shown(page)["tuned"]) == 10


def test_blank_query_shows_the_empty_page(playground: Page) -> None:
    for query in ("", "   "):
        page = playground.get(query)
        assert "<section" not in page and f"{len(DOCUMENTS)} documents" in page


def test_page_is_refused_under_a_foreign_name(playground: Page) -> None:
    """A page of the web whose name was made to lead to this machine can't read the documents."""
    port = playground.address.rsplit(":", 1)[1]
    assert httpx.get(playground.address, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(playground.address, headers={"Host": f"localhost:{port}"}).status_code == 200
    assert httpx.get(f"{playground.address}/docs").status_code == 404


def test_page_is_there_under_the_address_of_ipv6_too(
    minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    apps: list[Any] = []
    loaded: list[tuple[Any, ...]] = []
    monkeypatch.setattr("embedrag.serving.playground.load_model", lambda *words, **_: loaded.append(words))
    monkeypatch.setattr("embedrag.serving.playground.Ranker", lambda name, *_: SimpleNamespace(name=name))
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: apps.append(self.config.app))
    (tmp_path / "texts.txt").write_text("a frog\n")
    words = ["--model", minilm, "--baseline", minilm, "--data", str(tmp_path / "texts.txt"), "--host", "::1"]
    assert main(["playground", *words, "--port", "0", "--device", "cpu", "--dtype", "bfloat16"]) == 0
    assert [model[:3] for model in loaded] == [(minilm, "cpu", "bfloat16")] * 2
    address = re.search(r"http://\S+", capsys.readouterr().out)
    assert address and "[::1]" in address[0]

    async def get(url: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(apps[0])) as client:
            return int((await client.get(url)).status_code)

    assert asyncio.run(get(address[0])) == 200
    assert asyncio.run(get("http://evil.example")) == 400


def test_mistakes_are_named_before_a_model_is_loaded(
    minilm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedrag.serving.playground.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    texts = tmp_path / "texts.txt"
    texts.write_text("a frog\n")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "rows.jsonl").write_text('{"body": "a frog"}\n')
    (tmp_path / "lists.jsonl").write_text('{"text": ["a frog"]}\n')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, message in (
            (["--data", str(tmp_path / "nothing.txt")], "nothing.txt: no such file"),
            (["--data", str(tmp_path / "blank.txt")], "no texts in it"),
            (["--data", str(tmp_path / "rows.jsonl")], "name the right key with --field"),
            (["--data", str(texts), "--port", port], f"--port {port}"),
            (["--data", str(texts), "--host", "no host"], "--host no host"),
            (["--data", str(texts), "--host", "a..b"], "--host a..b: no such address"),
            (["--data", str(tmp_path / "lists.jsonl")], "lists.jsonl:1: a list under 'text'"),
            (["--data", str(texts), "--baseline", "./nowhere"], "--baseline ./nowhere: no such folder"),
            (["--data", str(texts), "--port", "70000"], "--port"),
        ):
            known = [] if "--baseline" in words else ["--baseline", minilm]
            assert main(["playground", "--model", minilm, *known, *words]) == 2
            assert message in capsys.readouterr().err
    assert main(["playground", "--model", minilm, "--data", str(texts)]) == 2
    assert "name the base with --baseline" in capsys.readouterr().err


def test_both_models_are_loaded_before_the_documents_are_embedded(
    minilm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedrag.serving.playground.Ranker", lambda *_: pytest.fail("documents were embedded"))
    (tmp_path / "texts.txt").write_text("a frog\n")
    broken = tmp_path / "broken"
    shutil.copytree(minilm, broken)
    next(broken.glob("*.safetensors")).write_bytes(b"")
    words = ["--baseline", minilm, "--data", str(tmp_path / "texts.txt"), "--port", "0"]
    assert main(["playground", "--model", str(broken), *words]) == 2
    assert f"error: --model {broken}: " in capsys.readouterr().err


def test_missing_server_library_names_the_extra(
    minilm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["playground", "--model", minilm, "--baseline", minilm, "--data", str(tmp_path / "x")]) == 2
    assert "pip install -e '.[serve]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (390, 1)])
def test_page_in_a_browser_is_usable_at_any_width(width: int, columns: int, browser: Any, playground: Page) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 800})
    asked: list[str] = []
    problems: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: problems.append(message.text))
    tab.goto(playground.address)
    tab.wait_for_selector("input:focus")  # by itself
    tab.keyboard.type(QUERY)
    tab.keyboard.press("Enter")
    tab.wait_for_selector("section.tuned li")
    assert tab.title() == QUERY
    assert tab.locator("section.tuned li").first.locator("summary").inner_text() in DOCUMENTS[:2]
    boxes = [tab.locator(f"section.{side}").bounding_box() for side in ("base", "tuned")]
    assert len({box["x"] for box in boxes}) == columns
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    long = tab.locator("section.tuned summary", has_text="Document 2").first
    if long.count():
        before = long.bounding_box()["height"]
        long.click()
        assert long.bounding_box()["height"] > before
    link = tab.locator("a.change").first
    link.click()
    assert tab.locator("li:target").count() == 1
    assert all(url.startswith((playground.address, "data:")) for url in asked)
    assert problems == []
    tab.close()


def test_ctrl_c_ends_it_without_a_traceback(
    minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(playground_module, "load_model", lambda *_, **__: None)
    monkeypatch.setattr(playground_module, "Ranker", lambda name, *_: SimpleNamespace(name=name))
    (tmp_path / "texts.txt").write_text("a frog\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def interrupt() -> None:
        status = None
        while status != 200:
            with contextlib.suppress(httpx.TransportError):
                status = httpx.get(f"http://127.0.0.1:{port}").status_code
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(interrupt)
        words = ["--baseline", minilm, "--data", str(tmp_path / "texts.txt"), "--port", str(port)]
        assert main(["playground", "--model", minilm, *words]) in (0, 130)
    assert "Traceback" not in capsys.readouterr().err
