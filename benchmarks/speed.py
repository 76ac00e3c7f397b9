"""Training speed of EmbedRAG and of other programs that do the same work, side by side on this machine.

python -m benchmarks.speed --quick

The protocol, in short:

1. The same bytes for everyone: weights, token ids, rows in one order, each row's own negatives, optimizer, schedule.
2. First an equality run (dropout off): a contestant whose losses differ from EmbedRAG's by more than 1e-4 gets no
   ratio. `--break_equality st` shows that this check can fail.
3. Contestants with knobs get a short sweep for each model and fine-tune, and run with the fastest setting.
4. Then rounds: in each, every contestant runs once in a fresh process, in rotating order. Medians and extremes.

A run that fails is a line in the table. Results are written after every run, as JSON and markdown.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.contestants.common import Task
from benchmarks.report import difference, document, figures, length_row, reference
from benchmarks.workload import MAX_LEN, MIXES, NEGATIVES, Model, Rows, initial_adapter, make_model, make_rows
from embedrag.training.config.options import LEARNING_RATES

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "transformers", "sentence-transformers", "peft", "accelerate")
LORA = {"r": 8, "alpha": 32, "dropout": 0.1}
SEED = 42
TEMPERATURE = 0.02
SWEEP_STEPS, SWEEP_WARMUP = 4, 1
QUICK = {
    "models": ["minilm"],
    "mixes": ["mixed"],
    "batch_size": 4,
    "steps": 5,
    "repeats": 1,
    "equality_steps": 5,
    "equality_batch_size": 2,
}
Json = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A program that is compared.

    Attributes:
        module: in `benchmarks.contestants`.
        knobs: settings to choose the fastest from; a single one is taken as it is.
        candidates: what a query is scored against.
    """

    module: str
    knobs: tuple[Json, ...] = ({},)
    candidates: str = "all"


CONTESTANTS = {
    "embedrag": Contestant("embedrag_run"),
    "st": Contestant("sentence_transformers_run"),
    # Sorting rows by length or avoiding duplicates in a batch would change the batches, so these knobs stay.
    "st_tuned": Contestant(
        "sentence_transformers_run",
        (
            {},
            {"separate_columns": True},
            {"attn_implementation": "eager"},
            {"separate_columns": True, "attn_implementation": "eager"},
            {"dataloader_num_workers": 1},
        ),
    ),
    "st_cached": Contestant(
        "sentence_transformers_run",
        tuple(
            {"cached": True, name: value}
            for name, values in (
                ("mini_batch_size", (4, 8, 16)),
                ("mini_batch_num_tokens", (2048, 4096)),
            )
            for value in values
        ),
    ),
    "flag": Contestant("flag_embedding_run", tuple({"sub_batch_size": size} for size in (-1, 2, 4, 8))),
    "embedrag_hard": Contestant("embedrag_run", candidates="hard"),
    "prior": Contestant("prior_run", candidates="hard"),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=["minilm", "qwen3"], default=["minilm", "qwen3"])
    parser.add_argument("--finetunes", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--mixes", nargs="+", choices=list(MIXES), default=list(MIXES))
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--batch_size", type=int, default=8, help="rows in a step")
    parser.add_argument("--steps", type=int, default=10, help="steps in a run")
    parser.add_argument("--warmup", type=int, default=2, help="first steps of a run that are not measured")
    parser.add_argument("--prior_steps", type=int, default=2, help="measured steps of the earlier method")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--equality_steps", type=int, default=20, help="losses that are compared; 0: none, no ratios")
    parser.add_argument("--equality_batch_size", type=int, default=4, help="rows in a step of the equality run")
    parser.add_argument("--break_equality", choices=list(CONTESTANTS), help="give this one another temperature there")
    parser.add_argument("--embedrag_options", type=json.loads, default={}, help="JSON, further TrainOptions")
    parser.add_argument("--flag_python", help="interpreter that has FlagEmbedding")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds a run may take")
    parser.add_argument("--memory_gib", type=float, help="address space a run may take; left out: 90 %% of the machine")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/out"), help="folder for speed.md and speed.json"
    )
    parser.add_argument("--quick", action="store_true", help=f"small: {QUICK}")
    if "--quick" in arguments:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(arguments)
    if not 1 <= options.warmup < options.steps:
        parser.error("--warmup must be at least 1 and less than --steps")
    return options


def main() -> None:
    """Run the benchmark."""
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
        Benchmark(options, Path(scratch)).run()


@dataclass(frozen=True)
class Setting:
    """A model and how it is trained."""

    name: str
    model: Model
    finetune: str
    adapter: Path | None

    def __str__(self) -> str:
        return f"{self.name} {self.finetune}"


