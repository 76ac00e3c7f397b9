"""Clients of other servers, at the addresses and with the fields that they use without being asked."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from embedrag.models.encoder import Encoder
from embedrag.serving.app import ROUTES, make_app
from embedrag.serving.embedding_service import EmbeddingService
from embedrag.serving.openai_protocol import EmbeddingsRequest, read_embeddings_request
from embedrag.serving.request import CUT, MAX_CHARACTERS
from embedrag.serving.run import serve

TEXTS = ["a frog", "저항의 단위는 옴이다", "x"]
KEY = "a-key"


class InProcess:
    """The application without a port; each call is one event loop."""

    def __init__(self, encoder: Encoder, **settings: Any) -> None:
        self.service = EmbeddingService("frogs", "folder", 5000, settings.pop("trained_dims", None))
        self.service.open(encoder, 4096)
        self.app = make_app(self.service, KEY, **settings)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                sent = {"Authorization": f"Bearer {KEY}"} | headers
                content = body if isinstance(body, bytes) or body is None else json.dumps(body)
                return await client.request(method, path, content=content, headers=sent)

        return asyncio.run(go())

    def vectors(self, body: Any, path: str = "/v1/embeddings") -> np.ndarray:
        answer = self.ask("POST", path, body)
        assert answer.status_code == 200, answer.text
        return np.array([item["embedding"] for item in answer.json()["data"]])


@pytest.fixture(scope="module")
def server(encoder: Encoder) -> Iterator[InProcess]:
    running = InProcess(encoder)
    yield running
    asyncio.run(running.service.close())


PATHS = ["/v1/embeddings", "/embeddings", "/openai/v1/embeddings", "/openai/deployments/frogs/embeddings?api-version=1"]


@pytest.mark.parametrize("path", PATHS)
def test_every_address_of_openais_protocol_gives_the_same_vectors(
    path: str, server: InProcess, encoder: Encoder
) -> None:
    np.testing.assert_allclose(server.vectors({"input": TEXTS}, path), encoder.encode(TEXTS, "passage"), atol=1e-5)


def test_requests_are_counted_and_timed_by_the_address_of_their_route(server: InProcess) -> None:
    def figures() -> tuple[int, int]:
        lines = server.ask("GET", "/metrics", None).text.splitlines()
        counted = [line for line in lines if 'route="/openai/deployments/{name}/embeddings",status="200"' in line]
        timed = [line for line in lines if line.startswith("embedrag_request_seconds_count")]
        return sum(int(float(line.split()[-1])) for line in counted), int(float(timed[0].split()[-1]))

    before = figures()
    server.vectors({"input": TEXTS}, "/openai/deployments/frogs/embeddings")
    server.ask("GET", "/health", None)
    assert figures() == (before[0] + 1, before[1] + 1)


def test_deployments_of_azure_are_models_and_their_key_has_its_own_header(server: InProcess, encoder: Encoder) -> None:
    path = "/openai/deployments/frogs:query/embeddings"
    found = server.vectors({"input": TEXTS, "model": "text-embedding-3-small"}, path)
    np.testing.assert_allclose(found, encoder.encode(TEXTS, "query"), atol=1e-5)
    assert server.ask("POST", path.replace("frogs", "toads"), {"input": "a"}).status_code == 404
    right, wrong = {"api-key": KEY}, {"api-key": "wrong"}
    for headers, status in ((right, 200), (wrong, 401), (right | {"Authorization": "Bearer wrong"}, 401)):
        sent = {"Authorization": ""} | headers
        if not sent["Authorization"]:
            del sent["Authorization"]

        async def go(sent: dict[str, str] = sent) -> int:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://x") as client:
                return (await client.post(path, json={"input": "a"}, headers=sent)).status_code

        assert asyncio.run(go()) == status


def test_azures_client_works_as_it_is(server: InProcess, encoder: Encoder) -> None:
    async def go() -> Any:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(server.app))
        client = openai.AsyncAzureOpenAI(
            azure_endpoint="http://x", api_key=KEY, api_version="2024-10-21", http_client=http
        )
        return await client.embeddings.create(model="frogs", input=TEXTS)

    found = asyncio.run(go())
    np.testing.assert_allclose([item.embedding for item in found.data], encoder.encode(TEXTS, "passage"), atol=1e-5)


def test_routes_of_text_embeddings_inference(server: InProcess, encoder: Encoder) -> None:
    body = {
        "inputs": TEXTS,
        "normalize": True,
        "truncate": True,
        "prompt_name": "query",
        "truncation_direction": "Right",
    }
    answer = server.ask("POST", "/embed", body)
    np.testing.assert_allclose(answer.json(), encoder.encode(TEXTS, "query"), atol=1e-5)
    assert np.shape(server.ask("POST", "/embed", {"inputs": "a", "dimensions": 5}).json()) == (1, 5)
    assert "inputs" in server.ask("POST", "/embed", {"inputs": []}).json()["error"]["message"]
    assert server.ask("POST", "/", {"inputs": "a"}).json() == server.ask("POST", "/embed", {"inputs": "a"}).json()
    info = server.ask("GET", "/info").json()
    assert (info["model_id"], info["max_input_length"], info["max_client_batch_size"]) == ("frogs", 512, 2048)


def test_routes_of_ollama(server: InProcess, encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS, "passage")
    settings = {"model": "frogs:latest", "truncate": True, "options": {"num_ctx": 4096}, "keep_alive": "5m"}
    answer = server.ask("POST", "/api/embed", settings | {"input": TEXTS}).json()
    np.testing.assert_allclose(answer["embeddings"], expected, atol=1e-5)
    assert answer["prompt_eval_count"] > 3
    one = server.ask("POST", "/api/embeddings", {"model": "frogs", "prompt": TEXTS[1]}).json()
    np.testing.assert_allclose(one["embedding"], expected[1], atol=1e-5)
    assert [model["name"] for model in server.ask("GET", "/api/tags").json()["models"]][0] == "frogs"
    assert server.ask("POST", "/api/embed", {"model": "toads:latest", "input": "a"}).status_code == 404


def test_empty_text_has_a_vector_where_clients_strip_texts(server: InProcess, encoder: Encoder) -> None:
    """LlamaIndex strips texts for Ollama and TEI, and one blank text must not refuse the whole batch."""
    texts = ["a frog", "", "x"]
    expected = encoder.encode(texts, "passage")
    found = server.ask("POST", "/api/embed", {"model": "frogs", "input": texts}).json()["embeddings"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(server.ask("POST", "/embed", {"inputs": texts}).json(), expected, atol=1e-5)
    assert "input.1: is empty" in server.ask("POST", "/embeddings", {"input": texts}).json()["error"]["message"]


def test_root_answers_load_balancers_without_a_key_and_embeds_only_with_it(server: InProcess) -> None:
    assert server.ask("GET", "/", Authorization="none").json() == {"status": "ready"}
    assert server.ask("POST", "/", {"inputs": "a"}, Authorization="none").status_code == 401


ROLES = {"query": "query", "search_query": "query", "passage": "passage", "search_document": "passage"}


@pytest.mark.parametrize("word", ROLES)
def test_input_type_is_another_name_of_the_role(word: str, server: InProcess, encoder: Encoder) -> None:
    found = server.vectors({"input": TEXTS, "input_type": word, "truncate": "END", "truncate_prompt_tokens": -1})
    np.testing.assert_allclose(found, encoder.encode(TEXTS, ROLES[word]), atol=1e-5)


def test_two_words_for_the_same_role_are_no_contradiction() -> None:
    request = read_embeddings_request(
        b'{"input": "a", "model": "m:query", "input_type": "search_query", "task": "retrieval.query"}'
    )
    assert (request.role, request.model) == ("query", "m")


def test_ids_of_the_models_own_tokenizer_give_the_vectors_of_their_texts(server: InProcess, encoder: Encoder) -> None:
    texts = ["a frog", "frogs, herons & 12 degrees (in rain)"]
    for special in (True, False):
        ids = encoder.tokenizer.tokenizer(texts, add_special_tokens=special)["input_ids"]
        found = server.vectors({"input": ids, "tokenizer": "frogs", "prompt_name": "query"})
        np.testing.assert_allclose(found, encoder.encode(texts, "query"), atol=1e-5)
    single = server.vectors({"input": ids[0], "tokenizer": "frogs"})
    np.testing.assert_allclose(single, encoder.encode(texts[:1], "passage"), atol=1e-5)


def test_ids_of_another_tokenizer_are_refused_even_if_the_client_says_otherwise(server: InProcess) -> None:
    """`The cat sat on the mat` in cl100k_base: all of the ids are in this model's vocabulary too."""
    answer = server.ask("POST", "/v1/embeddings", {"input": [[791, 8415, 7731, 389, 279, 5634]], "tokenizer": "frogs"})
    assert answer.status_code == 400 and "no text has these ids" in answer.json()["error"]["message"]


