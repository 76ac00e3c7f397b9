"""`embedrag serve` as its clients see it: the real process, OpenAI's own client, and whatever else people send."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from embedrag.models.encoder import Encoder
from embedrag.serving import admission
from embedrag.serving.admission import MAX_BYTES
from embedrag.serving.app import ROUTES, make_app, make_server
from embedrag.serving.embedding_service import EmbeddingService
from embedrag.serving.request import MAX_TEXTS

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-the-tests"
TEXTS = ["a frog", "저항의 단위는 옴이다", "a much longer text about frogs and ponds " * 20, "x"]
ROOM = 60
HEAVY = ["frog pond heron reed " * 100] * ROOM  # each as long as the model takes


class Running:
    """A server process."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url.removesuffix("/v1") + path)

    def post(self, content: bytes | str, **headers: str) -> httpx.Response:
        return httpx.post(
            f"{self.url}/embeddings", content=content, headers={"Authorization": f"Bearer {KEY}"} | headers
        )

    def figure(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.get("/metrics").text)
        found = [s.value for family in families for s in family.samples if s.name == name and s.labels == labels]
        return sum(found)


@contextlib.contextmanager
def serving(*words: str) -> Iterator[Running]:
    """A server on a free port; when the block ends well, a signal must end it with exit code 0."""
    command = [sys.executable, "-m", "embedrag", "serve", "--port", "0", "--device", "cpu", *words]
    environment = os.environ | {"EMBEDRAG_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: "), line
        yield Running(process, line.split()[1].rstrip(","))
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(folder: str) -> Iterator[Running]:
    """One process for all tests, with room for few texts, and small batches; the last test that uses it ends it."""
    with serving("--model", folder, "--max_queue", str(ROOM), "--max_batch_tokens", "64") as running:
        yield running


def check_own(found: Any, expected: np.ndarray) -> None:
    """Vectors in the order of the texts, each the one of its text."""
    assert [item.index for item in found.data] == list(range(len(expected)))
    np.testing.assert_allclose([item.embedding for item in found.data], expected, atol=1e-5)


@pytest.mark.parametrize(("prompt_name", "role"), [("query", "query"), ("document", "passage"), (None, "passage")])
def test_openais_client_gets_the_vectors_of_encode(
    prompt_name: str | None, role: str, server: Running, encoder: Encoder
) -> None:
    fields = {"prompt_name": prompt_name} if prompt_name else {}
    found = server.client().embeddings.create(model="frogs", input=TEXTS, extra_body=fields)
    check_own(found, encoder.encode(TEXTS, role))
    assert found.model == "frogs"
    tokens = sum(map(len, encoder.tokenizer(role, TEXTS)))
    assert found.usage.prompt_tokens == found.usage.total_tokens == tokens


def test_prompts_make_a_difference(encoder: Encoder) -> None:
    difference = encoder.encode(TEXTS[:1], "query") - encoder.encode(TEXTS[:1], "passage")
    assert np.abs(difference).max() > 1e-3


def test_one_text_may_stand_without_a_list(server: Running, encoder: Encoder, folder: str) -> None:
    found = server.client().embeddings.create(model=folder, input=TEXTS[1])  # the folder is a name too
    check_own(found, encoder.encode(TEXTS[1:2], "passage"))


def test_numbers_and_base64_are_the_same_vectors(server: Running, encoder: Encoder) -> None:
    answers = {
        form: server.post(json.dumps({"input": TEXTS, "encoding_format": form})).json()["data"]
        for form in ("float", "base64")
    }
    numbers = np.array([item["embedding"] for item in answers["float"]], np.float32)
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answers["base64"]]
    np.testing.assert_array_equal(np.stack(decoded), numbers)
    np.testing.assert_allclose(numbers, encoder.encode(TEXTS, "passage"), atol=1e-5)


def test_dimensions_cut_and_normalize_decides_about_the_length(server: Running, encoder: Encoder) -> None:
    whole = encoder.encode(TEXTS, "passage")
    client = server.client()
    cut = client.embeddings.create(model="frogs", input=TEXTS, dimensions=7)
    check_own(cut, whole[:, :7] / np.linalg.norm(whole[:, :7], axis=1, keepdims=True))
    raw = client.embeddings.create(model="frogs", input=TEXTS, dimensions=7, extra_body={"normalize": False})
    check_own(raw, whole[:, :7])


