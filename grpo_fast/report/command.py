"""`grpo-fast report`: one HTML page of one or several run folders, once or for as long as a run goes on."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from grpo_fast.errors import BadSettings, RunFailed
from grpo_fast.report.folder import check_folder, files_of

INTERVAL = 5.0  # seconds between two looks at the folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN",
        help="a folder that `train`, `sft`, `eval` or `matrix` wrote; several are laid over each other",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the first folder")
    parser.add_argument("--cases", type=int, default=60, metavar="N", help="groups shown as case studies (default 60)")
    parser.add_argument(
        "--watch", action="store_true",
        help="write it again while the runs go on; an open page reloads itself, and keeps its place and filters",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    if arguments.cases < 0:
        raise BadSettings(f"--cases must be at least 0, got {arguments.cases}")
    for path in arguments.runs:
        check_folder(path)
    output = arguments.output or arguments.runs[0] / "report.html"
    if output.is_dir():
        raise BadSettings(f"--output {output} is a folder: name a file")
    if arguments.watch:
        _watch(arguments.runs, output, arguments.cases)
    else:
        _write(arguments.runs, output, arguments.cases)
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 0


def _write(runs: Sequence[Path], output: Path, cases: int, refresh: float | None = None) -> None:
    """A reader of the page sees the old one or the new one, never a part."""
    from grpo_fast.report.folder import read_folders
    from grpo_fast.report.page import build

    page = build(read_folders(runs), cases=cases, refresh=refresh)
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        beside.write_text(page, encoding="utf-8", newline="\n")
        os.replace(beside, output)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RunFailed(f"{output} cannot be written: {error.strerror or error}") from error


def _watch(runs: Sequence[Path], output: Path, cases: int) -> None:
    """Until every run has its summary, or Ctrl-C; the last page no longer reloads itself."""
    seen: object = None
    try:
        while not _finished(runs):
            state = _state(runs)
            if state != seen:
                started = time.monotonic()
                _write(runs, output, cases, refresh=INTERVAL)
                if seen is None:
                    print(f"{output}: open it in a browser. Ctrl-C ends the watch.", file=sys.stderr)
                seen, took = state, time.monotonic() - started
            time.sleep(max(INTERVAL, 4 * took))
    except KeyboardInterrupt:
        pass
    _write(runs, output, cases)


def _finished(runs: Sequence[Path]) -> bool:
    return all((path / "summary.json").exists() or (path / "results.json").exists() for path in runs)


def _state(runs: Sequence[Path]) -> list[tuple[str, int, int]]:
    return [(str(one), (found := one.stat()).st_size, found.st_mtime_ns) for path in runs for one in files_of(path)]
