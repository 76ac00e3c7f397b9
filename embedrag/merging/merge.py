"""Merge an adapter into its base, tensor by tensor, and prove that the result embeds as the trained model did.

W + scale * B A is computed in float32, block of rows by block of rows, from the base's files straight into the
output's; the model is never in memory while it is merged. A QLoRA adapter goes onto the dequantised weights that it saw
in training, which are not the original ones. Before the output folder appears, probe texts are embedded by base +
adapter, by the base alone and by the merged model (this does load the models, one after the other; `--no_verify` leaves
it out).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedrag import __version__
from embedrag.commands.merge import MergeOptions
from embedrag.errors import UserError
from embedrag.models.artifacts import MERGE_CONFIG, TRAINING_CONFIG
from embedrag.models.base_model import Base, describe_base
from embedrag.models.equivalence import Closeness, check, closeness, embed_merged, embed_trained, read_probes
from embedrag.models.load import model_settings, saved_embedding_config
from embedrag.models.model_card import training_section, write_card
from embedrag.models.quantization import QuantizedLayers, quantized_layers
from embedrag.models.tokenizer import load_tokenizer
from embedrag.runtime.console import now, say
from embedrag.runtime.files import atomic_folder, check_folder, overlap, write_json
from embedrag.weights.adapter_file import Adapter, read_adapter, targets
from embedrag.weights.safetensors_io import WeightFile, blocks, weight_files, write_tensors

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Plan:
    """A merge, checked against the base's files.

    Attributes:
        adapter: what is merged.
        files: the base's weight files.
        targets: tensor name -> key of the adapter's change or replacement.
        dtype: of the output's floating-point tensors.
        quantized: layers that are quantised and dequantised first; None to merge onto the original weights.
    """

    adapter: Adapter
    files: list[WeightFile]
    targets: dict[str, str]
    dtype: torch.dtype
    quantized: QuantizedLayers | None

    def layout(self, file: WeightFile) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of every output tensor that comes from one base file."""
        return {name: (self._output_dtype(file.dtype(name)), file.shape(name)) for name in file.names()}

    def parts(self, file: WeightFile) -> Iterator[tuple[str, Tensor]]:
        """The merged tensors of one base file, in pieces of rows."""
        for name in file.names():
            dtype, shape = self._output_dtype(file.dtype(name)), file.shape(name)
            key = self.targets.get(name, "")
            if key in self.adapter.replaced:
                yield name, self.adapter.replaced[key].to(dtype)
                continue
            change = self.adapter.changes.get(key)
            seen = self.quantized.seen(file.rows(name)) if self.quantized and name in self.quantized.names else None
            for start, stop in blocks(shape, torch.float32):
                rows = file.rows(name, start, stop) if seen is None else seen[start:stop]
                yield name, (rows if change is None else change.merged(rows, start, stop)).to(dtype)

    def _output_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if dtype.is_floating_point else dtype


def run(options: MergeOptions) -> int:
    """`merge.py`: merge, prove, and only then let the output folder appear.

    Raises:
        UserError: the adapter, the base or the output folder is not right; nothing was written.
        RunError: the merged model is not the trained one, or the disk refused; no output folder is left.
    """
    output = Path(options.output_path)
    check_folder("--output_path", output, options.overwrite, MERGE_CONFIG, "merged models")
    adapter = read_adapter(options.lora_adapter_path, options.lora_alpha)
    name = options.base_model_path or adapter.config.get("base_model_name_or_path")
    if not name:
        raise UserError("--base_model_path is required, for the adapter does not name its base")
    base = describe_base(name, options.trust_remote_code)
    settings = model_settings(adapter.file.parent)
    quantization = _quantization(options, settings)
    onto = options.merge_onto or ("dequantized" if quantization else "original")
    root = base.folder()
    for name, source in (("base", root), ("adapter", adapter.file.parent)):
        if overlap(output, source):
            raise UserError(f"--output_path {output}: overlaps the {name}'s folder {source}; name another folder")
    plan = make_plan(adapter, base, root, options.training_precision, quantization if onto == "dequantized" else None)
    say(f"merge: {len(adapter.changes)} layers of {base.name}, onto the {onto} weights, {options.training_precision}")
    record = _record(options, plan, base, onto, quantization)
    with atomic_folder(output) as folder:
        _write_model(plan, base, root, folder)
        if options.no_verify:
            record["verification"] = "skipped (--no_verify)"
        else:
            record["verification"] = _prove(plan, base, root, folder, onto, quantization, options)
        write_json(folder / MERGE_CONFIG, record)
        write_card(folder, base.name, settings, record, results=training_section(adapter.file.parent))
    say(f"done: {output}" + (" (not verified: --no_verify)" if options.no_verify else ""))
    return 0


def make_plan(
    adapter: Adapter, base: Base, root: Path, precision: str, quantization: dict[str, Any] | None = None
) -> Plan:
    """Check adapter against base, and decide what is done to each tensor; nothing is written.

    Args:
        adapter: from `read_adapter`.
        base: from `describe_base`.
        root: folder of its files.
        precision: `float32` or `bfloat16`.
        quantization: how the base was quantised, to merge onto the dequantised weights; None for the original ones.
    """
    files = weight_files(root)
    shapes = {name: file.shape(name) for file in files for name in file.names()}
    layers = quantized_layers(base, quantization, list(shapes)) if quantization else None
    return Plan(adapter, files, targets(adapter, shapes), getattr(torch, precision), layers)


