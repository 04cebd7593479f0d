from __future__ import annotations

from pathlib import Path

import pytest
from report.make import make_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: a synthetic run of 30 supervised and 60 GRPO steps."""
    return make_run(tmp_path_factory.mktemp("runs") / "synthetic-a", steps=60, held_out=80)
