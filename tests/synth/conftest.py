from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluate.conftest import make_checkpoint
from synth.faulty_server import FaultyServer, running


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with running() as found:
        yield found


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "first")
