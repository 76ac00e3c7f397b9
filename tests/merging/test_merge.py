"""A merge gives the trained model or nothing at all."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from embedrag.cli import main
from embedrag.models.equivalence import choose_probes
from embedrag.models.load import load_model

TEXTS = ["what is a diode", "a diode lets current flow one way only " * 4, "다이오드"]
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


@pytest.fixture(scope="session")
def tiny_llama(tiny_qwen3: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tied-embedding Llama saved as a causal language model: its tensors are called model.layers…"""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_qwen3)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, vocab_size=512, num_key_value_heads=2, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_xlmr(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("xlmr")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(**SIZES, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    transformers.XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def train(write_jsonl, rows, tmp_path: Path):
    """Train an adapter on a base; returns its folder."""

    def run(base: str, *words: str, kind: str = "lora") -> Path:
        output = tmp_path / f"run-{kind}"
        fixed = ["--model_name_or_path", base, "--train_dataset", str(write_jsonl(rows)), "--output_dir", str(output)]
        sizes = [
            "--batch_size",
            "6",
            "--epochs",
            "3",
            "--lr",
            "3e-3",
            "--temperature",
            "0.1",
            "--use_cpu",
            "--overwrite",
        ]
        assert main(["train", *fixed, *sizes, "--finetune_type", kind, *words]) == 0
        return output / "final"

    return run


def merge(adapter: Path, output: Path, *words: str) -> int:
    return main(["merge", "--lora_adapter_path", str(adapter), "--output_path", str(output), *words])


def distance(a: str | Path, b: str | Path) -> float:
    x, y = (load_model(str(name), "cpu") for name in (a, b))
    return max(float(np.abs(x.encode(TEXTS, role) - y.encode(TEXTS, role)).max()) for role in ("query", "passage"))


def cosine(a: str | Path, b: str | Path) -> float:
    x, y = (load_model(str(name), "cpu").encode(TEXTS, "passage") for name in (a, b))
    return float((x * y).sum(1).min())


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_qwen3", "tiny_llama", "tiny_xlmr"])
def test_float32_merge_of_lora_gives_the_trained_vectors(
    base: str, train, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(base)
    adapter = train(model)
    assert merge(adapter, tmp_path / "merged", "--base_model_path", model, "--training_precision", "float32") == 0
    assert distance(adapter, tmp_path / "merged") <= 1e-5
    assert distance(model, tmp_path / "merged") > 1e-3
    record = json.loads((tmp_path / "merged" / "merge_config.json").read_text())
    assert record["verification"]["merged_to_trained"]["max_abs_difference"] <= 1e-5
    assert record["merge_onto"] == "original"


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_qwen3"])
@pytest.mark.parametrize("bits", ["4", "8"])
def test_qlora_merge_onto_dequantized_weights_is_the_trained_model(
    base: str, bits: str, train, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    adapter = train(request.getfixturevalue(base), "--quantization_bits", bits, kind="qlora")
    assert merge(adapter, tmp_path / "merged") == 0
    assert cosine(adapter, tmp_path / "merged") >= 0.999
    record = json.loads((tmp_path / "merged" / "merge_config.json").read_text())
    proof = record["verification"]
    assert record["merge_onto"] == "dequantized"
    other = proof["onto_original_to_trained"]["mean_cosine"]
    assert other < proof["merged_to_trained"]["mean_cosine"]


def test_double_quantised_base_is_dequantised_as_in_training(tiny_qwen3: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_qwen3, "--double_quantization", kind="qlora")
    assert merge(adapter, tmp_path / "merged") == 0
    assert cosine(adapter, tmp_path / "merged") >= 0.999


def test_bfloat16_merge_stays_close_and_is_stored_in_bfloat16(tiny_bert: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_bert)
    assert merge(adapter, tmp_path / "merged", "--training_precision", "bfloat16") == 0
    assert cosine(adapter, tmp_path / "merged") >= 0.999
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_weights_equal_those_of_peft(tiny_qwen3: str, train, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = train(tiny_qwen3, "--lora_r", "4", "--lora_alpha", "6")
    merge(adapter, tmp_path / "merged")
    model = PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(tiny_qwen3), str(adapter))
    expected = model.merge_and_unload().state_dict()
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    assert set(ours) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=1e-6)


def test_rslora_and_alpha_patterns_scale_as_in_peft(tiny_bert: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_bert)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"use_rslora": True, "alpha_pattern": {"query": 5, r".*layer\.1.*value": 7}}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert merge(adapter, tmp_path / "merged") == 0
    assert distance(adapter, tmp_path / "merged") <= 1e-5


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
def test_merged_folder_opens_in_sentence_transformers_with_prompts(
    model: str, train, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from sentence_transformers import SentenceTransformer

    adapter = train(request.getfixturevalue(model), "--query_prompt", "query: ", "--passage_prompt", "passage: ")
    merge(adapter, tmp_path / "merged")
    ours = load_model(str(tmp_path / "merged"), "cpu")
    for folder in (tmp_path / "merged", adapter):
        theirs = SentenceTransformer(str(folder), device="cpu")
        np.testing.assert_allclose(theirs.encode_query(TEXTS), ours.encode(TEXTS, "query"), atol=1e-5)
        np.testing.assert_allclose(theirs.encode_document(TEXTS), ours.encode(TEXTS, "passage"), atol=1e-5)
    assert np.abs(theirs.encode_query(TEXTS) - theirs.encode_document(TEXTS)).max() > 1e-3


def test_merged_folder_gives_the_same_vectors_in_plain_transformers(tiny_qwen3: str, train, tmp_path: Path) -> None:
    merge(train(tiny_qwen3), tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = transformers.AutoModel.from_pretrained(tmp_path / "merged").eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state[:, -1]  # padding side left: the end token is last
    ours = load_model(str(tmp_path / "merged"), "cpu").encode(TEXTS, "passage")
    np.testing.assert_allclose(torch.nn.functional.normalize(plain, dim=-1).numpy(), ours, atol=1e-5)


def test_base_in_shards_gives_as_many_shards(tiny_qwen3: str, train, tmp_path: Path) -> None:
    base = tmp_path / "sharded"
    transformers.AutoModel.from_pretrained(tiny_qwen3).save_pretrained(base, max_shard_size="80KB")
    transformers.AutoTokenizer.from_pretrained(tiny_qwen3).save_pretrained(base)
    count = len(list(base.glob("*.safetensors")))
    assert count >= 5
    adapter = train(str(base))
    assert merge(adapter, tmp_path / "merged") == 0
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) == count
    assert distance(adapter, tmp_path / "merged") <= 1e-5


def test_base_in_pickle_is_merged_and_no_pickle_is_written(tiny_bert: str, train, tmp_path: Path) -> None:
    base = tmp_path / "pickled"
    shutil.copytree(tiny_bert, base)
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    adapter = train(str(base))
    assert merge(adapter, tmp_path / "merged") == 0
    assert not list((tmp_path / "merged").glob("*.bin"))
    assert distance(adapter, tmp_path / "merged") <= 1e-5


def rename_keys(adapter: Path, change) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({change(name): tensor for name, tensor in weights.items()}, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("layout", ["older wrapper prefix", "adapter name in the keys", "trained as causal model"])
def test_other_key_layouts_are_read(layout: str, tiny_llama: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_llama)
    merge(adapter, tmp_path / "expected")
    changes = {
        "older wrapper prefix": lambda name: f"model.{name}",
        "adapter name in the keys": lambda name: name.replace(".weight", ".default.weight"),
        "trained as causal model": lambda name: name.replace("base_model.model.", "base_model.model.model."),
    }
    rename_keys(adapter, changes[layout])
    file = adapter / "adapter_model.safetensors"
    assert merge(file, tmp_path / "merged", "--base_model_path", tiny_llama) == 0
    assert distance(adapter, tmp_path / "merged") <= 1e-5  # opened for encoding, it is no silent base
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("expected", "merged"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_modules_to_save_replace_their_tensors(tiny_bert: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_bert)
    weights = load_file(adapter / "adapter_model.safetensors")
    own = load_file(Path(tiny_bert) / "model.safetensors")["embeddings.LayerNorm.weight"] * 1.5
    weights["base_model.model.embeddings.LayerNorm.weight"] = own
    weights["base_model.model.embeddings.LayerNorm.bias"] = torch.full_like(own, 0.1)
    save_file(weights, adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["embeddings.LayerNorm"]}))
    assert merge(adapter, tmp_path / "unproved", "--no_verify") == 0
    assert merge(adapter, tmp_path / "merged") == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    torch.testing.assert_close(merged["embeddings.LayerNorm.weight"], own)
    record = json.loads((tmp_path / "unproved" / "merge_config.json").read_text())
    assert record["verification"].startswith("skipped")


def check_refused(
    adapter: Path, output: Path, message: str, capsys: pytest.CaptureFixture[str], *words: str, code: int = 2
) -> None:
    capsys.readouterr()
    assert merge(adapter, output, *words) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not output.exists()
    assert not [path for path in output.parent.iterdir() if path.name.startswith(f".{output.name}")]


def test_adapter_of_another_family_is_refused_with_the_names(
    tiny_bert: str, tiny_qwen3: str, train, tmp_path: Path, capsys
) -> None:
    words = ["--base_model_path", tiny_qwen3]
    check_refused(train(tiny_bert), tmp_path / "merged", "have no target in the base", capsys, *words)


def test_adapter_of_another_size_is_refused(tiny_qwen3: str, train, tmp_path: Path, capsys) -> None:
    wide = tmp_path / "wide"
    config = transformers.AutoConfig.from_pretrained(tiny_qwen3, intermediate_size=256)
    transformers.AutoModel.from_config(config).save_pretrained(wide)
    words = ["--base_model_path", str(wide)]
    check_refused(train(tiny_qwen3), tmp_path / "merged", "do not fit the base", capsys, *words)


def test_single_tensor_without_target_is_refused(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    adapter = train(tiny_bert)
    rename_keys(adapter, lambda name: name.replace("layer.1.output", "layer.7.output"))
    check_refused(adapter, tmp_path / "merged", "encoder.layer.7.output.dense", capsys)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"use_dora": True}, "DoRA"), ({"peft_type": "IA3"}, "IA3"), ({"init_lora_weights": "pissa"}, "pissa")],
)
def test_adapter_that_can_not_be_merged_exactly_is_refused(
    change: dict, reason: str, tiny_bert: str, train, tmp_path: Path, capsys
) -> None:
    adapter = train(tiny_bert)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    check_refused(adapter, tmp_path / "merged", reason, capsys)


