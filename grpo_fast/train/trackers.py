"""Where a run's numbers go besides its own files: TensorBoard, Weights & Biases."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from grpo_fast.errors import BadSettings
from grpo_fast.train.scrub import scrubbed, scrubbed_text


class Tracker(Protocol):
    """Phases count their steps from 0 each, so a name is always `phase/name`, over that phase's own steps."""

    def open(self, run: Path) -> None:
        """Called by the run's folder once that is found fit; nothing is written before."""
        ...

    def log(self, step: int, phase: str, values: Mapping[str, float]) -> None: ...

    def rewind(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """A run goes on from an earlier point: `rows` is all that was logged up to it."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard. They have no way to take steps back, hence a rewind writes them anew."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise BadSettings("--tensorboard needs a package: pip install tensorboard") from error
        self._kind = SummaryWriter

    def open(self, run: Path) -> None:
        self._run = run
        self._writer = self._kind(str(run / "tensorboard"), flush_secs=10)

    def log(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{phase}/{name}", value, step)

    def rewind(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._writer.close()
        for old in (self._run / "tensorboard").glob("events.out.tfevents.*"):
            old.unlink()
        self.open(self._run)
        for row in rows:
            self.log(row["step"], row["phase"], {k: v for k, v in row.items() if isinstance(v, float)})

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases that goes on under the same id after a resume.

    WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY are respected. What was sent cannot be taken back: steps that are done
    again after a resume are there twice.
    """

    def __init__(self, *, name: str = "", settings: Mapping[str, Any] | None = None) -> None:
        self.name, self.settings = name, settings or {}
        self._phases: set[str] = set()
        if find_spec("wandb") is None:
            raise BadSettings("--wandb needs a package: pip install wandb")

    def open(self, run: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        (run / "wandb").mkdir(exist_ok=True)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "grpo-fast"), name=self.name or None, dir=str(run),
                id=_id_in(run / "wandb"), resume="allow", config=scrubbed(self.settings),
                settings=wandb.Settings(
                    console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True
                ),
            )  # fmt: skip
        except (wandb.errors.Error, OSError) as error:
            raise BadSettings(
                f"--wandb cannot start: {scrubbed_text(str(error))}; log in with `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error

    def log(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        if phase not in self._phases:
            self._phases.add(phase)
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        self._run.log({f"{phase}/step": step, **{f"{phase}/{name}": value for name, value in values.items()}})

    def rewind(self, rows: Iterable[Mapping[str, Any]]) -> None: ...

    def close(self) -> None:
        self._run.finish()


def _id_in(folder: Path) -> str:
    path = folder / "run-id.txt"
    if not path.is_file():
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
