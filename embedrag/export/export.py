"""`embedrag export`: a model as ONNX, with all that its folder needs to be served, and the proof that it is right.

Before the output folder appears, probe texts are embedded by the model itself (torch, one by one) and by each file:
one by one, and all in one padded rectangle. `onnx/model.onnx` must give the same vectors; what 8 bits change is told.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from embedrag import __version__
from embedrag.commands.export import ExportOptions
from embedrag.data.retrieval_dataset import RetrievalDataset, load_retrieval_dataset
from embedrag.data.token_batch import TokenBatch
from embedrag.errors import RunError, UserError, flag_named, need
from embedrag.evaluation.evaluator import score
from embedrag.evaluation.result import sentence
from embedrag.evaluation.significance import comparison
from embedrag.export.onnx_encoder import LENGTHS, OnnxEncoder
from embedrag.export.onnx_graph import write_graph, write_int8
from embedrag.models.artifacts import EXPORT_CONFIG, ONNX_FILES
from embedrag.models.encoder import TextEncoder
from embedrag.models.equivalence import SAME, Closeness, closeness, embed_probes, read_probes
from embedrag.models.load import adapter_file, load_model
from embedrag.runtime.console import now, say
from embedrag.runtime.files import atomic_folder, check_folder, overlap, write_json

LOWEST_COSINE = 0.9999
PROBE_CHARACTERS = 2000  # one rectangle of all probes must fit in memory, attention matrices included
METRIC, CUTOFF = "ndcg@10", 10


def run(options: ExportOptions) -> int:
    """`embedrag export`: write the folder, and let it appear when the proof holds.

    Raises:
        UserError: for a wrong flag or a model that can't be exported; nothing was written.
        RunError: the graph gives other vectors; no output folder is left.
    """
    need("onnx", "onnx", "onnxruntime", "onnxscript")
    output, source = Path(options.output).expanduser(), Path(options.model).expanduser()
    check_folder("output", output, options.overwrite, EXPORT_CONFIG, "exports")
    if adapter_file(source):
        raise UserError(f"--model {options.model}: an adapter; merge it first (python merge.py), and export the result")
    if source.is_dir() and overlap(output, source):
        raise UserError(f"--output {output}: overlaps the model's folder {source}; name another folder")
    data = load_retrieval_dataset(options.data) if options.data else None
    with flag_named("--model", "--model_name_or_path"):
        encoder = load_model(options.model, "cpu", trust_remote_code=options.trust_remote_code)
    probes = [(role, text[:PROBE_CHARACTERS]) for role, text in read_probes(source)]
    expected = embed_probes(encoder, probes)
    ndcg = _ndcg(encoder, data, "torch") if data else None
    embedding_config = encoder.tokenizer.embedding_config
    lengths = {name: getattr(embedding_config, name) for name in LENGTHS}
    record: dict[str, Any] = {"model": options.model, "time": now(), "lengths": lengths, "probe_texts": len(probes)}
    record["files"] = {}
    with atomic_folder(output) as folder:
        (folder / "onnx").mkdir()
        _write_surroundings(encoder, source, folder)
        plain, int8 = (folder / ONNX_FILES[name] for name in ("onnx", "onnx_int8"))
        with flag_named(f"--model {options.model}", "--model"):
            write_graph(encoder, plain)
        if options.int8:
            write_int8(plain, int8)
        for file in (plain, int8) if options.int8 else (plain,):
            exported = OnnxEncoder(file, encoder.tokenizer, "cpu")
            entry = _compare(exported, file, probes, expected, ndcg, data)
            record["files"][str(file.relative_to(folder))] = entry
        record["environment"] = {"embedrag": __version__} | {
            name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")
        }
        write_json(folder / EXPORT_CONFIG, record)
    say(f"done: {output}")
    return 0


def check(found: Closeness, expected: np.ndarray) -> None:
    """Raise RunError when an export does not give the vectors [n, D] of the model.

    Of models whose vectors are all alike, any two have a high cosine; so the difference must be small beside that
    between texts, too.
    """
    between_texts = float(np.ptp(expected, axis=0).max())
    # Written so that a number that is none fails too.
    if not (found.min_cosine >= LOWEST_COSINE and found.max_abs_difference <= max(between_texts / 10, SAME)):
        raise RunError(
            f"the exported graph is not the model: {found}; a cosine of {LOWEST_COSINE} is needed, and a difference of "
            f"a tenth of that between texts ({between_texts:.1e}). No output was left"
        )


def alone_and_together(exported: OnnxEncoder, probes: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """[n, D] of probe texts twice: each by itself, and all in one rectangle."""
    ids = [exported.tokenizer(role, [text])[0] for role, text in probes]
    return embed_probes(exported, probes), exported.rectangle(TokenBatch.from_lists(ids))


def _compare(
    exported: OnnxEncoder,
    file: Path,
    probes: list[tuple[str, str]],
    expected: np.ndarray,
    ndcg: np.ndarray | None,
    data: RetrievalDataset | None,
) -> dict[str, Any]:
    """Print and return what is to be known of a file; raise RunError when it had to be exact and is not."""
    alone, together = alone_and_together(exported, probes)
    found = closeness(np.concatenate([alone, together]), np.concatenate([expected, expected]))
    company = closeness(alone, together)  # of 8 bits: a scale of the activations is that of all texts of a batch
    size = sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*"))
    say(f"{file.name}: {size / 1e6:,.1f} MB; to the model: {found}; alone to in company: {company}")
    if file.name == Path(ONNX_FILES["onnx"]).name:
        check(found, expected)
    entry: dict[str, Any] = {"bytes": size, "to_model": vars(found), "alone_to_in_company": vars(company)}
    if data is not None and ndcg is not None:
        [row] = comparison({METRIC: ndcg}, {METRIC: _ndcg(exported, data, file.name)})
        say(f"{file.name}: {sentence(row, len(data.queries))}")
        entry["comparison"] = row
    return entry


def _write_surroundings(encoder: Any, source: Path, folder: Path) -> None:
    """Tokenizer, contract and configuration, so that the folder is a sentence-transformers folder."""
    encoder.backbone.config.save_pretrained(folder)
    encoder.tokenizer.tokenizer.padding_side = "right"  # where every graph is right, also those with learnt positions
    encoder.tokenizer.save(folder)
    encoder.tokenizer.embedding_config.write(folder, encoder.dimension)
    for path in source.glob("*.py"):  # of a configuration that is code
        shutil.copy(path, folder)


def _ndcg(encoder: TextEncoder, data: RetrievalDataset, title: str) -> np.ndarray:
    """[q] nDCG@10."""
    return score(encoder, data, [CUTOFF], title).metrics[METRIC]
