"""A model as ONNX: a folder with all that is needed to serve it, and the proof that it gives the same vectors.

Before the output folder appears, the probe texts are embedded by the model itself (torch, one by one) and by each ONNX
file, single (one by one) and batched (all together, padded to the longest). `onnx/model.onnx` must give the same
vectors. For 8 bits the difference is only reported.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from embedrag import __version__
from embedrag.data.retrieval_dataset import RetrievalDataset, load_retrieval_dataset
from embedrag.data.token_batch import TokenBatch
from embedrag.errors import RunError, UserError, need
from embedrag.evaluation.evaluator import score
from embedrag.evaluation.significance import comparison, sentence
from embedrag.export.onnx_encoder import LENGTHS, OnnxEncoder
from embedrag.export.onnx_graph import write_graph, write_int8
from embedrag.models.artifacts import EXPORT_CONFIG, ONNX_FILES
from embedrag.models.base_model import model_name
from embedrag.models.encoder import Encoder, TextEncoder
from embedrag.models.equivalence import SAME, Closeness, closeness, embed_probes, read_probes
from embedrag.models.load import load_model
from embedrag.models.quantization import QuantizationConfig
from embedrag.models.save import add_older_names
from embedrag.runtime.console import now
from embedrag.runtime.files import atomic_folder, check_folder, overlap, write_json
from embedrag.runtime.paths import copy_code
from embedrag.weights.adapter_file import adapter_in

LOWEST_COSINE = 0.9999
PROBE_CHARACTERS = 2000  # all probe texts must fit in memory as one batch, attention matrices included
QUANTIZED = "onnx/model_quantized.onnx"  # where transformers.js looks for 8 bits (`dtype: "q8"`)
METRIC, CUTOFF = "ndcg@10", 10


@dataclass(frozen=True)
class ExportedFile:
    """An ONNX file, and how it compares with the model.

    Attributes:
        path: in the output folder.
        bytes: its size, with the file of its weights if there is one.
        to_model: its vectors, single and batched, compared with the model's.
        single_to_batched: its vectors of single texts, compared with those of the same texts in one batch. With 8 bits
            they differ, because the activations of a whole batch have one scale.
        comparison: nDCG@10 of the file, compared with the model's; None without `data`.
    """

    path: str
    bytes: int
    to_model: Closeness
    single_to_batched: Closeness
    comparison: dict[str, Any] | None


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote.

    Attributes:
        output: the folder.
        files: the ONNX files in it.
        queries: number of queries that the files were compared on; 0 without `data`.
    """

    output: Path
    files: tuple[ExportedFile, ...]
    queries: int

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for file in self.files:
            name = Path(file.path).name
            yield (
                f"{name}: {file.bytes / 1e6:,.1f} MB; against the model: {file.to_model}; "
                f"single texts against a batch: {file.single_to_batched}"
            )
            if file.comparison:
                yield f"{name}: {sentence(file.comparison, self.queries)}"
        yield f"done: {self.output}"


