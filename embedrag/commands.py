"""The options of the other commands, as those of the training are in `embedrag.training.config.options`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    PositiveInt,
    model_validator,
)

from embedrag.options.field import HALF, Device, Dtype, Options, TextList, as_list, option, whole_number

Precision = Literal["float32", "int8", "binary"]


class MergeOptions(Options):
    """Options of `merge.py` / `embedrag merge`."""

    base_model_path: str | None = option(
        None, "base model, folder or hub id; left out: the one that the adapter names", group="merge"
    )
    lora_adapter_path: str = option(
        ..., "adapter folder, or its adapter_model.safetensors", group="merge", min_length=1
    )
    output_path: str = option(..., "folder of the merged model", group="merge", min_length=1)
    training_precision: Literal["float32", "bfloat16"] = option("float32", "type of the merged weights", group="merge")
    merge_onto: Literal["dequantized", "original"] | None = option(
        None,
        "weights that the adapter is added to; left out: dequantized (as in training) for QLoRA, else original",
        group="merge",
    )
    lora_alpha: int | None = option(
        None, "scale of the adapter, where no adapter_config.json tells it", group="merge", ge=1
    )
    quantization_bits: Annotated[Literal[4, 8] | None, BeforeValidator(whole_number)] = option(
        None, "bits of the base in training, where the adapter's folder does not tell", group="merge"
    )
    double_quantization: bool = option(
        False, "the base's 4-bit scales were quantised once more, where the folder does not tell", group="merge"
    )
    no_verify: bool = option(False, "skip the proof (it loads the model) and say so in the record", group="merge")
    overwrite: bool = option(False, "replace the output folder", group="merge")
    trust_remote_code: bool = option(False, "run Python code that comes with the base model", group="merge")


class EncodeOptions(Options):
    """Options of `embedrag encode`."""

    model: str = option(..., "merged folder, adapter folder, or any base model", group="encode", min_length=1)
    input: str = option(
        ..., "texts: JSONL, CSV or TSV (see --field), or plain text, one a line", group="encode", min_length=1
    )
    output: str = option(..., "file for the vectors, .npy, one row a text", group="encode", min_length=1)
    dim: int | None = option(
        None, "keep the first so many components, at length 1 again; left out: all", group="encode", ge=1
    )
    precision: Precision = option(
        "float32", "of the file; int8: 127 steps of the largest component; binary: signs, 8 in a byte", group="encode"
    )
    role: Literal["query", "passage"] = option("passage", "which prompt and length apply", group="encode")
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="encode")
    field: str = option("text", "key or column that holds the text", group="encode", min_length=1)
    device: Device = option("auto", "where to compute", group="encode")
    dtype: Dtype = option("float32", HALF, group="encode")
    overwrite: bool = option(False, "replace the output file", group="encode")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="encode")


class CheckOptions(Options):
    """Options of `embedrag check`."""

    train_dataset: TextList = option(
        ...,
        "training data, as in training; the flag may be left out: embedrag check FILE",
        group="check",
        positional=True,
        min_length=1,
    )
    eval: str | None = option(
        None,
        "evaluation set that must not occur in the training data: a folder in the BEIR layout, or a file of rows",
        group="check",
        min_length=1,
    )
    model: str | None = option(
        None, "model whose tokenizer measures the texts; its weights are not read", group="check", min_length=1
    )
    query_max_len: int = option(256, "longest query, in tokens (with --model)", group="check", ge=2)
    passage_max_len: int = option(1024, "longest passage, in tokens (with --model)", group="check", ge=2)
    fix: str | None = option(None, "JSONL file for the rows without their faults", group="check", min_length=1)
    output: str | None = option(None, "JSON file for the report", group="check", min_length=1)
    overwrite: bool = option(False, "replace the files that --fix and --output name", group="check")
    stream: bool = option(False, "read a hub dataset as a stream instead of downloading it whole", group="check")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="check")


class DocstringsOptions(Options):
    """Options of `embedrag docstrings`."""

    packages: TextList = option(
        ["stdlib", "numpy", "torch"], "installed packages to read; stdlib is Python's own library", group="docstrings"
    )
    output: str = option(..., "JSONL file to write", group="docstrings", min_length=1)
    neg_nums: int = option(4, "hard negatives of a row: other passages of the same module", group="docstrings", ge=0)
    seed: int = option(42, "seed of the draws", group="docstrings", ge=0, le=2**32 - 1)
    overwrite: bool = option(False, "replace the output file", group="docstrings")


class EvaluateOptions(Options):
    """Options of `embedrag evaluate`."""

    model: str = option(..., "model or adapter folder, or hub id", group="evaluate", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="evaluate")
    baseline: str | None = option(None, "model to compare with, usually the base", group="evaluate")
    data: str = option(
        ...,
        "folder with corpus.jsonl, queries.jsonl and qrels/test.tsv (BEIR layout), or a file of rows in any shape that "
        "training reads; its passages are then the corpus",
        group="evaluate",
        min_length=1,
    )
    general_data: str | None = option(
        None, "a second set, to see what a tuned model has forgotten (with --baseline)", group="evaluate", min_length=1
    )
    k: Annotated[list[PositiveInt], BeforeValidator(lambda v: v if isinstance(v, list) else [v])] = option(
        [1, 5, 10, 100], "cut-offs of the metrics", group="evaluate"
    )
    metric: str | None = option(
        None, "metric of the verdict; left out: ndcg@10, or ndcg at the first of --k", group="evaluate"
    )
    sample_size: int | None = option(
        None, "so many queries, drawn at random; the passages stay all", group="evaluate", ge=1
    )
    faiss_index: str | None = option(
        None, "search with FAISS, named as its index factory does (HNSW32); left out: exact search", group="evaluate"
    )
    dims: Annotated[list[PositiveInt] | None, BeforeValidator(as_list)] = option(
        None,
        "score vectors cut to so many components too, and list the bytes; left out: matryoshka_dims of the training",
        group="evaluate",
    )
    precisions: Annotated[list[Precision] | None, BeforeValidator(as_list)] = option(
        None, "score vectors in these precisions too; left out: embedding_precisions of the training", group="evaluate"
    )
    output: str | None = option(None, "JSON file for the result", group="evaluate", min_length=1)
    html: str | None = option(None, "HTML page for the result, with plots", group="evaluate", min_length=1)
    device: Device = option("auto", "where to compute", group="evaluate")
    dtype: Dtype = option("float32", HALF, group="evaluate")
    overwrite: bool = option(False, "replace the files", group="evaluate")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="evaluate")

    @model_validator(mode="after")
    def _agree(self) -> EvaluateOptions:
        if self.general_data and not self.baseline:
            raise ValueError("--general_data compares with --baseline; name one")
        return self


class MtebOptions(Options):
    """Options of `embedrag mteb`."""

    model: str = option(..., "model or adapter folder, or hub id", group="mteb", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="mteb")
    baseline: str | None = option(None, "model to compare with, usually the base", group="mteb")
    tasks: TextList = option(..., "names of tasks, as mteb spells them (SciFact NFCorpus)", group="mteb", min_length=1)
    languages: Annotated[list[str] | None, BeforeValidator(as_list)] = option(
        None, "only subsets in these languages, ISO 639-3 codes (deu); left out: all of a task's", group="mteb"
    )
    output_dir: str | None = option(
        None, "folder for mteb's JSON; tasks that it holds of this very model are not run again", group="mteb"
    )
    device: Device = option("auto", "where to compute", group="mteb")
    dtype: Dtype = option("float32", HALF, group="mteb")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="mteb")


class MineOptions(Options):
    """Options of `embedrag mine`."""

    train_dataset: TextList = option(..., "rows in any shape that training reads", group="mine")
    corpus: str | None = option(
        None,
        "where negatives are looked for: JSONL, CSV, TSV (see --field), plain text, or a folder with corpus.jsonl; "
        "left out: the passages of the rows",
        group="mine",
        min_length=1,
    )
    field: str = option("text", "key or column of the corpus that holds the text", group="mine", min_length=1)
    output: str = option(..., "JSONL file of rows with new negatives and teacher_scores", group="mine", min_length=1)
    model: str | None = option(None, "model or adapter folder, or hub id, that ranks the corpus", group="mine")
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="mine")
    bm25: bool = option(False, "rank by words (BM25) and not by a model", group="mine")
    neg_nums: int = option(7, "negatives of a row, at most", group="mine", ge=1)
    range: Annotated[list[int], BeforeValidator(as_list)] = option(
        [10, 100],
        "two ranks: negatives are taken behind the first and up to the second, positives not counted",
        group="mine",
        min_length=2,
        max_length=2,
    )
    max_positive_ratio: float = option(
        0.95, "a negative must score below so much of the weakest positive", group="mine", gt=0
    )
    score_with: str | None = option(
        None, "cross-encoder that scores positives and candidates, and decides among them", group="mine"
    )
    cache_dir: str | None = option(
        None, "where vectors of corpora are kept; left out: $EMBEDRAG_CACHE or ~/.cache/embedrag", group="mine"
    )
    device: Device = option("auto", "where to compute", group="mine")
    dtype: Dtype = option("float32", HALF, group="mine")
    overwrite: bool = option(False, "replace the output file", group="mine")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="mine")

    @model_validator(mode="after")
    def _agree(self) -> MineOptions:
        problems = []
        if bool(self.model) == self.bm25:
            problems.append("name either --model or --bm25, which ranks the corpus")
        if not 0 <= self.range[0] < self.range[1]:
            problems.append("--range must be two ranks, the smaller first, such as 10 100")
        elif self.range[1] - self.range[0] < self.neg_nums:
            problems.append(f"--range {self.range[0]} {self.range[1]} has fewer ranks than --neg_nums {self.neg_nums}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class ComposeOptions(Options):
    """Options of `embedrag compose`."""

    input: str = option(
        ..., "CSV or TSV file of terms and definitions, or of anchors and positives", group="compose", min_length=1
    )
    output: str = option(..., "JSONL file of training rows", group="compose", min_length=1)
    hard_k: int = option(3, "hard negatives of a row: the nearest definitions of other terms", group="compose", ge=0)
    columns: Annotated[list[str] | None, BeforeValidator(as_list)] = option(
        None,
        "names of the two columns, term first; left out: found by their names in several languages",
        group="compose",
        min_length=2,
        max_length=2,
    )
    encoding: str | None = option(
        None, "encoding of the file; left out: detected (UTF-8, UTF-16, CP949, GB18030, Big5)", group="compose"
    )
    model: str | None = option(
        None, "model or adapter folder, or hub id, that finds the negatives; left out: BM25", group="compose"
    )
    device: Device = option("auto", "where to compute", group="compose")
    overwrite: bool = option(False, "replace the output file", group="compose")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="compose")


class SynthOptions(Options):
    """Options of `embedrag synth`."""

    terms: str | None = option(
        None, "CSV, TSV or JSONL file of term, definition and perhaps category", group="synth", min_length=1
    )
    acronyms: str | None = option(
        None, "JSONL file of acronym, full, definition and perhaps term, category", group="synth", min_length=1
    )
    templates: str | None = option(
        None,
        "JSON file of query templates, or ko, zh, en; left out: the one for the language of the terms",
        group="synth",
        min_length=1,
    )
    pairs_per_term: int = option(6, "rows of a term", group="synth", ge=0)
    pairs_per_acronym: int = option(8, "rows of an acronym", group="synth", ge=0)
    test_split: float = option(
        0.2, "share of the terms and acronyms that only the test set has; 0: no test set", group="synth", ge=0, lt=1
    )
    seed: int = option(42, "seed of the split and of the draws", group="synth", ge=0, le=2**32 - 1)
    output_dir: str = option(..., "folder for train.jsonl and test.jsonl", group="synth", min_length=1)
    columns: Annotated[list[str] | None, BeforeValidator(as_list)] = option(
        None,
        "names of the two columns of a CSV or TSV file, term first; left out: found by name in several languages",
        group="synth",
        min_length=2,
        max_length=2,
    )
    encoding: str | None = option(None, "encoding of a CSV or TSV file; left out: detected", group="synth")
    llm_base_url: str | None = option(
        None, "OpenAI-compatible server that writes further queries (key: $OPENAI_API_KEY)", group="synth"
    )
    llm_model: str | None = option(None, "name of the model on that server", group="synth")
    llm_queries: int = option(4, "queries that it writes for a definition", group="synth", ge=1)
    llm_timeout: float = option(60.0, "seconds that one answer may take", group="synth", gt=0)
    overwrite: bool = option(False, "replace train.jsonl and test.jsonl", group="synth")

    @model_validator(mode="after")
    def _agree(self) -> SynthOptions:
        problems = []
        if not self.terms and not self.acronyms:
            problems.append("name --terms, --acronyms or both")
        if bool(self.llm_base_url) != bool(self.llm_model):
            problems.append("--llm_base_url and --llm_model go together; name both or none")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class CrawlOptions(Options):
    """Options of `embedrag crawl`."""

    sources: TextList = option([], "known lists of pages: wikipedia_glossary", group="crawl")
    urls: TextList = option([], "pages to read, or sitemaps of pages", group="crawl")
    output_dir: str | None = option(
        None,
        "folder for glossary.csv and pairs.jsonl; left out: data, and a dry run writes nothing",
        group="crawl",
        min_length=1,
    )
    limit_per_source: int = option(
        500, "pairs taken from one source, at most: from the list, or from one of --urls", group="crawl", ge=1
    )
    languages: TextList = option(
        ["en", "ko", "zh", "de", "fr", "ja", "es"],
        "Wikipedias that are read, in turns",
        group="crawl",
        min_length=1,
    )
    dry_run: bool = option(
        False, "read a packaged page and ask nothing of the network", group="crawl", aliases=("dry-run",)
    )
    contact: str | None = option(
        None,
        "mail address or URL of yours, said to every server",
        group="crawl",
        min_length=3,
        max_length=200,
        pattern=r"^[!-'*-~]+( [!-'*-~]+)*$",
    )
    delay: float = option(1.0, "seconds from one request to the next of a host; 1 or more", group="crawl", ge=1)
    timeout: float = option(30.0, "seconds for one request, to its last byte", group="crawl", gt=0)
    max_mb: float = option(5.0, "longest page, unpacked, in MB", group="crawl", gt=0, le=1000)
    overwrite: bool = option(False, "forget what the folder holds, and start anew", group="crawl")

    @model_validator(mode="after")
    def _agree(self) -> CrawlOptions:
        problems = [
            f"--sources {name}: there is wikipedia_glossary" for name in self.sources if name != "wikipedia_glossary"
        ]
        if not (self.sources or self.urls or self.dry_run):
            problems.append("name --sources wikipedia_glossary, --urls, or --dry-run")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class DemoOptions(Options):
    """Options of `embedrag demo`."""

    output_dir: str = option("demo_output", "folder of the demo", group="demo", min_length=1)
    model: str | None = option(None, "base model; left out: the packaged all-MiniLM-L6-v2", group="demo")
    packages: TextList = option(["stdlib", "numpy", "torch"], "packages whose documentation is the data", group="demo")


class SweepOptions(Options):
    """Options of `embedrag sweep`."""

    config: str = option(
        ..., "JSON file of a training, with eval_dataset or eval_split; no output_dir", group="sweep", min_length=1
    )
    space: str = option(
        ...,
        'JSON file: option -> list of values, or {"low", "high"}, perhaps with "log": true or "step"',
        group="sweep",
        min_length=1,
    )
    output_dir: str = option(..., "folder of all trials; a sweep that it holds goes on", group="sweep", min_length=1)
    trials: int = option(20, "trials in all, those of earlier starts included", group="sweep", ge=1)
    seed: int = option(42, "seed of the sampler", group="sweep", ge=0)
