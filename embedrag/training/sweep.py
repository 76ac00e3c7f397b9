"""Search for the best settings: train one config with different values, and compare the evaluations (Optuna, TPE).

Each trial is a training in a process of its own, in a folder named after its values. So a sweep that was stopped can go
on: complete trials are not trained again, and an unfinished one resumes from its checkpoint. The sweep reads the
evaluations in the log of the training. A trial that is worse than the median of the others at the same step is ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedrag.errors import RunError, StoppedError, UserError, near_miss, need, raise_all
from embedrag.options.parsing import read_config
from embedrag.runtime.claims import claim, claimed
from embedrag.runtime.console import say
from embedrag.runtime.files import write_atomic
from embedrag.training.config.options import TrainOptions
from embedrag.training.state.run_log import read_evaluations

STUDY = "study.jsonl"
BEST = "best_config.json"
OWN = ("output_dir", "run_name", "resume", "overwrite")  # options that the sweep sets itself
STOPPED = StoppedError.exit_code  # of a training that a signal stopped
POLL_SECONDS = 0.5
RANGE = {"low", "high", "log", "step"}
Json = dict[str, Any]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        metric: that decided.
        best: settings of the best trial, those that were tried.
        config: file with all settings of the best trial.
        model: folder of its model.
        ranked: (number, value, settings) of the complete trials, best first.
    """

    metric: str
    best: Json
    config: Path
    model: Path
    ranked: list[tuple[int, float, Json]]


def sweep(
    config: str | Path, space: str | Path, output_dir: str | Path, *, trials: int = 20, seed: int = 42
) -> SweepResult:
    """Train with different settings until there are `trials` trials, and write the best settings as a config file.

    Args:
        config: JSON file of a training, with eval_dataset or eval_split and without an output_dir.
        space: JSON file, see `read_space`.
        output_dir: folder of all trials; a sweep that is in it is continued.
        trials: number of trials in all, those of earlier starts included.
        seed: of the sampler.

    Raises:
        UserError: for a space or config that no training accepts, before the first trial.
        RunError: when a training fails.
    """
    need("sweep", "optuna")
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder, base, choices = Path(output_dir).expanduser(), read_base(str(config)), read_space(str(space))
    metric = check(base, choices)
    check_sweep_folder(folder)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / STUDY))),
        study_name=_digest([base, choices]),  # another config or space starts a study of its own
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    for left in study.get_trials(states=[TrialState.RUNNING]):  # of a sweep that was killed
        study.tell(left.number, state=TrialState.FAIL)
        study.enqueue_trial(left.params)
    while len(study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])) < trials:
        study.sampler = optuna.samplers.TPESampler(seed=_seed_of_trial(seed, len(study.trials)))
        trial = study.ask()
        values = {name: _suggest(trial, name, choice) for name, choice in choices.items()}
        say(f"trial {trial.number}: {shown(values)}")

        def hopeless(step: int, value: float, trial: Any = trial) -> bool:
            trial.report(value, step)
            return bool(trial.should_prune())

        value = train(base | values, folder / f"trial-{_digest(values)}", metric, hopeless)
        study.tell(trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)
        say(f"trial {trial.number}: {'ended early' if value is None else f'{metric} {value:.4f}'}")
    done = sorted(study.get_trials(states=[TrialState.COMPLETE]), key=lambda trial: trial.value or 0.0, reverse=True)
    best = done[0].params
    claim(folder, BEST)
    write_atomic(folder / BEST, json.dumps(base | best, indent=2, ensure_ascii=False))
    ranked = [(trial.number, trial.value or 0.0, trial.params) for trial in done]
    return SweepResult(metric, best, folder / BEST, folder / f"trial-{_digest(best)}" / "final", ranked)


