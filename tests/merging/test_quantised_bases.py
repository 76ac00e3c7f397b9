"""A base that is quantised already is trained as what it is and merged onto its dequantised weights, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.merging.merge import merge
from embedrag.models.backbone import load_backbone
from embedrag.models.base_model import describe_base
from embedrag.models.load import load_model
from embedrag.runtime.console import console
from embedrag.weights.quantized_files import dequantized
from embedrag.weights.safetensors_io import weight_files
from tests.quantised import save_quantised

IDS = torch.tensor([[5, 9, 31, 77, 4], [6, 8, 12, 3, 2]])
SKIPPED = "model.layers.1.mlp"  # as unsloth writes it: the path in the model with a head
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["lm_head", SKIPPED]}
FOUR |= {"bnb_4bit_use_double_quant": True}


@pytest.fixture(scope="session")
def four_bits(tiny_qwen3: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_quantised(tiny_qwen3, tmp_path_factory.mktemp("tiny-bnb-4bit"), **FOUR)


@pytest.fixture(scope="session")
def eight_bits(tiny_qwen3: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_quantised(tiny_qwen3, tmp_path_factory.mktemp("tiny-bnb-8bit"), load_in_8bit=True)


@pytest.fixture
def run(write_jsonl: Any, rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Train; the exit code, what was printed, and the adapter's folder."""

    def train(base: str, kind: str, *words: str) -> tuple[int, str, Path]:
        arguments = ["--model_name_or_path", base, "--train_dataset", str(write_jsonl(rows)), "--finetune_type", kind]
        arguments += ["--output_dir", str(tmp_path / "run"), *"--batch_size 6 --epochs 2 --lr 3e-3 --use_cpu".split()]
        code = main(["train", *arguments, "--dtype", "float32", *words])
        captured = capsys.readouterr()
        return code, captured.out + captured.err, tmp_path / "run" / "final"

    return train


