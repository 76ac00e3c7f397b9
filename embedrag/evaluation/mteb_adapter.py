"""Score a model on tasks of MTEB, the public collection of embedding benchmarks, exactly as it was trained.

`MtebModel` shows an `Encoder` to the mteb package in the shape that package asks for. mteb fetches the data, searches,
scores and writes its JSON; prompts, pooling, normalisation and lengths stay those of the model. mteb is an optional
extra, imported when the command runs; nothing else needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from embedrag.commands.mteb import MtebOptions
from embedrag.errors import UserError, near_miss
from embedrag.models.encoder import TEXTS_PER_BLOCK, Encoder
from embedrag.models.load import load_model
from embedrag.retrieval.vector_cache import fingerprint
from embedrag.runtime.console import say

INSTALL = 'pip install "mteb>=2.26,<3"'


class TaskDataError(UserError):
    """The data of a task can't be had; other tasks can go on."""


class MtebModel:
    """An `Encoder` as mteb's encoder protocol.

    Roles: what mteb calls a query gets the model's query prompt and length, what it calls a document the passage's.
    Tasks without that distinction (STS, classification, clustering, pair classification, bitext) have no such type;
    their texts are passages on both sides, as documents of a user would be. mteb's own task instructions are not put
    before anything: a model is scored with the prompts that it carries.

    Attributes:
        mteb_model_meta: mteb's record of the model. Its revision is a fingerprint of weights, tokenizer and contract,
            so results on disk are never taken for those of another model.
    """

    def __init__(self, encoder: Encoder, name: str) -> None:
        """Wrap an encoder.

        Args:
            encoder: the model.
            name: folder, adapter file or hub id that it was loaded from.
        """
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction

        self.encoder = encoder
        embedding_config = encoder.embedding_config
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": mteb_name(name),
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
            **_: batch size and the like, which the encoder decides by itself.

        Returns:
            [n, D] float32.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        role = role_of(prompt_type)
        title = f"{task_metadata.name}, {role}"
        with tqdm(total=len(texts), unit="text", desc=title, dynamic_ncols=True, leave=False) as bar:
            return self.encoder.encode(texts, role, progress=bar.update)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of each vector with each, [n, D] and [m, D] -> [n, m]."""
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
    """A model's name as mteb wants it, `owner/name`; of a path, its last two parts.

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
        languages: ISO 639-3 codes, with or without script (`deu`, `deu-Latn`); subsets in other languages are left out.

    Raises:
        UserError: with every unknown name or language, and every task that is no text task.
    """
    from mteb import get_task
    from mteb.get_tasks import TASK_LIST
    from mteb.languages import check_language_code

    tasks, problems = [], []
    for code in languages or ():
        try:
            check_language_code(code)
        except ValueError:
            problems.append(f"--languages {code}: no such language; give ISO 639-3 codes such as deu, or deu-Latn")
    for name in dict.fromkeys(names):
        try:
            task = get_task(name)
        except KeyError:
            hint = near_miss(name, (known.metadata.name for known in TASK_LIST))
            problems.append(f"--tasks {name}: mteb has no such task{hint}")
            continue
        other = sorted(set(task.metadata.modalities) - {"text"})
        if other:
            problems.append(f"--tasks {name}: needs a model for {', '.join(other)}; only text tasks can be scored")
        tasks.append(task)
    if not problems and languages:
        problems = [problem for task in tasks for problem in _filter(task, languages)]
    if problems:
        raise UserError("\n".join(problems))
    for task in tasks:
        _guard(task)
    return tasks


def score(model: MtebModel, tasks: Iterable[Any], cache: Any = None) -> tuple[dict[str, float], dict[str, str]]:
    """Main scores of a model; a task whose data can't be had does not stop the others.

    Args:
        model: the model.
        tasks: from `find_tasks`.
        cache: mteb's ResultCache; tasks that it has of this very model are not run again. None writes nothing.

    Returns:
        Task name -> mean of its main score over splits and subsets, and task name -> what was wrong with its data.
    """
    import mteb

    scores, problems = {}, {}
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
            problems[name] = str(error)
            continue
        # Results on disk may hold further subsets, of an earlier run with other languages.
        scores[name] = float(result.task_results[0].validate_and_filter_scores(task).get_score())
    return scores, problems


def table(tasks: Iterable[Any], scores: Sequence[dict[str, float]]) -> str:
    """Scores as text, one row a task, and their mean where there are several.

    Args:
        tasks: from `find_tasks`.
        scores: of the model and, to compare, of the baseline.
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


def run(options: MtebOptions) -> int:
    """`embedrag mteb`: a table on the screen and, with `--output_dir`, mteb's own JSON files.

    Raises:
        UserError: when mteb is missing or too old, a task is unknown, or the data of a task can't be had.
    """
    _check_installed()
    from mteb import ResultCache

    tasks = find_tasks(options.tasks, options.languages)
    cache = None
    if options.output_dir:
        folder = Path(options.output_dir).expanduser()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output_dir {options.output_dir}: a file; name a folder")
        folder.mkdir(parents=True, exist_ok=True)
        cache = ResultCache(folder)
    scores: list[dict[str, float]] = []
    problems: dict[str, str] = {}
    models = [(options.model, options.base_model_path)] + ([(options.baseline, None)] if options.baseline else [])
    for name, base in models:
        left = [task for task in tasks if task.metadata.name not in problems]
        encoder = load_model(name, options.device, options.dtype, base, options.trust_remote_code)
        found, wrong = score(MtebModel(encoder, name), left, cache)
        del encoder  # before the next one is loaded
        scores.append(found)
        problems |= wrong
    if any(task.metadata.name not in problems for task in tasks):
        say(f"\n{table(tasks, scores)}")
    if cache and any(scores):
        say(f"details: {folder / 'results'}")
    if problems:
        raise UserError("\n".join(problems.values()))
    return 0


def _check_installed() -> None:
    try:
        from mteb import ResultCache, evaluate, get_task  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"embedrag mteb needs the mteb package, and Python 3.11 or newer: {INSTALL} ({str(error).splitlines()[0]})"
        ) from None


def _leaves(task: Any) -> list[Any]:
    """The task itself, or the tasks that it sums up."""
    return [leaf for part in task.metadata.tasks for leaf in _leaves(part)] if task.is_aggregate else [task]


def _filter(task: Any, languages: Sequence[str]) -> Iterable[str]:
    """Keep the subsets in these languages; says what is wrong where that is not possible."""
    name = task.metadata.name
    for leaf in _leaves(task):
        before = list(leaf.hf_subsets)
        try:
            leaf.filter_languages(list(languages))
        except ValueError:
            known = sorted({code.split("-")[0] for code in leaf.metadata.languages})
            shown = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
            yield f"--languages {' '.join(languages)}: {name} has none of these; it has {shown}"
            return
        if leaf is not task and list(leaf.hf_subsets) != before:
            yield f"--tasks {name}: sums up several tasks and can't be cut to languages; name its parts in --tasks"
            return


def _guard(task: Any) -> None:
    """Make a task say in one line why its data can't be had; data sets and hubs have a hundred ways to fail."""
    for leaf in _leaves(task):

        def load_data(*words: Any, _leaf: Any = leaf, _load: Any = leaf.load_data, **named: Any) -> None:
            try:
                _load(*words, **named)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                name, source = _leaf.metadata.name, _leaf.metadata.dataset["path"]
                raise TaskDataError(f"--tasks {name}: its data ({source}) can't be had: {reason}") from None

        leaf.load_data = load_data
