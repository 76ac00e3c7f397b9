"""Peak memory and time of a merge against peft's `merge_and_unload`, on a random decoder of a given size.

python -m benchmarks.merge_memory --layers 16 --hidden 2048

Each merge runs in a fresh process; its peak resident memory is given above that of a process which only imports the
same packages. Both write float32 safetensors; ours without the proof (peft has none).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tabulate import tabulate
from transformers import Qwen3Config, Qwen3Model
from transformers.utils import logging

REPORT = "\nfrom embedrag.runtime.device import peak_memory_bytes; print('PEAK', peak_memory_bytes() >> 20)"
OURS = (
    "from embedrag.cli import main\n"
    "main(['merge', '--base_model_path', {base!r}, '--lora_adapter_path', {adapter!r}, '--output_path', {output!r},"
    " '--no_verify'])"
)
OURS_IMPORTS = "import embedrag.merging.merge, transformers.models.qwen3.modeling_qwen3"
PEFT_IMPORTS = "import peft, transformers, torch, transformers.models.qwen3.modeling_qwen3"
PEFT = (
    "from peft import PeftModel\nfrom transformers import AutoModel\nimport torch\n"
    "model = AutoModel.from_pretrained({base!r}, dtype=torch.float32)\n"
    "PeftModel.from_pretrained(model, {adapter!r}).merge_and_unload().save_pretrained({output!r})"
)


def main() -> None:
    """Make the model, merge it both ways in turn, print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make_model(folder, options.layers, options.hidden)
        rows = []
        for title, imports, code in (("embedrag", OURS_IMPORTS, OURS), ("peft", PEFT_IMPORTS, PEFT)):
            base = run(imports)[0]
            runs = [
                run(
                    code.format(
                        base=str(folder / "base"), adapter=str(folder / "adapter"), output=str(folder / f"{title}{i}")
                    )
                )
                for i in range(options.repeats)
            ]
            peak = sorted(peak for peak, _ in runs)[len(runs) // 2]
            seconds = sorted(seconds for _, seconds in runs)[len(runs) // 2]
            rows.append([title, f"{size / 2**30:.2f}", base, peak, peak - base, f"{seconds:.1f}"])
    headers = ["merge", "model GiB", "imports MiB", "peak MiB", "above imports MiB", "seconds (median)"]
    print(tabulate(rows, headers, "github", disable_numparse=True))


def make_model(folder: Path, layers: int, hidden: int) -> int:
    """A random float32 Qwen3 in shards with a tokenizer, and a random adapter; returns the bytes of its weights."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=3 * hidden,
    )
    model = Qwen3Model(config)
    model.save_pretrained(folder / "base", max_shard_size="800MB")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="a")
    tokenizer.save_pretrained(folder / "base")
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    return int(size)


def run(code: str) -> tuple[int, float]:
    """Peak resident MiB and seconds of a fresh process."""
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True)
    if "PEAK" not in result.stdout:
        sys.exit(f"a merge failed:\n{result.stderr[-2000:]}")
    return int(result.stdout.rsplit("PEAK", 1)[1]), time.monotonic() - start


if __name__ == "__main__":
    main()