def _write_model(plan: Plan, base: Base, root: Path, folder: Path) -> None:
    """Weights, configuration, tokenizer and contract of the merged model."""
    _write_weights(plan, folder)
    for path in root.iterdir():
        if path.suffix == ".py":
            shutil.copy(path, folder)
    config = json.loads((root / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config.pop("torch_dtype", None)
    write_json(folder / "config.json", config | {"dtype": str(plan.dtype).removeprefix("torch.")})
    source = plan.adapter.file.parent
    embedding_config = saved_embedding_config(source, base)
    own_tokenizer = (source / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(
        replace(base, name=str(source), subfolder="") if own_tokenizer else base, embedding_config
    )
    tokenizer.save(folder)
    embedding_config.write(folder, int(base.config.hidden_size))
    if (source / TRAINING_CONFIG).is_file():
        shutil.copy(source / TRAINING_CONFIG, folder)


def _write_weights(plan: Plan, folder: Path) -> None:
    """One output shard for each file of the base."""
    count = len(plan.files)
    where: dict[str, str] = {}
    total = 0
    for number, file in enumerate(plan.files, 1):
        name = "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        layout = plan.layout(file)
        total += write_tensors(folder / name, layout, plan.parts(file))
        where |= dict.fromkeys(layout, name)
    if count > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _prove(
    plan: Plan,
    base: Base,
    root: Path,
    folder: Path,
    onto: str,
    quantization: dict[str, Any] | None,
    options: MergeOptions,
) -> dict[str, Any]:
    """Compare the vectors of the trained model, the merged one and the base; print and return the report.

    Raises:
        RunError: when the merged model is not the trained one.
    """
    probes, trust = read_probes(plan.adapter.file.parent), options.trust_remote_code
    trained, untrained = embed_trained(plan.adapter.file, probes, base.name, trust, quantization, options.lora_alpha)
    merged = embed_merged(folder, probes, trust)
    moved = closeness(untrained, trained)
    result = {
        "probe_texts": len(probes),
        "merged_to_trained": vars(closeness(merged, trained)),
        "base_to_trained": vars(moved),
    }
    for name, title in (("merged_to_trained", "merged model"), ("base_to_trained", "base alone")):
        say(f"proof: {title} to trained model: {Closeness(**result[name])}")  # type: ignore[arg-type]
    if quantization:
        other = "original" if onto == "dequantized" else "dequantized"
        result[f"onto_{other}_to_trained"] = vars(_other_choice(plan, base, root, other, quantization, trained, folder))
    exact = onto == "dequantized" or not quantization
    check(closeness(merged, trained), closeness(merged, untrained), moved, plan.dtype, bool(quantization), exact)
    return result


def _other_choice(
    plan: Plan, base: Base, root: Path, onto: str, quantization: dict[str, Any], trained: Any, folder: Path
) -> Closeness:
    """What merging onto the other weights would have given; written beside the result, looked at and removed."""
    probes = read_probes(plan.adapter.file.parent)
    precision = str(plan.dtype).removeprefix("torch.")
    other = make_plan(plan.adapter, base, root, precision, quantization if onto == "dequantized" else None)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-other-", dir=folder.parent) as temporary:
        _write_model(other, base, root, Path(temporary))
        found = closeness(embed_merged(Path(temporary), probes), trained)
    say(f"proof: merged onto the {onto} weights it would have been: {found}")
    return found


def _quantization(options: MergeOptions, settings: dict[str, Any]) -> dict[str, Any] | None:
    """How the adapter's base was quantised: its own record, else what the user says, else it was not."""
    recorded: dict[str, Any] | None = settings.get("quantization")
    if not recorded and options.quantization_bits:
        return {"bits": options.quantization_bits, "double_quantization": options.double_quantization}
    if not recorded and options.merge_onto == "dequantized":
        raise UserError(
            "--merge_onto dequantized: the adapter records no quantised base; give --quantization_bits 4 or 8"
        )
    return recorded


def _record(
    options: MergeOptions, plan: Plan, base: Base, onto: str, quantization: dict[str, Any] | None
) -> dict[str, Any]:
    """Content of merge_config.json, without the verification."""
    config = plan.adapter.config
    return {
        "base_model_path": options.base_model_path or base.name,
        "lora_adapter_path": options.lora_adapter_path,
        "output_path": options.output_path,
        "training_precision": options.training_precision,
        "merge_onto": onto,
        "quantization": quantization,
        "lora_r": config.get("r"),
        "lora_alpha": config.get("lora_alpha", options.lora_alpha),
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
        "merged_layers": len(plan.adapter.changes),
        "replaced_tensors": sorted(plan.adapter.replaced),
        "time": now(),
        "environment": {"embedrag": __version__, "torch": version("torch"), "transformers": version("transformers")},
    }
