"""How many tokens' graphs fit in memory, measured on the user's own model and data.

The graph of a chunk of the longest texts is weighed (the bytes that autograd keeps), and the free memory is divided by
it. What is found is a start, not a promise: the loop halves it and repeats the step when memory runs out after all.
"""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from embedrag.data.token_batch import TokenBatch
from embedrag.data.token_store import TokenStore
from embedrag.errors import UserError
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.fast_dropout import dropout_on
from embedrag.runtime.distributed import ProcessGroup

# A GPU is ours alone; beside a training on a CPU other programs live.
SHARE = {"cuda": 0.85, "cpu": 0.6}
PROBE_TOKENS = 4096
STATE_BYTES = 12  # of a trained parameter: gradient and two moments in float32
CGROUP = Path("/sys/fs/cgroup")


def settle_budget(
    encoder: Encoder,
    store: TokenStore,
    asked: int | None,
    processes: ProcessGroup = ProcessGroup(),  # noqa: B008 - immutable
) -> str:
    """Set the encoder's `token_budget` and `token_bytes`; returns a line that says what was found.

    Args:
        encoder: ready for training.
        store: the data.
        asked: `--token_budget`; left out, the memory decides.
        processes: take what fits in all of them; those of one machine share the memory of its CPU.

    Raises:
        UserError: when the longest text does not fit in what was asked for.
    """
    longest = longest_text(store)
    if asked is not None and asked < longest[1]:
        raise UserError(
            f"--token_budget {asked} is smaller than the longest text ({longest[1]} tokens, "
            f"{_place(store, longest[0])}); give at least {longest[1]}, or lower --passage_max_len"
        )
    tokens = store.batch(longest_texts(store, PROBE_TOKENS if asked is None else min(asked, PROBE_TOKENS)))
    encoder.token_bytes = each = graph_bytes(encoder, tokens) / len(tokens.input_ids)
    if asked is not None:
        encoder.token_budget = asked
        return (
            f"memory: the graphs of {asked:,} tokens ({asked * each / 2**30:.2f} GiB) are held at once, "
            "the others of a larger batch are recomputed"
        )
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    trained //= processes.size if encoder.sharded else 1
    free = free_memory(encoder.device) // (processes.local_size if encoder.device.type == "cpu" else 1)
    room = SHARE.get(encoder.device.type, 0.6) * free - STATE_BYTES * trained
    encoder.token_budget = min(processes.gather(max(longest[1], int(room / each))))
    return (
        f"memory: {free / 2**30:.1f} GiB free, {each / 2**20:.2f} MiB a token; the graphs of "
        f"{encoder.token_budget:,} tokens are held at once, the others of a larger batch are recomputed"
    )


def longest_text(store: TokenStore) -> tuple[int, int]:
    """(text, tokens) of the longest text."""
    lengths = np.diff(store.text_offsets)
    text = int(lengths.argmax())
    return text, int(lengths[text])


def longest_texts(store: TokenStore, tokens: int) -> np.ndarray:
    """The longest texts, as many as have `tokens` tokens together, and at least one."""
    lengths = np.diff(store.text_offsets)
    order = np.argsort(-lengths, kind="stable")
    return order[: max(1, int((lengths[order].cumsum() <= tokens).sum()))]


def graph_bytes(encoder: Encoder, tokens: TokenBatch) -> int:
    """Bytes that autograd keeps for the backward pass of these texts, parameters apart."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # FSDP gathers a weight for a moment only, so a weight is known by its type and not by its address.
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    devices = [encoder.device] if encoder.device.type == "cuda" else []
    saved = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.random.fork_rng(devices=devices), dropout_on(encoder, True), saved:
        result = encoder(tokens)  # kept until the sum is made, so that no address is used twice
    del result
    return sum(kept.values())


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still use: what the machine has free, within its limits (cgroup, ulimit)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch has put by counts as used
        return int(torch.cuda.mem_get_info(device)[0])
    used = psutil.Process().memory_info()
    room = [psutil.virtual_memory().available]
    for limit, now in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, getattr(used, "data", used.vms))):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            room.append(soft - now)
    room += _cgroup_room()
    return max(0, min(room))


def _cgroup_room() -> list[int]:
    """What a container's limit leaves; cached files give way."""
    limit = CGROUP / "memory.max"
    if not limit.is_file() or (text := limit.read_text().strip()) == "max":
        return []
    statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    used = int((CGROUP / "memory.current").read_text()) - int(statistics["inactive_file"])
    return [int(text) - used]


def halve_budget(encoder: Encoder, tokens: int, least: int) -> bool:
    """After memory ran out on a micro-batch of `tokens`: hold half as much; False when that can't be.

    Args:
        encoder: whose budget is too large.
        tokens: of the largest micro-batch of the step.
        least: tokens of the longest text.
    """
    held = min(tokens, encoder.token_budget or tokens)
    if held <= least:
        return False
    encoder.token_budget = max(least, held // 2)
    return True


def _place(store: TokenStore, text: int) -> str:
    """Where a text first stands, as `file:line`."""
    first = int(np.flatnonzero(store.row_texts == text)[0])
    return store.place(int(np.searchsorted(store.row_offsets, first, side="right")) - 1)
