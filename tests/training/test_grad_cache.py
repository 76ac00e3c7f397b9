"""Recomputed chunks give the gradient of the plain batch: every budget, every kind of model, with dropout."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embedrag.data.collator import Batch
from embedrag.data.token_batch import TokenBatch
from embedrag.losses.contrastive import LossSettings, Pairs
from embedrag.models.backbone import trainable_backbone
from embedrag.models.base_model import describe_base, resolve_embedding_config
from embedrag.models.embedding_format import trained_formats
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.fast_dropout import FastDropout
from embedrag.models.lora import LoraSettings
from embedrag.models.quantization import QuantizationConfig
from embedrag.models.tokenizer import load_tokenizer
from embedrag.training.grad_cache import CachedVectors, GradCache
from embedrag.training.memory import TokenBudget
from embedrag.training.objective import ContrastiveObjective, frozen_vectors
from tests.reference import contrastive_loop, info_nce_loop

LENGTHS = (5, 30, 12, 12, 3, 41, 30, 8, 19, 12, 2)
TOKENS = sum(LENGTHS)
CPU = torch.device("cpu")


def encoder_of(model: str, kind: str = "full", dropout: float = 0.0, pad: bool = False, bits: int = 4) -> Encoder:
    torch.manual_seed(0)
    base = describe_base(model)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(base.config, name):
            setattr(base.config, name, dropout)
    lora = None if kind == "full" else LoraSettings(dropout=dropout)
    backbone = trainable_backbone(base, torch.float32, CPU, lora, QuantizationConfig(bits) if kind == "qlora" else None)
    embedding_config = resolve_embedding_config(base)[0]
    encoder = Encoder(backbone, load_tokenizer(base, embedding_config), embedding_config)
    if not pad:
        encoder.pack()
    with torch.no_grad():  # B is zero at the start, and A would then get no gradient
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return encoder.train()


def batch_of_5() -> Batch:
    """5 queries, 7 passages, one text that is query and passage, one passage that occurs twice, one exclusion."""
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(5, 300, (length,), generator=generator).tolist() for length in LENGTHS]
    return Batch(
        tokens=TokenBatch.from_lists(texts),
        query_index=torch.tensor([0, 4, 7, 10, 2]),
        passage_index=torch.tensor([1, 2, 3, 5, 6, 8, 9, 8]),
        labels=torch.tensor([0, 2, 3, 5, 6]),
        excluded=torch.tensor([[1, 0]]),
        rows=torch.arange(5),
        negatives=torch.tensor([1, 0, 1, 0, 1]),
        teacher=torch.tensor([3.0, 1.0, 2.0, 4.0, -1.0, 2.0, math.nan, 1.0]),
    )


def loss_and_gradients(encoder: Encoder, budget: int | None = None, seed: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    encoder.zero_grad()
    objective = ContrastiveObjective(encoder, LossSettings(0.1), budget=TokenBudget(budget))
    loss = objective.backward(batch_of_5(), torch.arange(1, 6))["loss"]
    return loss, {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference relative to the norm of the whole gradient."""
    assert found.keys() == expected.keys()
    squares = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    return (squares / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5


def naive(encoder: Encoder) -> tuple[Tensor, dict[str, Tensor]]:
    """Each text alone through the model, copies too, and InfoNCE by double loop."""
    encoder.zero_grad()
    batch = batch_of_5()
    alone = [encoder(batch.tokens.select(torch.tensor([i])))[0] for i in range(len(LENGTHS))]
    copies = [encoder(batch.tokens.select(torch.tensor([i])))[0] for i in batch.passage_index.tolist()]
    queries = torch.stack([alone[i] for i in batch.query_index.tolist()])
    loss = info_nce_loop(queries, torch.stack(copies), batch.labels.tolist(), {(1, 0)}, 0.1)
    (loss * torch.arange(1, 6)).sum().backward()
    return loss.detach(), {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
@pytest.mark.parametrize("pad", [False, True])
def test_gradient_equals_the_naive_full_batch(model: str, pad: bool, request: pytest.FixtureRequest) -> None:
    """Packing, copies encoded once, chunks, recomputation and tiles together, against none of them."""
    single = encoder_of(request.getfixturevalue(model), pad=True)
    double = copy.deepcopy(single).double()
    tolerances = [(1e-12, double), (1e-5, single)] if model == "tiny_bert" else [(1e-5, single)]
    for tolerance, encoder in tolerances:
        expected_loss, expected = naive(encoder)
        if not pad:
            encoder.pack()
        for budget in (None, 45, 90, TOKENS):
            encoder.chunk_tokens = 50
            loss, found = loss_and_gradients(encoder, budget)
            torch.testing.assert_close(loss, expected_loss, rtol=10 * tolerance, atol=tolerance)
            assert error(found, expected) < tolerance


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_gradient_does_not_depend_on_how_much_is_held_bit_for_bit(kind: str, tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert, kind, dropout=0.3)
    found = []
    for tokens in (41, 60, 90, 130, TOKENS):
        torch.manual_seed(3)
        encoder.zero_grad()
        budget = TokenBudget(tokens, chunk_tokens=41)
        ContrastiveObjective(encoder, LossSettings(0.1), budget=budget).backward(batch_of_5(), 1.0)
        found.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())
    assert error(loss_and_gradients(encoder, 90)[1], found[0]) > 0  # other chunks draw other masks of dropout


def test_text_that_many_queries_share_gets_one_gradient_from_several_threads() -> None:
    """`x[index]` gave another sum in nearly every call."""
    places = torch.Generator().manual_seed(0)
    queries, passages = torch.arange(40), torch.randint(40, 48, (160,), generator=places)
    batch = Batch(
        tokens=TokenBatch.from_lists([[7]] * 48),
        query_index=queries,
        passage_index=passages,
        labels=torch.arange(0, 160, 4),
        excluded=torch.empty(0, 2, dtype=torch.long),
        rows=queries,
        negatives=torch.full((40,), 3),
    )
    vectors = torch.randn(48, 384, generator=places)
    objective = ContrastiveObjective(nn.Module(), LossSettings(0.1))
    found, threads = set(), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for _ in range(30):
            leaf = vectors.clone().requires_grad_()
            objective.loss(leaf, batch)["loss"].sum().backward()
            found.add(leaf.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


RICH = LossSettings(
    0.1,
    directions=("query_passage", "passage_query", "query_query", "passage_passage"),
    hardness_strength=2.0,
    false_negative_margin=0.003,
    distillation="kl",
)
FORMS = trained_formats([64, 16], [1.0, 0.5], ["int8"])


def test_all_terms_and_forms_together_equal_the_naive_full_batch(tiny_bert: str) -> None:
    """Directions, hardness, guide, distillation, Matryoshka and rounding, in chunks, against loops."""
    encoder = encoder_of(tiny_bert, "lora")
    batch = batch_of_5()
    base = load_base(tiny_bert)
    alone = torch.stack([encoder(batch.tokens.select(torch.tensor([i])))[0] for i in range(len(LENGTHS))])
    frozen = torch.stack([base(batch.tokens.select(torch.tensor([i])))[0] for i in range(len(LENGTHS))]).detach()
    assert (frozen - alone).abs().max() > 1e-2
    guide = frozen[batch.query_index], frozen[batch.passage_index]
    pairs = Pairs(batch.labels, batch.excluded, batch.owner, batch.teacher, guide)
    expected_loss = sum(
        form.weight
        * contrastive_loop(form(alone[batch.query_index]), form(alone[batch.passage_index]), pairs, RICH, guide=True)
        for form in FORMS
    )
    (expected_loss * torch.arange(1, 6)).sum().backward()
    expected = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.chunk_tokens = 50
    for budget in (None, 41, 90):
        encoder.zero_grad()
        objective = ContrastiveObjective(encoder, RICH, FORMS, guided=True, budget=TokenBudget(budget))
        loss = objective.backward(batch, torch.arange(1, 6))["loss"]
        torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-4, atol=1e-4)
        assert error({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}, expected) < 1e-4
    encoder.zero_grad()
    ContrastiveObjective(encoder, RICH, FORMS).backward(batch, torch.arange(1, 6))  # without the guide
    assert error({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}, expected) > 1e-3


def load_base(model: str) -> Encoder:
    return encoder_of(model, "full").eval()


def test_frozen_vectors_do_not_change_mode_and_adapters(tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert, "lora", dropout=0.2)
    tokens, expected = batch_of_5().tokens, load_base(tiny_bert)(batch_of_5().tokens)
    state = torch.random.get_rng_state()
    trained = encoder.eval()(tokens)
    frozen = frozen_vectors(encoder.train(), tokens)
    torch.testing.assert_close(frozen, expected, rtol=1e-5, atol=1e-5)
    assert encoder.training and torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(encoder.eval()(tokens), trained)
    assert all(p.requires_grad == ("lora_" in name) for name, p in encoder.named_parameters())


@pytest.mark.parametrize("budget", [41, 60, 100, TOKENS - 1])
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_every_budget_gives_the_same_gradient_with_dropout(
    kind: str, pad: bool, budget: int, tiny_bert: str, tmp_path: Path
) -> None:
    encoder = encoder_of(tiny_bert, kind, dropout=0.2, pad=pad)
    encoder.chunk_tokens = 41
    expected_loss, expected = loss_and_gradients(encoder)
    loss, found = loss_and_gradients(encoder, budget)
    assert 0 < GradCache(encoder, TokenBudget(budget)).work(batch_of_5().tokens)[1] <= TOKENS * (2 if pad else 1)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    assert error(found, expected) < 1e-5
    assert error(loss_and_gradients(encoder, budget, seed=4)[1], expected) > 1e-2  # other masks, another gradient


@pytest.mark.parametrize("options", [{"bits": 8, "kind": "qlora"}, {"kind": "full"}])
def test_decoder_and_8_bit_base_are_recomputed_alike(options: dict[str, object], tiny_qwen3: str) -> None:
    encoder = encoder_of(tiny_qwen3, dropout=0.2, **options)
    encoder.chunk_tokens = 41
    expected = loss_and_gradients(encoder)[1]
    assert error(loss_and_gradients(encoder, 41)[1], expected) < 1e-5


def test_bfloat16_is_recomputed_alike(tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert, "lora", dropout=0.2)
    encoder.dtype, encoder.chunk_tokens = torch.bfloat16, 41
    expected = loss_and_gradients(encoder)[1]
    assert error(loss_and_gradients(encoder, 41)[1], expected) < 1e-5


def test_without_replay_of_the_random_state_the_gradient_is_wrong(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(tiny_bert, "lora", dropout=0.2)
    encoder.chunk_tokens = 41
    expected = loss_and_gradients(encoder)[1]
    monkeypatch.setattr("embedrag.runtime.random_state.set_random_state", lambda state, device: None)
    assert error(loss_and_gradients(encoder, 41)[1], expected) > 1e-2


def test_gradients_of_several_batches_add_up(tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert, "lora")
    once = loss_and_gradients(encoder)[1]
    encoder.chunk_tokens = 41
    encoder.zero_grad()
    objective = ContrastiveObjective(encoder, LossSettings(0.1), budget=TokenBudget(41))
    for _ in range(2):
        objective.backward(batch_of_5(), torch.arange(1, 6))
    twice = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    assert error(twice, {name: 2 * value for name, value in once.items()}) < 1e-5


@pytest.mark.parametrize(("budget", "held"), [(41, 1), (82, 3), (103, 4), (TOKENS, None)])
def test_as_many_chunks_are_held_as_the_budget_allows(budget: int, held: int | None, tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert)
    encoder.chunk_tokens = 41
    counts = {"forward": 0}
    handle = encoder.backbone.register_forward_hook(
        lambda *_: counts.update(forward=counts["forward"] + 1)  # type: ignore[func-returns-value]
    )
    loss_and_gradients(encoder, budget)
    handle.remove()
    chunks = len(encoder.plan(batch_of_5().tokens)[1])
    assert counts["forward"] == (chunks if held is None else 2 * chunks - held)
    assert (GradCache(encoder, TokenBudget(budget)).work(batch_of_5().tokens)[1] == 0) == (held is None)


def chunks_of_two(recompute: int, weight: Tensor, dropout: float = 0.0) -> CachedVectors:
    """Four texts of one token in two chunks; a text's vector is its token times the weight."""
    drop = FastDropout(dropout)
    tokens = TokenBatch.from_lists([[1], [2], [3], [4]])
    places = [torch.tensor([3, 0]), torch.tensor([1, 2])]
    return CachedVectors(
        lambda part: drop(part.input_ids[:, None] * weight).exp(), tokens, places, recompute, CPU, len(weight)
    )


def test_recomputed_chunks_keep_nothing_of_their_first_pass() -> None:
    weight = torch.ones(3, requires_grad=True)
    for recompute, kept_tensors in ((2, 0), (0, 4)):  # a product and an exponential, of each of two chunks
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            cached = chunks_of_two(recompute, weight)
        assert len(kept) == kept_tensors
        weight.grad = None
        cached.vectors.sum().backward()
        cached.backward()
        ids = torch.arange(1.0, 5)
        torch.testing.assert_close(weight.grad, (ids * ids.exp()).sum().expand(3))


def test_random_numbers_go_on_as_if_nothing_had_been_replayed() -> None:
    weight, found = torch.ones(50, requires_grad=True), []
    for recompute in (0, 1, 2):
        torch.manual_seed(0)
        passes = []
        for _ in range(2):
            cached = chunks_of_two(recompute, weight, dropout=0.5)
            passes.append(cached.vectors.detach().clone())
            cached.vectors.sum().backward()
            cached.backward()
        found.append([*passes, torch.rand(3)])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_backward_without_a_loss_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="loss of these vectors first"):
        chunks_of_two(0, torch.ones(3, requires_grad=True)).backward()


def test_config_without_normalisation_is_recomputed_alike(tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert)
    encoder.embedding_config = replace(encoder.embedding_config, normalize=False, pooling="cls")
    encoder.chunk_tokens = 41
    expected = loss_and_gradients(encoder)[1]
    assert error(loss_and_gradients(encoder, 41)[1], expected) < 1e-5


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
def test_checkpointed_layers_are_packed_and_recomputed_alike(model: str, request: pytest.FixtureRequest) -> None:
    encoder = encoder_of(request.getfixturevalue(model), "lora", dropout=0.2)
    encoder.chunk_tokens = 41
    expected = loss_and_gradients(encoder)[1]
    encoder.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for budget in (None, 41):
        assert error(loss_and_gradients(encoder, budget)[1], expected) < 1e-5