@pytest.mark.parametrize(("base", "kind"), [("four_bits", "lora"), ("four_bits", "qlora"), ("eight_bits", "qlora")])
def test_adapter_is_trained_on_the_given_weights_and_merged_onto_them(
    base: str, kind: str, run: Any, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(base)
    bits = 4 if base == "four_bits" else 8
    code, printed, adapter = run(folder, kind, "--merge", "--lora_target_modules", "q_proj")
    assert code == 0
    name = "4 bits, nf4, scales quantised too" if bits == 4 else "8 bits, int8"
    assert f"the base's weights are quantised already ({name}), the adapters are trained on them" in printed
    assert ("have no effect" in printed) == (kind == "qlora")  # the default is 4 bits without double quantisation
    assert f"{kind} ({bits}-bit)" in printed
    recorded = json.loads((adapter / "training_config.json").read_text())["quantization"]
    assert (recorded["bits"], recorded["double_quantization"], recorded["given_by_base"]) == (bits, bits == 4, True)
    plain = [f"layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert sorted(recorded["skipped_layers"]) == sorted(plain if bits == 4 else [])
    record = json.loads((adapter.with_name("merged") / "merge_config.json").read_text())
    assert record["merge_onto"] == "dequantized"
    assert record["verification"]["merged_to_trained"]["min_cosine"] > 0.999
    merged = load_file(adapter.with_name("merged") / "model.safetensors")
    (given,) = dequantized(weight_files(Path(folder)))
    assert set(merged) == set(given.names())
    changed = {name for name in merged if not torch.equal(merged[name], given.rows(name).float())}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    assert "quantization_config" not in json.loads((adapter.with_name("merged") / "config.json").read_text())


def test_layers_that_the_files_hold_plain_stay_plain(four_bits: str) -> None:
    """Their names in config.json begin with `model.`; AutoModel alone would quantise these layers while it loads."""
    backbone = load_backbone(describe_base(four_bits), torch.float32, torch.device("cpu")).eval()
    own = transformers.AutoModelForCausalLM.from_pretrained(four_bits, device_map={"": "cpu"}, dtype=torch.float32)
    plain = dict(own.model.named_parameters())
    for name, parameter in backbone.named_parameters():
        assert parameter.dtype in (torch.float32, torch.uint8)
        assert torch.equal(parameter.data, plain[name].data.to(parameter.dtype)), name
    assert type(backbone.layers[1].mlp.up_proj) is torch.nn.Linear  # type: ignore[union-attr, index]
    assert type(backbone.layers[0].mlp.up_proj) is not torch.nn.Linear  # type: ignore[union-attr, index]


@pytest.mark.parametrize("base", ["four_bits", "eight_bits"])
def test_adapter_of_another_program_on_a_quantised_base(
    base: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As unsloth writes it: the base's name in the configuration, and no record of the quantisation."""
    folder = request.getfixturevalue(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    with console.silenced():
        report = merge(tmp_path / "adapter", tmp_path / "merged")
    assert report.proof and report.proof.merged_to_trained.min_cosine > 0.999 and report.proof.other_to_trained is None
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    delta = layer.get_delta_weight("default")
    (given,) = dequantized(weight_files(Path(folder)))
    name = "model.layers.0.mlp.up_proj.weight"
    expected = given.rows(name).float() + delta.detach()
    torch.testing.assert_close(
        load_file(tmp_path / "merged" / "model.safetensors")[name], expected, atol=1e-6, rtol=1e-6
    )
    ours, other = (load_model(tmp_path / name, "cpu").encode(["x"], "query") for name in ("adapter", "merged"))
    assert float((ours * other).sum()) > 0.999
    for words, reason in (
        ({"merge_onto": "original"}, "`merge_onto=original`: the base's files hold quantised weights only"),
        ({"quantization_bits": 4}, "`quantization_bits=4`: the base's weights are quantised already"),
    ):
        with pytest.raises(UserError) as error:
            merge(tmp_path / "adapter", tmp_path / "other", **words)
        assert str(error.value).startswith(reason)


def test_whole_training_is_refused_before_the_data_are_read(four_bits: str, run: Any, tmp_path: Path) -> None:
    code, printed, _ = run(four_bits, "full", "--train_dataset", str(tmp_path / "rows.jsonl"))
    assert code == 2
    assert "its weights are quantised already (4 bits, nf4, scales quantised too)" in printed
    assert "use --finetune_type qlora, or name the unquantised base" in printed
    assert "rows" not in printed.replace("rows.jsonl", "")
    for words, reason in (
        (["--lora_init", "loftq"], "--lora_init loftq: needs the original weights"),
        (["--lora_init", "pissa"], "--lora_init pissa"),
    ):
        code, printed, _ = run(four_bits, "qlora", *words)
        assert (code, reason in printed) == (2, True), printed


def test_adapter_and_base_of_different_kinds_are_refused(
    four_bits: str, tiny_qwen3: str, run: Any, tmp_path: Path
) -> None:
    _, _, adapter = run(tiny_qwen3, "qlora")
    for action in (merge, load_model):
        words = [tmp_path / "merged"] if action is merge else []
        with pytest.raises(UserError, match="^`base_model_path=.*: its weights are quantised .* name that base"):
            action(adapter, *words, base_model_path=four_bits)
    settings = json.loads((adapter / "training_config.json").read_text())
    settings["quantization"]["given_by_base"] = True
    (adapter / "training_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="was trained on a base that is quantised already .* and this one is not"):
        merge(adapter, tmp_path / "merged", base_model_path=tiny_qwen3)


def test_quantised_base_alone_embeds_and_is_not_exported(
    four_bits: str, tiny_qwen3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, plain = (load_model(name, "cpu").encode(["a frog"], "query") for name in (four_bits, tiny_qwen3))
    assert 0.8 < float((own * plain).sum()) < 0.9999
    assert main(["export", "--model", four_bits, "--output", str(tmp_path / "onnx")]) == 2
    assert "ONNX has no such layers" in capsys.readouterr().err
    assert not (tmp_path / "onnx").exists()


def test_base_of_another_program_is_refused_by_every_command(
    tiny_qwen3: str, tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "tiny-GPTQ"
    shutil.copytree(tiny_qwen3, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert "quantised already (gptq)" in run(str(base), "qlora")[1]
    (tmp_path / "texts.txt").write_text("a\n")
    words = ["--input", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "v.npy")]
    assert main(["encode", "--model", str(base), *words]) == 2
    assert f"--model {base}: its weights are quantised already (gptq)" in capsys.readouterr().err
    bnb = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (base / "config.json").write_text(json.dumps(config | bnb))
    with pytest.raises(UserError, match="its files hold plain weights; remove it from config.json"):
        load_model(base, "cpu")


def test_quantised_base_with_transposed_layers_is_refused(tiny_gpt2: str, tmp_path: Path) -> None:
    folder = save_quantised(tiny_gpt2, tmp_path / "base")
    with pytest.raises(UserError, match="`model=.*: a gpt2 model that is quantised already can't be read"):
        load_model(folder, "cpu")
