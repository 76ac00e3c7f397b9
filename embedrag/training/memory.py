"""How many tokens have graphs that fit in memory, measured on the user's own model and data.

The bytes that autograd keeps for a chunk of the longest texts are counted, and the free memory is divided by them. The
result is only an estimate: when memory runs out in spite of it, the step is repeated with half the budget.

How much is held at once changes no bit of the result (`embedrag.training.grad_cache`), so it may follow the free
memory. How texts are cut into chunks changes the order of sums and the masks of dropout. So it follows the memory that
the machine has, and what other programs use of it does not matter until there is too little.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
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

# Share of the free memory that is used. It is higher on a GPU, because the CPU's memory is shared with other programs.
SHARE = {"cuda": 0.85, "cpu": 0.6}
CHUNK_SHARE = 0.3  # of all memory that the weights leave, for one chunk: half of the machine may be in use by others
PROBE_TOKENS = 4096
STATE_BYTES = 12  # of a trained parameter: gradient and two moments in float32
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class TokenBudget:
    """How much of a training step is held in memory.

    Attributes:
        tokens: number of tokens of which the graphs are held at the same time; None holds all.
        token_bytes: bytes of the graph of one token, if they were measured.
        chunk_tokens: tokens of a chunk, at most; None: as many as are held. The encoder's own limit holds too.
    """

    tokens: int | None = None
    token_bytes: float | None = None
    chunk_tokens: int | None = None

    @property
    def chunk(self) -> int | None:
        """Tokens of a chunk, at most; None: the encoder's own limit."""
        return min((limit for limit in (self.tokens, self.chunk_tokens) if limit), default=None)

    def loss_tokens(self, texts: int, dimension: int) -> float:
        """The memory that the loss needs for the vectors of a batch, as a number of tokens with graphs of this size.

        These are the vectors, their copies as queries and passages, and the gradients of both. A twentieth of the
        budget is reserved for them anyway.
        """
        if self.tokens is None or self.token_bytes is None:
            return 0
        return max(0, 4 * texts * dimension * 4 / self.token_bytes - self.tokens / 20)

    def halved(self, largest: int, least: int) -> TokenBudget | None:
        """The budget after memory ran out: half of what was held; None when it can't be smaller.

        Args:
            largest: tokens of the largest micro-batch of the step.
            least: tokens of the longest text.
        """
        held = min(largest, self.tokens or largest)
        return None if held <= least else replace(self, tokens=max(least, held // 2))


def check_budget(store: TokenStore, asked: int) -> None:
    """Raise UserError when the longest text does not fit in the budget that was asked for."""
    text, length = longest_text(store)
    if asked < length:
        raise UserError(
            f"is smaller than the longest text ({length} tokens, {_place(store, text)}); give at least {length}, or "
            "lower `passage_max_len`",
            "token_budget",
            asked,
        )


def measure_budget(
    encoder: Encoder,
    store: TokenStore,
    asked: int | None,
    processes: ProcessGroup = ProcessGroup(),  # noqa: B008 - immutable
) -> tuple[TokenBudget, str]:
    """Measure the graphs of the longest texts, and divide the free memory by their size.

    Args:
        encoder: ready for training.
        store: the data.
        asked: `token_budget`; when it is None, the memory decides.
        processes: they agree on the smallest budget; those on one machine share the memory of its CPU.

    Returns:
        The budget, and a line that says what was found.
    """
    tokens = store.batch(longest_texts(store, PROBE_TOKENS if asked is None else min(asked, PROBE_TOKENS)))
    each = graph_bytes(encoder, tokens) / len(tokens.input_ids)
    if asked is not None:
        return TokenBudget(asked, each), (
            f"memory: the graphs of {asked:,} tokens ({asked * each / 2**30:.2f} GiB) are held at once; "
            "larger batches recompute the rest"
        )
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    trained //= processes.size if encoder.sharded else 1
    sharing = processes.local_size if encoder.device.type == "cpu" else 1
    free, total = (size // sharing for size in memory_sizes(encoder.device))
    room = SHARE.get(encoder.device.type, 0.6) * free - STATE_BYTES * trained
    found = min(processes.gather(max(longest_text(store)[1], int(room / each))))
    weights = sum(parameter.nbytes for parameter in encoder.parameters()) // (processes.size if encoder.sharded else 1)
    room = CHUNK_SHARE * (total - weights) - STATE_BYTES * trained
    wanted = min(processes.gather(_chunk_within(encoder.chunk_tokens, longest_text(store)[1], room / each)))
    chunk = _chunk_within(wanted, longest_text(store)[1], found)
    line = (
        f"memory: {free / 2**30:.1f} GiB free, {each / 2**20:.2f} MiB for each token; the graphs of {found:,} tokens "
        "are held at once; larger batches recompute the rest"
    )
    if chunk < wanted:
        line += (
            f". Little memory is free, so the chunks have {chunk:,} tokens instead of {wanted:,}; "
            "sums are then rounded in another way than in a run with more free memory"
        )
    return TokenBudget(found, each, chunk), line


def _chunk_within(tokens: int, longest: int, room: float) -> int:
    """`tokens`, halved until they fit into a room of tokens or hold only the longest text."""
    while tokens > max(room, longest):
        tokens //= 2
    return tokens


def longest_text(store: TokenStore) -> tuple[int, int]:
    """(text, tokens) of the longest text."""
    lengths = np.diff(store.text_offsets)
    text = int(lengths.argmax())
    return text, int(lengths[text])


def longest_texts(store: TokenStore, tokens: int) -> np.ndarray:
    """The longest texts, with about `tokens` tokens together, and at least one text."""
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


def memory_sizes(device: torch.device) -> tuple[int, int]:
    """Bytes that this process may still use, and that it could use if it were alone (limits: cgroup, ulimit)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # otherwise memory that torch keeps for later would count as used
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    machine, process = psutil.virtual_memory(), psutil.Process().memory_info()
    limits = [(machine.total, machine.total - machine.available), *_cgroup_limit()]
    data = getattr(process, "data", process.vms)
    for kind, used in ((resource.RLIMIT_AS, process.vms), (resource.RLIMIT_DATA, data)):
        soft = resource.getrlimit(kind)[0]
        if soft != resource.RLIM_INFINITY:
            limits.append((soft, used))
    return max(0, min(limit - used for limit, used in limits)), min(limit for limit, _ in limits)


def _cgroup_limit() -> list[tuple[int, int]]:
    """The limit of a container and the bytes used of it, if it has one; cached files count as free."""
    limit = CGROUP / "memory.max"
    if not limit.is_file() or (text := limit.read_text().strip()) == "max":
        return []
    statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    used = int((CGROUP / "memory.current").read_text()) - int(statistics["inactive_file"])
    return [(int(text), used)]


def _place(store: TokenStore, text: int) -> str:
    """The first place of a text, as `file:line`."""
    first = int(np.flatnonzero(store.row_texts == text)[0])
    return store.place(int(np.searchsorted(store.row_offsets, first, side="right")) - 1)