def test_blank_text_is_a_text_and_long_text_is_cut(server: InProcess, encoder: Encoder) -> None:
    texts = ["a frog", " ", "\n", "frog " * (MAX_CHARACTERS // 4), "x"]
    np.testing.assert_allclose(server.vectors({"input": texts}), encoder.encode(texts, "passage"), atol=1e-5)


def test_work_for_a_long_text_is_bounded(server: InProcess, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = encoder.tokenizer.ids
    monkeypatch.setattr(encoder.tokenizer, "ids", lambda role, texts: seen.extend(map(len, texts)) or real(role, texts))
    server.vectors({"input": "옴" * 1_200_000})
    assert seen and max(seen) <= CUT * 512 + len("passage: ")


def test_one_text_always_fits() -> None:
    request = EmbeddingsRequest.model_validate({"input": "a" * (3 * MAX_CHARACTERS)})
    assert [len(text) for text in request.cut(32_768)] == [MAX_CHARACTERS]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_may_have_any_encoding_that_json_may_have(encoding: str) -> None:
    raw = '{"input": "저항"}'.encode(encoding)
    assert read_embeddings_request(raw).texts == ["저항"]


def test_large_bodies_are_parsed_beside_the_event_loop(server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of 8 MiB once kept everybody waiting for seconds, the health check too."""
    import threading

    from embedrag.serving import embedding_service

    threads: list[str] = []
    real = embedding_service.read_embeddings_request

    def read(*words: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(*words)

    monkeypatch.setattr(embedding_service, "read_embeddings_request", read)
    for size in (10, 2 << 20):
        body = b'{"input":[' + b"[]," * size + b"[]]}"
        assert server.ask("POST", "/v1/embeddings", body).status_code == 400
    assert threads[0] == "MainThread" and threads[1].startswith("helper")


def test_compressed_body_and_two_lengths_are_refused_with_words(server: InProcess) -> None:
    answer = server.ask("POST", "/v1/embeddings", b"\x1f\x8b\x08", **{"Content-Encoding": "gzip"})
    assert answer.status_code == 415 and "gzip is not read" in answer.json()["error"]["message"]
    answer = server.ask("POST", "/v1/embeddings", {"input": "a"}, **{"Transfer-Encoding": "chunked"})
    assert answer.status_code == 400 and answer.headers["connection"] == "close"
    assert server.ask("POST", "/v1/embeddings", {"input": "a"}, **{"Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("path", [route.path for route in ROUTES if route.method == "GET" and "{" not in route.path])
def test_probes_may_ask_for_the_head_alone(path: str, server: InProcess) -> None:
    assert server.ask("HEAD", path).status_code == 200


def test_no_path_is_redirected(server: InProcess) -> None:
    """The redirect would go to the host that the request names."""
    for path in ("/health/", "/v1/embeddings/", "/docs", "/redoc"):
        assert server.ask("GET", path, Host="evil.example").status_code in (404, 405)


def test_openapi_describes_what_a_form_needs(server: InProcess) -> None:
    page = server.ask("GET", "/openapi.json").json()
    schemes = page["components"]["securitySchemes"]
    assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
    for route in ROUTES:
        told = page["paths"][route.path.replace(":path", "")][route.method.lower()]
        assert bool(told.get("security")) == route.needs_key
        assert "default" in told["responses"] and told["description"]
    told = page["paths"]["/v1/embeddings"]["post"]
    kinds = told["requestBody"]["content"]["application/json"]["schema"]["properties"]["input"]["anyOf"]
    assert kinds[0] == {"type": "string", "minLength": 1}
    answer = told["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(server.ask("POST", "/v1/embeddings", {"input": TEXTS}).json(), answer)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"object": "list"}, answer)


def test_browsers_are_answered_only_for_named_pages(encoder: Encoder) -> None:
    running = InProcess(encoder, origins=["https://chat.example"])
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed = running.ask("OPTIONS", "/v1/embeddings", Origin="https://chat.example", **asked)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://chat.example"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    refused = running.ask("OPTIONS", "/v1/embeddings", Origin="https://evil.example", **asked)
    assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
    answer = running.ask("POST", "/v1/embeddings", {"input": "a"}, Origin="https://chat.example")
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    wrong = running.ask("POST", "/v1/embeddings", {}, Origin="https://chat.example")
    assert wrong.status_code == 400 and "access-control-allow-origin" in wrong.headers
    asyncio.run(running.service.close())


def test_dimensions_that_a_model_was_not_trained_for_are_told_once(
    encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    running = InProcess(encoder, trained_dims=[16])
    for dimensions in (16, 64, None):
        running.vectors({"input": "a", "dimensions": dimensions})
    assert "dimensions=" not in capsys.readouterr().out
    for dimensions in (7, 8):
        running.vectors({"input": "a", "dimensions": dimensions})
    assert capsys.readouterr().out.count("dimensions=7, and the folder does not say") == 1
    asyncio.run(running.service.close())


def test_64_clients_with_100_texts_each_fit_into_the_queue() -> None:
    """Batches of this size are the default of clients, and clients without retries would lose them."""
    assert inspect.signature(serve).parameters["max_queue"].default >= 64 * 100


def test_retries_that_clients_make_by_themselves_are_enough_for_a_burst(encoder: Encoder) -> None:
    """A burst of three times the queue; the model takes a second for each request."""
    service = EmbeddingService("frogs", "folder", 4)

    class Slow:
        dimension = encoder.dimension
        tokenizer = encoder.tokenizer

        def vectors(self, ids: list[list[int]]) -> np.ndarray:
            time.sleep(0.25 * len(ids))
            return encoder.vectors(ids)

    service.open(Slow(), 1)  # type: ignore[arg-type]

    async def go() -> list[Any]:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(make_app(service, KEY)))
        client = openai.AsyncOpenAI(base_url="http://x/v1", api_key=KEY, http_client=http)
        await client.embeddings.create(model="frogs", input="a frog")  # so the speed is known
        found = await asyncio.gather(*(client.embeddings.create(model="frogs", input=["a", "x"]) for _ in range(6)))
        await service.close()
        return found

    expected = encoder.encode(["a", "x"], "passage")
    for answer in asyncio.run(go()):
        np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-5)
