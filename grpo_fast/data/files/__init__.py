"""How records lie in files: each kind finds record i without reading the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Source(Protocol):
    path: str  # as messages name it

    @property
    def folder(self) -> Path:
        """Where relative image paths start unless a folder is given."""
        ...

    def __len__(self) -> int: ...

    def record(self, index: int) -> Any:
        """The columns of a record, or BadData with its place and the reason."""
        ...

    def number(self, index: int) -> int:
        """Its line, or its row where there are no lines; from 1."""
        ...

    def place(self, index: int) -> str: ...
