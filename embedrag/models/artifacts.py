"""Names of the files and folders in a model folder and in the folder of a run.

Weights and tokenizers have the names that transformers, peft and sentence-transformers give them. The other names are
EmbedRAG's own.
"""

from __future__ import annotations

MODEL_MARKERS = ("modules.json", "adapter_config.json", "config.json")  # one of them makes a folder a model folder

# Next to the weights, in a model folder that EmbedRAG wrote.
TRAINING_CONFIG = "training_config.json"  # the settings of the training
MERGE_CONFIG = "merge_config.json"  # what was merged, and how close the result is
EXPORT_CONFIG = "export_config.json"  # what was exported, and how close the result is
PROBE_TEXTS = "probe_texts.json"  # texts of the training data that a merge or an export is checked with
KEPT_FILES = ("generation_config.json",)  # of the base; copied, because EmbedRAG does not use them
ONNX_FILES = {"onnx": "onnx/model.onnx", "onnx_int8": "onnx/model_int8.onnx"}

# The state of a run in a checkpoint; a run can be resumed from it.
STATE_FOLDER = "training_state"
STATE_JSON = f"{STATE_FOLDER}/state.json"
STATE_TENSORS = f"{STATE_FOLDER}/state.safetensors"
STATE_CHECKSUMS = f"{STATE_FOLDER}/checksums.json"

# The folder of a run.
BEST_STEP = "best-step-"  # followed by a step number: the best model so far
MODEL_FOLDERS = ("final", "merged", "checkpoint-", BEST_STEP)
RUN_LOG = "detailed_training_logs.json"
LOSSES = "training_losses.json"
SUMMARY = "training_summary_report.json"
METRICS = "metrics.json"
EVALUATION = ("evaluation.json", "evaluation.html")
TENSORBOARD = "runs"  # a folder that TensorBoard's users share: only single files in it are ours
LEFTOVERS = (  # of a killed save or removal
    ".final.tmp-*",
    ".merged.tmp-*",
    ".checkpoint-epoch-*.tmp-*",
    ".checkpoint-step-*.tmp-*",
    f".{BEST_STEP}*.tmp-*",
    f"checkpoint-epoch-*/.{STATE_FOLDER}.tmp-*",
    f"checkpoint-step-*/.{STATE_FOLDER}.tmp-*",
    *(f".{name}.tmp-*" for name in (LOSSES, SUMMARY, METRICS, *EVALUATION)),
    "..embedrag-run.json.tmp-*",
)
