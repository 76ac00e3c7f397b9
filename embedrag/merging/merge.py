"""Merge an adapter into its base, tensor by tensor, and prove that the result gives the trained model's vectors.

W + scale * B A is computed in float32, one block of rows after the other, from the base's files straight into the
output's. The model itself is never in memory while it is merged. A QLoRA adapter is added to the dequantised weights
that it saw in training, which are not the original weights. Before the output folder appears, three models embed probe
texts, one model after the other: base + adapter, the base without it, and the merged model. Only this proof loads
models.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedrag import __version__
from embedrag.errors import UserError, check_choice
from embedrag.models.artifacts import MERGE_CONFIG, TRAINING_CONFIG
from embedrag.models.base_model import Base
from embedrag.models.embedding_format import matryoshka_keys
from embedrag.models.equivalence import Closeness, check_merged, closeness, embed_merged, embed_trained, read_probes
from embedrag.models.load import (
    describe_adapter_base,
    left_out,
    load_adapter_tokenizer,
    model_settings,
    saved_embedding_config,
    trained_quantization,
)
from embedrag.models.model_card import training_section, write_card
from embedrag.models.quantization import (
    QUANTIZERS,
    QuantizationConfig,
    QuantizedLayers,
    quantized_layers,
)
from embedrag.models.save import add_older_names
from embedrag.runtime.console import now, say
from embedrag.runtime.files import atomic_folder, check_folder, overlap, write_json
from embedrag.runtime.paths import belongs_to, copy_code
from embedrag.weights.adapter_file import Adapter, read_adapter
from embedrag.weights.adapter_targets import match_adapter
from embedrag.weights.quantized_files import DequantizedFile, dequantized
from embedrag.weights.safetensors_io import WeightFile, blocks, weight_files, write_tensors
from embedrag.weights.tensor_changes import TensorChange

INDEX = "model.safetensors.index.json"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ORIGINAL, DEQUANTIZED = "original", "dequantized"
TEXTS = {".jinja", ".json", ".md", ".model", ".txt"}
ADAPTER = "lora_adapter_path"  # the argument's name, for messages


@dataclass(frozen=True)
class Proof:
    """How close the vectors of probe texts are to those of the trained model.

    Attributes:
        probe_texts: number of texts that were compared.
        merged_to_trained: the merged model's vectors.
        base_to_trained: the vectors of the base without the adapter; this is what the training changed.
        other_to_trained: the vectors after a merge onto the other weights, for a QLoRA adapter; otherwise None.
    """

    probe_texts: int
    merged_to_trained: Closeness
    base_to_trained: Closeness
    other_to_trained: Closeness | None


@dataclass(frozen=True)
class MergeReport:
    """What was merged, and how close the result is to the trained model.

    Attributes:
        output_path: folder of the merged model.
        base: name of the base model.
        layers: number of layers that the adapter changed.
        onto: `original` or `dequantized`, the weights of the base that the adapter was added to.
        proof: how close the merged model is to the trained one; None when it was not verified.
        record: the content of merge_config.json.
    """

    output_path: Path
    base: str
    layers: int
    onto: str
    proof: Proof | None
    record: dict[str, Any]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        if self.proof:
            yield f"proof: merged model to trained model: {self.proof.merged_to_trained}"
            yield f"proof: base alone to trained model: {self.proof.base_to_trained}"
            if self.proof.other_to_trained:
                yield f"proof: merged onto the {_other(self.onto)} weights instead: {self.proof.other_to_trained}"
        yield f"done: {self.output_path}" + ("" if self.proof else " (not verified)")


@dataclass(frozen=True)
class Plan:
    """A merge that was checked against the base's files.

    Attributes:
        adapter: what is merged.
        base: the base model.
        root: folder of the base's files.
        files: the base's weight files. Weights that are quantised there are read as plain ones.
        changes: name of a tensor -> what the adapter does to it.
        dtype: of the output's floating-point tensors.
        quantized: layers that are quantised and dequantised first; None: the adapter goes onto the original weights.
        trust_remote_code: run Python code that comes with the base.
    """

    adapter: Adapter
    base: Base
    root: Path
    files: list[WeightFile | DequantizedFile]
    changes: dict[str, TensorChange]
    dtype: torch.dtype
    quantized: QuantizedLayers | None
    trust_remote_code: bool

    def layout(self, file: WeightFile | DequantizedFile) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of each output tensor that comes from one file of the base."""
        return {name: (self._output_dtype(file.dtype(name)), file.shape(name)) for name in file.names()}

    def pieces(self, file: WeightFile | DequantizedFile) -> Iterator[tuple[str, Tensor]]:
        """The merged tensors of one file of the base, as (name, block of rows)."""
        for name in file.names():
            dtype, shape = self._output_dtype(file.dtype(name)), file.shape(name)
            change = self.changes.get(name)
            seen = None
            if self.quantized and name in self.quantized.names:
                seen = self.quantized.seen(name, file.rows(name))
            for start, stop in blocks(shape, torch.float32):
                rows = file.rows(name, start, stop) if seen is None else seen[start:stop]
                yield name, (rows if change is None else change.merged(rows, start, stop)).to(dtype)

    def _output_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if dtype.is_floating_point else dtype


