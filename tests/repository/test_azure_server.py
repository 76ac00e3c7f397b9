"""score.py under Azure's own inference server, in a process of its own, asked over the loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedrag.models.load import load_model

httpx = pytest.importorskip("httpx")
yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("azureml_inference_server_http") is None,
        reason="azureml-inference-server-http is not installed (extra azure)",
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="gunicorn, which serves here, does not run on Windows"),
]
DEPLOYMENT = yaml.safe_load((ROOT / "azureml" / "deployment.yml").read_text(encoding="utf-8"))
GOOD = {"texts": ["a frog", "저항의 단위는 옴이다"]}


@contextmanager
def serving(folder: Path, script: Path, **environment: str) -> Iterator[str]:
    """The server on a free port, when it is ready; its address.

    Args:
        folder: with the model in `model`; the script and the package are put beside it, as Azure does.
        script: with `init` and `run`.
        **environment: beside that of deployment.yml.
    """
    (folder / "score.py").symlink_to(script)
    (folder / "embedrag").symlink_to(ROOT / "embedrag")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "azureml_inference_server_http.amlserver", "--entry_script", "score.py"]
    process = subprocess.Popen(
        [*command, "--model_dir", str(folder / "model"), "--port", str(port)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | DEPLOYMENT["environment_variables"] | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    address = f"http://127.0.0.1:{port}"
    assert process.stdout
    try:
        said = []
        while "init has completed" not in (line := process.stdout.readline()):
            assert line, "".join(said)
            said.append(line)
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop it
        assert httpx.get(address, timeout=60).status_code == 200  # Azure's probes
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def server(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("azure")
    shutil.copytree(tiny_bert, folder / "model" / "embedrag" / "1" / "merged")
    with serving(folder, ROOT / "score.py") as address:
        yield address


def ask(server: str, body: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server}/score", content=content, headers={"Content-Type": "application/json"}, timeout=120)


@pytest.mark.parametrize("form", [lambda texts: {"texts": texts}, lambda texts: {"inputs": {"data": texts}}])
def test_both_forms_give_the_vectors_of_encode(form, server: str, tiny_bert: str) -> None:
    answer = ask(server, form(GOOD["texts"]))
    assert answer.status_code == 200
    expected = load_model(tiny_bert, "cpu").encode(GOOD["texts"], "passage")
    np.testing.assert_allclose(answer.json()["embeddings"], expected, atol=1e-5)


def test_fields_choose_size_length_and_role(server: str, tiny_bert: str) -> None:
    encoder = load_model(tiny_bert, "cpu")
    cut = np.array(ask(server, GOOD | {"dimensions": 7}).json()["embeddings"])
    assert cut.shape == (2, 7)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-5)
    raw = np.array(ask(server, GOOD | {"dimensions": 7, "normalize": False}).json()["embeddings"])
    np.testing.assert_allclose(raw, encoder.encode(GOOD["texts"], "passage")[:, :7], atol=1e-5)
    query = ask(server, GOOD | {"prompt_name": "query"}).json()["embeddings"]
    np.testing.assert_allclose(query, encoder.encode(GOOD["texts"], "query"), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b'{"texts": ["a"', "not JSON"),
        (b"", "not JSON"),
        (["a"], "must be an object"),
        ({"texts": "a"}, "texts: "),
        ({"texts": [1, 2]}, "texts.0"),
        ({"texts": []}, "at least 1"),
        ({"texts": [""]}, "texts.0: is empty"),
        ({"inputs": {"data": None}}, "inputs.data: "),
        ({"texts": ["a"] * 10_000}, "at most 2,048"),
        (GOOD | {"dimensions": 65}, "64 dimensions"),
        (GOOD | {"prompt_name": "title"}, "prompt_name"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_request_gets_400_and_the_next_one_an_answer(body: Any, part: str, server: str) -> None:
    answer = ask(server, body)
    assert answer.status_code == 400
    assert part in answer.json()["error"]
    again = ask(server, GOOD)
    assert again.status_code == 200 and len(again.json()["embeddings"]) == 2


def test_bytes_that_are_not_utf8_are_refused_by_azures_server_itself(server: str) -> None:
    answer = ask(server, b"\xff\xfe\x00")
    assert answer.status_code == 400 and "UTF-8" in answer.json()["message"]
    assert ask(server, GOOD).status_code == 200


def test_long_text_within_the_limit_is_cut_to_the_models_length(server: str) -> None:
    answer = ask(server, {"texts": ["frog " * 100_000]})
    assert answer.status_code == 200 and np.isfinite(answer.json()["embeddings"]).all()


def test_request_that_takes_too_long_ends_and_the_process_lives(tmp_path: Path) -> None:
    """SCORING_TIMEOUT_MS, as deployment.yml has it; a script that only sleeps needs no torch and starts at once."""
    assert "SCORING_TIMEOUT_MS" in DEPLOYMENT["environment_variables"]
    (tmp_path / "model").mkdir()
    script = tmp_path / "sleep.py"
    script.write_text("import time\ndef init(): pass\ndef run(raw_data): time.sleep(9)\n")
    with serving(tmp_path, script, SCORING_TIMEOUT_MS="100") as address:
        for _ in range(2):
            assert ask(address, GOOD).status_code == 500
            assert httpx.get(address).status_code == 200
