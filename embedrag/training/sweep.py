"""Search for settings: trainings of one config with other values, judged by their evaluation (Optuna, TPE sampler).

Each trial is a training in a process of its own and a folder named after its values, so a sweep that was stopped goes
on: what is complete is not trained again, and what was under way resumes from its checkpoint. A trial that is worse
than the median of the others at the same step is ended early.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tabulate import tabulate

from embedrag.commands.sweep import SweepOptions
from embedrag.errors import RunError, UserError, near_miss, need
from embedrag.options.parsing import read_config
from embedrag.runtime.console import say
from embedrag.runtime.files import write_atomic
from embedrag.training.config.options import TrainOptions

STUDY = "study.jsonl"
BEST = "best_config.json"
OWN = ("output_dir", "run_name", "resume", "overwrite")  # the sweep's own business
STOPPED = 75  # exit code of a training that a signal stopped
RANGE = {"low", "high", "log", "step"}
Json = dict[str, Any]


def run(options: SweepOptions) -> int:
    """`embedrag sweep`: trials until there are `--trials`, then the best settings as a config file.

    Raises:
        UserError: for a space or config that no training takes, before the first trial.
        RunError: when a training fails.
    """
    need("sweep", "optuna")
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder, base, space = Path(options.output_dir).expanduser(), read_base(options.config), read_space(options.space)
    metric = check(base, space)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / STUDY))),
        study_name=_digest([base, space]),  # another config or space begins a study of its own
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=options.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    for left in study.get_trials(states=[TrialState.RUNNING]):  # of a sweep that was killed
        study.tell(left.number, state=TrialState.FAIL)
        study.enqueue_trial(left.params)
    while len(study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])) < options.trials:
        trial = study.ask()
        values = {name: _suggest(trial, name, choice) for name, choice in space.items()}
        say(f"trial {trial.number}: {_spoken(values)}")

        def hopeless(step: int, value: float, trial: Any = trial) -> bool:
            trial.report(value, step)
            return bool(trial.should_prune())

        value = train(base | values, folder / f"trial-{_digest(values)}", metric, hopeless)
        study.tell(trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)
        say(f"trial {trial.number}: {'ended early' if value is None else f'{metric} {value:.4f}'}")
    ranked = sorted(study.get_trials(states=[TrialState.COMPLETE]), key=lambda done: done.value or 0.0, reverse=True)
    rows = [[done.number, f"{done.value:.4f}", _spoken(done.params)] for done in ranked[:10]]
    say(tabulate(rows, ["trial", metric, "settings"], "github", disable_numparse=True))
    best = ranked[0].params
    write_atomic(folder / BEST, json.dumps(base | best, indent=2, ensure_ascii=False))
    say(f"best settings: {folder / BEST}; their model: {folder / f'trial-{_digest(best)}' / 'final'}")
    return 0


def read_base(path: str) -> Json:
    """The settings that all trials share, by their flat names.

    Raises:
        UserError: for a file that is no config.
    """
    found, problems = read_config(TrainOptions, path)
    problems += [f"{path}: {name} is given by the sweep; leave it out" for name in OWN if name in found]
    if problems:
        raise UserError("\n".join(problems))
    return {name: value for name, (_, value) in found.items()}


def read_space(path: str) -> dict[str, Any]:
    """Option -> what is tried: a list of values, or {"low", "high"} with "log" or "step".

    Raises:
        UserError: naming file and option.
    """
    try:
        space = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--space {path}: {error}; give a JSON file") from None
    if not isinstance(space, dict) or not space:
        example = '{"lr": {"low": 1e-5, "high": 1e-3, "log": true}, "lora_r": [4, 8, 16]}'
        raise UserError(f"--space {path}: must be an object such as {example}")
    names = [name for name in TrainOptions.model_fields if name not in OWN]
    problems = []
    for name, choice in space.items():
        if name not in names:
            problems.append(f"{path}: {name} is no option of a training{near_miss(name, names)}")
        elif isinstance(choice, dict):
            numbers = all(type(choice.get(end)) in (int, float) for end in ("low", "high"))
            if not numbers or set(choice) - RANGE or choice["low"] >= choice["high"]:
                problems.append(f'{path}: {name} must have numbers "low" < "high", and perhaps "log" or "step"')
        elif not isinstance(choice, list) or not choice or any(isinstance(value, (list, dict)) for value in choice):
            problems.append(f'{path}: {name} must be a list of plain values, or {{"low", "high"}}')
    if problems:
        raise UserError("\n".join(problems))
    return space


def check(base: Json, space: Json) -> str:
    """Try every value that may come with the first of the others; returns the metric that decides.

    Raises:
        UserError: for a value that a training refuses, or a config without an evaluation.
    """
    values = {
        name: choice if isinstance(choice, list) else [choice["low"], choice["high"]] for name, choice in space.items()
    }
    first = {name: choice[0] for name, choice in values.items()}
    problems: dict[str, None] = {}
    options = None
    for name, choices in values.items():
        for choice in choices:
            try:
                options = TrainOptions(**{**base, **first, name: choice, "output_dir": "trial"})
            except ValidationError as error:
                reasons = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
                problems[f"--space: {name} {choice!r}: {reasons}"] = None
    if problems or options is None:
        raise UserError("\n".join(problems))
    if not (options.eval_dataset or options.eval_split):
        raise UserError("--config: a sweep needs eval_dataset or eval_split to tell what is better")
    return options.metric_for_best


def train(settings: Json, folder: Path, metric: str, hopeless: Callable[[int, float], bool]) -> float | None:
    """Train in a process of its own, or go on with it.

    Args:
        settings: of the training.
        folder: of its run.
        metric: that decides.
        hopeless: asked at every evaluation (step, value); the training is then ended.

    Returns:
        The metric of the model that the run left; None where it was ended.

    Raises:
        RunError: when it failed; with what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder.with_suffix(".json")
    write_atomic(config, json.dumps(settings | {"output_dir": str(folder), "resume": "auto"}, ensure_ascii=False))
    errors = folder.with_suffix(".err")
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "embedrag", "train", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            pattern = re.compile(rf"evaluation: step (\d+), {re.escape(metric)} (\S+?),? ")
            ended = False
            for line in process.stdout or ():
                found = pattern.match(line.rstrip() + " ")
                if found and int(found[1]) and not ended and hopeless(int(found[1]), float(found[2])):
                    ended = True
                    process.send_signal(signal.SIGTERM)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
    if code == STOPPED and ended:
        return None
    if code:
        said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RunError(
            f"the training in {folder} ended with {code}: {' '.join(said[-3:])}; once that is mended, the sweep goes on"
        )
    return float(json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))[metric])


def _suggest(trial: Any, name: str, choice: Any) -> Any:
    if isinstance(choice, list):
        return trial.suggest_categorical(name, choice)
    whole = all(isinstance(choice[end], int) for end in ("low", "high")) and isinstance(choice.get("step", 1), int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(
        name, choice["low"], choice["high"], **{key: choice[key] for key in ("log", "step") if key in choice}
    )


def _spoken(values: Json) -> str:
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
