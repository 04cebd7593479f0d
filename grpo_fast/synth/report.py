"""What was kept and why the rest was not, by modality."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.errors import RunFailed
from grpo_fast.synth.chains import replace
from grpo_fast.synth.judge import KEPT, REASONS

if TYPE_CHECKING:
    from rich.table import Table

ALL, UNKNOWN = "all", "unknown"
NAMED = 10  # shown of what report.json has all of


@dataclass(slots=True)
class Row:
    """Of one modality. Each chain is counted once: kept, or under the first reason that refused it."""

    questions: int = 0  # answered
    with_kept: int = 0  # of them, with a chain that was kept
    chains: Counter[str] = field(default_factory=Counter)

    def add(self, verdicts: Sequence[str]) -> None:
        self.questions += 1
        self.with_kept += KEPT in verdicts
        self.chains.update(verdicts)

    @property
    def accepted(self) -> int:
        """Good ones, whether or not there was room for them."""
        return self.chains[KEPT] + self.chains["surplus"]

    @property
    def acceptance(self) -> float:
        return self.accepted / max(self.chains.total(), 1)

    def as_json(self) -> dict[str, Any]:
        return {
            "questions": self.questions,
            "questions_with_kept": self.with_kept,
            "chains": self.chains.total(),
            "kept": self.chains[KEPT],
            "accepted": self.accepted,
            "acceptance": self.acceptance,
            "refused": {reason: self.chains[reason] for reason in REASONS if reason != "surplus"},
            "surplus": self.chains["surplus"],
        }


@dataclass(slots=True)
class Report:
    settings: Mapping[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)  # by modality, and ALL
    skipped: dict[str, str] = field(default_factory=dict)  # place in the data files → why it was not asked or written
    held_out: dict[str, str] = field(default_factory=dict)  # place in the data files → what of it stands where
    not_compared: list[str] = field(default_factory=list)  # held-out data that cannot be read
    files: dict[str, int] = field(default_factory=dict)  # written → lines

    alike: int = 0  # questions whose chains are all the same text

    def add(self, modality: str | None, verdicts: Sequence[str], texts: Sequence[str]) -> None:
        for name in (modality or UNKNOWN, ALL):
            self.rows.setdefault(name, Row()).add(verdicts)
        self.alike += len(texts) > len(set(texts)) == 1

    def as_json(self) -> dict[str, Any]:
        return {
            "settings": dict(self.settings),
            "all": self.rows.get(ALL, Row()).as_json(),
            "by_modality": {name: row.as_json() for name, row in sorted(self.rows.items()) if name != ALL},
            "questions_with_equal_chains": self.alike,
            "skipped": self.skipped,
            "held_out": self.held_out,
            "not_compared": self.not_compared,
            "files": self.files,
        }

    def write(self, path: Path) -> None:
        try:
            replace(path, json.dumps(self.as_json(), indent=1).encode() + b"\n")
        except OSError as error:
            raise RunFailed(f"{path} cannot be written: {error}") from error

    def table(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        whole = self.rows.get(ALL, Row())
        reasons = [reason for reason in REASONS if whole.chains[reason]]
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("modality", no_wrap=True)
        for name in ("questions", "with a chain", "chains", "accepted", "kept", *reasons):
            table.add_column(name, justify="right")
        names = [name for name in sorted(self.rows) if name != ALL]
        for name in [*names, ALL]:
            row = self.rows.get(name, Row())
            if name == ALL:
                table.add_section()
            shown = [row.questions, row.with_kept, row.chains.total(), f"{row.acceptance:.1%}", row.chains[KEPT]]
            table.add_row(Text(name), *map(str, shown), *(str(row.chains[reason]) for reason in reasons))
        return table

    def notes(self) -> list[str]:
        found = []
        for what, named in (
            ("questions were left out", [*self.skipped.values()]),
            ("questions are held out", [f"{place}: {why}" for place, why in self.held_out.items()]),
            ("held-out records could not be compared", self.not_compared),
        ):
            if named:
                more = f"; and {len(named) - NAMED} more (report.json)" if len(named) > NAMED else ""
                found.append(f"{len(named)} {what}: {'; '.join(named[:NAMED])}{more}")
        if self.alike * 2 > self.rows.get(ALL, Row()).questions:
            found.append(f"{self.alike} questions have the same chain every time: does the model sample at all?")
        return found