class Benchmark:
    """All runs, one after the other."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        """Nothing is run yet; `scratch` takes models, data and what the runs leave."""
        self.options, self.scratch = options, scratch
        asked = set(options.contestants)
        asked |= {reference(CONTESTANTS[name].candidates) for name in asked}
        notes = []
        if "flag" in asked and not (options.flag_python or importlib.util.find_spec("FlagEmbedding")):
            asked.remove("flag")
            notes.append("flag was left out: FlagEmbedding is not installed, and no --flag_python was given")
        self.names = [name for name in CONTESTANTS if name in asked]
        self.results: Json = {"head": head(options), "notes": notes}
        self.results |= {"lengths": [], "sweeps": [], "equality": [], "runs": []}

    def run(self) -> None:
        """Run everything."""
        for name in self.options.models:
            model = make_model(name, self.scratch)
            for finetune in self.options.finetunes:
                setting = Setting(name, model, finetune, self._adapter(model) if finetune == "lora" else None)
                knobs = {name: self._fastest(setting, name) for name in self.names}
                if self.options.equality_steps:
                    self._equality(setting, knobs)
                for mix in self.options.mixes:
                    self._rounds(setting, mix, knobs)
        print(document(self.results))

    def _adapter(self, model: Model) -> Path:
        rows = make_rows("mixed", 2, 1, SEED, model, self.scratch / "adapter-rows")
        return initial_adapter(model, rows.path, LORA, self.scratch)

    def _fastest(self, setting: Setting, name: str) -> Json:
        """The knobs that a contestant runs with: the fastest of those it may choose from, on the first mix."""
        choices = CONTESTANTS[name].knobs
        if name.startswith("embedrag"):
            choices = (self.options.embedrag_options,)
        elif name == "prior":
            choices = ({"query_max_len": 256, "passage_max_len": min(1024, setting.model.positions)},)
        if len(choices) == 1:
            return choices[0]
        rows = self._make_rows(setting, self.options.mixes[0], self.options.batch_size, SWEEP_STEPS)
        tried = [self._speed_run(setting, name, knobs, rows, SWEEP_WARMUP) for knobs in choices]
        best = max(tried, key=lambda row: row.get("tokens_per_second", 0.0))
        for row in tried:
            self._keep("sweeps", row | {"chosen": row is best})
        knobs: Json = best["knobs"]
        return knobs

    def _equality(self, setting: Setting, knobs: dict[str, Json]) -> None:
        """Losses of each contestant, dropout off, beside EmbedRAG's."""
        rows = self._make_rows(setting, "mixed", self.options.equality_batch_size, self.options.equality_steps)
        losses: dict[str, list[float]] = {}
        for name in sorted(self.names, key=lambda name: not name.startswith("embedrag")):
            own = knobs[name]
            if name == "prior":  # padding changes no loss, so most of it is left out here
                own = {"query_max_len": 32, "passage_max_len": 320}
            temperature = TEMPERATURE * (1.01 if name == self.options.break_equality else 1)
            task = self._task(setting, name, own, rows, dropout=False, temperature=temperature)
            outcome = self._launch(name, task)
            row = {"model": setting.name, "finetune": setting.finetune, "contestant": name, "steps": rows.steps}
            losses |= {name: outcome["losses"]} if "losses" in outcome else {}
            ours = losses.get(reference(CONTESTANTS[name].candidates))
            if "error" in outcome:
                row |= {"error": outcome["error"]}
            elif ours is None:
                row |= {"error": "no losses of embedrag to compare with"}
            else:
                row |= {"difference": difference(outcome["losses"], ours), "losses": outcome["losses"]}
                row |= {"mean_loss": sum(outcome["losses"]) / rows.steps}
            self._keep("equality", row)

    def _rounds(self, setting: Setting, mix: str, knobs: dict[str, Json]) -> None:
        """Every contestant once in each round, each time in another order."""
        rows = self._make_rows(setting, mix, self.options.batch_size, self.options.steps)
        for side, lengths in rows.lengths.items():
            row = length_row(setting.name, mix, side, lengths)
            if row not in self.results["lengths"]:
                self.results["lengths"].append(row)
        for number in range(self.options.repeats):
            first = number % len(self.names)
            for name in self.names[first:] + self.names[:first]:
                row = self._speed_run(setting, name, knobs[name], rows, self.options.warmup)
                self._keep("runs", row | {"mix": mix, "round": number + 1})

    def _speed_run(self, setting: Setting, name: str, knobs: Json, rows: Rows, warmup: int) -> Json:
        """The figures of one run, or its error."""
        stop = min(rows.steps, warmup + self.options.prior_steps) if name == "prior" else rows.steps
        outcome = self._launch(name, self._task(setting, name, knobs, rows, stop=stop))
        if "error" not in outcome:
            weights = sum(out * into for out, into in setting.model.linears)
            outcome = figures(outcome, rows.tokens, warmup, setting.finetune, weights)
        row = {"model": setting.name, "finetune": setting.finetune, "contestant": name, "knobs": knobs}
        return row | {"candidates": CONTESTANTS[name].candidates} | outcome

    def _make_rows(self, setting: Setting, mix: str, batch_size: int, steps: int) -> Rows:
        folder = self.scratch / f"{setting.name}-{mix}-{batch_size}-{steps}"
        return make_rows(mix, batch_size, steps, SEED, setting.model, folder)

    def _task(
        self,
        setting: Setting,
        name: str,
        knobs: Json,
        rows: Rows,
        stop: int | None = None,
        dropout: bool = True,
        temperature: float = TEMPERATURE,
    ) -> Task:
        """What a contestant has to do; without `dropout` two of them can agree."""
        model = setting.model
        # EmbedRAG runs a frozen base without the base's own dropout, so the others get that too.
        keeps_dropout = dropout and setting.finetune == "full"
        return Task(
            model=str(model.folder if keeps_dropout else model.folder_no_dropout),
            pooling=model.pooling,
            rows=str(rows.path),
            ordered=str(rows.ordered),
            adapter=str(setting.adapter) if setting.adapter else None,
            lora=LORA | {"targets": model.targets} | ({} if dropout else {"dropout": 0.0}),
            batch_size=rows.batch_size,
            steps=rows.steps,
            stop=stop or rows.steps,
            candidates=CONTESTANTS[name].candidates,
            negatives=NEGATIVES,
            max_len=MAX_LEN,
            lr=LEARNING_RATES[setting.finetune],
            temperature=temperature,
            weight_decay=0.01,
            max_grad_norm=1.0,
            warmup_proportion=0.05,
            seed=SEED,
            linears=model.linears,
            pad_id=model.pad_id,
            knobs=knobs,
            started=time.time(),
            work_dir=str(self.scratch / "work"),
        )

    def _launch(self, name: str, task: Task) -> Json:
        """Run a contestant in a fresh process; what its meter wrote, or the last line of its errors."""
        work = Path(task.work_dir)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")
        python = (self.options.flag_python if name == "flag" else None) or sys.executable
        module = f"benchmarks.contestants.{CONTESTANTS[name].module}"
        command = [python, "-m", module, str(work / "task.json"), str(work / "result.json")]
        with (work / "errors").open("wb") as errors:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=os.environ | {"HF_HUB_OFFLINE": "1"},
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    timeout=self.options.timeout,
                    preexec_fn=self._limit_memory,
                ).returncode
            except subprocess.TimeoutExpired:
                return {"error": f"took longer than {self.options.timeout} s"}
        if code == 0:
            result: Json = json.loads((work / "result.json").read_text(encoding="utf-8"))
            return result
        lines = (work / "errors").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = lines[-1].strip().replace(f"{self.scratch}/", "")[:200] if lines else "nothing on stderr"
        return {"error": f"exit code {code}: {reason}"}

    def _limit_memory(self) -> None:
        """A contestant that needs too much fails by itself, and does not take the machine down."""
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = int((self.options.memory_gib or 0) * 2**30) or int(0.9 * machine)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def _keep(self, part: str, row: Json) -> None:
        """Add a row to the results, and write all of them."""
        self.results[part].append(row)
        folder = self.options.output
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("speed.json", json.dumps(self.results, indent=1)), ("speed.md", document(self.results))):
            (folder / f"{name}.new").write_text(text, encoding="utf-8")
            (folder / f"{name}.new").replace(folder / name)
        shown = ("model", "finetune", "mix", "round", "contestant", "knobs", "tokens_per_second", "difference", "error")
        line = " ".join(f"{name}={row[name]}" for name in shown if name in row)
        print(f"[{time.strftime('%H:%M:%S')}] {part}: {line}", flush=True)


def head(options: argparse.Namespace) -> dict[str, str]:
    """Machine, versions and sizes."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}",
        "versions": f"Python {platform.python_version()}, {versions}",
        "work": (
            f"batches of {options.batch_size} rows with 1 positive and {NEGATIVES} negatives, {options.steps} steps of "
            f"which the first {options.warmup} do not count, {options.repeats} rounds; float32, AdamW, temperature "
            f"{TEMPERATURE}; LoRA r {LORA['r']} on all linear layers"
        ),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