def test_role_may_follow_the_models_name(server: Running, encoder: Encoder, folder: str) -> None:
    """LangChain and others can't send `prompt_name`."""
    client = server.client()
    for name, role in (("frogs:query", "query"), (f"{folder}:query", "query"), ("frogs:document", "passage")):
        found = client.embeddings.create(model=name, input=TEXTS)
        check_own(found, encoder.encode(TEXTS, role))


def test_null_is_a_field_that_is_left_out(server: Running, encoder: Encoder) -> None:
    """Some clients send all fields that they know."""
    names = ("model", "prompt_name", "dimensions", "normalize", "encoding_format", "user")
    response = server.post(json.dumps({"input": TEXTS} | dict.fromkeys(names)))
    found = np.array([item["embedding"] for item in response.json()["data"]])
    np.testing.assert_allclose(found, encoder.encode(TEXTS, "passage"), atol=1e-5)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "LocalHost:80"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost:x"}, 403),
        ({"Host": "localhost."}, 200),
        ({"Host": "127.0.0.2:8000"}, 200),
        ({"Host": ""}, 200),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://chat.example"}, 200),
        ({"Origin": "https://chat.example", "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Origin": "https://chat.example.evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"}, 403),
    ],
)
def test_without_a_key_pages_of_the_web_are_refused(headers: dict[str, str], status: int, encoder: Encoder) -> None:
    async def ask(own_names_only: bool) -> list[int]:
        service = EmbeddingService("frogs", "folder", 10)
        service.open(encoder, 100)
        transport = httpx.ASGITransport(make_app(service, None, own_names_only, ["https://chat.example"]))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers) as client:
            answers = [await client.post("/v1/embeddings", content=b'{"input": "a"}')]
            answers += [await client.get(path) for path in ("/metrics", "/openapi.json")]
        await service.close()
        return [answer.status_code for answer in answers]

    assert asyncio.run(ask(True)) == [status] * 3
    assert asyncio.run(ask(False)) == [200] * 3


def test_docs_list_every_route_and_whether_it_needs_the_key() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([A-Z]+) (/\S*)` \|.*\| (yes|no) \|$", page, re.MULTILINE)
    assert told == [
        (route.method, route.path.replace(":path", ""), "yes" if route.needs_key else "no") for route in ROUTES
    ]


def test_other_pages_name_only_routes_that_exist() -> None:
    paths = {route.path.replace(":path", "") for route in ROUTES}
    pages = [*ROOT.glob("README*.md"), *(ROOT / "docs" / f"{name}.md" for name in ("serving", "deploy", "index"))]
    for page in [*pages, ROOT / "docker" / "serve.Dockerfile"]:
        for path in re.findall(r"(?:[` ]|://[\w.]+:\d+)(/(?:v1/|health|metrics)[\w/{}]*)", page.read_text("utf-8")):
            assert path in paths, (page.name, path)


def test_models_and_health_are_answered(server: Running) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["frogs", "frogs:query", "frogs:document"]
    assert client.models.retrieve("frogs:query").id == "frogs:query"
    with pytest.raises(openai.NotFoundError, match="it has frogs, frogs:query"):
        client.models.retrieve("toads")
    health = server.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ready"})
    assert "input" in server.get("/openapi.json").text


def refusal(response: httpx.Response, status: int) -> str:
    """The message of an error, after a look at its form."""
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return str(response.json()["error"]["message"])


