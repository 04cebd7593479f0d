"""What every step's process does alike: one task by name, its findings written line by line as they come.

A line is written and flushed before the next is measured, so that a crash loses what it interrupts and nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

ABSENT = 77  # exit code: this machine lacks what the step needs


class Absent(Exception):
    """The step cannot be run here, and why; not a failure."""


@dataclass(slots=True)
class Job:
    device: str
    tiny: bool  # shapes for a CPU: shows that the step works, measures nothing
    arguments: list[str]
    out: TextIO
    session: Path | None = None  # steps.jsonl of the session, for what earlier steps found
    failed: list[str] = field(default_factory=list)

    def row(self, **values: Any) -> None:
        self.out.write(json.dumps(_plain(values)) + "\n")
        self.out.flush()

    def check(self, name: str, value: float, most: float, **more: Any) -> None:
        """`value` must not exceed `most`; NaN does."""
        passed = bool(value <= most)
        self.row(check=name, value=value, most=most, passed=passed, **more)
        if not passed:
            self.failed.append(name)

    def needs_cuda(self) -> None:
        if self.device != "cuda":
            raise Absent("needs a CUDA device")


def needs_modules(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise Absent(f"{', '.join(missing)} not installed")


def main(tasks: Mapping[str, Callable[[Job], None]]) -> int:
    import torch
    from measure import import_package

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a small shape: checks that it runs, not numbers")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="where the findings go (default: stdout)")
    parser.add_argument("--session", type=Path, metavar="FILE", help="findings of earlier steps")
    options, arguments = parser.parse_known_args()
    import_package()
    with options.rows.open("a") if options.rows else sys.stdout as out:
        job = Job(options.device, options.tiny, arguments, out, options.session)
        try:
            tasks[options.task](job)
        except Absent as reason:
            job.row(absent=str(reason))
            return ABSENT
    if job.failed:
        print(f"not within bounds: {', '.join(job.failed)}", file=sys.stderr)
    return 1 if job.failed else 0


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
