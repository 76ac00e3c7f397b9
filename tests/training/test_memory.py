"""The budget follows the memory, names what does not fit, and gives way when memory runs out."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embedrag.cli import main
from embedrag.data.token_batch import TokenBatch
from embedrag.errors import is_out_of_memory
from embedrag.runtime.distributed import ProcessGroup
from embedrag.training import memory as budget
from embedrag.training.grad_cache import CachedVectors, GradCache
from embedrag.training.memory import TokenBudget, graph_bytes, longest_texts, measure_budget, memory_sizes
from tests.training.test_grad_cache import encoder_of

CPU = torch.device("cpu")


def texts(*lengths: int) -> TokenBatch:
    return TokenBatch.from_lists([[7] * length for length in lengths])


def test_graph_grows_with_the_tokens_and_nothing_else(tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert)
    one, four = graph_bytes(encoder, texts(50)), graph_bytes(encoder, texts(50, 50, 50, 50))
    assert abs(four / one - 4) < 0.2
    hidden, layers = 64, 2
    assert one > 50 * layers * 10 * hidden * 4  # ten vectors a token and layer at the very least
    state = torch.get_rng_state()
    graph_bytes(encoder, texts(50))
    assert torch.equal(state, torch.get_rng_state())


def test_measured_bytes_are_those_that_the_process_grows_by(minilm: str) -> None:
    """Against the resident memory of this process, which is coarse."""
    import psutil

    encoder, batch = encoder_of(minilm), texts(*[128] * 32)
    expected = graph_bytes(encoder, batch)
    before = psutil.Process().memory_info().rss
    result = encoder(batch)
    grown = psutil.Process().memory_info().rss - before
    del result
    assert 0.5 < grown / expected < 2


def test_memory_keeps_within_the_limits_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import psutil

    monkeypatch.setattr(budget, "CGROUP", tmp_path)
    free, total = memory_sizes(CPU)
    assert 0 < free <= total <= psutil.virtual_memory().total
    used = psutil.Process().memory_info().vms
    asked = {resource.RLIMIT_AS: (used + 1_000_000, -1), resource.RLIMIT_DATA: (resource.RLIM_INFINITY, -1)}
    with monkeypatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda which: asked[which])
        assert memory_sizes(CPU)[0] < 2_000_000 and memory_sizes(CPU)[1] == min(total, used + 1_000_000)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    assert memory_sizes(CPU) == (1500, 5000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_sizes(CPU)[0] > 2_000_000


def test_halving_stops_at_the_longest_text() -> None:
    budgets, current = [], TokenBudget()
    while smaller := current.halved(largest=1000, least=100):
        current = smaller
        budgets.append(current.tokens)
    assert budgets == [500, 250, 125, 100]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_errors_that_mean_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


@pytest.fixture
def data(write_jsonl: Callable[..., Path], rows: list[dict[str, object]]) -> Path:
    long = {"query": "one long text", "pos": ["frog " * 80], "neg": []}
    return write_jsonl([*rows, long])


def train(model: str, data: Path, output: Path, *words: str) -> list[dict[str, float]]:
    fixed = ["--model_name_or_path", model, "--train_dataset", str(data), "--output_dir", str(output), "--use_cpu"]
    settings = ["--batch_size", "13", "--epochs", "2", "--finetune_type", "lora", "--lr", "1e-2", "--temperature", "1"]
    assert main(["train", *fixed, *settings, *words]) == 0
    return json.loads((output / "detailed_training_logs.json").read_text())["step_logs"]


def test_budget_from_memory_fits_it(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, store = encoder_of(tiny_bert), store_of(tiny_bert, data, tmp_path)
    each = graph_bytes(encoder, store.batch(longest_texts(store, budget.PROBE_TOKENS)))
    tokens = len(store.batch(longest_texts(store, budget.PROBE_TOKENS)).input_ids)
    trained = sum(p.numel() for p in encoder.parameters())
    free = int((1000 * each / tokens + 12 * trained) / 0.6)
    monkeypatch.setattr(budget, "memory_sizes", lambda device: (free, 1 << 40))
    found, line = measure_budget(encoder, store, None)
    assert abs((found.tokens or 0) - 1000) <= 1
    assert f"{found.tokens:,}" in line
    monkeypatch.setattr(budget, "memory_sizes", lambda device: (0, 0))
    assert measure_budget(encoder, store, None)[0].tokens == 82  # the longest text


def test_chunks_follow_the_memory_of_the_machine_and_not_what_is_free_of_it(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How texts are cut changes the masks of dropout and the order of sums, so other programs must not change it."""
    encoder, store = encoder_of(tiny_bert), store_of(tiny_bert, data, tmp_path)

    def measured(free: int, total: int) -> tuple[TokenBudget, str]:
        monkeypatch.setattr(budget, "memory_sizes", lambda device: (free, total))
        return measure_budget(encoder, store, None)

    gibibyte = 1 << 30
    plenty, half = measured(8 * gibibyte, 8 * gibibyte)[0], measured(4 * gibibyte, 8 * gibibyte)[0]
    assert plenty.tokens != half.tokens and plenty.chunk == half.chunk == encoder.chunk_tokens
    weights = sum(parameter.nbytes for parameter in encoder.parameters())
    trained = 12 * sum(parameter.numel() for parameter in encoder.parameters())
    small = weights + int((trained + 3000 * (plenty.token_bytes or 0)) / 0.3)
    idle, busy = measured(small, small)[0], measured(int(small * 0.9), small)[0]
    assert (idle.tokens or 0) > (busy.tokens or 0) > 2048 == idle.chunk == busy.chunk
    short, line = measured(trained // 3 * 5 + int(1000 * (plenty.token_bytes or 0)), small)
    assert short.chunk == 512 and "the chunks have 512 tokens instead of 2,048" in line


def store_of(model: str, data: Path, cache: Path) -> object:
    from embedrag.data.tokenization import open_store

    return open_store([str(data)], encoder_of(model).tokenizer, "key", cache / "store")[0]


def test_budget_below_the_longest_text_is_an_error_that_names_it(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", str(data), "--output_dir", str(tmp_path / "out")]
    assert main(["train", *words, "--batch_size", "4", "--use_cpu", "--token_budget", "20"]) == 2
    message = capsys.readouterr().err
    assert "--token_budget 20" in message and f"{data}:13" in message and "at least 82" in message
    assert not (tmp_path / "out").exists()


def test_small_budget_trains_to_the_same_losses(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    plain = train(tiny_bert, data, tmp_path / "plain", "--lora_dropout", "0")
    small = train(tiny_bert, data, tmp_path / "small", "--lora_dropout", "0", "--token_budget", "90")
    assert [row["recomputed_share"] for row in plain] == [0, 0]
    assert all(row["recomputed_share"] > 0.5 for row in small)
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(plain, small, strict=True)]
    assert max(differences) < 1e-5 < abs(plain[0]["loss"] - plain[1]["loss"])


def test_step_that_runs_out_of_memory_is_repeated_with_half_the_budget(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--token_budget", "600", "--lora_dropout", "0.3"]
    expected = train(tiny_bert, data, tmp_path / "expected", *words)
    whole = GradCache.embed
    calls = []

    def fails_at_first(self: GradCache, tokens: TokenBatch, processes: ProcessGroup) -> CachedVectors:
        calls.append(self.budget.tokens)
        found = whole(self, tokens, processes)  # draws the masks of dropout, which the repeated step must draw again
        if (self.budget.tokens or 0) > 200:
            raise torch.OutOfMemoryError("out of memory")
        return found

    monkeypatch.setattr(GradCache, "embed", fails_at_first)
    repeated = train(tiny_bert, data, tmp_path / "repeated", *words)
    assert "memory ran out in step 1" in capsys.readouterr().out
    assert 200 >= calls[-1] > 82
    assert len(repeated) == len(expected)
    assert repeated[0]["recomputed_share"] > 0


def test_memory_that_is_short_even_for_one_text_ends_the_run_with_advice(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: GradCache, tokens: TokenBatch, processes: ProcessGroup) -> CachedVectors:
        raise MemoryError

    monkeypatch.setattr(GradCache, "embed", fails)
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", str(data), "--output_dir", str(tmp_path / "out")]
    assert main(["train", *words, "--batch_size", "4", "--use_cpu", "--no_self_test", "--token_budget", "200"]) == 1
    message = capsys.readouterr().err
    assert "memory ran out in step 1" in message and "--gradient_checkpointing" in message
    assert "Traceback" not in message


def test_memory_that_is_short_outside_of_the_passes_ends_the_run_with_advice(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", fails)
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", str(data), "--output_dir", str(tmp_path / "out")]
    assert main(["train", *words, "--batch_size", "4", "--use_cpu", "--finetune_type", "lora"]) == 1
    message = capsys.readouterr().err
    assert "memory ran out" in message and "--optimizer adamw8bit" in message and "Traceback" not in message
