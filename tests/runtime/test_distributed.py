"""What processes exchange, and how work is shared out among them."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch

from embedrag.errors import is_out_of_memory
from embedrag.runtime.distributed import ProcessGroup, SharedOutOfMemoryError, share_out
from tests.processes import spawn


def exchange(rank: int, size: int, file: str, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    processes = ProcessGroup(rank, size, size)
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    if rank == 0:  # the second process has no gradient of the first parameter
        parameters[0].grad = torch.ones(3)
    parameters[1].grad = torch.full((2,), rank + 1.0, dtype=torch.float64)
    processes.all_reduce_gradients(parameters)
    found = {
        "sum": processes.all_reduce(torch.tensor([1.0, rank])).tolist(),
        "gradients": [parameter.grad.tolist() for parameter in parameters],
        "gathered": processes.gather({"rank": rank}),
        "any": [processes.any(False), processes.any(rank == 1)],
        "main": processes.main,
    }
    Path(f"{out}-{rank}").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes_get_sums_and_values_of_both(tmp_path: Path) -> None:
    spawn(exchange, (2, str(tmp_path / "meet"), str(tmp_path / "out")), 2)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"out-{rank}").read_text()) == {
            "sum": [2.0, 1.0],
            "gradients": [[1.0, 1.0, 1.0], [3.0, 3.0]],
            "gathered": [{"rank": 0}, {"rank": 1}],
            "any": [False, True],
            "main": rank == 0,
        }


def test_one_process_exchanges_nothing() -> None:
    alone, parameter = ProcessGroup(), torch.nn.Parameter(torch.zeros(2))
    assert alone.gather("x") == ["x"] and alone.any(True) and not alone.any(False) and alone.main
    assert alone.all_reduce(torch.ones(2)).tolist() == [1.0, 1.0]
    alone.all_reduce_gradients([parameter])
    assert parameter.grad is None
    assert alone.run_together(lambda: 3, is_out_of_memory) == 3


def short_of_memory(rank: int, size: int, file: str, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    processes = ProcessGroup(rank, size, size)
    found = []
    for who in (None, 1):

        def work(who: int | None = who) -> int:
            if rank == who:
                raise MemoryError("mine")
            return rank

        try:
            found.append(processes.run_together(work, is_out_of_memory))
        except MemoryError as error:
            found.append(type(error).__name__)
    Path(f"{out}-{rank}").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_when_memory_runs_out_in_one_process_all_processes_fail(tmp_path: Path) -> None:
    spawn(short_of_memory, (2, str(tmp_path / "meet"), str(tmp_path / "out")), 2)
    found = [json.loads((tmp_path / f"out-{rank}").read_text()) for rank in (0, 1)]
    assert found == [[0, "SharedOutOfMemoryError"], [1, "SharedOutOfMemoryError"]]


def test_nothing_of_the_failed_try_is_held_when_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Activations:
        pass

    held = []

    def work() -> None:
        activations = Activations()
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ProcessGroup, "any", lambda self, flag: flag)
    gc.disable()
    try:
        with pytest.raises(SharedOutOfMemoryError):
            ProcessGroup(0, 2).run_together(work, is_out_of_memory)
        assert held[0]() is None
    finally:
        gc.enable()


def test_more_processes_than_texts_to_share() -> None:
    assert share_out([3, 1], 4) == [[0], [1], [], []]
    loads = [sum((100 - item) for item in share) for share in share_out(list(range(100, 0, -1)), 3)]
    assert max(loads) - min(loads) <= 100
