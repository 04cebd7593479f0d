"""`grpo-fast data`: check, count or rewrite data files. Exit codes: 0 fine, 1 something is bad, 2 wrong usage."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_fast.data import Dataset, open_data
from grpo_fast.data.check import Problem, problems
from grpo_fast.data.convert import LAYOUTS, convert
from grpo_fast.errors import BadData, BadSettings

if TYPE_CHECKING:
    from grpo_fast.types import Sample

BATCH = 64  # records between two looks of the progress bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    check = actions.add_parser(
        "check", help="name every record that cannot be used",
        description="Names file, line and reason of every record that cannot be used. Exit code 1 if there is one.",
    )  # fmt: skip
    _add_sources(check)
    check.add_argument("--images", action="store_true", help="also decode every image")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    stats = actions.add_parser(
        "stats", help="modalities, question types, answers, lengths, image sizes",
        description="Counts records by modality and question type, answers, question lengths and image sizes.",
    )  # fmt: skip
    _add_sources(stats)
    stats.add_argument("--chart", type=Path, metavar="FILE", help="draw them as PNG, SVG or PDF (needs matplotlib)")
    stats.add_argument("--json", action="store_true", help="print one JSON object")
    to = actions.add_parser(
        "convert", help="write the records in another layout",
        description="Writes the records in another layout. Pictures that lie in files stay there; embedded ones, "
        "slices of scans and frames of videos are written as PNG.",
    )  # fmt: skip
    _add_sources(to)
    to.add_argument("--to", required=True, choices=tuple(LAYOUTS), help="the layout to write")
    to.add_argument("out", type=Path, metavar="OUT", help="the file to write: .jsonl, for med-r1 .json")
    to.add_argument("--images", type=Path, metavar="DIR", help="for the written images (default: OUT's name, _images)")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="data files, folders or hub names; phantom")
    parser.add_argument(
        "--image-folders", nargs="+", default=[], metavar="DIR",
        help="where relative image paths start: one for each file or one for all (default: beside each file)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    return {"check": _check, "stats": _stats, "convert": _convert}[arguments.action](arguments)


def _check(arguments: argparse.Namespace) -> int:
    folders = _folders(arguments)
    found: list[Problem] = []
    files = []
    for source, folder in zip(arguments.files, folders, strict=True):
        try:
            dataset = open_data([source], image_folders=folder)
        except BadData as error:
            bad, records = [Problem(source, None, str(error))], 0
        else:
            records = len(dataset)
            with progress(records, source) as tick:
                bad = list(problems(dataset, _look_at_images if arguments.images else None, tick))
        if not arguments.json:
            for problem in bad:
                print(problem.reason)
            print(f"{source}: {records} records, {len(bad)} bad", file=sys.stderr)
        files.append({"file": source, "records": records, "bad": len(bad)})
        found += bad
    if arguments.json:
        json.dump({"files": files, "bad": [problem._asdict() for problem in found]}, sys.stdout, indent=1)
        print()
    return 1 if found else 0


def _stats(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from grpo_fast.data.charts import draw, show
    from grpo_fast.data.stats import statistics

    dataset = _dataset(arguments)
    with progress(len(dataset), "counting") as tick:
        stats = statistics(dataset, tick)
    if arguments.json:
        json.dump(stats.as_dict(), sys.stdout, indent=1, ensure_ascii=False)
        print()
    else:
        show(stats, Console())
    if arguments.chart is not None:
        draw(stats, arguments.chart)
        print(f"drawn to {arguments.chart}", file=sys.stderr)
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    dataset, out = _dataset(arguments), arguments.out
    images = arguments.images or out.with_name(f"{out.stem}_images")
    with progress(len(dataset), str(out)) as tick:
        written, refused = convert(dataset, arguments.to, out, images, tick)
    for reason in refused:
        print(reason, file=sys.stderr)
    print(f"{out}: {written} records written, {len(refused)} left out")
    return 1 if refused else 0


def _folders(arguments: argparse.Namespace) -> list[list[str]]:
    given, files = arguments.image_folders, arguments.files
    if len(given) not in (0, 1, len(files)):
        raise BadSettings(f"{len(given)} image folders for {len(files)} data files: give one for each, or one for all")
    return [[folder] for folder in given] if len(given) == len(files) else [given] * len(files)


def _dataset(arguments: argparse.Namespace) -> Dataset:
    return open_data(arguments.files, image_folders=arguments.image_folders)


def _look_at_images(sample: Sample) -> None:
    """Every image becomes RGB, as it does on its way to the model."""
    from grpo_fast.policy.images import check_sides, decoded, to_rgb

    for number, load in enumerate(sample.images):
        where = f"{sample.meta.get('source', sample.id)}: image {number}"
        image = decoded(load, where)
        check_sides(image, where)
        to_rgb(image, where)


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Something to call for each record: a bar with rate and time left on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, rate="")
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            if done % BATCH == 0 or done == total:
                speed = bar.tasks[0].speed
                bar.update(task, completed=done, rate=f"{speed:.0f} a second" if speed else "")

        yield tick
