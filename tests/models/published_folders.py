"""Model folders in the shapes in which they are published, with tiny random weights.

Configurations, modules, prompts and tokenizer settings have the keys of the published folders. Weights and
vocabularies are made here. `PUBLISHED` is the table of docs/models.md; this file writes the page when it is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = "a frog sits by the pond and waits for flies what does heron eat where water stones rain query passage".split()
WIDTH = 32
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
DECODER = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
ST = "sentence_transformers.models."
WEB = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


@dataclass(frozen=True)
class Published:
    """A folder as it is published.

    Attributes:
        models: those with folders of this shape.
        shape: what is special about it.
        make: writes such a folder.
        options: arguments of `build_model` besides the folder.
        vectors: what trains: pooling, and what follows it.
        refused: the beginning of the reason, when the folder is refused.
        query: the prompt that is put before queries.
    """

    models: str
    shape: str
    make: Callable[[Path], object]
    vectors: str = ""
    refused: str = ""
    query: str = ""
    options: dict[str, Any] = field(default_factory=lambda: {"finetune_type": "full"})

    @property
    def name(self) -> str:
        """The first of its models."""
        return re.split(r",| \(", self.models)[0]


LORA: dict[str, Any] = {"finetune_type": "lora", "lora_r": 2}
TRUSTED = {"finetune_type": "full", "trust_remote_code": True}


def write(path: Path, data: Any) -> None:
    """Write a JSON file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def word_pieces(lower: bool = True) -> Any:
    """A tokenizer as BERT has it."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{c}" for c in letters), ":", "."]
    backend = Tokenizer(
        models.WordPiece({piece: n for n, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **names)


def unigrams(special: tuple[str, ...], template: str, **names: str) -> Any:
    """A tokenizer as XLM-R and T5 have it (SentencePiece)."""
    pieces = [*special, *(f"▁{word}" for word in WORDS), *"abcdefghijklmnopqrstuvwxyz▁:.?"]
    scored = [(piece, 0.0 if n < len(special) else -2.0 - n / 100) for n, piece in enumerate(pieces)]
    backend = Tokenizer(models.Unigram(scored, unk_id=special.index("<unk>")))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    ends = [(token, n) for n, token in enumerate(special) if token in template]
    backend.post_processor = processors.TemplateProcessing(template, f"{template} $B", ends)
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def xlmr_pieces() -> Any:
    """The tokenizer of XLM-R."""
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return unigrams(("<s>", "<pad>", "</s>", "<unk>"), "<s> $A </s>", unk_token="<unk>", **names)


def t5_pieces() -> Any:
    """The tokenizer of T5."""
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return unigrams(("<pad>", "</s>", "<unk>"), "$A </s>", **names)


def byte_pairs(special: tuple[str, ...], template: str = "", **names: str) -> Any:
    """A byte-level tokenizer, as decoders, RoBERTa and ModernBERT have it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([" ".join(WORDS)], trainer)
    if template:
        ends = [(token, n) for n, token in enumerate(special) if token in template]
        backend.post_processor = processors.TemplateProcessing(template, f"{template} $B", ends)
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def roberta_pieces() -> Any:
    """The tokenizer of RoBERTa."""
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return byte_pairs(("<s>", "<pad>", "</s>", "<unk>"), "<s> $A </s>", unk_token="<unk>", **names)


