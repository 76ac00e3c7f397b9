"""`serve` and its command: what is refused before the model is loaded, how a server begins, and how it ends."""

from __future__ import annotations

import importlib.util
import os
import queue
import re
import shutil
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from embedrag.cli import main  # noqa: E402
from embedrag.commands.serve import ServeOptions  # noqa: E402
from embedrag.errors import UserError  # noqa: E402
from embedrag.serving import app as server_module  # noqa: E402
from embedrag.serving.embedding_service import EmbeddingService  # noqa: E402
from embedrag.serving.listener import listen  # noqa: E402
from embedrag.serving.run import BACKENDS, serve  # noqa: E402


def test_options_name_the_backends_that_there_are() -> None:
    assert get_args(ServeOptions.model_fields["backend"].annotation) == BACKENDS


@pytest.mark.parametrize(("words", "restricted"), [([], True), (["--api_key", "k"], False), (["--no_api_key"], False)])
def test_command_restricts_who_may_ask_when_there_is_no_key(
    words: list[str], restricted: bool, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def make(service: EmbeddingService, key: str | None, own_names_only: bool, origins: list[str]) -> None:
        asked.append(own_names_only)
        raise UserError("enough")

    monkeypatch.setattr(server_module, "make_app", make)
    assert main(["serve", "--model", folder, "--port", "0", *words]) == 2
    assert asked == [restricted]


@pytest.mark.parametrize(
    ("words", "key", "part"),
    [
        (["--host", "0.0.0.0"], None, "--host 0.0.0.0: others could reach the server; set EMBEDRAG_API_KEY"),
        (["--host", "a..b"], "k", "--host a..b: no such address"),
        (["--host", "192.0.2.1"], "k", "--host 192.0.2.1"),
        (["--api_key", ""], None, "--api_key or EMBEDRAG_API_KEY: empty"),
        ([], "", "--api_key or EMBEDRAG_API_KEY: empty"),
        (["--cors_allow_origin", "*"], None, "--cors_allow_origin *: every web page could use the server"),
        (["--cors_allow_origin", "chat.example"], "k", "--cors_allow_origin chat.example: must be scheme and host"),
        (["--port", "70000"], None, "--port"),
        (["--max_queue", "0"], None, "--max_queue"),
        (["--backend", "onnx"], None, "no export with onnx/model.onnx; write it with embedrag export"),
        (["--backend", "onnx_int8"], None, "embedrag export --int8"),
        (["--backend", "onnx", "--dtype", "bfloat16"], None, "--dtype bfloat16: works only with --backend torch"),
        (["--model", "/no/such/folder"], None, "--model /no/such/folder"),
        (["--model", __file__], None, "test_run.py: this is a file; name the folder that holds it"),
    ],
)
def test_wrong_flag_is_reported_before_the_model_is_loaded(
    words: list[str], key: str | None, part: str, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("embedrag.serving.run.load_model", None)
    if key is not None:
        monkeypatch.setenv("EMBEDRAG_API_KEY", key)
    model = [] if "--model" in words else ["--model", folder]
    assert main(["serve", "--port", "0", *model, *words]) == 2
    assert part in capsys.readouterr().err


def test_signal_while_the_model_is_loaded_ends_the_process_at_once(
    folder: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    loading, statuses, exits = threading.Event(), [], []

    def slow(*_: object) -> None:
        statuses.append(httpx.get(f"http://127.0.0.1:{port}/health").status_code)
        os.kill(os.getpid(), signal.SIGTERM)
        loading.wait()

    monkeypatch.setattr("embedrag.serving.run.load_model", slow)
    monkeypatch.setattr(os, "_exit", exits.append)
    main(["serve", "--model", folder, "--port", str(port)])
    loading.set()
    assert (statuses, exits) == ([503], [0])
    assert capfd.readouterr().out.startswith("SIGTERM: running requests are finished")


def test_second_signal_ends_the_process_at_once(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []

    def asked_twice(model: str, stop: threading.Event, **_: object) -> bool:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set() and exits == []
        signal.raise_signal(signal.SIGINT)
        return True

    monkeypatch.setattr("embedrag.serving.run.serve", asked_twice)
    monkeypatch.setattr(os, "_exit", exits.append)
    before = signal.getsignal(signal.SIGINT)
    assert main(["serve", "--model", folder]) == 0
    assert exits == [130]
    assert signal.getsignal(signal.SIGINT) == before


def test_function_serves_until_stop_is_set(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr("embedrag.serving.run.say", lines.put)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(serve, folder, port=0, served_name="toads", device="cpu", stop=stop)
        url = lines.get(timeout=60).split()[1].rstrip(",")
        assert httpx.post(f"{url}/embeddings", json={"input": "a", "model": "toads"}).status_code == 200
        stop.set()
        assert ended.result(timeout=60) is True


def test_function_that_is_stopped_while_it_loads_says_so(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, stop = threading.Event(), threading.Event()
    monkeypatch.setattr("embedrag.serving.run.load_model", lambda *_: (stop.set(), loading.wait()))
    assert serve(folder, port=0, stop=stop) is False
    loading.set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"host": "0.0.0.0"},
            "`host=0.0.0.0`: others could reach the server; set EMBEDRAG_API_KEY (or give `api_key`)",
        ),
        ({"backend": "onx"}, "`backend=onx`: must be one of torch, onnx, onnx_int8; did you mean onnx?"),
        ({"backend": "onnx", "base_model_path": "x"}, "`base_model_path=x`: works only with `backend=torch`"),
        ({"api_key": " "}, "`api_key` or EMBEDRAG_API_KEY: empty"),
    ],
)
def test_function_names_the_wrong_argument(arguments: dict[str, Any], message: str, folder: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        serve(folder, port=0, **arguments)


def test_taken_port_is_reported(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", folder, "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use; name another" in capsys.readouterr().err


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        with listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_missing_library_is_reported_with_the_remedy(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    assert main(["serve", "--model", folder]) == 2
    assert "uvicorn is not installed: pip install -e '.[serve]'" in capsys.readouterr().err


def test_model_that_cant_be_loaded_ends_the_server(folder: str, tmp_path: Path, capsys: Any) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert main(["serve", "--model", str(broken), "--port", "0"]) == 2
    assert f"--model {broken}" in capsys.readouterr().err
