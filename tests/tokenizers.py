"""Tiny tokenizers of the classes of transformers, and what their authors put around texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = ["a frog sits by the pond", "연못가의 개구리", "青蛙在池塘边", "Über 12 Straßen!"] * 3
PIECES = ["▁", "▁a", "▁frog", "▁sits", "▁by", "▁the", "▁pond", *"abcdefghijklmnopqrstuvwxyz▁ABCÜ연개青蛙0123456789.,!"]


@dataclass(frozen=True)
class Family:
    """A tokenizer and the model that reads its ids.

    Attributes:
        make: gives the tokenizer.
        model_type: of the model.
        end: the token that the authors' own call puts after a text; None when it puts none.
    """

    make: Callable[[], Any]
    model_type: str
    end: str | None = None

    def save(self, folder: Path) -> Path:
        """Write a folder as the authors publish it, without weights."""
        tokenizer = self.make()
        tokenizer.save_pretrained(folder)
        config = {"model_type": self.model_type, "vocab_size": len(tokenizer) + 9, "max_position_embeddings": 64}
        (folder / "config.json").write_text(json.dumps(config))
        return folder


def byte_level(special: tuple[str, ...]) -> Tokenizer:
    """A byte-level BPE as GPT-2 has it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(WORDS, trainer)
    return backend


def template(backend: Tokenizer, single: str) -> Any:
    """The post-processor `single`, such as `<s> $A`."""
    names = [name for name in single.split() if name != "$A"]
    return processors.TemplateProcessing(
        single=single,
        pair=f"{single} {single.replace('$A', '$B')}",
        special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys(names)],
    )


def fast(single: str | None = None, nested: bool = False, **settings: Any) -> Callable[[], Any]:
    """PreTrainedTokenizerFast with `<s>`, `</s>` and a template, alone or after ByteLevel (Llama 3)."""

    def make() -> Any:
        backend = byte_level(("<s>", "</s>", "<pad>", "a special: one"))
        own = template(backend, single) if single else None
        if nested:
            own = processors.Sequence([processors.ByteLevel(trim_offsets=False), own])
        if own is not None:
            backend.post_processor = own
        usual = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        return PreTrainedTokenizerFast(tokenizer_object=backend, **usual | settings)

    return make


def bpe(name: str, **settings: Any) -> Callable[[], Any]:
    """A byte-level class of transformers, with vocabulary and merges."""

    def make() -> Any:
        end = ("<|endoftext|>",)
        state = json.loads(byte_level((*end, "<s>", "</s>", "<pad>", "<unk>", "<mask>", "[CLS]", "[SEP]")).to_str())
        merges = [tuple(merge) for merge in state["model"]["merges"]]
        return getattr(transformers, name)(vocab=state["model"]["vocab"], merges=merges, **settings)

    return make


def metaspace(name: str, special: tuple[str, ...] = ("<unk>", "<s>", "</s>"), **settings: Any) -> Callable[[], Any]:
    """A class with `▁` for spaces and byte fallback, as Llama and Gemma have it."""

    def make() -> Any:
        tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(PIECES), "▁f", "ro", "ro" + "g"]
        vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
        return getattr(transformers, name)(vocab=vocabulary, merges=[("▁", "f"), ("r", "o")], **settings)

    return make


def unigram(name: str, special: tuple[str, ...]) -> Callable[[], Any]:
    """A class with the Unigram model of sentencepiece."""

    def make() -> Any:
        pieces = [(token, 0.0) for token in special] + [(piece, -2.0 - len(piece)) for piece in dict.fromkeys(PIECES)]
        return getattr(transformers, name)(vocab=pieces)

    return make


def wordpiece(
    name: str, special: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
) -> Callable[[], Any]:
    """A class with the WordPiece model of BERT."""

    def make() -> Any:
        letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!青蛙"
        tokens = [*special, "frog", "sits", "pond", "the", *letters, *(f"##{letter}" for letter in letters)]
        return getattr(transformers, name)(vocab={token: number for number, token in enumerate(tokens)})

    return make


BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Decoders, which pool the last token.
DECODERS: dict[str, Family] = {
    "no post-processor": Family(fast(), "qwen3"),
    "begins": Family(fast("<s> $A"), "llama"),
    "begins twice": Family(fast("<s> <s> $A"), "llama"),
    "begins and ends": Family(fast("<s> $A </s>"), "llama", "</s>"),
    "ends": Family(fast("$A </s>"), "qwen2", "</s>"),
    "ends with padding token": Family(fast("$A <pad>"), "qwen3", "<pad>"),
    "llama 3": Family(fast("<s> $A", nested=True), "llama"),
    "llama 3, ends": Family(fast("<s> $A </s>", nested=True), "llama", "</s>"),
    "odd end token": Family(fast("<s> $A", eos_token="a special: one"), "llama"),
    "truncates at the left": Family(fast("<s> $A", truncation_side="left"), "mistral"),
    "llama": Family(metaspace("LlamaTokenizer", add_bos_token=True), "llama"),
    "llama without bos": Family(metaspace("LlamaTokenizer", add_bos_token=False), "llama"),
    "mistral (e5-mistral)": Family(metaspace("LlamaTokenizer", add_bos_token=True, pad_token="</s>"), "mistral"),
    "llama, adds eos": Family(metaspace("LlamaTokenizer", add_bos_token=True, add_eos_token=True), "llama", "</s>"),
    "gemma": Family(
        metaspace("GemmaTokenizer", ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), add_bos_token=True), "gemma2"
    ),
    "gpt2": Family(bpe("GPT2Tokenizer"), "gpt2"),
    "gpt2 with bos": Family(bpe("GPT2Tokenizer", add_bos_token=True), "gpt2"),
    "opt": Family(bpe("GPT2Tokenizer", bos_token="</s>", eos_token="</s>", add_bos_token=True), "opt"),
    "gpt_neox": Family(bpe("GPTNeoXTokenizer"), "gpt_neox"),
    "codegen": Family(bpe("CodeGenTokenizer"), "codegen"),
    "qwen2": Family(bpe("Qwen2Tokenizer"), "qwen2"),
    "xglm": Family(unigram("XGLMTokenizer", ("<s>", "<pad>", "</s>", "<unk>")), "xglm"),
    "cohere": Family(bpe("CohereTokenizer", bos_token="<s>", eos_token="</s>"), "cohere"),
}
# Encoders, which pool the mean or the first token: nothing is added to what their authors add.
ENCODERS: dict[str, Family] = {
    "bert": Family(wordpiece("BertTokenizer"), "bert", "[SEP]"),
    "mpnet": Family(wordpiece("MPNetTokenizer", ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")), "mpnet", "</s>"),
    "distilbert": Family(wordpiece("BertTokenizer"), "distilbert", "[SEP]"),
    "electra": Family(wordpiece("BertTokenizer"), "electra", "[SEP]"),
    "roberta": Family(bpe("RobertaTokenizer"), "roberta", "</s>"),
    "xlm_roberta": Family(unigram("XLMRobertaTokenizer", ("<s>", "<pad>", "</s>", "<unk>")), "xlm-roberta", "</s>"),
    "camembert": Family(unigram("CamembertTokenizer", ("<s>", "<pad>", "</s>", "<unk>")), "camembert", "</s>"),
    "albert": Family(unigram("AlbertTokenizer", ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")), "albert", "[SEP]"),
    "deberta": Family(bpe("DebertaTokenizer"), "deberta", "[SEP]"),
    "deberta_v2": Family(unigram("DebertaV2Tokenizer", BERT), "deberta-v2", "[SEP]"),
    "t5": Family(unigram("T5Tokenizer", ("<pad>", "</s>", "<unk>")), "t5", "</s>"),
    "modernbert": Family(fast("<s> $A </s>", cls_token="<s>", sep_token="</s>"), "modernbert", "</s>"),
}
