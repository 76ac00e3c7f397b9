"""mteb scores a model as we do: same prompts, same vectors, same metric. No network: the tasks are made here."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedrag.cli import main
from embedrag.commands.mteb import MtebOptions
from embedrag.data.retrieval_dataset import load_retrieval_dataset
from embedrag.errors import UserError
from embedrag.evaluation.evaluator import score as score_set
from embedrag.evaluation.metrics import ndcg
from embedrag.evaluation.mteb_adapter import MtebModel, find_tasks, fingerprint, mteb_name, score, table
from embedrag.models.encoder import Encoder
from embedrag.models.load import load_model
from embedrag.options.parsing import parse
from tests.data.test_retrieval_dataset import write_beir
from tests.evaluation.test_evaluator import Fixed

QUERIES, PASSAGES, PROMPT = 20, 60, "Instruct: find the page about it\nQuery: "
NAMES = "frog heron reed pond stone rain sun reel lamp diode".split()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models are faster so, above all beside other work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def text(number: int) -> str:
    """Texts that differ, so that no two passages tie."""
    words = np.random.default_rng(number).choice(NAMES, 6)
    return f"{' '.join(words)} {number}"


def relevant() -> dict[str, dict[str, int]]:
    """Query -> passage -> gain: one to three passages, of gains 1 and 2."""
    return {f"q{i}": {f"p{(7 * i + 11 * j) % PASSAGES}": 1 + j % 2 for j in range(1 + i % 3)} for i in range(QUERIES)}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    """A retrieval task and an STS task with data of their own, and one whose data is nowhere; name -> class."""
    pytest.importorskip("mteb", reason="the extra mteb is not installed (Python 3.11 or newer)")
    from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    from datasets import Dataset

    def described(name: str, kind: str, main_score: str) -> Any:
        return TaskMetadata(
            name=name,
            type=kind,
            main_score=main_score,
            description="made in a test",
            reference="https://example.org",
            dataset={"path": "nobody/nothing", "revision": "0"},
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            date=("2024-01-01", "2024-01-02"),
            domains=[],
            task_subtypes=[],
            license="cc-by-4.0",
            annotations_creators="derived",
            dialect=[],
            sample_creation="created",
            bibtex_citation="",
        )

    class PondRetrieval(AbsTaskRetrieval):
        metadata = described("PondRetrieval", "Retrieval", "ndcg_at_10")

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            queries = [{"id": f"q{i}", "text": text(1000 + i)} for i in range(QUERIES)]
            # half of the passages have a title, which belongs to the text
            corpus = [
                {"id": f"p{i}", "title": text(i).split()[0] * (i % 2), "text": " ".join(text(i).split()[i % 2 :])}
                for i in range(PASSAGES)
            ]
            data = {
                "queries": Dataset.from_list(queries),
                "corpus": Dataset.from_list(corpus),
                "relevant_docs": relevant(),
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    class PondSTS(AbsTaskSTS):
        metadata = described("PondSTS", "STS", "cosine_spearman")
        min_score, max_score = 0, 1

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            rows = {
                "sentence1": [text(i) for i in range(12)],
                "sentence2": [text(20 + i) for i in range(12)],
                "score": [i / 11 for i in range(12)],
            }
            self.dataset = {"test": Dataset.from_dict(rows)}
            self.data_loaded = True

    class LostRetrieval(AbsTaskRetrieval):
        metadata = described("LostRetrieval", "Retrieval", "ndcg_at_10")

    return {kind.metadata.name: kind for kind in (PondRetrieval, PondSTS, LostRetrieval)}


@pytest.fixture
def known(tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """mteb knows these tasks by their names."""
    for name, kind in tasks.items():
        monkeypatch.setitem(importlib.import_module("mteb.get_tasks")._TASKS_REGISTRY, name, kind)


@pytest.fixture(scope="module")
def prompted(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """tiny_bert as a sentence-transformers folder with a query prompt."""
    folder = tmp_path_factory.mktemp("prompted") / "bert"
    shutil.copytree(tiny_bert, folder)
    encoder = encoder_of(tiny_bert)
    encoder.embedding_config.write(folder, encoder.dimension)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": {"query": PROMPT, "document": ""}}))
    return str(folder)


@pytest.fixture(scope="module")
def adapter(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA adapter on tiny_bert that changes its vectors."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    layers = LoraConfig(r=4, lora_alpha=32, target_modules=["query", "value"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(tiny_bert), layers).save_pretrained(folder)
    return str(folder)


@cache
def encoder_of(folder: str) -> Encoder:
    return load_model(folder, "cpu")


@cache
def by_hand(folder: str) -> float:
    """nDCG@10 by numpy and embedrag.evaluation.metrics."""
    encoder = encoder_of(folder)
    queries = encoder.encode([text(1000 + i) for i in range(QUERIES)], "query")
    passages = encoder.encode([text(i) for i in range(PASSAGES)], "passage")
    order = np.argsort(-(queries @ passages.T), axis=1)
    gains = [list(found.values()) for found in relevant().values()]
    ranked = [[relevant()[f"q{i}"].get(f"p{p}", 0) for p in order[i]] for i in range(QUERIES)]
    return float(np.mean([ndcg(got, best, 10) for got, best in zip(ranked, gains, strict=True)]))


@cache
def by_mteb(folder: str, name: str = "PondRetrieval") -> float:
    return score(MtebModel(encoder_of(folder)), find_tasks([name]))[0][name]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3", "prompted", "adapter"])
def test_ndcg_of_mteb_is_ours(model: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    ours = by_hand(folder)
    assert 0.01 < ours < 0.99, "a ranking that shows nothing"
    assert by_mteb(folder) == pytest.approx(ours, abs=2e-5)


@pytest.mark.usefixtures("known")
def test_figures_of_a_set_like_arguana_are_those_of_mteb(tmp_path: Path) -> None:
    """Queries are passages under the same id, some judged ids lead nowhere, and some passages are there twice."""
    pytest.importorskip("mteb", reason="the extra mteb is not installed (Python 3.11 or newer)")
    from mteb._evaluators import RetrievalEvaluator

    draw = np.random.default_rng(0)
    vectors = {f"text {number}": draw.standard_normal(8) for number in range(50)}
    passages = {f"d{number}": f"text {number % 45}" for number in range(60)}
    queries = {f"d{number}": f"text {number}" for number in range(12)}
    qrels = [(query, f"d{place}", int(draw.integers(1, 3))) for query in queries for place in draw.permutation(80)[:4]]
    qrels = [(query, passage, grade) for query, passage, grade in qrels if query != passage]
    data = load_retrieval_dataset(write_beir(tmp_path / "set", queries, passages, [*qrels, ("gone", "d1", 1)]))
    ours = score_set(Fixed(vectors), data, [1, 3, 10])
    unit = {text: vector / np.linalg.norm(vector) for text, vector in vectors.items()}
    run = {
        query: {name: float(unit[text] @ unit[other]) for name, other in passages.items()}
        for query, text in queries.items()
    }
    judged: dict[str, dict[str, int]] = {}
    for query, passage, grade in qrels:
        judged.setdefault(query, {})[passage] = grade
    theirs = RetrievalEvaluator.evaluate(None, judged, run, [1, 3, 10], ignore_identical_ids=True)
    for name, means in (("ndcg", theirs.ndcg), ("recall", theirs.recall), ("map", theirs.map), ("mrr", theirs.mrr)):
        for key, value in means.items():
            k = key.rsplit("@", 1)[1]
            assert ours.metrics[f"{name}@{k}"].mean() == pytest.approx(value, abs=6e-6), key  # mteb rounds some
    assert data.own and data.missing and 0 < ours.metrics["ndcg@10"].mean() < 1


def test_query_prompt_and_adapter_change_the_scores(tiny_bert: str, prompted: str, adapter: str) -> None:
    plain, with_prompt, with_adapter = (by_mteb(folder) for folder in (tiny_bert, prompted, adapter))
    assert abs(plain - with_prompt) > 1e-3
    assert abs(plain - with_adapter) > 1e-3


@pytest.mark.usefixtures("known")
def test_query_prompt_is_left_out_of_tasks_without_queries(tiny_bert: str, prompted: str) -> None:
    assert by_mteb(prompted, "PondSTS") == by_mteb(tiny_bert, "PondSTS")


def test_roles_and_texts_reach_the_encoder(tasks: dict[str, Any], tiny_bert: str, monkeypatch) -> None:
    from mteb.models import CrossEncoderProtocol, EncoderProtocol, SearchProtocol

    model = MtebModel(encoder_of(tiny_bert))
    assert isinstance(model, EncoderProtocol)
    assert not isinstance(model, SearchProtocol | CrossEncoderProtocol)
    seen: dict[str, list[str]] = {}
    encode = model.encoder.encode
    monkeypatch.setattr(
        model.encoder,
        "encode",
        lambda texts, role, progress: seen.setdefault(role, []).extend(texts) or encode(texts, role, progress),
    )
    score(model, [tasks["PondRetrieval"]()])
    assert seen["query"] == [text(1000 + i) for i in range(QUERIES)]
    assert seen["passage"] == [text(i) for i in range(PASSAGES)]


def test_vectors_without_unit_length_are_compared_by_cosine(tasks: dict[str, Any], tiny_bert: str) -> None:
    model = MtebModel(encoder_of(tiny_bert))
    a, b = np.array([[3.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 2.0], [5.0, 5.0]])
    half = 0.5**0.5
    assert np.allclose(model.similarity(a, b), [[0, half], [half, 1]], atol=1e-6)
    assert np.allclose(model.similarity_pairwise(a, b), [0, 1], atol=1e-6)


def test_fingerprint_depends_on_weights_and_embedding_config(tiny_bert: str, prompted: str, adapter: str) -> None:
    own = load_model(tiny_bert, "cpu")
    first, again, *others = map(fingerprint, (own, *map(encoder_of, (tiny_bert, prompted, adapter))))
    assert first == again
    assert len({first, *others}) == 3
    next(own.backbone.parameters()).data[0, 0] += 1e-6
    assert fingerprint(own) != first


def test_folder_and_hub_id_get_names_that_mteb_takes(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "final"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").touch()
    assert mteb_name(str(folder)) == mteb_name(str(folder / "adapter_model.safetensors")) == "run/final"
    assert mteb_name("owner/name") == "owner/name"


# The command


@pytest.mark.usefixtures("known")
def test_command_prints_both_models_and_writes_json(tiny_bert: str, adapter: str, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    words = ["mteb", "--model", adapter, "--baseline", tiny_bert, "--tasks", "PondRetrieval", "PondSTS"]
    assert main([*words, "--output_dir", str(output), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    rows = {
        line.split()[0]: line.split()
        for line in shown.splitlines()
        if line.startswith(("Pond", "mean")) and ": " not in line
    }
    assert list(rows) == ["PondRetrieval", "PondSTS", "mean"]
    base, tuned = by_hand(tiny_bert), by_hand(adapter)
    assert [float(cell) for cell in rows["PondRetrieval"][2:]] == pytest.approx([base, tuned, tuned - base], abs=1e-4)
    files = sorted(output.glob("results/*/*/PondRetrieval.json"))
    assert len(files) == 2
    stored = {json.loads(path.read_text())["scores"]["test"][0]["ndcg_at_10"] for path in files}
    assert sorted(stored) == pytest.approx(sorted([base, tuned]), abs=2e-5)


@pytest.mark.usefixtures("known")
def test_finished_tasks_are_taken_from_the_folder_but_never_those_of_other_weights(
    tiny_bert: str, adapter: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    calls = []
    encode = MtebModel.encode
    monkeypatch.setattr(MtebModel, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k))
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    words = ["mteb", "--model", str(folder), "--tasks", "PondRetrieval", "--output_dir", str(tmp_path / "out")]
    assert main(words) == 0 and len(calls) == 2
    first = capsys.readouterr().out
    assert main(words) == 0 and len(calls) == 2
    assert capsys.readouterr().out == first
    shutil.rmtree(folder)
    shutil.copytree(adapter, folder)
    assert main(words) == 0 and len(calls) == 4
    assert capsys.readouterr().out != first


@pytest.mark.usefixtures("known")
def test_unreadable_data_is_one_line_and_does_not_stop_other_tasks(tiny_bert: str, capsys) -> None:
    words = ["mteb", "--model", tiny_bert, "--baseline", tiny_bert, "--tasks", "LostRetrieval", "PondRetrieval"]
    assert main(words) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "LostRetrieval: its data (nobody/nothing) can't be read: " in errors[0]
    assert "Traceback" not in captured.err
    assert f"{by_hand(tiny_bert):.4f}" in captured.out and "+0.0000" in captured.out


@pytest.mark.usefixtures("known")
def test_all_unknown_names_and_languages_are_reported_with_near_misses() -> None:
    with pytest.raises(UserError) as error:
        find_tasks(["SciFcat", "PondRetrieval", "Nfcorpus", "CIFAR10"], ["english"])
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert "`languages=english`" in lines[0] and "deu" in lines[0]
    assert lines[1].endswith("did you mean SciFact?") and lines[2].endswith("did you mean NFCorpus?")
    assert "image" in lines[3]


@pytest.mark.usefixtures("known")
def test_languages_cut_a_task_to_its_subsets() -> None:
    (task,) = find_tasks(["STS22.v2"], ["deu"])
    assert task.hf_subsets and all("de" in subset for subset in task.hf_subsets)
    with pytest.raises(UserError, match="PondRetrieval has none of these; it has eng"):
        find_tasks(["PondRetrieval"], ["deu"])


def test_table_without_baseline_has_one_score(tasks: dict[str, Any]) -> None:
    shown = table([tasks["PondRetrieval"]()], [{"PondRetrieval": 0.5}])
    assert shown.splitlines()[0].split() == ["task", "score", "model"] and "mean" not in shown


def test_missing_package_is_reported_with_the_pip_command(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    assert main(["mteb", "--model", "m", "--tasks", "SciFact"]) == 2
    assert 'pip install "mteb' in capsys.readouterr().err


def test_options_need_model_and_tasks() -> None:
    with pytest.raises(UserError) as error:
        parse(MtebOptions, [], "mteb", "")
    assert "`model`: is required" in str(error.value) and "`tasks`: is required" in str(error.value)
