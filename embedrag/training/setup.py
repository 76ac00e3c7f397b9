"""From options to everything a run needs, in the order of cost.

All that can be wrong with the user's input is found first, cheapest check first; weights are loaded last, and nothing
is written into the output folder here.
"""

from __future__ import annotations

from pathlib import Path

import torch

from embedrag.errors import UserError
from embedrag.models.backbone import trainable_backbone
from embedrag.models.base_model import describe_base, settle
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.packed_attention import PackingError
from embedrag.models.tokenizer import load_tokenizer
from embedrag.runtime.console import quiet, say
from embedrag.runtime.device import pick_device, pick_dtype
from embedrag.runtime.distributed import join
from embedrag.runtime.fsdp import shard
from embedrag.training.config.options import TrainOptions
from embedrag.training.data import _probes, default_dataset, open_data
from embedrag.training.embedding_teacher import _teacher
from embedrag.training.memory import settle_budget
from embedrag.training.objective import ContrastiveStep, _terms, _views
from embedrag.training.precision import _cpu_dtype
from embedrag.training.preflight import _take_up, with_engine
from embedrag.training.run_context import RunContext
from embedrag.training.self_test import _check_gradients, left_padding_distance, processes_distance, self_test
from embedrag.training.state.resume import check_data, check_processes, restore_budget
from embedrag.training.state.run_record import contract_options, figure, model_info, run_settings, say_model


def prepare(options: TrainOptions) -> RunContext:
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
    embedding_config, notices = settle(base, options)
    tokenizer = load_tokenizer(base, embedding_config, options)
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
    encoder = Encoder(backbone, tokenizer, embedding_config, dtype, options.pad_to_multiple_of)
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
    say_model(base, embedding_config, options, device, dtype, info)
    say(memory)
    options = options.model_copy(update=contract_options(embedding_config))
    return RunContext(
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


def _seed(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)
