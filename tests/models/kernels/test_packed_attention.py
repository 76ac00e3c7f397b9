"""Packed texts have the vectors and gradients of single ones; a model that can't be packed is found out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

from embedrag.models.kernels import packed_attention as attention
from embedrag.models.kernels.packed_attention import Packing, PackingError, _attend, pack, packed_states
from tests.families import DECODER, FAMILIES, SIZES, WINDOWED
from tests.reference import attention_loop

ALL = FAMILIES | WINDOWED
LENGTHS = (3, 17, 17, 1, 30, 9)
OFFSETS = {"xlm_roberta": 2}


def random_model(config: transformers.PretrainedConfig) -> nn.Module:
    """In float64, without dropout, and with weights so large that attention matters."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(copy.deepcopy(config)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.config.use_cache = False
    return model


def random_texts() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randint(3, 99, (length,)) for length in LENGTHS]


def packing_of(texts: list[Tensor]) -> Packing:
    lengths = [len(text) for text in texts]
    return Packing(torch.tensor([0, *lengths]).cumsum(0).int(), lengths)


def gradients(model: nn.Module, states: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view(states.shape)
    (states * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", sorted(ALL))
def test_states_and_gradients_equal_those_of_single_texts(family: str) -> None:
    model, texts = random_model(ALL[family]), random_texts()
    alone = torch.cat([model(input_ids=text[None]).last_hidden_state[0] for text in texts])
    expected = gradients(model, alone)
    offset = pack(model, 1, torch.float64)
    assert offset == OFFSETS.get(family, 0)
    together = packed_states(model, torch.cat(texts), packing_of(texts), offset)
    tolerance = 1e-6 if family.startswith("gemma") else 1e-12  # Gemma's norms compute in float32
    torch.testing.assert_close(together, alone, rtol=tolerance, atol=tolerance)
    found = gradients(model, together)
    assert found.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())  # a key's bias has none but rounding
    assert max((found[name] - expected[name]).norm() for name in expected) < tolerance * largest


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dropout", [0.0, 1e-9])
def test_attention_equals_a_loop_over_texts_and_tokens(
    window: int | None, causal: bool, kv_heads: int, dropout: float
) -> None:
    """A dropout that drops nothing takes the other way through the code."""
    torch.manual_seed(0)
    lengths = [6, 6, 3, 1]
    q, k, v = (torch.randn(1, heads, sum(lengths), 8, dtype=torch.float64) for heads in (4, kv_heads, kv_heads))
    packing = Packing(torch.tensor([0, *lengths]).cumsum(0).int(), lengths)
    out, _ = attention.packed_attention(
        nn.Module(), q, k, v, None, packing, dropout=dropout, scaling=0.3, is_causal=causal, sliding_window=window
    )
    torch.testing.assert_close(out[0], attention_loop(q[0], k[0], v[0], lengths, 0.3, causal, window))


def test_dropout_of_the_weights_keeps_the_mean_and_is_replayed() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(200, 4, 5, 8) for _ in range(3))
    state = torch.get_rng_state()
    first = _attend(q, k, v, None, False, 0.5, None)
    torch.set_rng_state(state)
    assert torch.equal(first, _attend(q, k, v, None, False, 0.5, None))
    q, k, v = (states[:1].expand(20_000, -1, -1, -1) for states in (q, k, v))
    mean = _attend(q, k, v, None, False, 0.5, None).mean(0)
    torch.testing.assert_close(mean, _attend(q, k, v, None, False, 0.0, None)[0], atol=0.05, rtol=0)


def breaks(spoil: Callable[..., dict[str, object]]) -> Callable[..., object]:
    """`packed_attention` with spoilt arguments."""
    whole = attention.packed_attention

    def broken(module: nn.Module, *args: Tensor, **kwargs: object) -> object:
        return whole(module, *args, **spoil(kwargs))

    return broken


def one_text(kwargs: dict[str, object]) -> dict[str, object]:
    total = sum(kwargs["packing"].lengths)
    return kwargs | {"packing": Packing(torch.tensor([0, total]), [total])}


@pytest.mark.parametrize(
    ("family", "spoil"),
    [
        ("bert", one_text),
        ("qwen3", one_text),
        ("qwen3", lambda kwargs: kwargs | {"is_causal": False}),
        ("modernbert_local", lambda kwargs: kwargs | {"sliding_window": None}),
        ("mistral_sliding", lambda kwargs: kwargs | {"sliding_window": None}),
    ],
)
def test_check_at_the_start_finds_mixed_texts_and_lost_windows(
    family: str, spoil: Callable[..., dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "packed_attention", breaks(spoil))
    model, texts = random_model(ALL[family]), random_texts()
    before = model(input_ids=texts[1][None]).last_hidden_state
    with pytest.raises(PackingError, match="its packed states are not those of single texts"):
        pack(model, 1, torch.float64)
    assert torch.equal(model(input_ids=texts[1][None]).last_hidden_state, before)


def test_check_at_the_start_finds_a_leak_that_leaves_the_probe_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts see each other only once a text has changed: the comparison with single texts can't find that."""
    calls = []

    def count(*args: object) -> Tensor:
        calls.append(args)
        states = packed_states(*args)
        return states if len(calls) == 1 else states + torch.linspace(0, 9, states.shape[1])

    monkeypatch.setattr(attention, "packed_states", count)
    with pytest.raises(PackingError, match="see each other"):
        pack(random_model(FAMILIES["bert"]), 1, torch.float64)


@pytest.mark.parametrize(
    "config",
    [
        transformers.MPNetConfig(**SIZES, pad_token_id=1, max_position_embeddings=66),
        transformers.DebertaV2Config(**SIZES),
        transformers.Gemma2Config(**DECODER),
        transformers.GPTNeoConfig(
            hidden_size=32, num_layers=2, num_heads=4, vocab_size=99, attention_types=[[["global", "local"], 1]]
        ),
        transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=99),
    ],
    ids=lambda config: config.model_type,
)
def test_family_that_cannot_be_packed_is_refused_and_left_as_it_was(config: transformers.PretrainedConfig) -> None:
    model = random_model(config)
    usual, text = model.config._attn_implementation, random_texts()[1][None]
    before = model(input_ids=text).last_hidden_state
    with pytest.raises(PackingError):
        pack(model, 1, torch.float64)
    assert model.config._attn_implementation == usual
    assert torch.equal(model(input_ids=text).last_hidden_state, before)


def test_positions_start_again_with_each_text() -> None:
    packing = Packing(torch.tensor([0, 2, 5, 6]).int(), [2, 3, 1])
    assert packing.position_ids(0).tolist() == [[0, 1, 0, 1, 2, 0]]
    assert packing.position_ids(2).tolist() == [[2, 3, 2, 3, 4, 2]]
    assert Packing(packing.cu_seqlens, [3, 3, 2, 3]).groups == [(2, 3), (1, 2), (1, 3)]


def test_packed_model_saves_the_config_it_came_with(tmp_path) -> None:
    model = random_model(FAMILIES["bert"])
    model.save_pretrained(tmp_path / "before")
    pack(model, 1, torch.float64)
    model.save_pretrained(tmp_path / "after")
    assert (tmp_path / "before/config.json").read_text() == (tmp_path / "after/config.json").read_text()
