"""A merge gives the trained model or nothing at all."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import embedrag
from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.merging import merge as module
from embedrag.merging.merge import merge
from embedrag.models.load import load_model
from embedrag.runtime.console import console

TEXTS = ["what is a diode", "a diode lets current flow one way only " * 4, "다이오드"]
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


@pytest.fixture(scope="session")
def tiny_xlmr(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("xlmr")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(**SIZES, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    transformers.XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


OWN_CODE = """from transformers import BertConfig, BertModel


class OwnConfig(BertConfig):
    model_type = "own_bert"


class OwnModel(BertModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config, add_pooling_layer=False)
"""
SIZED = "--batch_size 6 --epochs 3 --lr 3e-3 --temperature 0.1 --use_cpu".split()


@pytest.fixture(scope="session")
def trained() -> dict[tuple[str, ...], Path]:
    """What was trained -> folder of the run. Each adapter is trained once, and every test gets a copy."""
    return {}


@pytest.fixture
def train(trained, write_jsonl, rows, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    """Train an adapter on a base; returns a folder of its own."""

    def run(base: str, *words: str, kind: str = "lora") -> Path:
        key = (base, kind, *words)
        if key not in trained:
            output = tmp_path_factory.mktemp("trained")
            fixed = ["--model_name_or_path", base, "--train_dataset", str(write_jsonl(rows))]
            fixed += ["--output_dir", str(output), "--finetune_type", kind]
            assert main(["train", *fixed, *SIZED, *words]) == 0
            trained[key] = output
        folder = tmp_path / f"run-{kind}"
        shutil.copytree(trained[key], folder)
        return folder / "final"

    return run


def run_merge(adapter: Path, output: Path, *words: str) -> int:
    return main(["merge", "--lora_adapter_path", str(adapter), "--output_path", str(output), *words])


def distance(a: str | Path, b: str | Path) -> float:
    x, y = (load_model(str(name), "cpu") for name in (a, b))
    return max(float(np.abs(x.encode(TEXTS, role) - y.encode(TEXTS, role)).max()) for role in ("query", "passage"))


def cosine(a: str | Path, b: str | Path) -> float:
    x, y = (load_model(str(name), "cpu").encode(TEXTS, "passage") for name in (a, b))
    return float((x * y).sum(1).min())


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_qwen3", "tiny_llama", "tiny_xlmr", "tiny_gpt2"])
def test_float32_merge_of_lora_gives_the_trained_vectors(
    base: str, train, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(base)
    adapter = train(model)
    assert run_merge(adapter, tmp_path / "merged", "--base_model_path", model, "--training_precision", "float32") == 0
    assert distance(adapter, tmp_path / "merged") <= 1e-5
    assert distance(model, tmp_path / "merged") > 1e-3
    record = json.loads((tmp_path / "merged" / "merge_config.json").read_text())
    assert record["verification"]["merged_to_trained"]["max_abs_difference"] <= 1e-5
    assert record["merge_onto"] == "original"


def test_report_has_the_figures_of_the_record(tiny_bert: str, train, tmp_path: Path) -> None:
    with console.silenced():
        report = merge(train(tiny_bert), tmp_path / "merged")
    assert (report.output_path, report.onto, report.layers) == (tmp_path / "merged", "original", 12)
    assert report.record == json.loads((tmp_path / "merged" / "merge_config.json").read_text())
    assert report.proof and report.proof.merged_to_trained.min_cosine > 0.99999
    assert report.proof.base_to_trained.max_abs_difference > 1e-3 and report.proof.other_to_trained is None
    assert list(report.lines())[-1] == f"done: {tmp_path / 'merged'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training_precision": "int8"}, "`training_precision=int8`: must be one of float32, bfloat16"),
        ({"merge_onto": "base"}, "`merge_onto=base`: must be one of dequantized, original"),
        ({"quantization_bits": 3}, "`quantization_bits=3`: must be one of 4, 8"),
        ({"base_model_path": "./none"}, "`base_model_path=./none`: no such folder"),
        ({"merge_onto": "dequantized"}, "`merge_onto=dequantized`: the adapter's folder does not record how the base"),
    ],
)
def test_wrong_argument_is_named(arguments: dict, message: str, tiny_bert: str, train, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        merge(train(tiny_bert), tmp_path / "merged", **arguments)
    assert str(error.value).startswith(message)


def test_missing_base_is_reported_with_the_flag_that_named_it(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    words = ["--base_model_path", "./none"]
    check_refused(train(tiny_bert), tmp_path / "merged", "error: --base_model_path ./none: no such", capsys, *words)


def test_base_with_code_of_its_own_is_merged_when_it_is_trusted(tiny_bert: str, train, tmp_path: Path) -> None:
    """QLoRA, because its proof also tries the merge onto the other weights."""
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    config = json.loads((base / "config.json").read_text())
    own = {"AutoConfig": "own_merged.OwnConfig", "AutoModel": "own_merged.OwnModel"}
    (base / "config.json").write_text(json.dumps(config | {"model_type": "own_bert", "auto_map": own}))
    (base / "own_merged.py").write_text(OWN_CODE)
    adapter = train(str(base), "--trust_remote_code", kind="qlora")
    report = merge(adapter, tmp_path / "merged", trust_remote_code=True)
    assert report.proof and report.proof.other_to_trained
    assert (tmp_path / "merged" / "own_merged.py").read_text() == OWN_CODE


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_qwen3", "tiny_gpt2"])
@pytest.mark.parametrize("bits", ["4", "8"])
def test_qlora_merge_onto_dequantized_weights_is_the_trained_model(
    base: str, bits: str, train, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    adapter = train(request.getfixturevalue(base), "--quantization_bits", bits, kind="qlora")
    assert run_merge(adapter, tmp_path / "merged") == 0
    assert cosine(adapter, tmp_path / "merged") >= 0.999
    record = json.loads((tmp_path / "merged" / "merge_config.json").read_text())
    proof = record["verification"]
    assert record["merge_onto"] == "dequantized"
    other = proof["onto_original_to_trained"]["mean_cosine"]
    assert other < proof["merged_to_trained"]["mean_cosine"]


def test_double_quantised_base_is_dequantised_as_in_training(tiny_qwen3: str, train, tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    adapter = train(tiny_qwen3, "--double_quantization", "--lora_target_modules", "q_proj", kind="qlora")
    assert run_merge(adapter, tmp_path / "merged") == 0
    assert cosine(adapter, tmp_path / "merged") >= 0.999
    name = "layers.0.self_attn.k_proj.weight"
    weight = load_file(Path(tiny_qwen3) / "model.safetensors")[name].to(torch.float32)
    stored = json.loads((adapter / "training_config.json").read_text())["quantization"]["storage_dtype"]
    for double in (True, False):
        seen = dequantize_4bit(
            *quantize_4bit(weight.to(getattr(torch, stored)), quant_type="nf4", compress_statistics=double)
        ).float()
        assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")[name], seen) == double


def test_bfloat16_merge_stays_close_and_is_stored_in_bfloat16(tiny_bert: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_bert)
    assert run_merge(adapter, tmp_path / "merged", "--training_precision", "bfloat16") == 0
    assert cosine(adapter, tmp_path / "merged") >= 0.999
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_weights_equal_those_of_peft(tiny_qwen3: str, train, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = train(tiny_qwen3, "--lora_r", "4", "--lora_alpha", "6")
    run_merge(adapter, tmp_path / "merged")
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
    assert run_merge(adapter, tmp_path / "merged") == 0
    assert distance(adapter, tmp_path / "merged") <= 1e-5


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
def test_merged_folder_opens_in_sentence_transformers_with_prompts(
    model: str, train, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from sentence_transformers import SentenceTransformer

    adapter = train(request.getfixturevalue(model), "--query_prompt", "query: ", "--passage_prompt", "passage: ")
    run_merge(adapter, tmp_path / "merged")
    ours = load_model(str(tmp_path / "merged"), "cpu")
    for folder in (tmp_path / "merged", adapter):
        theirs = SentenceTransformer(str(folder), device="cpu")
        np.testing.assert_allclose(theirs.encode_query(TEXTS), ours.encode(TEXTS, "query"), atol=1e-5)
        np.testing.assert_allclose(theirs.encode_document(TEXTS), ours.encode(TEXTS, "passage"), atol=1e-5)
    assert np.abs(theirs.encode_query(TEXTS) - theirs.encode_document(TEXTS)).max() > 1e-3


def test_merged_folder_gives_the_same_vectors_in_plain_transformers(tiny_qwen3: str, train, tmp_path: Path) -> None:
    run_merge(train(tiny_qwen3), tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = transformers.AutoModel.from_pretrained(tmp_path / "merged").eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state[:, -1]  # padding side left: the end token is last
    ours = load_model(str(tmp_path / "merged"), "cpu").encode(TEXTS, "passage")
    np.testing.assert_allclose(torch.nn.functional.normalize(plain, dim=-1).numpy(), ours, atol=1e-5)


def test_merged_model_has_as_many_shards_as_its_base(tiny_qwen3: str, train, tmp_path: Path) -> None:
    base = tmp_path / "sharded"
    transformers.AutoModel.from_pretrained(tiny_qwen3).save_pretrained(base, max_shard_size="80KB")
    transformers.AutoTokenizer.from_pretrained(tiny_qwen3).save_pretrained(base)
    count = len(list(base.glob("*.safetensors")))
    assert count >= 5
    adapter = train(tiny_qwen3)
    assert run_merge(adapter, tmp_path / "merged", "--base_model_path", str(base)) == 0
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) == count
    assert distance(adapter, tmp_path / "merged") <= 1e-5


def test_base_in_pickle_is_merged_and_no_pickle_is_written(tiny_bert: str, train, tmp_path: Path) -> None:
    base = tmp_path / "pickled"
    shutil.copytree(tiny_bert, base)
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    adapter = train(tiny_bert)
    assert run_merge(adapter, tmp_path / "merged", "--base_model_path", str(base)) == 0
    assert not list((tmp_path / "merged").glob("*.bin"))
    assert distance(adapter, tmp_path / "merged") <= 1e-5


def rename_keys(adapter: Path, change) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({change(name): tensor for name, tensor in weights.items()}, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("layout", ["older wrapper prefix", "adapter name in the keys", "trained as causal model"])
def test_other_key_layouts_are_read(layout: str, tiny_llama: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_llama)
    run_merge(adapter, tmp_path / "expected", "--no_verify")
    changes = {
        "older wrapper prefix": lambda name: f"model.{name}",
        "adapter name in the keys": lambda name: name.replace(".weight", ".default.weight"),
        "trained as causal model": lambda name: name.replace("base_model.model.", "base_model.model.model."),
    }
    rename_keys(adapter, changes[layout])
    file = adapter / "adapter_model.safetensors"
    assert run_merge(file, tmp_path / "merged", "--base_model_path", tiny_llama) == 0
    assert distance(adapter, tmp_path / "merged") <= 1e-5  # load_model does not drop the adapter silently
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
    assert run_merge(adapter, tmp_path / "unproved", "--no_verify") == 0
    assert run_merge(adapter, tmp_path / "merged") == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    torch.testing.assert_close(merged["embeddings.LayerNorm.weight"], own)
    record = json.loads((tmp_path / "unproved" / "merge_config.json").read_text())
    assert record["verification"].startswith("skipped")


def check_refused(
    adapter: Path, output: Path, message: str, capsys: pytest.CaptureFixture[str], *words: str, code: int = 2
) -> None:
    capsys.readouterr()
    assert run_merge(adapter, output, *words) == code
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


def test_adapter_of_another_kind_is_refused(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    adapter = train(tiny_bert)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    reason = f"--lora_adapter_path {adapter}: can't be merged exactly: IA3 is not a LoRA adapter"
    check_refused(adapter, tmp_path / "merged", reason, capsys)


def test_damaged_base_is_named(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    adapter = train(tiny_bert)
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    os.truncate(base / "model.safetensors", 5000)
    check_refused(adapter, tmp_path / "merged", "model.safetensors", capsys, "--base_model_path", str(base))


def test_wrong_scale_is_caught_by_the_proof(tiny_bert: str, train, tmp_path: Path, capsys, monkeypatch) -> None:
    adapter = train(tiny_bert)
    monkeypatch.setattr("embedrag.weights.adapter_file._scale", lambda *a: 1.0)
    check_refused(adapter, tmp_path / "merged", "is not the trained one", capsys, code=1)


def test_adapter_left_out_is_caught_by_the_proof(tiny_bert: str, train, tmp_path: Path, capsys, monkeypatch) -> None:
    adapter = train(tiny_bert)
    monkeypatch.setattr("embedrag.weights.adapter_file._scale", lambda *a: 0.0)
    check_refused(adapter, tmp_path / "merged", "the adapter had no effect", capsys, code=1)


def test_existing_output_is_kept_unless_overwrite(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    adapter, output = train(tiny_bert), tmp_path / "merged"
    output.mkdir()
    (output / "precious.txt").write_text("x")
    for words in ([], ["--overwrite"]):
        assert run_merge(adapter, output, *words) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert (output / "precious.txt").exists()
    (output / "precious.txt").unlink()
    assert run_merge(adapter, output) == 0
    assert run_merge(adapter, output) == 2
    assert run_merge(adapter, output, "--overwrite", "--training_precision", "bfloat16") == 0
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"


def test_full_disk_leaves_no_output(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    adapter = train(tiny_bert)
    before, earlier = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        check_refused(adapter, tmp_path / "merged", "not written", capsys, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, earlier)


def test_output_folder_appears_only_after_the_proof(tiny_bert: str, train, tmp_path: Path, monkeypatch) -> None:
    adapter, output, seen = train(tiny_bert), tmp_path / "merged", []
    for name in ("write_tensors", "check_merged", "write_card"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _f=real, **k: (seen.append(output.exists()), _f(*a, **k))[1])
    merge(adapter, output)
    assert seen == [False] * 3 and output.exists()


def test_merge_flag_of_training_leaves_a_merged_model(tiny_bert: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_bert, "--merge")
    assert distance(adapter, adapter.with_name("merged")) <= 1e-5
    card = (adapter.with_name("merged") / "README.md").read_text()
    assert "base_model:" in card
    assert "## Merge" in card


@pytest.mark.parametrize("place", ["base", "base/inside", "adapter", "."])
def test_output_that_overlaps_base_or_adapter_is_refused(
    place: str, tiny_bert: str, train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    adapter = train(tiny_bert)
    places = {"base": base, "base/inside": base / "inside", "adapter": adapter, ".": tmp_path}
    (places[place] / "merge_config.json").parent.mkdir(exist_ok=True)
    (places[place] / "merge_config.json").touch()
    assert run_merge(adapter, places[place], "--overwrite", "--base_model_path", str(base)) == 2
    assert f"--output_path {places[place]}: overlaps the" in capsys.readouterr().err
    assert (base / "model.safetensors").exists()
    assert (adapter / "adapter_model.safetensors").exists()


def test_adapter_without_its_config_is_merged_and_proved_with_a_given_alpha(
    tiny_bert: str, train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = train(tiny_bert)
    run_merge(adapter, tmp_path / "expected", "--no_verify")
    (adapter / "adapter_config.json").unlink()
    file = adapter / "adapter_model.safetensors"
    renamed = file.rename(adapter / "mine.safetensors")
    words = ["--base_model_path", tiny_bert]
    check_refused(renamed, tmp_path / "merged", "--lora_alpha", capsys, *words)
    assert run_merge(renamed, tmp_path / "merged", *words, "--lora_alpha", "32") == 0
    assert distance(tmp_path / "expected", tmp_path / "merged") == 0


def test_quantised_base_that_the_folder_does_not_record_can_be_given(tiny_qwen3: str, train, tmp_path: Path) -> None:
    adapter = train(tiny_qwen3, "--quantization_bits", "4", kind="qlora")
    run_merge(adapter, tmp_path / "expected", "--no_verify")
    settings = adapter / "training_config.json"
    data = json.loads(settings.read_text())
    del data["quantization"]
    settings.write_text(json.dumps(data))
    assert run_merge(adapter, tmp_path / "merged", "--quantization_bits", "4") == 0
    assert distance(tmp_path / "expected", tmp_path / "merged") == 0


def test_training_that_moved_less_than_the_precision_can_not_be_proved(
    tiny_bert: str, train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = train(tiny_bert, "--lr", "1e-6", "--epochs", "1")
    words = ["--training_precision", "bfloat16"]
    check_refused(adapter, tmp_path / "merged", "so it is not precise enough", capsys, *words, code=1)


def test_merge_follows_no_path_out_of_the_base(tiny_bert: str, train, tmp_path: Path, capsys) -> None:
    """Links to files of the user end in a folder that people upload; so do weights that an index names elsewhere."""
    adapter, base, secret = train(tiny_bert), tmp_path / "base", tmp_path / "secret.txt"
    secret.write_text("TOP SECRET")
    shutil.copytree(tiny_bert, base)
    (base / "own.py").write_text("harmless = True")
    (base / "leak.py").symlink_to(secret)
    for words, expected in (([], []), (["--trust_remote_code"], ["own.py"])):
        words = ["--base_model_path", str(base), "--no_verify", "--overwrite", *words]
        assert run_merge(adapter, tmp_path / "merged", *words) == 0
        assert [path.name for path in (tmp_path / "merged").glob("*.py")] == expected
    (base / "1_Pooling").mkdir()
    (tmp_path / "config.json").write_text('{"pooling_mode_cls_token": true}')
    modules = [{"type": f"sentence_transformers.models.{name}", "path": ""} for name in ("Transformer", "Pooling")]
    (base / "modules.json").write_text(json.dumps([modules[0], modules[1] | {"path": ".."}]))
    words = ["--base_model_path", str(base)]
    check_refused(adapter, tmp_path / "other", "'../config.json', which is not in its folder", capsys, *words)


@pytest.mark.parametrize("name", ["chat_template.jinja", "vocab.txt", "config.json"])
@pytest.mark.parametrize("whose", ["base", "adapter"])
def test_texts_outside_of_the_folders_are_not_merged(
    name: str, whose: str, tiny_bert: str, train, tmp_path: Path, capsys
) -> None:
    """A chat template and a vocabulary would stand word by word in the merged model."""
    adapter, base, secret = train(tiny_bert), tmp_path / "base", tmp_path / "secret.txt"
    secret.write_text("TOP SECRET")
    shutil.copytree(tiny_bert, base)
    folder = {"base": base, "adapter": adapter}[whose]
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    words = ["--base_model_path", str(base)]
    flag = "--base_model_path" if whose == "base" else "--lora_adapter_path"
    if (whose, name) == ("base", "config.json"):  # it is read first
        check_refused(adapter, tmp_path / "merged", "not JSON; the model folder is damaged", capsys, *words)
    else:
        message = f"error: {flag} {folder}: {name} is a link to {secret}, outside of the folder"
        check_refused(adapter, tmp_path / "merged", message, capsys, *words)


def test_link_to_weights_is_followed(tiny_bert: str, train, tmp_path: Path) -> None:
    adapter, base = train(tiny_bert), tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to(Path(tiny_bert) / "model.safetensors")
    assert run_merge(adapter, tmp_path / "merged", "--base_model_path", str(base)) == 0


def test_links_of_the_hub_s_cache_are_followed(tiny_bert: str, train, tmp_path: Path) -> None:
    blobs, snapshot = (tmp_path / "models--a--b" / name for name in ("blobs", "snapshots/1"))
    snapshot.mkdir(parents=True)
    shutil.copytree(tiny_bert, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    adapter = train(tiny_bert)
    assert run_merge(adapter, tmp_path / "merged", "--base_model_path", str(snapshot)) == 0
    assert distance(adapter, tmp_path / "merged") <= 1e-5


@pytest.mark.parametrize("alpha", [0, -1])
def test_scale_of_nothing_is_refused(alpha: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"`lora_alpha={alpha}`: must be 1 or more"):
        merge(tmp_path, tmp_path / "merged", lora_alpha=alpha)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("lora", ["--lora_init", "pissa"]),
        ("lora", ["--use_rslora", "--lora_top_layers", "1"]),
        ("qlora", ["--lora_init", "loftq"]),
    ],
)
def test_layers_that_are_stored_transposed_are_trained_with_every_start(
    kind: str, words: list[str], tiny_gpt2: str, train, tmp_path: Path
) -> None:
    report = merge(train(tiny_gpt2, *words, kind=kind), tmp_path / "merged")
    assert report.proof and report.proof.merged_to_trained.min_cosine > 0.999


def test_layers_that_are_stored_transposed_can_not_be_rescaled(tiny_gpt2, write_jsonl, rows, tmp_path, capsys) -> None:
    words = ["--model_name_or_path", tiny_gpt2, "--train_dataset", str(write_jsonl(rows)), "--finetune_type", "lora"]
    assert main(["train", *words, "--output_dir", str(tmp_path / "run"), *SIZED, "--use_dora"]) == 2
    assert "--use_dora: the layers of this base are stored transposed" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [4, 8])
def test_encoder_of_t5_with_a_dense_layer_is_quantised_trained_and_merged(bits: int, tmp_path: Path) -> None:
    from tests.models.published_folders import t5
    from tests.models.test_published_folders import trained

    (tmp_path / "base").mkdir()
    t5(tmp_path / "base", "Dense:24:Identity:no bias", "Normalize")
    encoder = embedrag.build_model(tmp_path / "base", "qlora", quantization_bits=bits)
    embedrag.save_model(trained(encoder), tmp_path / "adapter")
    report = merge(tmp_path / "adapter", tmp_path / "merged")
    assert report.proof and report.proof.merged_to_trained.min_cosine > 0.999
    assert (tmp_path / "merged" / "2_Dense" / "model.safetensors").is_file()
