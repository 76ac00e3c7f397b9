"""What the tests of adapters share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

from tests.weights.adapters import PLAIN


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """A function that writes an adapter folder."""

    def run(tensors: dict[str, Tensor], config: dict[str, Any] | None = PLAIN) -> str:
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        if config is not None:
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return run