def test_wrong_key_is_refused_and_so_is_none(server: Running) -> None:
    for key in ("wrong", KEY[:-1], KEY + "x"):
        with pytest.raises(openai.AuthenticationError) as error:
            server.client(key).embeddings.create(model="frogs", input="a")
        assert error.value.body["code"] == "invalid_api_key"  # type: ignore[index]
    for headers in ({}, {"Authorization": KEY}, {"Authorization": "Basic YTpi"}, {"Authorization": b"Bearer \xff"}):
        response = httpx.post(f"{server.url}/embeddings", json={"input": "a"}, headers=headers)  # type: ignore[arg-type]
        assert "Bearer" in refusal(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{server.url}/models").status_code == 401


@pytest.mark.parametrize("scheme", ["bearer ", "BEARER  "])
def test_scheme_of_the_key_may_have_any_case_and_the_key_may_not(scheme: str, server: Running) -> None:
    assert server.post('{"input": "a"}', Authorization=scheme + KEY).status_code == 200
    assert server.post('{"input": "a"}', Authorization=scheme + KEY.upper()).status_code == 401


BAD = [
    (400, b"{", "not JSON"),
    (400, b"\xff\xfe{", "not JSON"),
    (400, b"[" * 100_000, "not JSON"),
    (400, b"[1]", "must be an object"),
    (400, b"", "not JSON"),
    (400, {}, "input: Field required"),
    (400, {"input": []}, "at least 1"),
    (400, {"input": ""}, "input.0: is empty"),
    (400, {"input": ["a", ""]}, "input.1: is empty"),
    (400, {"input": ["a", None]}, "input.1"),
    (400, {"input": 3}, "input"),
    (400, {"input": {"text": "a"}}, "input"),
    (400, {"input": [1, 2, 3]}, "check_embedding_ctx_length=False"),
    (400, {"input": [[1, 2], [3]]}, "check_embedding_ctx_length=False"),
    (400, {"input": [[1, 2], "a"]}, "input.1: is neither"),
    (400, {"input": [[], []]}, "input.0: is neither"),
    (400, {"input": [[True]]}, "input.0: is neither"),
    (400, {"input": [[10**9]], "tokenizer": "frogs"}, "input.0: no text has these ids"),
    (400, {"input": [[1000, 30000]], "tokenizer": "frogs", "dimensions": 99}, "the model's vectors have 64"),
    (404, {"input": [[1000]], "tokenizer": "cl100k_base"}, "it has frogs, frogs:query"),
    (400, {"input": "a", "input_type": "classification"}, "input_type: Input should be 'query', 'search_query'"),
    (400, {"input": "a", "input_type": "query", "prompt_name": "document"}, "leave one out"),
    (400, {"input": "a", "model": "frogs:query", "task": "retrieval.passage"}, "leave one out"),
    (400, {"input": "a", "truncate_prompt_tokens": 20}, "truncate_prompt_tokens: Input should be -1"),
    (413, {"input": ["a", "frog " * 1000], "truncate": False}, "input.1: fills the 512 tokens"),
    (400, {"input": ["\ud800"]}, "surrogate"),
    (400, {"input": "a", "\ud800": 1}, "surrogate"),
    (400, {"input": "a", "no such": 1}, "no such field; there are input, "),
    (400, {"input": "a", "dimension": 3}, "dimension: no such field; did you mean dimensions?"),
    (400, {"input": "a", "dimensions": 0}, "dimensions"),
    (400, {"input": "a", "dimensions": 65}, "the model's vectors have 64"),
    (400, {"input": "a", "dimensions": 1.5}, "dimensions"),
    (400, {"input": "a", "encoding_format": "hex"}, "encoding_format"),
    (400, {"input": "a", "prompt_name": "title"}, "prompt_name"),
    (400, {"input": "a", "normalize": "yes"}, "normalize"),
    (404, {"input": "a", "model": "text-embedding-3-small"}, "it has frogs, frogs:query"),
    (400, {"input": "a", "model": "frogs:query", "prompt_name": "document"}, "leave one out"),
    (400, {"input": None}, "input: Field required"),
    (413, {"input": ["a"] * 10_000}, f"at most {MAX_TEXTS:,}"),
    (413, {"input": ["a frog" * 6000] * 60}, "send several"),
    (413, b"a" * (MAX_BYTES + 1), "send several"),
]


@pytest.mark.parametrize(("status", "content", "part"), BAD)
def test_bad_request_says_what_to_change_and_the_next_one_is_answered(
    status: int, content: Any, part: str, server: Running
) -> None:
    response = server.post(content if isinstance(content, bytes) else json.dumps(content))
    assert part in refusal(response, status)
    assert server.post('{"input": "a frog"}').status_code == 200


def test_other_paths_and_methods_have_the_form_of_errors_too(server: Running) -> None:
    assert "Not Found" in refusal(server.get("/v1/chat"), 404)
    assert "Not Allowed" in refusal(server.get("/v1/embeddings"), 405)


def test_body_without_a_length_is_cut_off_at_the_limit(server: Running) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(MAX_BYTES // 65536 + 2):
            yield b" " * 65536

    response = httpx.post(f"{server.url}/embeddings", content=parts(), headers={"Authorization": f"Bearer {KEY}"})
    assert "send several" in refusal(response, 413)


def test_many_clients_get_their_own_vectors_also_next_to_bad_requests(server: Running, encoder: Encoder) -> None:
    words = ("frog", "pond", "heron", "reed", "stone", "rain", "sun", "lamp")
    jobs = [[f"{words[i % 8]} {j} {words[j % 8]} " * (1 + (i * j) % 17) for j in range(1 + i % 5)] for i in range(60)]
    expected = [encoder.encode(texts, "query") for texts in jobs]

    client = server.client()

    def ask(number: int) -> Any:
        if number % 7 == 3:
            assert server.post('{"input": [""]}').status_code == 400
        fields = {"prompt_name": "query"}
        return client.embeddings.create(model="frogs", input=jobs[number], extra_body=fields)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(len(jobs))))
    for answer, vectors in zip(answers, expected, strict=True):
        check_own(answer, vectors)
    with pytest.raises(AssertionError):  # the check can fail: answers of another client, and another order
        check_own(answers[0], expected[5])
    with pytest.raises(AssertionError):
        check_own(answers[4], expected[4][::-1])