def qwen_pieces() -> Any:
    """The tokenizer of Qwen: no token before a text and none after it."""
    return byte_pairs(("<|endoftext|>", "<|im_end|>"), eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama_pieces() -> Any:
    """The tokenizer of Llama and Mistral: a token before a text, none after it, and no padding token."""
    return byte_pairs(("<unk>", "<s>", "</s>"), "<s> $A", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def modern_pieces() -> Any:
    """The tokenizer of ModernBERT."""
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    return byte_pairs(("[PAD]", "[CLS]", "[SEP]", "[MASK]"), "[CLS] $A [SEP]", **names)


def transformer(folder: Path, kind: str, tokenizer: Any, *, model: str = "", bin: bool = False, **config: Any) -> None:
    """Write a random transformer with its tokenizer."""
    torch.manual_seed(0)
    settings = getattr(hf, f"{kind}Config")(vocab_size=len(tokenizer), **config)
    made = getattr(hf, model or f"{kind}Model")(settings)
    with torch.no_grad():  # the usual start values give all texts nearly the same vector
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    made.save_pretrained(folder)
    if bin:
        torch.save(made.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    tokenizer.save_pretrained(folder)


def modules(
    folder: Path,
    pooling: str,
    *further: str,
    text: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    types: dict[str, str] | None = None,
    transformer_path: str = "",
    **keys: Any,
) -> None:
    """Write modules.json and the files of sentence-transformers.

    Args:
        folder: of the model.
        pooling: the end of its key.
        *further: modules behind it, such as `Normalize`; `Dense:48:Tanh` has 48 numbers and an activation.
        text: sentence_bert_config.json.
        settings: config_sentence_transformers.json.
        types: full names of modules that are not under `sentence_transformers.models`.
        transformer_path: folder of the transformer.
        **keys: further keys of the pooling's config.json.
    """
    kinds = ["Transformer", "Pooling", *(name.split(":")[0] for name in further)]
    paths = [transformer_path, "1_Pooling", *(f"{n}_{kind}" for n, kind in enumerate(kinds[2:], 2))]
    full = [(types or {}).get(kind, ST + kind) for kind in kinds]
    rows = [{"idx": n, "name": str(n), "path": paths[n], "type": full[n]} for n in range(len(kinds))]
    write(folder / "modules.json", rows)
    modes = {f"pooling_mode_{name}": name == pooling for name in POOLINGS[: 4 if pooling in POOLINGS[:4] else 6]}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH} | modes | keys)
    text = {"max_seq_length": 128, "do_lower_case": False} if text is None else text
    if text:
        write(folder / transformer_path / "sentence_bert_config.json", text)
    if settings is not None:
        write(folder / "config_sentence_transformers.json", settings)
    width = WIDTH
    for n, module in enumerate(further, 2):
        kind, *sizes = module.split(":")
        if kind == "Dense":
            width = dense(folder / f"{n}_Dense", width, int(sizes[0]), sizes[1], sizes[2:] != ["no bias"])
        if kind == "LayerNorm":
            write(folder / f"{n}_LayerNorm" / "config.json", {"dimension": width})
            weights = {"norm.weight": torch.rand(width) + 0.5, "norm.bias": torch.randn(width)}
            torch.save(weights, folder / f"{n}_LayerNorm" / "pytorch_model.bin")


def dense(folder: Path, width: int, out: int, activation: str, bias: bool = True) -> int:
    """Write a Dense module; returns its width."""
    place = "linear" if activation == "Identity" else "activation"
    name = f"torch.nn.modules.{place}.{activation}"
    write(
        folder / "config.json",
        {"in_features": width, "out_features": out, "bias": bias, "activation_function": name},
    )
    weights = {"linear.weight": torch.randn(out, width) / width**0.5} | (
        {"linear.bias": torch.randn(out)} if bias else {}
    )
    if activation == "Identity":
        from safetensors.torch import save_file

        save_file(weights, folder / "model.safetensors")
    else:
        torch.save(weights, folder / "pytorch_model.bin")
    return out


def bert(folder: Path, pooling: str = "", *further: str, lower: bool = True, **files: Any) -> None:
    """A BERT; with a pooling also the files of sentence-transformers."""
    transformer(folder, "Bert", word_pieces(lower), **SIZES, max_position_embeddings=128)
    if pooling:
        modules(folder, pooling, *further, **files)


def xlmr(folder: Path, pooling: str, *further: str, **files: Any) -> None:
    """An XLM-R with the files of sentence-transformers."""
    transformer(folder, "XLMRoberta", xlmr_pieces(), **SIZES, max_position_embeddings=130, pad_token_id=1)
    modules(folder, pooling, *further, **files)


def t5(folder: Path, *further: str, bin: bool = True, **files: Any) -> None:
    """The encoder of a T5, as sentence-t5 has it: config.json still speaks of a decoder."""
    sizes = {"d_model": WIDTH, "d_ff": 48, "d_kv": 8, "num_layers": 1, "num_heads": 4}
    transformer(folder, "T5", t5_pieces(), model="T5EncoderModel", bin=bin, **sizes)
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"is_encoder_decoder": True})
    if further:
        modules(folder, "mean_tokens", *further, **files)


