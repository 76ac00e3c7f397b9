"""Model and loss: what a batch adds to the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from embedrag.data.collator import Batch
from embedrag.errors import UserError, is_out_of_memory
from embedrag.losses.contrastive import LossSettings, Pairs, contrastive
from embedrag.models.embedding_format import EmbeddingFormat, views
from embedrag.models.encoder import Encoder
from embedrag.runtime.distributed import ProcessGroup, share_out
from embedrag.training.config.options import TrainOptions
from embedrag.training.embedding_teacher import EmbeddingTeacher


class ContrastiveStep(nn.Module):
    """Encoder + contrastive loss of the vectors in each form that is learnt."""

    def __init__(
        self,
        encoder: Encoder,
        terms: LossSettings,
        views: Sequence[EmbeddingFormat] = (EmbeddingFormat(),),
        guided: bool = False,
        teacher: EmbeddingTeacher | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            encoder: the model that is trained.
            terms: of the loss.
            views: forms of the vectors; the loss is the weighted sum of theirs, the accuracy that of the first.
            guided: the base model, its adapters off, tells what is no negative (GISTEmbed, arXiv 2402.16829).
            teacher: whose vectors are learnt too.
        """
        super().__init__()
        self.encoder = encoder
        self.terms = terms
        self.views = tuple(views)
        self.guided = guided
        self.teacher = teacher

    def temperature(self, value: float) -> None:
        """Divide cosines by `value` from now on."""
        self.terms = replace(self.terms, temperature=value)

    def loss(
        self, embeddings: Tensor, batch: Batch, queries: slice = slice(None), guide: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Loss [b], and whether the positive scored best [b]; a share between 0 and 1 where a query has several.

        Args:
            embeddings: [n, D] of the texts of a batch.
            batch: whose they are.
            queries: the b queries that are asked about.
            guide: [n, D] of the frozen base.
        """
        sides = batch.query_index, batch.passage_index
        guides = None if guide is None else (guide[sides[0]], guide[sides[1]])
        pairs = Pairs(batch.labels, batch.excluded, batch.owner, batch.teacher, guides, batch.query)
        rows = batch.pairs(queries)
        query, passage = embeddings[sides[0]], embeddings[sides[1]]
        found = [contrastive(view(query), view(passage), pairs, self.terms, rows) for view in self.views]
        loss = torch.as_tensor(sum(view.weight * loss for view, (loss, _) in zip(self.views, found, strict=True)))
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
        """Add the gradient of sum(weight * loss) to the parameters, within the encoder's token budget.

        Several processes share the texts out by tokens, exchange the vectors, take some of the queries each, and add up
        the gradients of the vectors: each then holds a part of the parameters' gradient, and the sum of these parts is
        the gradient of one process with the whole batch.

        Args:
            batch: B queries, on the device; the same in every process.
            weight: of the losses, [B] or one for all.
            backward: of the weighted sum; a loss scaler's, for example.
            processes: that work on this batch together.

        Returns:
            What `loss` says of all B queries, without graphs.
        """
        mine = self.share(batch, processes)
        tokens = batch.tokens if processes.size == 1 else batch.tokens.select(mine)
        # Where weights are in parts the processes compute hand in hand, and can't agree on an end halfway.
        team = ProcessGroup() if self.encoder.sharded else processes
        guide = None
        if self.guided:
            own = team.together(lambda: self.encoder.frozen(tokens), is_out_of_memory)
            guide = own if processes.size == 1 else _exchange(own, mine, len(batch.tokens), processes)
        cached = team.together(lambda: self.encoder.cached(tokens, processes), is_out_of_memory)
        output = self._loss_backward(cached.vectors, mine, batch, weight, backward, processes, guide)
        team.together(cached.backward, is_out_of_memory)
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
        """From the vectors of this process's texts to their gradient, with those of the others between."""
        alone, count = processes.size == 1, len(batch.query_index)
        vectors = own if alone else _exchange(own, mine, len(batch.tokens), processes).requires_grad_()
        queries = self.queries(count, processes)

        def loss() -> dict[str, Tensor]:
            output = self.loss(vectors, batch, queries, guide)
            backward((output["loss"] * (weight[queries] if isinstance(weight, Tensor) else weight)).sum())
            return {name: value.detach() for name, value in output.items()}  # lets go of the loss's graph

        output = processes.together(loss, is_out_of_memory)
        if alone or vectors.grad is None:
            return output
        own.grad = processes.sum_(vectors.grad)[mine.to(vectors.device)]
        return {name: _whole(value, count, queries, processes) for name, value in output.items()}

    @staticmethod
    def queries(count: int, processes: ProcessGroup) -> slice:
        """Those of `count` queries that this process scores."""
        return slice(count * processes.rank // processes.size, count * (processes.rank + 1) // processes.size)

    @staticmethod
    def share(batch: Batch, processes: ProcessGroup) -> Tensor:
        """Places of the texts that this process embeds."""
        if processes.size == 1:
            return torch.arange(len(batch.tokens))
        return torch.tensor(share_out(batch.tokens.lengths.tolist(), processes.size)[processes.rank], dtype=torch.long)


def _exchange(own: Tensor, mine: Tensor, count: int, processes: ProcessGroup) -> Tensor:
    """Vectors of all texts [count, D], without a graph, from those of this process's texts."""
    vectors = own.new_zeros(count, own.shape[1])
    vectors[mine.to(own.device)] = own.detach()
    return processes.sum_(vectors)


def _whole(part: Tensor, count: int, place: slice, processes: ProcessGroup) -> Tensor:
    """[count] of all processes, from the part of this one."""
    whole = part.new_zeros(count)
    whole[place] = part
    return processes.sum_(whole)


def _terms(options: TrainOptions) -> LossSettings:
    """The terms of the loss; an option has the name of its term."""
    named = {field.name: getattr(options, field.name) for field in fields(LossSettings) if field.name != "directions"}
    return LossSettings(**named, directions=("query_passage", *options.further_directions))


def _views(options: TrainOptions, encoder: Encoder) -> tuple[EmbeddingFormat, ...]:
    """The forms of the vectors that are learnt.

    Raises:
        UserError: when the model has fewer components.
    """
    dims = options.matryoshka_dims or []
    if dims and max(dims) > encoder.dimension:
        raise UserError(f"--matryoshka_dims {max(dims)}: the model's vectors have {encoder.dimension} components")
    return views(dims, options.matryoshka_weights or [], options.embedding_precisions or [])