def test_metrics_count_what_was_answered(server: Running, encoder: Encoder) -> None:
    ok = {"route": "/v1/embeddings", "status": "200"}
    names = {"embedrag_requests_total": ok, "embedrag_texts_total": {}, "embedrag_tokens_total": {}}
    names |= dict.fromkeys(("embedrag_batch_texts_sum", "embedrag_batch_tokens_sum"), {})
    names["embedrag_request_seconds_count"] = {}
    before = {name: server.figure(name, **labels) for name, labels in names.items()}
    bad = server.figure("embedrag_requests_total", route="/v1/embeddings", status="400")
    server.client().embeddings.create(model="frogs", input=TEXTS)
    server.post("{")
    tokens = sum(map(len, encoder.tokenizer("passage", TEXTS)))
    grown = {name: server.figure(name, **labels) - before[name] for name, labels in names.items()}
    assert list(grown.values()) == [1, len(TEXTS), tokens, len(TEXTS), tokens, 2]
    assert server.figure("embedrag_requests_total", route="/v1/embeddings", status="400") == bad + 1
    assert server.figure("embedrag_queue_texts") == 0
    assert server.figure("process_resident_memory_bytes") > 1e8


class Held:
    """A server in this process with room for few texts; the model waits until `go_on` is set."""

    def __init__(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        real, self.go_on = encoder.vectors, threading.Event()

        def vectors(ids: Any) -> np.ndarray:
            assert self.go_on.wait(60)
            return real(ids)

        monkeypatch.setattr(encoder, "vectors", vectors)
        self.service = EmbeddingService("frogs", "folder", ROOM)
        self.service.open(encoder, 64)
        self.app = make_app(self.service, KEY)

    async def wait_for(self, texts: int) -> None:
        """Until so many texts are waiting or at work."""

        async def reached() -> None:
            while self.service.admission.texts.used != texts:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(reached(), 60)

    async def close(self) -> None:
        self.go_on.set()
        await self.service.close()


def test_full_queue_is_reported_and_its_requests_are_answered(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = TEXTS * (ROOM // len(TEXTS))
    expected = encoder.encode(texts, "passage")
    held = Held(encoder, monkeypatch)

    async def go() -> Any:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(held.app))
        client = openai.AsyncOpenAI(base_url="http://x/v1", api_key=KEY, max_retries=0, http_client=http)
        running = asyncio.create_task(client.embeddings.create(model="frogs", input=texts))
        await held.wait_for(ROOM)
        with pytest.raises(openai.RateLimitError) as error:
            await client.embeddings.create(model="frogs", input="a frog")
        assert 1 <= int(error.value.response.headers["retry-after"]) <= 60
        held.go_on.set()
        check_own(await running, expected)
        check_own(await client.embeddings.create(model="frogs", input=TEXTS), expected[: len(TEXTS)])
        await held.close()

    asyncio.run(go())


def test_request_that_could_never_be_queued_is_too_large_and_not_early(server: Running) -> None:
    assert "60 texts" in refusal(server.post(json.dumps({"input": ["a"] * (ROOM + 1)})), 413)


def test_client_that_disconnects_frees_its_quota(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"input": TEXTS * (ROOM // len(TEXTS))}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}"
    held = Held(encoder, monkeypatch)
    server = make_server(held.app)

    async def go() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve([listener]))
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await held.wait_for(ROOM)
        writer.close()
        await held.wait_for(0)  # although the model still has its texts
        await held.close()
        server.should_exit = True
        await serving

    asyncio.run(go())
    page = held.service.telemetry.page().decode()
    assert 'embedrag_requests_total{route="/v1/embeddings",status="499"} 1.0' in page
    assert "embedrag_texts_total 0.0" in page
    computed = re.search(r"embedrag_batch_texts_sum (\S+)", page)
    assert computed and float(computed[1]) < ROOM  # those that were not at work yet are dropped


def test_sigterm_loses_no_running_request_and_takes_no_new_one(server: Running, encoder: Encoder) -> None:
    texts = HEAVY[:6]
    expected = np.repeat(encoder.encode(texts[:1], "passage"), 6, axis=0)
    clients = [server.client().embeddings for _ in range(10)]
    done = server.figure("embedrag_texts_total")
    with ThreadPoolExecutor(10) as pool:
        running = [pool.submit(client.create, model="frogs", input=texts) for client in clients]
        while server.figure("embedrag_texts_total") - done + server.figure("embedrag_queue_texts") < ROOM:
            assert server.process.poll() is None  # on a busy machine some are answered before the last one comes
        server.process.terminate()
        assert server.process.stdout
        lines = iter(server.process.stdout.readline, "")
        assert any(line.startswith("SIGTERM: running requests are finished") for line in lines)
        with contextlib.suppress(httpx.TransportError):  # when all were finished already
            assert refusal(server.post('{"input": "a"}'), 503) == "the server is stopping"
            assert server.get("/health").json() == {"status": "stopping"}
        for future in running:
            check_own(future.result(), expected)
    assert server.process.wait(60) == 0


def ask(service: EmbeddingService, path: str = "/v1/embeddings", **request: Any) -> httpx.Response:
    """A request to an application in this process."""

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(service, None), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request("POST" if request else "GET", path, **request)

    return asyncio.run(go())


def test_before_the_model_is_loaded_all_requests_get_503_and_are_not_read() -> None:
    service = EmbeddingService("frogs", "", 10)
    assert ask(service, "/health").status_code == 503
    response = ask(service, json={"input": "a"})
    assert "being loaded" in refusal(response, 503)
    assert response.headers["retry-after"] == "1"


def test_request_that_does_not_arrive_is_ended(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> Any:
        await asyncio.Event().wait()
        yield b""

    monkeypatch.setattr(admission, "READ_SECONDS", 0.01)
    service = EmbeddingService("frogs", "", 10)
    service.open(encoder, 100)
    assert "did not arrive" in refusal(ask(service, content=never()), 408)


def test_failing_model_is_a_server_error_and_the_next_request_is_answered(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encoder.vectors

    def moody(ids: Any) -> np.ndarray:
        if any(len(text) > 50 for text in ids):
            raise RuntimeError("a detail that is nobody's business")
        return real(ids)

    monkeypatch.setattr(encoder, "vectors", moody)
    service = EmbeddingService("frogs", "", 10)
    service.open(encoder, 100)
    assert refusal(ask(service, json={"input": ["a", "long " * 60]}), 500) == "the model fails on this request"
    assert ask(service, json={"input": "a"}).status_code == 200