def export(
    model: str,
    output: str,
    *,
    int8: bool = False,
    data: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> ExportReport:
    """Write a model as ONNX; the folder appears when its vectors are proved to be right.

    Args:
        model: merged or full model folder, or hub id.
        output: folder to write.
        int8: write a second file with weights of 8 bits.
        data: a retrieval data set; the model and its files are scored on it.
        overwrite: replace the folder, if it is an export.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        UserError: a wrong argument, or a model that can't be exported; nothing was written.
        RunError: the graph gives other vectors, or the disk is full; no output folder is left.
    """
    need("onnx", "onnx", "onnxruntime", "onnxscript")
    model = model_name(model, "model")
    target, source = Path(output).expanduser(), Path(model).expanduser()
    check_folder("output", target, overwrite, EXPORT_CONFIG, "exports")
    if adapter_in(source):
        raise UserError("an adapter; merge it first, and export the merged model", "model", model)
    if source.is_dir() and overlap(target, source):
        raise UserError(f"overlaps the model's folder {source}; name another folder", "output", output)
    retrieval = load_retrieval_dataset(data) if data else None
    encoder = load_model(model, "cpu", trust_remote_code=trust_remote_code)
    if quantization := QuantizationConfig.of(encoder.backbone):
        reason = f"its weights are quantised already ({quantization}), and ONNX has no such layers"
        remedy = "export the model that it was made from, or merge an adapter into it and export the result"
        raise UserError(f"{reason}; {remedy}", "model", model)
    reference = _Reference.of(encoder, source, retrieval)
    with atomic_folder(target) as folder:
        (folder / "onnx").mkdir()
        _write_surroundings(encoder, source, folder, trust_remote_code)
        names = ("onnx", "onnx_int8") if int8 else ("onnx",)
        paths = [folder / ONNX_FILES[name] for name in names]
        write_graph(encoder, paths[0], model)
        if int8:
            write_int8(paths[0], paths[1])
            _second_name(paths[1], folder / QUANTIZED)
        files = tuple(reference.compare(OnnxEncoder(path, encoder.tokenizer, "cpu"), path, folder) for path in paths)
        write_json(folder / EXPORT_CONFIG, _record(model, encoder, len(reference.probes), files))
    return ExportReport(target, files, len(retrieval.queries) if retrieval else 0)


@dataclass(frozen=True)
class _Reference:
    """What the exported files are compared with.

    Attributes:
        probes: (role, text) of n probe texts.
        vectors: [n, D] of the model for them.
        data: for the scores; None: no scores.
        ndcg: [q] of the model.
    """

    probes: list[tuple[str, str]]
    vectors: np.ndarray
    data: RetrievalDataset | None
    ndcg: np.ndarray | None

    @classmethod
    def of(cls, encoder: TextEncoder, source: Path, data: RetrievalDataset | None) -> _Reference:
        """The vectors and scores of the model itself."""
        probes = [(role, text[:PROBE_CHARACTERS]) for role, text in read_probes(source)]
        return cls(probes, embed_probes(encoder, probes), data, _ndcg(encoder, data, "torch") if data else None)

    def compare(self, exported: OnnxEncoder, path: Path, folder: Path) -> ExportedFile:
        """Compare a file; raise RunError when it must be exact and is not."""
        single, batched = single_and_batched(exported, self.probes)
        to_model = closeness(np.concatenate([single, batched]), np.concatenate([self.vectors, self.vectors]))
        if path == folder / ONNX_FILES["onnx"]:
            check(to_model, self.vectors)
        row = None
        if self.data is not None and self.ndcg is not None:
            [row] = comparison({METRIC: self.ndcg}, {METRIC: _ndcg(exported, self.data, path.name)})
        size = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
        return ExportedFile(str(path.relative_to(folder)), size, to_model, closeness(single, batched), row)


def check(found: Closeness, expected: np.ndarray) -> None:
    """Raise RunError when an export does not give the vectors [n, D] of the model.

    Some models give all texts nearly the same vector, so any two of their vectors have a high cosine. Therefore the
    difference must also be small compared with the difference between texts.
    """
    between_texts = float(np.ptp(expected, axis=0).max())
    # Written so that a figure that is not a number fails too.
    if not (found.min_cosine >= LOWEST_COSINE and found.max_abs_difference <= max(between_texts / 10, SAME)):
        raise RunError(
            f"the exported graph does not give the model's vectors: {found}. The cosine must be at least "
            f"{LOWEST_COSINE}, and the difference at most a tenth of the difference between texts "
            f"({between_texts:.1e}). No output was left"
        )


def single_and_batched(exported: OnnxEncoder, probes: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """[n, D] of probe texts, each in a batch of its own; and [n, D] of the same texts in one batch."""
    ids = [exported.tokenizer(role, [text])[0] for role, text in probes]
    return embed_probes(exported, probes), exported.batch(TokenBatch.from_lists(ids))


def _second_name(file: Path, other: Path) -> None:
    """A second name of a file, without a second copy where the disk allows it."""
    try:
        other.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, other)


def _record(model: str, encoder: Encoder, probes: int, files: tuple[ExportedFile, ...]) -> dict[str, Any]:
    """The contents of export_config.json."""
    record: dict[str, Any] = {"model": model, "time": now()}
    record["lengths"] = {name: getattr(encoder.embedding_config, name) for name in LENGTHS}
    record["probe_texts"] = probes
    record["files"] = {}
    for file in files:
        entry: dict[str, Any] = {"bytes": file.bytes, "to_model": vars(file.to_model)}
        entry["single_to_batched"] = vars(file.single_to_batched)
        record["files"][file.path] = entry | ({"comparison": file.comparison} if file.comparison else {})
    packages = ("torch", "transformers", "onnx", "onnxruntime")
    record["environment"] = {"embedrag": __version__} | {name: version(name) for name in packages}
    return record


def _write_surroundings(encoder: Encoder, source: Path, folder: Path, trust_remote_code: bool) -> None:
    """Tokenizer and configuration, so that the folder is a sentence-transformers folder."""
    backbone: Any = encoder.backbone
    backbone.config.save_pretrained(folder)
    # Padded on the right: there every graph gives the right vectors, also a graph with learnt positions.
    encoder.tokenizer.tokenizer.padding_side = "right"
    encoder.tokenizer.save(folder)
    add_older_names(folder)
    encoder.embedding_config.write(folder, encoder.width, encoder.head)
    if trust_remote_code:
        copy_code(source, folder)


def _ndcg(encoder: TextEncoder, data: RetrievalDataset, title: str) -> np.ndarray:
    """[q] nDCG@10."""
    return score(encoder, data, [CUTOFF], title).metrics[METRIC]