def merge(
    lora_adapter_path: str | Path,
    output_path: str | Path,
    *,
    base_model_path: str | Path | None = None,
    training_precision: str = "float32",
    merge_onto: str | None = None,
    lora_alpha: int | None = None,
    quantization_bits: int | None = None,
    double_quantization: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Merge an adapter into its base. The output folder appears only when the merged model is proved to be right.

    Args:
        lora_adapter_path: the adapter's folder, or its adapter_model.safetensors.
        output_path: folder of the merged model.
        base_model_path: the base model, a folder or a hub id; None: the one that the adapter names.
        training_precision: type of the merged weights, `float32` or `bfloat16`.
        merge_onto: weights that the adapter is added to. None: `dequantized`, as in training, for a QLoRA adapter,
            and `original` for any other.
        lora_alpha: alpha of the adapter, used when adapter_config.json does not record it.
        quantization_bits: bits that the base was quantised to in training, used when the adapter's folder does not
            record them; a key of `embedrag.models.quantization.QUANTIZERS`.
        double_quantization: whether the 4-bit scales were quantised too, used in the same case.
        verify: prove the result. The proof loads the models.
        overwrite: replace an earlier merged model.
        trust_remote_code: run Python code that comes with the base model.

    Returns:
        What was merged, with the proof.

    Raises:
        UserError: the adapter, the base or the output folder is not right; nothing was written.
        RunError: the merged model is not the trained one, or a file could not be written; no output folder is left.

    Example:
        ```python
        report = embedrag.merge("out/final", "merged")
        report.proof.merged_to_trained.min_cosine
        ```
    """
    check_choice("training_precision", training_precision, PRECISIONS)
    check_choice("merge_onto", merge_onto, (None, DEQUANTIZED, ORIGINAL))
    check_choice("quantization_bits", quantization_bits, (None, *QUANTIZERS))
    if lora_alpha is not None and lora_alpha < 1:
        raise UserError("must be 1 or more", "lora_alpha", lora_alpha)
    output = Path(output_path).expanduser()
    check_folder("output_path", output, overwrite, MERGE_CONFIG, "merged models")
    adapter = read_adapter(str(lora_adapter_path), lora_alpha)
    source = adapter.file.parent
    given = str(base_model_path) if base_model_path else None
    base = describe_adapter_base(source, given, trust_remote_code, ADAPTER)
    settings = model_settings(source)
    quantization = _quantization(base, source, merge_onto, quantization_bits, double_quantization)
    onto = merge_onto or (DEQUANTIZED if quantization else ORIGINAL)
    root = base.folder()
    _check_links(root, "base_model_path", base.name)
    _check_links(source, ADAPTER, str(lora_adapter_path))
    for owner, folder in (("base", root), ("adapter", source)):
        if overlap(output, folder):
            raise UserError(f"overlaps the {owner}'s folder {folder}; name another folder", "output_path", output_path)
    seen = quantization if quantization and onto == DEQUANTIZED and not quantization.given else None
    plan = make_plan(adapter, base, root, training_precision, seen, trust_remote_code)
    if adapter.left_out:
        say(left_out(adapter))
    say(f"merge: {len(adapter.changes)} layers of {base.name}, onto the {onto} weights, {training_precision}")
    record = {
        "base_model_path": given or base.name,
        "lora_adapter_path": str(lora_adapter_path),
        "output_path": str(output_path),
        "training_precision": training_precision,
        "merge_onto": onto,
        "quantization": quantization.record() if quantization else None,
        "lora_r": adapter.config.get("r"),
        "lora_alpha": adapter.config.get("lora_alpha", lora_alpha),
        "use_rslora": bool(adapter.config.get("use_rslora")),
        "use_dora": bool(adapter.config.get("use_dora")),
        "merged_layers": len(adapter.changes),
        "replaced_tensors": sorted(adapter.replaced),
        "tokens": {name: list(tokens.indices) for name, tokens in adapter.tokens.items()},
        "left_out": list(adapter.left_out),
        "time": now(),
        "environment": {"embedrag": __version__, "torch": version("torch"), "transformers": version("transformers")},
    }
    proof = None
    with atomic_folder(output) as folder:
        _write_model(plan, folder)
        if verify:
            proof = _prove(plan, folder, quantization, lora_alpha)
        record["verification"] = _as_record(proof, onto) if proof else "skipped"
        write_json(folder / MERGE_CONFIG, record)
        write_card(folder, base.name, settings, record, results=training_section(source))
    return MergeReport(output, base.name, len(adapter.changes), onto, proof, record)


def _check_links(folder: Path, argument: str, value: str) -> None:
    """Refuse texts outside of a model's folder: they would go into the merged model, which people upload.

    Links to weights are followed, because nothing but numbers can be read from these.

    Raises:
        UserError: a text file of the folder is a link out of it.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in TEXTS and path.is_symlink() and path.is_file() and not belongs_to(path, folder):
            reason = f"{path.name} is a link to {path.resolve()}, outside of the folder; if it belongs there, copy it"
            raise UserError(reason, argument, value)


def make_plan(
    adapter: Adapter,
    base: Base,
    root: Path,
    precision: str,
    quantization: QuantizationConfig | None = None,
    trust_remote_code: bool = False,
) -> Plan:
    """Check an adapter against its base, and decide what is done to each tensor. Nothing is written.

    Args:
        adapter: from `read_adapter`.
        base: from `describe_base`.
        root: folder of the base's files.
        precision: of the output, a key of `PRECISIONS`.
        quantization: how the base was quantised, for a merge onto the dequantised weights; None for the original ones.
        trust_remote_code: run Python code that comes with the base.

    Raises:
        UserError: when the two do not belong together, or a file of the base is damaged.
    """
    files = dequantized(weight_files(root))
    shapes = {name: file.shape(name) for file in files for name in file.names()}
    layers = quantized_layers(base, quantization, list(shapes), trust_remote_code) if quantization else None
    try:
        matched = match_adapter(adapter, shapes, base.name)
    except UserError as error:
        raise UserError(error.reason, ADAPTER, adapter.file.parent) from None
    changes = {name: change for name, (_, change) in matched.items()}
    return Plan(adapter, base, root, files, changes, PRECISIONS[precision], layers, trust_remote_code)


def _write_model(plan: Plan, folder: Path) -> None:
    """Write weights, configuration, tokenizer and embedding config of the merged model."""
    _write_weights(plan, folder)
    if plan.trust_remote_code:
        copy_code(plan.root, folder)
    config = json.loads((plan.root / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config.pop("torch_dtype", None)
    config |= matryoshka_keys(model_settings(plan.adapter.file.parent))
    write_json(folder / "config.json", config | {"dtype": str(plan.dtype).removeprefix("torch.")})
    source, base = plan.adapter.file.parent, plan.base
    embedding_config = saved_embedding_config(source, base, ADAPTER)
    load_adapter_tokenizer(source, base, embedding_config, plan.trust_remote_code, ADAPTER).save(folder)
    add_older_names(folder)
    embedding_config.write(folder, base.hidden_size)
    if settings := model_settings(source):
        write_json(folder / TRAINING_CONFIG, settings)


def _write_weights(plan: Plan, folder: Path) -> None:
    """Write one output file for each weight file of the base."""
    count = len(plan.files)
    where: dict[str, str] = {}
    total = 0
    for number, file in enumerate(plan.files, 1):
        name = "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        layout = plan.layout(file)
        total += write_tensors(folder / name, layout, plan.pieces(file))
        where |= dict.fromkeys(layout, name)
    if count > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _prove(plan: Plan, folder: Path, quantization: QuantizationConfig | None, lora_alpha: int | None) -> Proof:
    """Compare the vectors of the merged model and of the base with those of the trained model.

    Raises:
        RunError: when the merged model is not the trained one.
    """
    probes = read_probes(plan.adapter.file.parent)
    trained, untrained = embed_trained(
        plan.adapter.file, probes, plan.base.name, plan.trust_remote_code, quantization, lora_alpha
    )
    merged = embed_merged(folder, probes, plan.trust_remote_code)
    to_trained, moved = closeness(merged, trained), closeness(untrained, trained)
    exact = plan.quantized is not None or not quantization or quantization.given
    check_merged(to_trained, closeness(merged, untrained), moved, plan.dtype, bool(quantization), exact)
    other = None
    if quantization and not quantization.given:
        other = closeness(_merged_otherwise(plan, folder, probes, quantization), trained)
    return Proof(len(probes), to_trained, moved, other)


def _merged_otherwise(
    plan: Plan, folder: Path, probes: list[tuple[str, str]], quantization: QuantizationConfig
) -> np.ndarray:
    """[n, D] of probe texts by a merge onto the other weights. Its folder is written for this, and removed again."""
    precision, trust = str(plan.dtype).removeprefix("torch."), plan.trust_remote_code
    seen = None if plan.quantized else quantization
    other = make_plan(plan.adapter, plan.base, plan.root, precision, seen, trust)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-other-", dir=folder.parent) as temporary:
        _write_model(other, Path(temporary))
        return embed_merged(Path(temporary), probes, trust)


def _as_record(proof: Proof, onto: str) -> dict[str, Any]:
    """The proof as merge_config.json has it."""
    record: dict[str, Any] = {
        "probe_texts": proof.probe_texts,
        "merged_to_trained": vars(proof.merged_to_trained),
        "base_to_trained": vars(proof.base_to_trained),
    }
    if proof.other_to_trained:
        record[f"onto_{_other(onto)}_to_trained"] = vars(proof.other_to_trained)
    return record


def _other(onto: str) -> str:
    return ORIGINAL if onto == DEQUANTIZED else DEQUANTIZED


def _quantization(
    base: Base, folder: Path, merge_onto: str | None, bits: int | None, double_quantization: bool
) -> QuantizationConfig | None:
    """How the base was quantised in training; otherwise what the caller says.

    Returns:
        None when it was not quantised.
    """
    found = trained_quantization(base, folder)
    given = found if found and found.given else None
    if given and merge_onto == ORIGINAL:
        reason = f"the base's files hold quantised weights only ({given}); name the unquantised base as "
        raise UserError(reason + "`base_model_path`", "merge_onto", merge_onto)
    if given and bits:
        raise UserError(f"the base's weights are quantised already ({given}); leave it out", "quantization_bits", bits)
    if found:
        return found
    if bits:
        return QuantizationConfig(bits, double_quantization)
    if merge_onto == DEQUANTIZED:
        reason = "the adapter's folder does not record how the base was quantised; give `quantization_bits`"
        raise UserError(reason, "merge_onto", merge_onto)
    return None
