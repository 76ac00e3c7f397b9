"""From options to everything a run needs, in the order of cost.

All that can be wrong with the user's input is found first, cheapest check first; weights are loaded last, and nothing
is written into the output folder here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from embedrag.data.collator import make_batch
from embedrag.data.retrieval_dataset import RetrievalSet
from embedrag.data.rows import endless_records, read_records
from embedrag.data.sources import local_files
from embedrag.data.token_store import TokenBatch, TokenStore, cache_folder, record_texts
from embedrag.errors import UserError
from embedrag.losses.contrastive import Terms
from embedrag.models.backbone import (
    check_bitsandbytes,
    quiet,
    trainable_backbone,
    without_gradient,
)
from embedrag.models.embedding_config import check_local_path, describe_base, settle
from embedrag.models.embedding_format import View, views
from embedrag.models.encoder import Encoder
from embedrag.models.equivalence import choose_probes
from embedrag.models.kernels.packed_attention import PackingError
from embedrag.models.load import load_encoder
from embedrag.models.tokenizer import load_tokenizer
from embedrag.runtime.device import bfloat16_multiplies_faster, fastest, pick_device, pick_dtype
from embedrag.runtime.distributed import Processes, join, wants_sharding
from embedrag.runtime.fsdp import shard
from embedrag.training.config.options import TrainOptions
from embedrag.training.data import TrainingData, default_dataset, open_data
from embedrag.training.embedding_teacher import Teacher, ask_teacher
from embedrag.training.memory import longest_texts, settle_budget
from embedrag.training.objective import ContrastiveStep
from embedrag.training.optimizer import check_optimizer
from embedrag.training.self_test import left_padding_distance, processes_distance, self_test
from embedrag.training.state.checkpoint import Checkpoint, open_checkpoint
from embedrag.training.state.resume import check_data, check_processes, compare_settings, engine_options, restore_budget
from embedrag.training.state.run_folder import check_output_dir, check_sources
from embedrag.training.state.run_log import check_tracker, say
from embedrag.training.state.run_record import contract_options, figure, model_info, run_settings, say_model

CALIBRATION_TOKENS = 1024
PROBED_ROWS = 200


@dataclass(frozen=True)
class Run:
    """Everything the loop works with.

    Attributes:
        options: every setting, filled in.
        output_dir: folder of the run.
        data: the rows to train on.
        step: model and loss.
        device: where it computes.
        dtype: precision of the computation.
        model_info: block of that name in the logs.
        settings: content of training_config.json.
        probes: (role, text) pairs that a merge is proved with.
        asked: the settings as they were asked for, before models and machine filled them in.
        checkpoint: what the run goes on from.
        processes: this process among those that train together.
        evaluation: what the model is scored on meanwhile.
    """

    options: TrainOptions
    output_dir: Path
    data: TrainingData
    step: ContrastiveStep
    device: torch.device
    dtype: torch.dtype
    model_info: dict[str, Any]
    settings: dict[str, Any]
    probes: list[tuple[str, str]]
    asked: dict[str, Any]
    checkpoint: Checkpoint | None
    processes: Processes
    evaluation: RetrievalSet | None


def prepare(options: TrainOptions) -> Run:
    """Check the options against this machine and the data, tokenise, load.

    Raises:
        UserError: for anything the user can mend.
    """
    options = with_engine(options).resolved()
    asked, output_dir = options.model_dump(), Path(options.output_dir, options.run_name or "")
    checkpoint, options = _take_up(options, output_dir)
    device = pick_device(options.device)
    processes = join(device)
    if options.shard_weights and processes.size == 1:
        raise UserError("--shard_weights: there is one process, so nothing can be cut; give --num_processes 2 or more")
    dtype = pick_dtype(options.dtype, device)
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("--dtype float16 is not trained on a CPU; use float32 or bfloat16")
    options = options.model_copy(update={"train_dataset": options.train_dataset or default_dataset(options)})
    base = describe_base(options.model_name_or_path, options.trust_remote_code, options.local_files_only)
    contract, notices = settle(base, options)
    tokenizer = load_tokenizer(base, contract, options)
    for line in notices:
        say(line)
    data, evaluation = open_data(options, tokenizer, processes)
    store = data.store
    if checkpoint:
        check_processes(checkpoint, processes.size, options)
        check_data(checkpoint, data.checksum)
    teacher = _teacher(options, store, processes) if options.embedding_teacher else None
    _seed(options.seed)
    backbone = trainable_backbone(base, options, dtype, torch.device("cpu") if options.shard_weights else device)
    if options.shard_weights:
        shard(backbone, device, processes.size)
    encoder = Encoder(backbone, tokenizer, contract, dtype, options.pad_to_multiple_of)
    left = None if options.no_self_test else left_padding_distance(encoder, store)
    _settle_attention(encoder, options)
    _check_gradients(encoder, store, options)
    if options.dtype == "auto" and device.type == "cpu" and not encoder.sharded:
        dtype = encoder.dtype = processes.gather(_cpu_dtype(encoder, store))[0]
    memory = settle_budget(encoder, store, options.token_budget, processes)
    if checkpoint:
        memory = restore_budget(checkpoint, encoder, options.token_budget) or memory
    info = model_info(encoder, options)
    guided = options.false_negative_guide == "base"
    teacher = teacher.aligned(encoder, store) if teacher else None
    step = ContrastiveStep(encoder, _terms(options), _views(options, encoder), guided, teacher)
    if not options.no_self_test:
        info["self_tests"] = {
            **self_test(encoder, store),
            "left_equals_right_padding": left,
            "processes_equal_one": processes_distance(step, store, options.neg_nums, processes),
        }
        say(f"self-test: passed ({', '.join(f'{name} {figure(value)}' for name, value in info['self_tests'].items())})")
    say_model(base, contract, options, device, dtype, info)
    say(memory)
    options = options.model_copy(update=contract_options(contract))
    return Run(
        options=options,
        output_dir=output_dir,
        data=data,
        step=step,
        device=device,
        dtype=dtype,
        model_info=info,
        settings=run_settings(options, backbone, dtype),
        probes=_probes(options),
        asked=asked,
        checkpoint=checkpoint,
        processes=processes,
        evaluation=evaluation,
    )


def _take_up(options: TrainOptions, output_dir: Path) -> tuple[Checkpoint | None, TrainOptions]:
    """What the run goes on from, and its options with what was settled then; the surroundings are checked."""
    checkpoint, lines = open_checkpoint(options.resume, output_dir)
    for line in lines:
        say(line)
    _check_surroundings(options, output_dir, checkpoint)
    if checkpoint:
        for line in compare_settings(checkpoint, options.model_dump()):
            say(line)
        return checkpoint, engine_options(checkpoint, options)
    if options.resume:
        say(f"resume: no whole checkpoint in {output_dir}, so the run starts at its beginning")
    return None, options


def _check_surroundings(options: TrainOptions, output_dir: Path, checkpoint: Checkpoint | None) -> None:
    """Checks that need neither data nor model; all problems are reported together."""
    data = [source.path for source in options.train_dataset or []]
    checks: list[Callable[[], object]] = [partial(local_files, path) for path in data]
    checks.append(partial(check_local_path, options.model_name_or_path))
    goes_on = checkpoint is not None and checkpoint.folder.parent.resolve() == output_dir.resolve()
    checks.append(partial(check_output_dir, output_dir, options.overwrite or goes_on, options.resume == "auto"))
    if not goes_on:
        sources = [options.model_name_or_path, options.tokenizer_id or "", *data]
        sources += [options.eval_dataset or ""]
        sources += [str(checkpoint.folder)] if checkpoint else []
        checks.append(partial(check_sources, output_dir, sources))
    checks.append(partial(check_optimizer, options.optimizer))
    checks.append(partial(check_tracker, options.log_with))
    if options.finetune_type == "qlora":
        checks.append(check_bitsandbytes)
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def with_engine(options: TrainOptions) -> TrainOptions:
    """What `accelerate launch` asks for, as our own option.

    Raises:
        UserError: when it asks for parts of what has to be whole.
    """
    engine = wants_sharding()
    if engine is None or options.shard_weights:
        return options
    if options.finetune_type != "full":
        raise UserError(
            f"accelerate asks for {engine}, which is for --finetune_type full; launch {options.finetune_type} with "
            "MULTI_GPU"
        )
    say(f"processes: accelerate asks for {engine}; weights, gradients and optimizer state are cut by torch's FSDP2")
    return TrainOptions.model_validate(options.model_dump() | {"shard_weights": True})


def _teacher(options: TrainOptions, store: TokenStore, processes: Processes) -> Teacher:
    """The vectors of `--embedding_teacher`; the model itself is let go of."""
    name = options.embedding_teacher or ""
    try:
        encoder = load_encoder(name, options.device, "auto", trust_remote_code=options.trust_remote_code)
    except UserError as error:
        raise UserError(f"--embedding_teacher: {error}") from None
    paths = [source.path for source in options.train_dataset or []]
    with processes.main_first():
        teacher = ask_teacher(encoder, paths, store, options.embedding_teacher_weight, cache_folder(options.cache_dir))
    say(f"teacher: {name}, {encoder.dimension} components, {len(teacher.place):,} texts")
    return teacher


def _terms(options: TrainOptions) -> Terms:
    """The terms of the loss; an option has the name of its term."""
    named = {field.name: getattr(options, field.name) for field in fields(Terms) if field.name != "directions"}
    return Terms(**named, directions=("query_passage", *options.further_directions))


def _views(options: TrainOptions, encoder: Encoder) -> tuple[View, ...]:
    """The forms of the vectors that are learnt.

    Raises:
        UserError: when the model has fewer components.
    """
    dims = options.matryoshka_dims or []
    if dims and max(dims) > encoder.dimension:
        raise UserError(f"--matryoshka_dims {max(dims)}: the model's vectors have {encoder.dimension} components")
    return views(dims, options.matryoshka_weights or [], options.embedding_precisions or [])


def _settle_attention(encoder: Encoder, options: TrainOptions) -> None:
    """Pack where it is possible and wanted.

    Raises:
        UserError: when `--attention packed` is asked for and this model or device can't.
    """
    if options.attention == "padded":
        return
    try:
        with quiet():
            encoder.pack()
    except PackingError as reason:
        if options.attention == "packed":
            raise UserError(
                f"--attention packed: {options.model_name_or_path} can't be packed here ({reason}); "
                "use --attention padded"
            ) from None
        say(f"model: texts are sorted by length and padded; they can't be packed, for {reason}")
        return
    rates = [value for name, value in vars(encoder.backbone.config).items() if "att" in name and "dropout" in name]
    if encoder.device.type == "cuda" and any(rates) and options.finetune_type == "full":
        say("model: the packed attention of GPUs has no dropout of its own, so that of the attention weights is off")


def _cpu_dtype(encoder: Encoder, store: TokenStore) -> torch.dtype:
    """bfloat16 where a step of this very model is faster with it. The weights stay float32."""
    if not bfloat16_multiplies_faster():
        return torch.float32
    tokens = store.batch(longest_texts(store, CALIBRATION_TOKENS))

    def step(dtype: torch.dtype) -> None:
        encoder.dtype = dtype
        encoder(tokens).sum().backward()

    with torch.random.fork_rng(devices=[]):
        dtype = fastest({dtype: partial(step, dtype) for dtype in (torch.float32, torch.bfloat16)})
    encoder.zero_grad(set_to_none=True)
    return dtype


def _check_gradients(encoder: Encoder, store: TokenStore, options: TrainOptions) -> None:
    """One tiny backward pass: every trainable parameter must get a gradient.

    Adapters that get none are an error; other weights (a head that the vectors do not use) are frozen and named.
    """
    batch = make_batch(store, [(0, row) for row in range(min(2, len(store)))], 0, options.seed).tokens
    texts = [batch.input_ids[a : a + 16].tolist() for a in batch.cu_seqlens[:-1]]
    with torch.random.fork_rng(devices=[encoder.device] if encoder.device.type == "cuda" else []):
        encoder.train()
        encoder(TokenBatch.from_lists(texts)).sum().backward()
    idle = without_gradient(encoder.backbone)
    encoder.zero_grad(set_to_none=True)
    if idle and options.finetune_type != "full":
        raise UserError(
            f"{len(idle)} adapter weights get no gradient, for example {idle[0]}; "
            "name the layers that should be adapted with --lora_target_modules"
        )
    for name, parameter in encoder.backbone.named_parameters():
        if name in idle:
            parameter.requires_grad_(False)
    if idle:
        say(f"model: {len(idle)} weights that the vectors do not use are frozen: {', '.join(idle[:4])}")


def _probes(options: TrainOptions) -> list[tuple[str, str]]:
    paths = [source.path for source in options.train_dataset or []]
    records = islice(endless_records(paths[0]) if options.stream else read_records(paths), PROBED_ROWS)
    return choose_probes([pair for _, record in records for pair in record_texts(record)])


def _seed(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)
