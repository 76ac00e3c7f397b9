"""A run removes and replaces only what a run of ours wrote, whatever else lies in its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedrag.cli import main
from embedrag.errors import RunError, UserError
from embedrag.runtime.claims import MARKER, claim, claimed
from embedrag.training.state import run_folder
from embedrag.training.state.checkpoint import checkpoints, forget_later, prune
from embedrag.training.state.run_folder import ALWAYS, check_output_dir, claim_files, go_on, own_files, start_run

FOREIGN = {  # what other programs and people keep in such a folder
    "runs/other_project/precious.txt": "mine",
    "runs/train/events.out.tfevents.1.host.1.0": "another trainer's",
    "runs/train/1.0/hparams.yml": "lr: 1",
    "notes.txt": "mine",
    "checkpoint-500/trainer_state.json": "{}",
    "metrics.json": '{"auc": 0.9}',
    "evaluation.json": '{"auc": 0.9}',
    "evaluation.html": "<p>mine",
    "training_losses.json": "[0.5, 0.4]",
    "detailed_training_logs.json": '{"logs": []}',
    "final/thesis.pdf": "mine",
    "merged/sheet.xlsx": "mine",
    "checkpoint-epoch-1/model.bin": "mine",
    "checkpoint-step-2/model.bin": "mine",
    "best-step-x/model.bin": "mine",
    ".final.txt": "mine",
}
FILES = ["detailed_training_logs.json", "training_losses.json", "metrics.json", "evaluation.json", "evaluation.html"]
MODELS = ["checkpoint-step-1", "checkpoint-step-2", "checkpoint-epoch-1", "best-step-1", "final", "merged"]


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def pretend_run(folder: Path, going_on: bool, overwrite: bool, models: int) -> None:
    """The files of a run, made in the order and with the functions of a run."""
    writes = [*ALWAYS, "metrics.json", "evaluation.json", "evaluation.html", "merged"]
    has_checkpoint = any(name.startswith("checkpoint") for name in own_files(folder))
    check_output_dir(folder, overwrite or (going_on and has_checkpoint), going_on, writes)
    go_on(folder) if going_on and has_checkpoint else start_run(folder)
    for name in FILES:
        claim_files(folder, name)
        put(folder, name, "ours")
    put(folder, "runs/train/events.out.tfevents.2.host.2.0", "ours")
    claim(folder, "runs/train/events.out.tfevents.2.host.2.0")
    for number, name in enumerate(MODELS[:models]):
        claim_files(folder, name)
        put(folder, f"{name}/training_config.json", "{}")
        put(folder, f"{name}/training_state/state.json", json.dumps({"format": 1, "global_step": number}))
        prune(folder, 2)
    if found := [item for item in checkpoints(folder) if item.folder.name in own_files(folder)]:
        forget_later(folder, found[-1])


ACTIONS = st.one_of(
    st.tuples(st.just("run"), st.booleans(), st.booleans(), st.integers(0, len(MODELS))),
    st.tuples(st.just("put"), st.sampled_from(sorted(FOREIGN))),
    st.tuples(st.just("forget the marker")),
)


@settings(max_examples=60)
@given(st.lists(ACTIONS, min_size=5, max_size=9))
def test_no_foreign_byte_changes_in_any_order_of_runs(tmp_path_factory: pytest.TempPathFactory, actions: list) -> None:
    folder = tmp_path_factory.mktemp("out")
    foreign: dict[str, str] = {}
    for kind, *rest in actions:
        if kind == "run":
            try:
                pretend_run(folder, *rest)
            except (UserError, RunError) as error:
                assert (
                    "which no run of EmbedRAG wrote" in str(error)
                    or "holds another run" in str(error)
                    or "no run of" in str(error)
                )
        elif kind == "put" and not (folder / rest[0]).exists() and not (folder / rest[0]).parent.is_file():
            if (folder / rest[0].split("/")[0]).exists() and not rest[0].startswith("runs"):
                continue  # a file in a model folder of ours is a part of it
            foreign[rest[0]] = FOREIGN[rest[0]]
            put(folder, *(rest[0], FOREIGN[rest[0]]))
        elif kind == "forget the marker":
            (folder / MARKER).unlink(missing_ok=True)
        assert {name: (folder / name).read_text() for name in foreign if (folder / name).is_file()} == foreign


@pytest.mark.parametrize("more", [["--resume", "auto"], ["--overwrite"], ["--resume", "auto", "--overwrite"], []])
def test_foreign_files_in_the_way_are_named_and_stay(
    more: list[str], tiny_bert: str, tmp_path: Path, write_jsonl: Callable[..., Path], rows, capsys
) -> None:
    out = tmp_path / "out"
    for name, text in FOREIGN.items():
        put(out, name, text)
    words = ["--train_dataset", str(write_jsonl(rows)), "--output_dir", str(out), "--batch_size", "6"]
    assert main(["train", "--model_name_or_path", tiny_bert, *words, *more]) == 2
    said = capsys.readouterr().err
    assert (
        "holds best-step-x, checkpoint-epoch-1, checkpoint-step-2, detailed_training_logs.json, final and 2 more"
        in said
    )
    assert "name another folder, or move them to another place" in said
    assert {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()} == FOREIGN


def test_foreign_files_beside_a_run_stay_as_they_are(
    tiny_bert: str, tmp_path: Path, write_jsonl: Callable[..., Path], rows, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, resumed when it is complete, replaced, and resumed after its model was lost."""
    out = tmp_path / "out"
    beside = (
        "runs/other_project/precious.txt",
        "runs/train/events.out.tfevents.1.host.1.0",
        "notes.txt",
        "merged/sheet.xlsx",
    )
    for name in beside:
        put(out, name, FOREIGN[name])
    words = ["--train_dataset", str(write_jsonl(rows)), "--output_dir", str(out), "--batch_size", "6", "--lora_r", "2"]
    words += ["--model_name_or_path", tiny_bert, "--finetune_type", "lora", "--epochs", "1"]
    assert main(["train", *words]) == 0
    first = {path for path in out.rglob("*tfevents*") if path.stat().st_size > 99}
    assert first and all(str(path.relative_to(out)) in (claimed(out) or ()) for path in first)
    for more in (["--resume", "auto"], ["--overwrite"]):
        assert main(["train", *words, *more]) == 0
    assert not any(path.exists() for path in first), "the earlier run's own files are removed"
    for name in ("final", "checkpoint-epoch-1"):
        shutil.rmtree(out / name)
    assert main(["train", *words, "--epochs", "2", "--resume", "auto"]) == 0
    assert {name: (out / name).read_text() for name in beside} == {name: FOREIGN[name] for name in beside}
    # Without --merge, a foreign merged/ is not in the way; with it, it is.
    assert main(["train", *words, "--overwrite", "--merge"]) == 2
    assert "holds merged, which" in capsys.readouterr().err
    assert (out / "final").is_dir() and (out / "merged" / "sheet.xlsx").is_file()