def qwen(folder: Path, *further: str, kind: str = "Qwen3", settings: dict[str, Any] | None = None) -> None:
    """A Qwen with the pooling of the last token."""
    sizes = DECODER if kind == "Qwen3" else {key: value for key, value in DECODER.items() if key != "head_dim"}
    transformer(folder, kind, qwen_pieces(), **sizes, eos_token_id=1, pad_token_id=0)
    modules(folder, "lasttoken", *further, settings=settings, text={"max_seq_length": 128, "do_lower_case": False})
    write(folder / "generation_config.json", {"do_sample": True, "temperature": 0.7, "eos_token_id": [1, 0]})


def own_code(folder: Path, name: str, pooling: str = "mean_tokens", *further: str, **files: Any) -> None:
    """A model whose code lies in its folder: a BERT with another name, and with a pooler."""
    bert(folder, pooling, *further, **files)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": f"configuration_{name}.OwnConfig", "AutoModel": f"modeling_{name}.OwnModel"}
    write(folder / "config.json", config | {"model_type": name, "auto_map": code})
    (folder / f"configuration_{name}.py").write_text(
        f"from transformers import BertConfig\n\n\nclass OwnConfig(BertConfig):\n    model_type = '{name}'\n"
    )
    (folder / f"modeling_{name}.py").write_text(
        f"from transformers import BertModel\n\nfrom .configuration_{name} import OwnConfig\n\n\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )


def custom_st(folder: Path) -> None:
    """Jina v3: a module of its own around the transformer."""
    xlmr(folder, "mean_tokens", "Normalize", types={"Transformer": "custom_st.Transformer"})
    (folder / "custom_st.py").write_text("class Transformer:\n    pass\n")


def gemma(folder: Path) -> None:
    """EmbeddingGemma: attention in both directions, two Dense layers, fourteen prompts."""
    pieces = byte_pairs(
        ("<pad>", "<eos>", "<bos>", "<unk>"), "<bos> $A <eos>", pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    sizes = DECODER | {"sliding_window": 16, "use_bidirectional_attention": True}
    transformer(folder, "Gemma3Text", pieces, **sizes, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    names = ("BitextMining", "Clustering", "Classification", "InstructionRetrieval", "PairClassification", "Reranking")
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    prompts |= {name: f"task: {name} | query: " for name in names}
    prompts |= {"Retrieval-query": prompts["query"], "Retrieval-document": prompts["document"]}
    settings = {"model_type": "SentenceTransformer", "prompts": prompts, "default_prompt_name": None}
    dense_layers = ("Dense:96:Identity:no bias", "Dense:32:Identity:no bias", "Normalize")
    modules(folder, "mean_tokens", *dense_layers, settings=settings, include_prompt=True)


def newer(folder: Path) -> None:
    """A folder that sentence-transformers 6 wrote."""
    bert(folder)
    base, own = "sentence_transformers.base.modules.", "sentence_transformers.sentence_transformer.modules."
    kinds = [("", f"{base}transformer.Transformer"), ("1_Pooling", f"{own}pooling.Pooling")]
    kinds += [("2_Dense", f"{base}dense.Dense"), ("3_Normalize", f"{base}normalize.Normalize")]
    rows = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(kinds)]
    write(folder / "modules.json", rows)
    pooling = {"embedding_dimension": WIDTH, "pooling_mode": ["mean", "cls"], "include_prompt": True}
    write(folder / "1_Pooling" / "config.json", pooling)
    method = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    text = {
        "transformer_task": "feature-extraction",
        "modality_config": method,
        "module_output_name": "token_embeddings",
    }
    write(folder / "sentence_bert_config.json", text)
    dense(folder / "2_Dense", 2 * WIDTH, 24, "GELU")
    config = json.loads((folder / "2_Dense" / "config.json").read_text())
    names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    write(folder / "2_Dense" / "config.json", config | names)
    write(folder / "3_Normalize" / "config.json", names)
    settings = {"model_type": "SentenceTransformer", "similarity_fn_name": "dot", "default_prompt_name": None}
    write(folder / "config_sentence_transformers.json", settings | {"prompts": {"query": "query: ", "document": ""}})


def plain(kind: str, tokenizer: Callable[[], Any], **config: Any) -> Callable[[Path], None]:
    """A transformer without any file of sentence-transformers."""
    return lambda folder: transformer(folder, kind, tokenizer(), **{**SIZES, **config})


def only(type_name: str) -> Callable[[Path], None]:
    """A folder with one module that is no transformer."""

    def make(folder: Path) -> None:
        write(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": type_name}])

    return make


PROMPTED = {"prompts": {"query": "query: "}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
REPRESENT = {"prompts": {"query": "Represent this sentence for searching relevant passages: ", "passage": ""}}
JINA = {
    "retrieval.query": "Represent the query: ",
    "retrieval.passage": "Represent the document: ",
    "separation": "S: ",
}
E5_MISTRAL = {
    "web_search_query": WEB,
    "sts_query": "Instruct: STS\nQuery: ",
    "bitext_query": "Instruct: bitext\nQuery: ",
}


def mistral(folder: Path) -> None:
    """E5-Mistral: a token before each text, prompts of several tasks."""
    transformer(folder, "Mistral", llama_pieces(), **DECODER, bos_token_id=1, eos_token_id=2)
    modules(folder, "lasttoken", "Normalize", settings={"prompts": E5_MISTRAL, "default_prompt_name": None})


def both_directions(folder: Path) -> None:
    """A decoder that sentence-transformers loads with attention in both directions."""
    text = {"max_seq_length": 128, "config_kwargs": {"is_causal": False}}
    transformer(folder, "Qwen3", qwen_pieces(), **DECODER, eos_token_id=1, pad_token_id=0)
    modules(folder, "mean_tokens", "Normalize", text=text)


def distiluse(folder: Path) -> None:
    """distiluse: the transformer in a folder of its own, and tanh behind the pooling."""
    sizes = {"dim": WIDTH, "n_layers": 1, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 128}
    transformer(folder / "0_Transformer", "DistilBert", word_pieces(False), **sizes)
    modules(folder, "mean_tokens", "Dense:24:Tanh", transformer_path="0_Transformer")


def stella(folder: Path) -> None:
    """Stella v5: one of several Dense layers, and code of its own."""
    own_code(folder, "stella", "mean_tokens", settings={"prompts": {"s2p_query": WEB, "s2s_query": "Instruct: STS\n"}})
    rows = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", [*rows, {"idx": 2, "name": "2", "path": "2_Dense_48", "type": ST + "Dense"}])
    dense(folder / "2_Dense_48", WIDTH, 48, "Identity")
    dense(folder / "2_Dense_24", WIDTH, 24, "Identity")


def sgpt(folder: Path) -> None:
    """SGPT: the later a token, the more it counts."""
    layers = {"hidden_size": WIDTH, "num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]]}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    pieces = byte_pairs(("<|endoftext|>",), eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    transformer(folder, "GPTNeo", pieces, **layers, **ends, max_position_embeddings=4096)
    modules(folder, "weightedmean_tokens")


NOMIC = {"hidden_act": "silu", "max_position_embeddings": 128}
MODERN = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "max_position_embeddings": 128,
}
FALCON = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
MAMBA = {"hidden_size": WIDTH, "num_hidden_layers": 1, "state_size": 4, "time_step_rank": 4}

PUBLISHED = [
    Published(
        "BGE v1.5 (bge-small/base/large-en, -zh)",
        "`do_lower_case` true, a tokenizer that lowers anyway",
        lambda f: bert(f, "cls_token", "Normalize", text={"max_seq_length": 128, "do_lower_case": True}),
        "cls, length 1",
    ),
    Published("BGE-M3", "XLM-R", lambda f: xlmr(f, "cls_token", "Normalize"), "cls, length 1"),
    Published(
        "E5 v2 (e5-small/base/large-v2)", "BERT", lambda f: bert(f, "mean_tokens", "Normalize"), "mean, length 1"
    ),
    Published(
        "multilingual-e5 (-small/base/large/-instruct)",
        "XLM-R",
        lambda f: xlmr(f, "mean_tokens", "Normalize"),
        "mean, length 1",
    ),
    Published(
        "GTE v1 (gte-small/base/large, -zh)", "BERT", lambda f: bert(f, "mean_tokens", "Normalize"), "mean, length 1"
    ),
    Published(
        "GTE v1.5 (gte-base/large-en-v1.5), gte-multilingual-base, arctic-embed-m-v2.0",
        "code of its own, `trust_remote_code`",
        lambda f: own_code(f, "new", "cls_token"),
        "cls",
        options=TRUSTED,
    ),
    Published(
        "the same without `trust_remote_code`",
        "code of its own",
        lambda f: own_code(f, "new", "cls_token"),
        refused="the model has Python code of its own",
    ),
    Published(
        "Arctic-embed (xs … l)",
        "BERT with a prompt for queries",
        lambda f: bert(f, "cls_token", "Normalize", settings=REPRESENT),
        "cls, length 1",
        query=REPRESENT["prompts"]["query"],
    ),
    Published(
        "Arctic-embed-l-v2.0",
        "XLM-R with a prompt",
        lambda f: xlmr(f, "cls_token", "Normalize", settings=PROMPTED),
        "cls, length 1",
        query="query: ",
    ),
    Published(
        "Nomic-embed v1, v1.5 (code of its own)",
        "code of its own, `trust_remote_code`",
        lambda f: own_code(f, "nomic_own"),
        "mean",
        options={**LORA, "trust_remote_code": True},
    ),
    Published(
        "Nomic-embed (native nomic_bert)",
        "the class of transformers",
        lambda f: (transformer(f, "NomicBert", word_pieces(), **SIZES, **NOMIC), modules(f, "mean_tokens")),
        "mean",
    ),
    Published(
        "Jina v2 (jina-embeddings-v2-base-en, -zh, -de)",
        "code of its own, `trust_remote_code`",
        lambda f: own_code(f, "jina_bert_own", "mean_tokens"),
        "mean",
        options=TRUSTED,
    ),
    Published(
        "Jina v3, v5 (custom_st)",
        "the module `custom_st.Transformer` around the transformer",
        custom_st,
        refused="modules.json: custom_st.Transformer is no class of sentence-transformers",
    ),
    Published(
        "Jina v3 without its module (modules.json changed in a copy)",
        "prompts `retrieval.query`, `retrieval.passage`",
        lambda f: xlmr(f, "mean_tokens", "Normalize", settings={"prompts": JINA}),
        "mean, length 1",
        query="Represent the query: ",
        options=LORA,
    ),
    Published(
        "mxbai-embed-large-v1",
        "BERT, vectors of any length",
        lambda f: bert(f, "cls_token", settings=REPRESENT),
        "cls",
        query=REPRESENT["prompts"]["query"],
    ),
    Published(
        "Granite-embedding (30m … 278m)",
        "RoBERTa",
        lambda f: (
            transformer(f, "Roberta", roberta_pieces(), **SIZES, max_position_embeddings=130, pad_token_id=1),
            modules(f, "cls_token", "Normalize"),
        ),
        "cls, length 1",
    ),
    Published(
        "Granite-embedding r2, gte-modernbert-base, modernbert-embed-base",
        "ModernBERT",
        lambda f: (
            transformer(f, "ModernBert", modern_pieces(), **SIZES, **MODERN),
            modules(f, "cls_token", "Normalize"),
        ),
        "cls, length 1",
    ),
    Published(
        "EmbeddingGemma",
        "two Dense modules, attention in both directions, a prompt for each task",
        gemma,
        "mean, Dense 32 → 96 (Identity), Dense 96 → 32 (Identity), length 1",
        query="task: search result | query: ",
        options=LORA,
    ),
    Published(
        "LaBSE",
        "Dense with tanh, weights in pytorch_model.bin",
        lambda f: bert(f, "cls_token", "Dense:32:Tanh", "Normalize", lower=False),
        "cls, Dense 32 → 32 (Tanh), length 1",
    ),
    Published(
        "acge_text_embedding",
        "Dense",
        lambda f: bert(f, "mean_tokens", "Dense:56:Identity"),
        "mean, Dense 32 → 56 (Identity)",
    ),
    Published(
        "Stella v5 (stella_en_400M_v5, _1.5B_v5)",
        "prompts `s2p_query` and `s2s_query`, one Dense module of several, code of its own",
        stella,
        "mean, Dense 32 → 48 (Identity)",
        query=WEB,
        options=TRUSTED,
    ),
    Published(
        "Jasper (custom_st.JasperTransformer)",
        "a module of its own",
        only("custom_st.JasperTransformer"),
        refused="modules.json: custom_st.JasperTransformer is no class of sentence-transformers",
    ),
    Published(
        "sentence-t5, GTR",
        "the encoder of T5, Dense without bias",
        lambda f: t5(f, "Dense:32:Identity:no bias", "Normalize"),
        "mean, Dense 32 → 32 (Identity), length 1",
    ),
    Published(
        "INSTRUCTOR",
        "the encoder of T5; `include_prompt` false, and no prompt in its files",
        lambda f: t5(f, "Dense:32:Identity:no bias", "Normalize", include_prompt=False),
        "mean, Dense 32 → 32 (Identity), length 1",
    ),
    Published(
        "INSTRUCTOR with a prompt",
        "`include_prompt` false, and a prompt",
        lambda f: t5(f, "Normalize", settings=PROMPTED, include_prompt=False),
        refused="1_Pooling/config.json of the model has include_prompt false",
    ),
    Published("SGPT (125M … 5.8B weightedmean)", "weighted mean", sgpt, "weighted_mean"),
    Published(
        "gte-Qwen2 (1.5B, 7B)",
        "Qwen2, last token, a prompt",
        lambda f: qwen(f, "Normalize", kind="Qwen2", settings={"prompts": {"query": WEB}}),
        "last_token, length 1",
        query=WEB,
        options=LORA,
    ),
    Published(
        "Qwen3-Embedding (0.6B … 8B)",
        "Qwen3, last token, a prompt, generation_config.json",
        lambda f: qwen(f, "Normalize", settings={"prompts": {"query": WEB, "document": ""}}),
        "last_token, length 1",
        query=WEB,
        options=LORA,
    ),
    Published(
        "E5-mistral-7b-instruct, SFR-Embedding, Linq-Embed",
        "a token before each text, prompts such as `web_search_query`",
        mistral,
        "last_token, length 1",
        query=WEB,
        options=LORA,
    ),
    Published("all-MiniLM-L6/L12-v2", "BERT", lambda f: bert(f, "mean_tokens", "Normalize"), "mean, length 1"),
    Published(
        "all-mpnet-base-v2, multi-qa-mpnet-base",
        "MPNet",
        lambda f: (
            transformer(f, "MPNet", roberta_pieces(), **SIZES, max_position_embeddings=130, pad_token_id=1),
            modules(f, "mean_tokens", "Normalize"),
        ),
        "mean, length 1",
    ),
    Published(
        "distiluse-base-multilingual-cased",
        "the transformer in 0_Transformer, Dense with tanh",
        distiluse,
        "mean, Dense 32 → 24 (Tanh)",
    ),
    Published(
        "paraphrase-multilingual-MiniLM-L12-v2",
        "a BERT with SentencePiece",
        lambda f: (transformer(f, "Bert", xlmr_pieces(), **SIZES, pad_token_id=1), modules(f, "mean_tokens")),
        "mean",
    ),
    Published(
        "ko-sroberta-multitask, KR-SBERT",
        "sentence_roberta_config.json of early versions",
        lambda f: (bert(f, "mean_tokens", text={}), write(f / "sentence_roberta_config.json", {"max_seq_length": 32})),
        "mean",
    ),
    Published(
        "m3e, text2vec-base-chinese, KoSimCSE, simcse",
        "BERT, no normalisation",
        lambda f: bert(f, "mean_tokens"),
        "mean",
    ),
    Published(
        "msmarco-distilbert-dot, LayerNorm",
        "a LayerNorm module",
        lambda f: bert(f, "cls_token", "LayerNorm"),
        "cls, LayerNorm",
    ),
    Published(
        "nli-*-max, early SBERT",
        "max pooling, a cased tokenizer with `do_lower_case`",
        lambda f: bert(f, "max_tokens", lower=False, text={"max_seq_length": 128, "do_lower_case": True}),
        "max",
    ),
    Published(
        "any folder of sentence-transformers 6",
        "new module names, mean + cls, GELU",
        newer,
        "mean+cls, Dense 64 → 24 (GELU), length 1",
        query="query: ",
    ),
    Published(
        "a folder with truncate_dim, query_length and document_length",
        "sentence-transformers cuts its vectors, and queries shorter than passages",
        lambda f: bert(
            f,
            "mean_tokens",
            "Normalize",
            text={"query_length": 24, "document_length": 48},
            settings={"truncate_dim": 16, "prompts": {}},
        ),
        "mean, length 1, the first 16 dimensions",
    ),
    Published("BERT, mBERT", "no files of sentence-transformers", plain("Bert", word_pieces), "mean, length 1"),
    Published(
        "RoBERTa, XLM-R, CamemBERT",
        "the same",
        plain("Roberta", roberta_pieces, pad_token_id=1, max_position_embeddings=130),
        "mean, length 1",
    ),
    Published("DeBERTa v2, v3", "the same", plain("DebertaV2", word_pieces, **DEBERTA), "mean, length 1"),
    Published(
        "MPNet",
        "the same",
        plain("MPNet", roberta_pieces, pad_token_id=1, max_position_embeddings=130),
        "mean, length 1",
    ),
    Published("ALBERT", "the same", plain("Albert", word_pieces, embedding_size=16), "mean, length 1"),
    Published("ELECTRA", "the same", plain("Electra", word_pieces, embedding_size=16), "mean, length 1"),
    Published("ModernBERT", "the same", plain("ModernBert", modern_pieces, **MODERN), "mean, length 1"),
    Published("NeoBERT", "code of its own", lambda f: own_code(f, "neobert", ""), "mean, length 1", options=TRUSTED),
    Published(
        "T5, mT5 (t5-small, google/mt5-base)", "the encoder is trained", lambda f: t5(f, bin=False), "mean, length 1"
    ),
    Published(
        "Qwen2.5, Qwen3, Llama, Mistral … (no embedding files)",
        "a decoder",
        plain("Qwen3", qwen_pieces, **DECODER, eos_token_id=1),
        "last_token, length 1",
        options=LORA,
    ),
    Published(
        "Mamba",
        "a state-space model; texts are padded",
        plain("Mamba", qwen_pieces, **MAMBA, num_attention_heads=1, intermediate_size=64),
        "last_token, length 1",
        options=LORA,
    ),
    Published(
        "Falcon-H1",
        "attention and state space; texts are padded",
        plain("FalconH1", qwen_pieces, **DECODER, **FALCON),
        "last_token, length 1",
        options=LORA,
    ),
    Published(
        "decoders with attention in both directions (llama-embed-nemotron, KaLM)",
        "`is_causal` false, mean",
        both_directions,
        "mean, length 1",
        options=LORA,
    ),
    Published(
        "BART, Pegasus, Marian",
        "an encoder with a decoder",
        lambda f: write(f / "config.json", {"model_type": "bart"}),
        refused="config.json: model_type is bart, an encoder with a decoder",
    ),
    Published(
        "ColBERT (pylate)",
        "several vectors for a text",
        lambda f: bert(f, "mean_tokens", "Dense:8:Identity", types={"Dense": "pylate.models.Dense.Dense"}),
        refused="modules.json: pylate.models.Dense.Dense is no class of sentence-transformers",
    ),
    Published(
        "SPLADE, opensearch-neural-sparse",
        "sparse vectors",
        only("sentence_transformers.sparse_encoder.models.MLMTransformer"),
        refused="modules.json: sentence_transformers.sparse_encoder.models.MLMTransformer is not supported",
    ),
    Published(
        "static-retrieval-mrl-en-v1, Model2Vec",
        "no transformer",
        only("sentence_transformers.models.StaticEmbedding"),
        refused="modules.json: sentence_transformers.models.StaticEmbedding is not supported",
    ),
    Published(
        "CLIP (clip-ViT-B-32)",
        "texts and pictures",
        only("sentence_transformers.models.CLIPModel"),
        refused="modules.json: sentence_transformers.models.CLIPModel is not supported",
    ),
    Published(
        "average_word_embeddings_glove",
        "no transformer",
        only("sentence_transformers.models.WordEmbeddings"),
        refused="modules.json: sentence_transformers.models.WordEmbeddings is not supported",
    ),
]
