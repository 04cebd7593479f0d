"""What the phases of a run share: the policy, the held-out questions, and the books that are kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import nn

from grpo_fast.data.prompts import PromptStyle
from grpo_fast.errors import RunFailed
from grpo_fast.evaluate.ask import FACETS, Asked, by_facet, scores
from grpo_fast.policy import GRPOPolicy
from grpo_fast.policy.processor import Processor
from grpo_fast.rollout import Engine, RolloutStats
from grpo_fast.train import state
from grpo_fast.train.devices import Devices
from grpo_fast.train.draws import Draws, Skipped
from grpo_fast.train.experience import Scored
from grpo_fast.train.folder import TIMING, RunFolder, rows
from grpo_fast.train.held_out import HeldOut
from grpo_fast.train.interrupts import Interrupted, Interrupts
from grpo_fast.train.ranks import Ranks
from grpo_fast.train.settings import Settings
from grpo_fast.train.state import Position
from grpo_fast.train.view import View

CHECKPOINTS = "checkpoints"
RATES = ("completions_per_second", "tokens_per_second")
CASES_SHOWN = 8  # questions of an evaluation between two steps that are written down


@dataclass(slots=True)
class Session:
    settings: Settings
    ranks: Ranks
    path: Path  # the run folder
    folder: RunFolder | None  # on the first rank alone
    view: View
    interrupts: Interrupts
    policy: GRPOPolicy
    wrapped: nn.Module
    processor: Processor
    style: PromptStyle
    engine: Engine
    held_out: HeldOut
    position: Position = field(default_factory=Position)
    midway: bool = False  # weights, position and books are on their way from one whole step to the next
    devices: Devices = field(default_factory=Devices)
    last_asked: list[Asked] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def watch(self, stats: RolloutStats) -> None:
        self._may_leave()
        self.view.rollout(stats)

    def watch_asking(self, stats: RolloutStats) -> None:
        self._may_leave()
        self.view.asking(stats)

    def record(self, step: int, phase: str, values: Mapping[str, float], timing: Mapping[str, float]) -> None:
        timing = {**timing, **self.devices.sample()}
        if self.folder is not None:
            self.folder.log(step, phase, values)
            self.folder.timing(step, phase, timing)
        self.view.step(step, values, timing)

    def look(self, step: int, phase: str, scored: Sequence[Scored]) -> None:
        if self.folder is None or not self.settings.run.samples_every or step % self.settings.run.samples_every:
            return
        groups = [one.group for one in scored]
        correct = [[bool(x == 1) for x in one.rewards["accuracy"].tolist()] if "accuracy" in one.rewards else None
                   for one in scored]  # fmt: skip
        advantages = [group.advantages for group in groups]
        self.folder.samples(
            step, phase, groups, [one.texts for one in scored], [one.rewards for one in scored], advantages, correct,
            totals=[one.total for one in scored],
        )  # fmt: skip

    def evaluate(self, step: int, name: str, *, whole: bool = True) -> float:
        """Accuracy on the held-out questions; `name` is what the figure is remembered as: start, sft or grpo.

        `whole`: every answer is written down, and not only a few.
        """
        began = time.perf_counter()
        with self.naming("evaluating", "lower eval_samples or kv_bytes"):
            self.last_asked = self.held_out(self.engine)
        values = scores(self.last_asked)
        if not values:
            raise RunFailed("no held-out question can be used: look at the notes above, or give other eval_data")
        self.position.accuracy[name] = values["accuracy"]
        self.position.right[name] = counted(self.last_asked)
        if self.folder is not None:
            self.folder.log(step, "eval", values)
            self.folder.timing(step, "eval", {"seconds": time.perf_counter() - began})
            self.folder.answers(step, self.last_asked if whole else self.last_asked[:CASES_SHOWN])
        self.view.evaluation(step, values)
        self.note_skipped(self.held_out.skipped)
        return values["accuracy"]

    def rates(self) -> dict[str, float | None]:
        """Medians over the run's steps, on the first rank."""
        written = [] if self.folder is None else list(rows(self.path / TIMING))
        found = {name: [row[name] for row in written if row.get(name) is not None] for name in RATES}
        return {name: median(values) if values else None for name, values in found.items()}

    def seconds(self) -> float:
        """Since the run began, without the time between an interruption and going on."""
        return self.position.seconds + time.perf_counter() - self.started

    def resume(self, optimizer: torch.optim.Optimizer, draws: Draws) -> None:
        """Into a phase: its optimizer and its place in the data, where the run was interrupted in it."""
        if self.position.step == 0:
            return
        found = state.latest(self.checkpoints)
        assert found is not None
        state.load(found, self.wrapped, optimizer)
        draws.cursor, draws.skipped.count = self.position.cursor, self.position.skipped

    def after_step(self, optimizer: torch.optim.Optimizer, *, evaluates: bool, last: bool, name: str) -> None:
        """Looks at the held-out questions, writes a checkpoint and leaves, each where it is due."""
        run, position = self.settings.run, self.position
        better = False
        if evaluates and (last or (run.eval_every and position.step % run.eval_every == 0)):
            accuracy = self.evaluate(position.step, name, whole=last)
            better = accuracy > position.accuracy.get("best", -1.0)
            position.accuracy["best"] = max(accuracy, position.accuracy.get("best", -1.0))
        position.owes = False
        if last or better or (run.save_every and position.step % run.save_every == 0):
            self.checkpoint(optimizer, best=better)
        self.interrupts.asked = self.ranks.any(self.interrupts.asked)
        if not last:
            self.interrupts.check()

    @contextmanager
    def keeping(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """A run that is interrupted keeps its last whole step; where that is gone, the last checkpoint stays."""
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            if not self.midway:
                self.checkpoint(optimizer)
            raise

    def checkpoint(self, optimizer: torch.optim.Optimizer, *, best: bool = False) -> None:
        self.position.seconds, self.started = self.seconds(), time.perf_counter()
        self.position.sizes = dict(self.ranks.gather(self.folder.sizes() if self.folder is not None else {})[0])
        written = state.save(
            self.checkpoints, self.wrapped, optimizer, self.position, keep=self.settings.run.keep, best=best
        )
        self.view.note(f"checkpoint: {written}")

    def _may_leave(self) -> None:
        """Within a rollout, unless other ranks would wait for this one."""
        if self.ranks.world == 1:
            self.interrupts.check()

    def note_skipped(self, skipped: Skipped) -> None:
        for reason in skipped.take_new():
            self.view.note(f"skipped: {reason}")

    @contextmanager
    def naming(self, doing: str, cure: str) -> Iterator[None]:
        """Out of memory by what was being done, and what to lower."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise RunFailed(f"out of memory while {doing}: {cure} ({_first_line(error)})") from error
        except MemoryError as error:
            raise RunFailed(f"out of memory while {doing}: {cure}") from error
        except RuntimeError as error:
            if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            raise RunFailed(f"out of memory while {doing}: {cure} ({_first_line(error)})") from error


def counted(asked: Sequence[Asked]) -> dict[str, list[int]]:
    """[right, asked] of `all`, and of each `modality/…` and `question_type/…`."""
    groups = {"all": list(asked)}
    for facet in FACETS:
        groups |= {f"{facet}/{name}": members for name, members in by_facet(asked, facet).items()}
    return {name: [sum(one.strict for one in members), len(members)] for name, members in groups.items()}


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