def check_sweep_folder(folder: Path) -> None:
    """Make the folder of a sweep, and refuse one in which somebody else has files of our names.

    Raises:
        UserError: naming them.
        RunError: the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), (folder / STUDY).open("rb") as file:
            if claimed(folder) is None and file.read(12) == b'{"op_code": ':  # a sweep of an earlier version
                claim(folder, STUDY, BEST)
    except OSError as error:
        raise UserError(f"{error.strerror}; name another folder", "output_dir", folder) from None
    foreign = [name for name in (STUDY, BEST) if name not in (claimed(folder) or ()) and (folder / name).exists()]
    if foreign:
        raise UserError(f"holds {', '.join(foreign)}, which no sweep wrote; name another folder", "output_dir", folder)
    claim(folder, STUDY)


def read_base(path: str) -> Json:
    """The settings that all trials share, by their flat names.

    Raises:
        UserError: for a file that is not a config.
    """
    found, problems = read_config(TrainOptions, path)
    problems += [UserError(f"{path}: {name} is set by the sweep; leave it out") for name in OWN if name in found]
    raise_all(problems)
    return {name: value for name, (_, value) in found.items()}


def read_space(path: str) -> dict[str, Any]:
    """Option -> what is tried: a list of values, or {"low", "high"} with "log" or "step".

    Raises:
        UserError: naming file and option.
    """
    try:
        space = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{error}; give a JSON file", "space", path) from None
    if not isinstance(space, dict) or not space:
        example = '{"lr": {"low": 1e-5, "high": 1e-3, "log": true}, "lora_r": [4, 8, 16]}'
        raise UserError(f"must be an object such as {example}", "space", path)
    names = [name for name in TrainOptions.model_fields if name not in OWN]
    problems = []
    for name, choice in space.items():
        if name not in names:
            problems.append(f"{path}: {name} is not an option of a training{near_miss(name, names)}")
        elif isinstance(choice, dict):
            numbers = all(type(choice.get(end)) in (int, float) for end in ("low", "high"))
            if not numbers or set(choice) - RANGE or choice["low"] >= choice["high"]:
                problems.append(f'{path}: {name} must have numbers "low" < "high", and optionally "log" or "step"')
        elif not isinstance(choice, list) or not choice or any(isinstance(value, (list, dict)) for value in choice):
            problems.append(f'{path}: {name} must be a list of plain values, or {{"low", "high"}}')
    if problems:
        raise UserError("\n".join(problems))
    return space


def check(base: Json, space: Json) -> str:
    """Try every value together with the first value of the other options; returns the metric that decides.

    Raises:
        UserError: for a value that a training refuses, or a config without an evaluation.
    """
    values = {
        name: choice if isinstance(choice, list) else [choice["low"], choice["high"]] for name, choice in space.items()
    }
    first = {name: choice[0] for name, choice in values.items()}
    problems: dict[str, UserError] = {}
    options = None
    for name, choices in values.items():
        for choice in choices:
            try:
                options = TrainOptions(**{**base, **first, name: choice, "output_dir": "trial"})
            except UserError as error:
                reasons = "; ".join(map(str, error.problems))
                text = f"{name} {choice!r}: {reasons}"
                problems[text] = UserError(text, "space")
    raise_all(problems.values())
    if options is None or not (options.eval_dataset or options.eval_split):
        raise UserError("a sweep needs eval_dataset or eval_split to know what is better", "config")
    return options.metric_for_best


def train(settings: Json, folder: Path, metric: str, hopeless: Callable[[int, float], bool]) -> float | None:
    """Train in a process of its own, or continue a training that was stopped.

    Args:
        settings: of the training.
        folder: of its run.
        metric: that decides.
        hopeless: called with (step, value) after every evaluation; when it is true, the training is ended.

    Returns:
        The metric of the model that the run left; None when it was ended early.

    Raises:
        RunError: when the training failed, with its last lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, output = folder.with_suffix(".json"), folder.with_suffix(".out")
    write_atomic(config, json.dumps(settings | {"output_dir": str(folder), "resume": "auto"}, ensure_ascii=False))
    errors = folder.with_suffix(".err")
    ended = False
    with output.open("wb") as lines, errors.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "embedrag", "train", "--config", str(config)], stdout=lines, stderr=file
        )
        try:
            seen: set[int] = {0}  # the evaluation of the base does not depend on the settings
            while process.poll() is None:
                ended = ended or _ended(process, folder, metric, hopeless, seen)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        finally:
            process.kill()
            code = process.wait()
    if code in (0, STOPPED):
        # The training may have ended before its last evaluations were read. They decide all the same, so that a
        # trial that is hopeless is so on a fast machine too.
        if ended or _ended(process, folder, metric, hopeless, seen):
            return None
    if code:
        said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RunError(
            f"the training in {folder} ended with exit code {code}: {' '.join(said[-3:])}; fix that, and the same call "
            "continues the sweep"
        )
    return float(json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))[metric])


def _ended(
    process: subprocess.Popen[bytes],
    folder: Path,
    metric: str,
    hopeless: Callable[[int, float], bool],
    seen: set[int],
) -> bool:
    """Read new evaluations in the log of a training. Returns whether the training was hopeless and ended."""
    for row in read_evaluations(folder / "detailed_training_logs.json"):
        step = row["global_step"]
        if step not in seen:
            seen.add(step)
            if hopeless(step, row[metric]):
                process.send_signal(signal.SIGTERM)
                return True
    return False


def _seed_of_trial(seed: int, number: int) -> int:
    """The seed of one trial, so that a continued sweep draws what the unbroken one draws, and no trial a second time.

    >>> _seed_of_trial(42, 0) == _seed_of_trial(42, 0), _seed_of_trial(42, 1) == _seed_of_trial(43, 0)
    (True, False)
    """
    return int(hashlib.sha256(f"{seed} {number}".encode()).hexdigest()[:8], 16)


def _suggest(trial: Any, name: str, choice: Any) -> Any:
    if isinstance(choice, list):
        return trial.suggest_categorical(name, choice)
    whole = all(isinstance(choice[end], int) for end in ("low", "high")) and isinstance(choice.get("step", 1), int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(
        name, choice["low"], choice["high"], **{key: choice[key] for key in ("log", "step") if key in choice}
    )


def shown(values: Json) -> str:
    """Settings in one line."""
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