def test_a_run_of_an_earlier_version_is_recognised_by_content(
    tiny_bert: str, tmp_path: Path, write_jsonl: Callable[..., Path], rows
) -> None:
    """Earlier versions wrote no marker. What they wrote is replaced, and files of others of the same names stay."""
    out = tmp_path / "out"
    words = ["--train_dataset", str(write_jsonl(rows)), "--output_dir", str(out), "--batch_size", "6", "--lora_r", "2"]
    words += ["--model_name_or_path", tiny_bert, "--finetune_type", "lora", "--epochs", "1", "--eval_split", "0.3"]
    assert main(["train", *words, "--merge"]) == 0
    own = claimed(out)
    (out / MARKER).unlink()
    assert own_files(out) == own
    for name in FOREIGN:
        if name.startswith("runs"):
            put(out, name, FOREIGN[name])
    assert own_files(out) == own
    put(out, "evaluation.json", FOREIGN["evaluation.json"])
    with pytest.raises(UserError, match="holds evaluation.html, evaluation.json, which this run would write"):
        check_output_dir(out, True, False, ["evaluation.*"])
    (out / "evaluation.json").unlink()
    start_run(out)
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert left == {MARKER, "evaluation.html", *(name for name in FOREIGN if name.startswith("runs"))}


@pytest.mark.parametrize(
    "marker",
    ["", "[]", "{", "null", '{"format": 1}', '{"format": 2, "names": ["notes.txt"]}', '{"format": 1, "names": 7}'],
)
def test_a_damaged_marker_counts_as_none(marker: str, tmp_path: Path) -> None:
    put(tmp_path, MARKER, marker)
    put(tmp_path, "notes.txt", "mine")
    assert claimed(tmp_path) is None and own_files(tmp_path) == set()
    start_run(tmp_path)
    assert (tmp_path / "notes.txt").is_file() and claimed(tmp_path) == set()


