"""Options of a training about the loss: what is scored against what, and how the scores become a loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import PositiveInt

from embedrag.options.field import OneOrMore, Options, SmallLetters, as_list, former_switch, option


class LossOptions(Options):
    """The second part of `embedrag.training.config.options.TrainOptions`."""

    directions: Annotated[
        list[Literal["query_passage", "passage_query", "query_query", "passage_passage"]], OneOrMore
    ] = option(
        ["query_passage"],
        "what is scored against what: queries against passages (always), positives against queries, queries against "
        "queries, positives against passages of other rows",
        group="loss",
        former_names=("further_directions",),
        former_values=lambda value: ["query_passage", *as_list(value)],
        resume="reported",
    )
    partition_mode: Annotated[Literal["joint", "separate"], SmallLetters] = option(
        "joint",
        "joint: one softmax over all directions; separate: one softmax for query_passage and one for passage_query, "
        "and the mean of the two losses",
        group="loss",
        former_names=("separate",),
        former_values=former_switch("joint", "separate"),
        resume="reported",
    )
    hardness_strength: float = option(
        0.0,
        "makes hard negatives count more: this number times its cosine is added to the logit of a negative; 0: off",
        group="loss",
        former_names=("hardness",),
        resume="reported",
        ge=0,
    )
    hardness_mode: Annotated[Literal["all", "own", "in_batch"], SmallLetters] = option(
        "all",
        "negatives that hardness_strength counts for: all, the row's own, or those of other rows (in_batch)",
        group="loss",
        former_names=("hardness_of",),
        resume="reported",
    )
    false_negative_margin: float | None = option(
        None,
        "a passage is not a negative if its cosine is above the positive's by more than this; left out: no such limit",
        group="loss",
        resume="reported",
    )
    false_negative_guide: Annotated[Literal["self", "base"], SmallLetters] = option(
        "self",
        "cosines that false_negative_margin compares: of the model (self), or of its base with adapters off (base)",
        group="loss",
        resume="reported",
    )
    distillation: Annotated[Literal["kl", "margin_mse"] | None, SmallLetters] = option(
        None,
        "learn the scores of a teacher too (teacher_scores in the rows, from embedrag mine)",
        group="loss",
        resume="reported",
    )
    distillation_weight: float = option(
        0.5, "share of distillation in the loss; 1: nothing else", group="loss", resume="reported", gt=0, le=1
    )
    teacher_temperature: float = option(
        1.0, "the teacher's scores are divided by it", group="loss", resume="reported", gt=0
    )
    embedding_teacher: str | None = option(
        None,
        "learn the vectors of this (larger) model too; it embeds every text once, before the training",
        group="loss",
        resume="reported",
    )
    embedding_teacher_weight: float = option(
        1.0,
        "weight of the loss of embedding_teacher; that of the contrastive loss is 1",
        group="loss",
        resume="reported",
        gt=0,
    )
    matryoshka_dims: Annotated[list[PositiveInt] | None, OneOrMore] = option(
        None,
        "for each N of these, the first N dimensions of a vector are trained to be a good vector too",
        group="loss",
        resume="reported",
    )
    matryoshka_weights: Annotated[list[float] | None, OneOrMore] = option(
        None, "weight of the loss of each of matryoshka_dims; left out: 1", group="loss", resume="reported"
    )
    embedding_precisions: Annotated[list[Literal["int8", "binary"]] | None, OneOrMore] = option(
        None, "train the vectors for storage in these precisions too", group="loss", resume="reported"
    )
