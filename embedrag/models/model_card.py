"""The model card: what the folder is, how it was made, how to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from embedrag.runtime.paths import public_name

SHOWN = (
    "finetune_type",
    "quantization_bits",
    "train_dataset",
    "epochs",
    "batch_size",
    "lr",
    "temperature",
    "neg_nums",
    "lora_r",
    "lora_alpha",
    "pooling",
    "query_prompt",
    "passage_prompt",
    "query_max_len",
    "passage_max_len",
)


def write_card(
    folder: Path, base: str, settings: dict[str, Any], merge: dict[str, Any] | None = None, results: str = ""
) -> None:
    """Write README.md of a model or adapter folder.

    Args:
        folder: model folder.
        base: name of the base model.
        settings: content of training_config.json; empty for an adapter of another program.
        merge: content of merge_config.json; None: it is not a merged model.
        results: figures of the training, as Markdown.
    """
    shown = public_name(base)
    rows = [[f"`{name}`", _cell(settings[name])] for name in SHOWN if name in settings]
    kind = "merged model" if merge else "adapter" if (folder / "adapter_config.json").exists() else "model"
    parts = [
        f"---\nbase_model: {json.dumps(shown, ensure_ascii=False)}\nlibrary_name: sentence-transformers\n"
        "pipeline_tag: sentence-similarity\n"
        "tags:\n- sentence-transformers\n- feature-extraction\n- embedrag\n---",
        f"# Text-embedding {kind} on {_markdown(shown.rpartition('/')[2])}\n\n"
        f"Fine-tuned for retrieval with EmbedRAG. Base model: {_code(shown)}.",
        "## Load\n\n```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("PATH_OF_THIS_FOLDER")\n'
        'queries = model.encode_query(["a question"])\ndocuments = model.encode_document(["a passage"])\n```',
    ]
    if rows:
        parts.append("## Settings\n\n" + tabulate(rows, ["setting", "value"], "github", disable_numparse=True))
    if results:
        parts.append(f"## Training\n\n{results}")
    if merge:
        parts.append(_merge_section(merge))
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def training_section(folder: Path) -> str:
    """The section with the figures of the training, from the model card of a folder; empty when it has none."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return text.partition("## Training\n\n")[2].partition("\n## ")[0].strip()


def _merge_section(merge: dict[str, Any]) -> str:
    proof = merge["verification"]
    text = f"## Merge\n\nOnto the {merge['merge_onto']} weights, {merge['training_precision']}."
    if isinstance(proof, str):
        return f"{text} Verification: {proof}."
    found = proof["merged_to_trained"]
    return (
        f"{text} {proof['probe_texts']} probe texts, merged model against base + adapter: cosine min "
        f"{found['min_cosine']:.6f}, mean {found['mean_cosine']:.6f}."
    )


def _cell(value: Any) -> str:
    """A setting in a cell of a table; files without the folders of this machine."""
    if isinstance(value, list):
        return " ".join(_markdown(public_name(str(item))) for item in value)
    return _code(value) if isinstance(value, str) else str(value)


def _code(text: str) -> str:
    """A text as it is, in the typewriter type of Markdown, also inside a table; blanks at its ends stay visible."""
    if not text.strip() or text != text.strip() or "\n" in text or "`" in text:
        text = json.dumps(text, ensure_ascii=False)
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def _markdown(text: str) -> str:
    """A text in which no sign has a meaning in Markdown."""
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in " ".join(text.split()))