def test_a_marker_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    put(tmp_path, "other/file", "mine")
    names = ["../other", "../other/file", str(tmp_path / "other" / "file"), "", ".", "a/../../other/file", 7, None]
    put(tmp_path, f"out/{MARKER}", json.dumps({"format": 1, "names": names}))
    start_run(tmp_path / "out")
    assert (tmp_path / "other" / "file").is_file() and (tmp_path / "out").is_dir()


def test_a_name_that_was_freed_is_no_longer_ours(tmp_path: Path) -> None:
    """A checkpoint is pruned, and somebody puts a folder of that name there."""
    start_run(tmp_path)
    for step in (1, 2):
        claim_files(tmp_path, f"checkpoint-step-{step}")
        put(tmp_path, f"checkpoint-step-{step}/training_config.json", "{}")
        put(tmp_path, f"checkpoint-step-{step}/training_state/state.json", f'{{"format": 1, "global_step": {step}}}')
    prune(tmp_path, 1)
    assert own_files(tmp_path) == {"checkpoint-step-2"} == claimed(tmp_path)
    put(tmp_path, "checkpoint-step-1/training_config.json", "mine")
    with pytest.raises(RunError, match="checkpoint-step-1: no run of EmbedRAG wrote it, so it is not replaced"):
        claim_files(tmp_path, "checkpoint-step-1")
    start_run(tmp_path)
    assert (tmp_path / "checkpoint-step-1" / "training_config.json").read_text() == "mine"


def test_a_copied_checkpoint_is_gone_on_from_and_never_removed(tmp_path: Path) -> None:
    start_run(tmp_path)
    put(tmp_path, "checkpoint-step-9/training_config.json", "{}")
    put(tmp_path, "checkpoint-step-9/training_state/state.json", '{"format": 1, "global_step": 9}')
    with pytest.raises(UserError, match="holds checkpoint-step-9, which this run would write"):
        check_output_dir(tmp_path, overwrite=True)
    check_output_dir(tmp_path, overwrite=True, source=tmp_path / "checkpoint-step-9")
    go_on(tmp_path)
    prune(tmp_path, 0)
    forget_later(tmp_path, checkpoints(tmp_path)[0])
    assert (tmp_path / "checkpoint-step-9" / "training_state" / "state.json").is_file()


@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y", "/sys/x"])
def test_output_where_no_file_can_be_made_is_named_before_the_work(place: str) -> None:
    with pytest.raises(UserError, match=rf"`output_dir={place}`: /(proc|sys) can't be written \(.*\); name another"):
        check_output_dir(Path(place), overwrite=False)


def test_second_run_in_the_same_folder_waits_and_is_refused(
    tiny_bert: str, tmp_path: Path, write_jsonl: Callable[..., Path], rows, monkeypatch, capsys
) -> None:
    """Two runs at once would remove each other's files, and both would fail."""
    monkeypatch.setattr(run_folder, "HELD_SECONDS", 1)
    out = tmp_path / "out"
    words = ["--train_dataset", str(write_jsonl(rows)), "--output_dir", str(out), "--batch_size", "6", "--epochs", "1"]
    words += ["--model_name_or_path", tiny_bert, "--finetune_type", "lora", "--no_self_test"]
    with run_folder.alone_in(out):
        assert main(["train", *words]) == 2
        assert "another run is writing into this folder" in capsys.readouterr().err
        assert not list(out.iterdir())
    assert main(["train", *words]) == 0
    assert main(["train", *words, "--overwrite"]) == 0
