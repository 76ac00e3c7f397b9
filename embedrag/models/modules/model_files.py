"""The small files of a model, in a folder or on the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.runtime.paths import is_inner_path


@dataclass(frozen=True)
class ModelFiles:
    """Small files of a model, in a folder or on the hub.

    Attributes:
        name: folder or hub id.
        argument: what the caller calls `name`, for messages.
        local_files_only: never ask the hub.
    """

    name: str
    argument: str
    local_files_only: bool

    def find(self, path: str) -> Path | None:
        """Where a file lies on this disk; None when the model has no such file. A file of the hub is downloaded.

        Raises:
            UserError: the path leads out of the model's folder.
        """
        path = path.lstrip("/")  # a module in the model's folder itself has the path ""
        if not is_inner_path(path):
            raise self.error(f"its modules.json names {path!r}, which is not in its folder; download the model again")
        local = Path(self.name).expanduser()
        if local.is_dir():
            return local / path if (local / path).is_file() else None
        from transformers.utils import cached_file

        found = cached_file(
            self.name,
            path,
            local_files_only=self.local_files_only,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return Path(found) if found else None

    def json(self, path: str) -> Any:
        """Content of a JSON file; None when the model has no such file."""
        found = self.find(path)
        if not found:
            return None
        try:
            return json.loads(found.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{found}: not JSON; the model folder is damaged") from None

    def settings(self, path: str) -> dict[str, Any]:
        """Content of a JSON file that holds an object; empty when the model has no such file."""
        found = self.json(path)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise self.error(f"{path}: not an object of keys and values; the model folder is damaged")
        return found

    def number(self, settings: dict[str, Any], key: str, path: str) -> int | None:
        """A setting that must be a number; None without it.

        Args:
            settings: content of a file.
            key: of the setting.
            path: of the file, for the message.
        """
        found = settings.get(key)
        if found is not None and (isinstance(found, bool) or not isinstance(found, (int, float)) or found < 1):
            raise self.error(f"{path}: {key} is {found!r} and no number above 0; the model folder is damaged")
        return int(found) if found else None

    def error(self, reason: str) -> UserError:
        """An error about this model."""
        return UserError(reason, self.argument, self.name)
