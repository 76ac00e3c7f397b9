"""Score a model on tasks of MTEB, the public collection of embedding benchmarks, exactly as it was trained.

`MtebModel` gives an `Encoder` the interface that the mteb package asks for. mteb fetches the data, searches, scores and
writes its JSON. Prompts, pooling, normalisation and lengths stay those of the model. mteb is an optional extra: it is
imported when tasks are scored, and nothing else needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from embedrag.errors import UserError, near_miss, raise_all
from embedrag.models.encoder import TEXTS_PER_BLOCK, Encoder
from embedrag.models.load import check_model_path, load_model
from embedrag.retrieval.vector_cache import fingerprint
from embedrag.runtime.console import console, say

INSTALL = 'pip install "mteb>=2.26,<3"'


class TaskDataError(UserError):
    """The data of a task can't be read; other tasks can go on."""


@dataclass(frozen=True)
class MtebResult:
    """Main scores on tasks of MTEB.

    Attributes:
        tasks: mteb's tasks, in the order in which they were asked for.
        scores: name of a task -> main score of the model, the mean over splits and subsets.
        baseline_scores: the same of the baseline; None without a baseline.
        problems: name of a task -> why its data can't be read. These tasks have no score.
        results: folder with mteb's own JSON; None when it was not asked for, or nothing was scored.
    """

    tasks: list[Any]
    scores: dict[str, float]
    baseline_scores: dict[str, float] | None
    problems: dict[str, TaskDataError]
    results: Path | None

    def lines(self) -> Iterator[str]:
        """The result as text for a terminal."""
        if any(task.metadata.name not in self.problems for task in self.tasks):
            both = [self.scores] + ([] if self.baseline_scores is None else [self.baseline_scores])
            yield f"\n{table(self.tasks, both)}"
        if self.results:
            yield f"details: {self.results}"