def test_damaged_files_are_named(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    adapter = train(tiny_bert)
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    check_refused(adapter, tmp_path / "merged", "damaged", capsys)
    file.write_bytes(whole)
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    os.truncate(base / "model.safetensors", 5000)
    check_refused(adapter, tmp_path / "merged", "model.safetensors", capsys, "--base_model_path", str(base))


def test_untrained_adapter_is_refused(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    adapter = train(tiny_bert)
    weights = load_file(adapter / "adapter_model.safetensors")
    zeros = {name: torch.zeros_like(tensor) if "lora_B" in name else tensor for name, tensor in weights.items()}
    save_file(zeros, adapter / "adapter_model.safetensors")
    check_refused(adapter, tmp_path / "merged", "changes nothing", capsys)


def test_wrong_scale_is_caught_by_the_proof(tiny_bert: str, train, tmp_path: Path, capsys, monkeypatch) -> None:
    import embedrag.weights.adapter_file

    adapter = train(tiny_bert)
    monkeypatch.setattr(embedrag.weights.adapter_file, "_scale", lambda *a: 1.0)
    check_refused(adapter, tmp_path / "merged", "is not the trained one", capsys, code=1)


def test_adapter_left_out_is_caught_by_the_proof(tiny_bert: str, train, tmp_path: Path, capsys, monkeypatch) -> None:
    import embedrag.weights.adapter_file

    adapter = train(tiny_bert)
    monkeypatch.setattr(embedrag.weights.adapter_file, "_scale", lambda *a: 0.0)
    check_refused(adapter, tmp_path / "merged", "the adapter had no effect", capsys, code=1)


def test_existing_output_is_kept_unless_overwrite(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    adapter, output = train(tiny_bert), tmp_path / "merged"
    output.mkdir()
    (output / "precious.txt").write_text("x")
    for words in ([], ["--overwrite"]):
        assert merge(adapter, output, *words) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert (output / "precious.txt").exists()
    (output / "precious.txt").unlink()
    assert merge(adapter, output) == 0
    assert merge(adapter, output) == 2
    assert merge(adapter, output, "--overwrite", "--training_precision", "bfloat16") == 0
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"


def limited(adapter: Path, output: Path) -> subprocess.Popen[str]:
    words = [
        sys.executable,
        "-m",
        "embedrag",
        "merge",
        "--lora_adapter_path",
        str(adapter),
        "--output_path",
        str(output),
    ]

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=limit)


def test_full_disk_leaves_no_output(tiny_bert: str, train, tmp_path: Path) -> None:
    process = limited(train(tiny_bert), tmp_path / "merged")
    _, error = process.communicate()
    assert process.returncode == 1
    assert "not written" in error
    assert "Traceback" not in error
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]


def test_kill_while_writing_leaves_no_output_folder(tiny_bert: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_bert)
    code = (
        "import sys, time, embedrag.merging.merge as m; from embedrag.cli import main\n"
        "real = m.write_tensors\n"
        "def slow(*a):\n"
        "    real(*a); print('written', flush=True); time.sleep(60)\n"
        "m.write_tensors = slow\n"
        "main(sys.argv[1:])\n"
    )
    words = ["merge", "--lora_adapter_path", str(adapter), "--output_path", str(tmp_path / "merged")]
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    assert any("written" in line for line in process.stdout)
    process.kill()
    process.wait()
    assert not (tmp_path / "merged").exists()


def test_merge_flag_of_training_leaves_a_merged_model(tiny_bert: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_bert, "--merge")
    assert distance(adapter, adapter.with_name("merged")) <= 1e-5
    card = (adapter.with_name("merged") / "README.md").read_text()
    assert "base_model:" in card
    assert "## Merge" in card


def test_probes_are_of_both_roles_and_of_different_lengths() -> None:
    texts = [("query", "q" * n) for n in range(1, 30)] + [("passage", "p" * n) for n in range(1, 300)]
    probes = choose_probes(texts)
    assert len(probes) == 16
    assert {role for role, _ in probes} == {"query", "passage"}
    lengths = [len(text) for role, text in probes if role == "passage"]
    assert (min(lengths), max(lengths)) == (1, 299)


def test_encode_writes_the_vectors_of_every_text_in_order(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    adapter = train(tiny_bert)
    files = {
        "texts.txt": "\n".join(TEXTS) + "\n",
        "texts.jsonl": "\n".join(json.dumps({"text": text}) for text in TEXTS),
        "texts.csv": "id,text\n" + "\n".join(f'{i},"{text}"' for i, text in enumerate(TEXTS)),
    }
    expected = load_model(str(adapter), "cpu").encode(TEXTS, "passage")
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        output = tmp_path / f"{name}.npy"
        words = ["--model", str(adapter), "--input", str(tmp_path / name), "--output", str(output)]
        assert main(["encode", *words]) == 0
        np.testing.assert_allclose(np.load(output), expected, atol=1e-6)
        assert main(["encode", *words]) == 2
    words = ["--model", str(adapter), "--input", str(tmp_path / "texts.csv"), "--output", str(tmp_path / "x.npy")]
    assert main(["encode", *words, "--field", "txt"]) == 2
    assert "texts.csv:2: no text under 'txt' (there is id, text)" in capsys.readouterr().err
    assert not list(tmp_path.glob("*x.npy*"))


@pytest.mark.parametrize("place", ["base", "base/inside", "adapter", "."])
def test_output_that_overlaps_base_or_adapter_is_refused(
    place: str, tiny_bert: str, train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    adapter = train(str(base))
    places = {"base": base, "base/inside": base / "inside", "adapter": adapter, ".": tmp_path}
    assert merge(adapter, places[place], "--overwrite") == 2
    assert "--output_path" in capsys.readouterr().err
    assert (base / "model.safetensors").exists()
    assert (adapter / "adapter_model.safetensors").exists()


def test_adapter_without_its_config_is_merged_and_proved_with_a_given_alpha(
    tiny_bert: str, train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = train(tiny_bert)
    merge(adapter, tmp_path / "expected")
    (adapter / "adapter_config.json").unlink()
    file = adapter / "adapter_model.safetensors"
    renamed = file.rename(adapter / "mine.safetensors")
    words = ["--base_model_path", tiny_bert]
    check_refused(renamed, tmp_path / "merged", "--lora_alpha", capsys, *words)
    assert merge(renamed, tmp_path / "merged", *words, "--lora_alpha", "32") == 0
    assert distance(tmp_path / "expected", tmp_path / "merged") == 0


def test_quantised_base_that_the_folder_does_not_record_can_be_told(tiny_qwen3: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_qwen3, kind="qlora")
    merge(adapter, tmp_path / "expected")
    settings = adapter / "training_config.json"
    data = json.loads(settings.read_text())
    del data["quantization"]
    settings.write_text(json.dumps(data))
    assert merge(adapter, tmp_path / "merged", "--quantization_bits", "4") == 0
    assert distance(tmp_path / "expected", tmp_path / "merged") == 0


def test_adapter_that_does_not_fit_is_refused_when_encoding(
    tiny_bert: str, train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = train(tiny_bert)
    rename_keys(adapter, lambda name: name.replace("layer.1.output", "layer.7.output"))
    (tmp_path / "texts.txt").write_text("a\n")
    words = ["--model", str(adapter), "--input", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "x.npy")]
    assert main(["encode", *words]) == 2
    assert "does not belong to this base" in capsys.readouterr().err
    assert not (tmp_path / "x.npy").exists()


def test_training_that_moved_less_than_the_precision_can_not_be_proved(
    tiny_bert: str, train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = train(tiny_bert, "--lr", "1e-6", "--epochs", "1")
    words = ["--training_precision", "bfloat16"]
    check_refused(adapter, tmp_path / "merged", "can't be told from none", capsys, *words, code=1)


def test_overwrite_that_would_remove_its_own_base_is_refused(
    tiny_bert: str, write_jsonl, rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_bert, tmp_path / "out" / "merged")
    words = ["--train_dataset", str(write_jsonl(rows)), "--output_dir", str(tmp_path / "out"), "--overwrite"]
    assert main(["train", "--model_name_or_path", str(tmp_path / "out" / "merged"), "--batch_size", "2", *words]) == 2
    assert "lies in the run that would be replaced" in capsys.readouterr().err
    assert (tmp_path / "out" / "merged" / "model.safetensors").exists()
