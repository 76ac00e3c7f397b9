"""Encoder + losses + processes: what a batch adds to the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embedrag.data.collator import Batch
from embedrag.data.token_batch import TokenBatch
from embedrag.errors import is_out_of_memory
from embedrag.losses.contrastive import LossSettings, contrastive
from embedrag.losses.pairs import Pairs
from embedrag.models.embedding_format import EmbeddingFormat
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.fast_dropout import dropout_on
from embedrag.runtime.distributed import ProcessGroup, share_out
from embedrag.training.embedding_teacher import EmbeddingTeacher
from embedrag.training.grad_cache import GradCache
from embedrag.training.memory import TokenBudget


class ContrastiveObjective(nn.Module):
    """An encoder and the contrastive loss of its vectors, in each format that is trained.

    Attributes:
        encoder: the model that is trained.
        grad_cache: embeds a batch within the token budget.
        loss_settings: of the loss.
        formats: formats of the vectors; the loss is the weighted sum of their losses, the accuracy is the first one's.
        guided: the base model (adapters off) decides what is not a negative (GISTEmbed, arXiv 2402.16829).
        teacher: a larger model; its vectors are learnt too.
    """

    def __init__(
        self,
        encoder: Encoder,
        loss_settings: LossSettings,
        formats: Sequence[EmbeddingFormat] = (EmbeddingFormat(),),
        guided: bool = False,
        teacher: EmbeddingTeacher | None = None,
        budget: TokenBudget = TokenBudget(),  # noqa: B008 - immutable
    ) -> None:
        """Put the parts together; `budget` limits what is held in memory, the others are the attributes."""
        super().__init__()
        self.encoder = encoder
        self.grad_cache = GradCache(encoder, budget)
        self.loss_settings = loss_settings
        self.formats = tuple(formats)
        self.guided = guided
        self.teacher = teacher

    def set_temperature(self, value: float) -> None:
        """Divide cosines by `value` from now on."""
        self.loss_settings = replace(self.loss_settings, temperature=value)

    def loss(
        self, embeddings: Tensor, batch: Batch, queries: slice = slice(None), guide: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Loss [b], and whether the positive scored best [b]; a share between 0 and 1 when a query has several.

        Args:
            embeddings: [n, D] of the texts of the batch.
            batch: the rows.
            queries: the b queries to score.
            guide: [n, D] of the frozen base.
        """
        sides = batch.query_index, batch.passage_index
        guides = None if guide is None else (guide[sides[0]], guide[sides[1]])
        pairs = Pairs(batch.labels, batch.excluded, batch.owner, batch.teacher, guides, batch.query)
        rows = batch.pairs(queries)
        # The gradient of `embeddings[...]` adds what belongs to one text in the order in which the threads come.
        query, passage = embeddings.index_select(0, sides[0]), embeddings.index_select(0, sides[1])
        found = [contrastive(form(query), form(passage), pairs, self.loss_settings, rows) for form in self.formats]
        loss = torch.as_tensor(sum(form.weight * loss for form, (loss, _) in zip(self.formats, found, strict=True)))
        loss, correct = batch.by_query(loss, queries), batch.by_query(found[0][1].to(loss), queries)
        if self.teacher and batch.texts is not None:
            loss = loss + self.teacher.weight * batch.by_texts(self.teacher.distance(embeddings, batch.texts), queries)
        return {"loss": loss, "correct": correct}

    def backward(
        self,
        batch: Batch,
        weight: Tensor | float,
        backward: Callable[[Tensor], object] = torch.autograd.backward,
        processes: ProcessGroup = ProcessGroup(),  # noqa: B008 - immutable
    ) -> dict[str, Tensor]:
        """Add the gradient of sum(weight * loss) to the parameters, within the token budget.

        Several processes share the texts by tokens, exchange the vectors, score some of the queries each, and add up
        the gradients of the vectors. Each process then holds a part of the parameters' gradient. The sum of these parts
        is the gradient of one process with the whole batch.

        Args:
            batch: B queries, on the device; the same in every process.
            weight: of the losses, [B] or one for all.
            backward: called with the weighted sum; the one of a loss scaler, for example.
            processes: those that work on this batch together.

        Returns:
            The output of `loss` for all B queries, without graphs.
        """
        mine = self.share(batch, processes)
        tokens = batch.tokens if processes.size == 1 else batch.tokens.select(mine)
        # With sharded weights the processes compute in lockstep and can't stop halfway.
        team = ProcessGroup() if self.encoder.sharded else processes
        guide = None
        if self.guided:
            own = team.run_together(lambda: frozen_vectors(self.encoder, tokens), is_out_of_memory)
            guide = own if processes.size == 1 else _exchange(own, mine, len(batch.tokens), processes)
        cached = team.run_together(lambda: self.grad_cache.embed(tokens, processes), is_out_of_memory)
        output = self._loss_backward(cached.vectors, mine, batch, weight, backward, processes, guide)
        team.run_together(cached.backward, is_out_of_memory)
        return output

    def _loss_backward(
        self,
        own: Tensor,
        mine: Tensor,
        batch: Batch,
        weight: Tensor | float,
        backward: Callable[[Tensor], object],
        processes: ProcessGroup,
        guide: Tensor | None,
    ) -> dict[str, Tensor]:
        """From the vectors of this process's texts to their gradient, together with the other processes."""
        alone, count = processes.size == 1, len(batch.query_index)
        vectors = own if alone else _exchange(own, mine, len(batch.tokens), processes).requires_grad_()
        queries = self.queries(count, processes)

        def loss() -> dict[str, Tensor]:
            output = self.loss(vectors, batch, queries, guide)
            backward((output["loss"] * (weight[queries] if isinstance(weight, Tensor) else weight)).sum())
            return {name: value.detach() for name, value in output.items()}  # frees the graph of the loss

        output = processes.run_together(loss, is_out_of_memory)
        if alone or vectors.grad is None:
            return output
        own.grad = processes.all_reduce(vectors.grad)[mine.to(vectors.device)]
        return {name: _whole(value, count, queries, processes) for name, value in output.items()}

    @staticmethod
    def queries(count: int, processes: ProcessGroup) -> slice:
        """The part of `count` queries that this process scores."""
        return slice(count * processes.rank // processes.size, count * (processes.rank + 1) // processes.size)

    @staticmethod
    def share(batch: Batch, processes: ProcessGroup) -> Tensor:
        """Places of the texts that this process embeds."""
        if processes.size == 1:
            return torch.arange(len(batch.tokens))
        return torch.tensor(share_out(batch.tokens.lengths.tolist(), processes.size)[processes.rank], dtype=torch.long)


def frozen_vectors(encoder: Encoder, tokens: TokenBatch) -> Tensor:
    """[n, D] of the base model: adapters off, no dropout, no graph; vectors have length 1."""
    with torch.no_grad(), dropout_on(encoder, False), encoder.backbone.disable_adapter():  # type: ignore[operator]
        vectors: Tensor = encoder(tokens)
    return F.normalize(vectors, dim=1)


def _exchange(own: Tensor, mine: Tensor, count: int, processes: ProcessGroup) -> Tensor:
    """Vectors of all texts [count, D], without a graph, from the vectors of this process's texts."""
    vectors = own.new_zeros(count, own.shape[1])
    vectors[mine.to(own.device)] = own.detach()
    return processes.all_reduce(vectors)


def _whole(part: Tensor, count: int, place: slice, processes: ProcessGroup) -> Tensor:
    """[count] of all processes, from the part of this one."""
    whole = part.new_zeros(count)
    whole[place] = part
    return processes.all_reduce(whole)