class MtebModel:
    """An `Encoder` with the interface of mteb's encoders.

    Roles: a text that mteb calls a query gets the model's query prompt and length, and a document gets the passage's.
    Tasks without this distinction (STS, classification, clustering, pair classification, bitext) have no roles; all
    their texts are passages, as a user's documents would be. mteb's own task instructions are not used: a model is
    scored with the prompts that it was trained with.

    Attributes:
        mteb_model_meta: mteb's record of the model. Its revision is a fingerprint of weights, tokenizer and embedding
            config, so that results on disk are never taken for those of another model.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder."""
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction

        self.encoder = encoder
        embedding_config = encoder.embedding_config
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": mteb_name(encoder.name),
                "revision": fingerprint(encoder),
                "max_tokens": embedding_config.max_len,
                "embed_dim": encoder.dimension,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": bool(embedding_config.query_prompt or embedding_config.passage_prompt),
            }
        )

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> np.ndarray:
        """Vectors of n texts.

        Args:
            inputs: batches; their texts are under `text`.
            task_metadata: the task, for the progress bar.
            hf_split: not used.
            hf_subset: not used.
            prompt_type: mteb's `query`, `document` or None.
            **_: batch size and similar settings, which the encoder chooses by itself.

        Returns:
            [n, D] float32.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        role = role_of(prompt_type)
        title = f"{task_metadata.name}, {role}"
        with console.progress(len(texts), "text", desc=title, leave=False) as bar:
            return self.encoder.encode(texts, role, progress=bar.update)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of each vector with each other, [n, D] and [m, D] -> [n, m]."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of pairs, [n, D] and [n, D] -> [n]."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def role_of(prompt_type: Any) -> str:
    """Our role for mteb's prompt type.

    >>> role_of("query"), role_of("document"), role_of(None)
    ('query', 'passage', 'passage')
    """
    return "query" if prompt_type == "query" else "passage"


def mteb_name(name: str) -> str:
    """A model's name in mteb's form, `owner/name`; for a path these are its last two parts.

    >>> mteb_name("intfloat/e5-base-v2"), mteb_name("bert-base-uncased")
    ('intfloat/e5-base-v2', 'local/bert-base-uncased')
    """
    path = Path(name).expanduser()
    if not path.exists():
        return name if "/" in name else f"local/{name}"
    folder = path.resolve().parent if path.is_file() else path.resolve()
    return "/".join(("local", *folder.parts[1:])[-2:])


def find_tasks(names: Sequence[str], languages: Sequence[str] | None = None) -> list[Any]:
    """The tasks of mteb with these names; no data is read.

    Args:
        names: as mteb spells them.
        languages: ISO 639-3 codes, with or without a script (`deu`, `deu-Latn`). Subsets in other languages are left
            out. None: all subsets.

    Raises:
        UserError: with every unknown name or language, and every task that is not about texts.
    """
    from mteb import get_task
    from mteb.get_tasks import TASK_LIST
    from mteb.languages import check_language_code

    tasks = []
    problems: list[UserError] = []
    for code in languages or ():
        try:
            check_language_code(code)
        except ValueError:
            reason = "no such language; give ISO 639-3 codes such as deu or deu-Latn"
            problems.append(UserError(reason, "languages", code))
    for name in dict.fromkeys(names):
        try:
            task = get_task(name)
        except KeyError:
            hint = near_miss(name, (known.metadata.name for known in TASK_LIST))
            problems.append(UserError(f"mteb has no such task{hint}", "tasks", name))
            continue
        other = sorted(set(task.metadata.modalities) - {"text"})
        if other:
            reason = f"needs a model for {', '.join(other)}; only tasks about texts can be scored"
            problems.append(UserError(reason, "tasks", name))
        tasks.append(task)
    if not problems and languages:
        problems = [problem for task in tasks for problem in _filter(task, languages)]
    raise_all(problems)
    for task in tasks:
        _guard(task)
    return tasks


def score(
    model: MtebModel, tasks: Iterable[Any], cache: Any = None
) -> tuple[dict[str, float], dict[str, TaskDataError]]:
    """Main scores of a model. When the data of a task can't be read, the other tasks go on.

    Args:
        model: the model.
        tasks: from `find_tasks`.
        cache: mteb's ResultCache; a task with a result for this model in it is not run again. None: nothing is written.

    Returns:
        Name of a task -> mean of its main score over splits and subsets, and name of a task -> why there is no score.
    """
    import mteb

    scores: dict[str, float] = {}
    problems: dict[str, TaskDataError] = {}
    for task in tasks:
        name = task.metadata.name
        say(f"{name}: {task.metadata.type}, {model.mteb_model_meta.name}")
        try:
            result = mteb.evaluate(
                model,
                task,
                cache=cache,
                co2_tracker=False,
                show_progress_bar=False,
                encode_kwargs={"batch_size": TEXTS_PER_BLOCK, "show_progress_bar": False},
            )
        except TaskDataError as error:
            problems[name] = error
            continue
        # Results on disk may hold more subsets, from an earlier run with other languages.
        scores[name] = float(result.task_results[0].validate_and_filter_scores(task).get_score())
    return scores, problems


def table(tasks: Iterable[Any], scores: Sequence[dict[str, float]]) -> str:
    """Scores as text, one row for each task, and their mean if there are several tasks.

    Args:
        tasks: from `find_tasks`.
        scores: those of the model and, if they are to be compared, those of the baseline.
    """
    done = [task.metadata for task in tasks if all(task.metadata.name in of_model for of_model in scores)]
    rows = [(item.name, item.main_score, [of_model[item.name] for of_model in scores]) for item in done]
    if len(rows) > 1:
        rows.append((f"mean of {len(rows)}", "", np.mean([values for *_, values in rows], axis=0).tolist()))
    cells = [
        [name, metric, *(f"{value:.4f}" for value in reversed(values))]
        + ([f"{values[0] - values[1]:+.4f}"] if len(values) > 1 else [])
        for name, metric, values in rows
    ]
    headers = ["task", "score", "baseline", "model", "difference"] if len(scores) > 1 else ["task", "score", "model"]
    return tabulate(cells, headers, disable_numparse=True)


def evaluate_on_mteb(
    model: str | Path,
    tasks: Sequence[str],
    *,
    baseline: str | Path | None = None,
    languages: Sequence[str] | None = None,
    output_dir: str | Path | None = None,
    base_model_path: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> MtebResult:
    """Score a model on tasks of MTEB and, with a baseline, both.

    Args:
        model: folder or hub id.
        tasks: names of tasks, as mteb spells them.
        baseline: a model to compare with.
        languages: see `find_tasks`.
        output_dir: folder for mteb's own JSON. A task is not run again if its result for the same model is there.
        base_model_path: base of an adapter, when it has moved.
        device: where to compute: `auto`, `cuda`, `mps` or `cpu`.
        dtype: of the computation: `auto`, `float32`, `float16` or `bfloat16`.
        trust_remote_code: run Python code that comes with the models.

    Raises:
        UserError: when mteb is missing or too old, a task or a language is unknown, or a model can't be read.
    """
    _check_installed()
    from mteb import ResultCache

    for argument, name in (("model", model), ("baseline", baseline)):
        if name is not None:
            check_model_path(name, argument)
    found_tasks = find_tasks(tasks, languages)
    cache = None
    if output_dir is not None:
        folder = Path(output_dir).expanduser()
        if folder.exists() and not folder.is_dir():
            raise UserError("this is a file; name a folder", "output_dir", output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        cache = ResultCache(folder)
    problems: dict[str, TaskDataError] = {}

    def scored(name: str | Path, argument: str) -> dict[str, float]:
        base = base_model_path if argument == "model" else None
        encoder = load_model(name, device, dtype, base, trust_remote_code, argument=argument)
        left = [task for task in found_tasks if task.metadata.name not in problems]
        scores, wrong = score(MtebModel(encoder), left, cache)
        problems.update(wrong)
        return scores

    scores = scored(model, "model")
    baseline_scores = None if baseline is None else scored(baseline, "baseline")
    results = folder / "results" if cache and (scores or baseline_scores) else None
    return MtebResult(found_tasks, scores, baseline_scores, problems, results)


def _check_installed() -> None:
    try:
        from mteb import ResultCache, evaluate, get_task  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"needs the mteb package, and Python 3.11 or newer: {INSTALL} ({str(error).splitlines()[0]})"
        ) from None


def _leaves(task: Any) -> list[Any]:
    """The task itself, or the tasks that it is made of."""
    return [leaf for part in task.metadata.tasks for leaf in _leaves(part)] if task.is_aggregate else [task]


def _filter(task: Any, languages: Sequence[str]) -> Iterator[UserError]:
    """Keep only the subsets in these languages. Gives an error when that is not possible."""
    name = task.metadata.name
    for leaf in _leaves(task):
        before = list(leaf.hf_subsets)
        try:
            leaf.filter_languages(list(languages))
        except ValueError:
            known = sorted({code.split("-")[0] for code in leaf.metadata.languages})
            shown = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
            yield UserError(f"{name} has none of these; it has {shown}", "languages", list(languages))
            return
        if leaf is not task and list(leaf.hf_subsets) != before:
            reason = "consists of several tasks and can't be limited to languages; name some of these tasks instead"
            yield UserError(reason, "tasks", name)
            return


def _guard(task: Any) -> None:
    """Let a task explain in one line why its data can't be read. Data sets and hubs raise many kinds of errors."""
    for leaf in _leaves(task):

        def load_data(*words: Any, _leaf: Any = leaf, _load: Any = leaf.load_data, **named: Any) -> None:
            try:
                _load(*words, **named)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                name, source = _leaf.metadata.name, _leaf.metadata.dataset["path"]
                raise TaskDataError(f"its data ({source}) can't be read: {reason}", "tasks", name) from None

        leaf.load_data = load_data
