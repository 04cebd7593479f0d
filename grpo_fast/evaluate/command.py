"""`grpo-fast eval`: how often models are right, by modality and question type, and whether they differ."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_fast.generate import DTYPES

if TYPE_CHECKING:
    from grpo_fast.evaluate.report import Report
    from grpo_fast.evaluate.run import Result
    from grpo_fast.evaluate.sources import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", required=True, metavar="MODEL", help="checkpoints, adapters or hub names")
    parser.add_argument(
        "--data", nargs="+", default=["phantom:test"], metavar="DATA",
        help="files as for training, or a benchmark's folder as NAME:FOLDER, NAME being omnimedvqa, gmai-mmbench, "
        "mmmu, vqa-rad, slake, pathvqa, pmc-vqa or medxpertqa (default phantom:test)",
    )  # fmt: skip
    parser.add_argument(
        "--image-folders", nargs="+", default=[], metavar="FOLDER",
        help="where relative image paths start, one for each of --data or one for all",
    )  # fmt: skip
    parser.add_argument(
        "--train-data", nargs="+", default=[], metavar="DATA", help="names the questions that are in there too"
    )
    parser.add_argument(
        "--prompt", default="think", metavar="STYLE",
        help="think, no-think, think-after, plain, or a template or file with {Question} in it (default think)",
    )  # fmt: skip
    parser.add_argument(
        "--max-samples", type=int, default=0, metavar="N", help="of each data, drawn by the seed; 0: all"
    )
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer (default 256)")
    parser.add_argument("--batch", type=int, default=64, help="questions asked together (default 64)")
    parser.add_argument("--max-pixels", type=int, help="of an image; larger ones are made smaller")
    parser.add_argument("--seed", type=int, default=0, help="of --max-samples and the bootstrap (default 0)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: the checkpoint's)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--output", type=Path, default=Path("evaluation"), metavar="DIR",
        help="answers and tables; a second run goes on where the first stopped (default evaluation)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(arguments: argparse.Namespace) -> int:
    from grpo_fast.data import open_data
    from grpo_fast.errors import BadSettings
    from grpo_fast.evaluate.leaks import duplicate_ids, find_leaks
    from grpo_fast.evaluate.progress import progress_of
    from grpo_fast.evaluate.report import Report
    from grpo_fast.evaluate.run import AskSettings, evaluate_model
    from grpo_fast.evaluate.sources import open_sources
    from grpo_fast.evaluate.tables import comparisons, rows

    for name, given in (("--max-samples", arguments.max_samples), ("--seed", arguments.seed)):
        if given < 0:
            raise BadSettings(f"{name} must be at least 0, got {given}")
    names = _names(arguments.model)
    settings = AskSettings(
        prompt=arguments.prompt, max_tokens=arguments.max_tokens, batch=arguments.batch,
        max_pixels=arguments.max_pixels, dtype=arguments.dtype, device=arguments.device,
    )  # fmt: skip
    sources = open_sources(
        arguments.data, image_folders=arguments.image_folders, max_samples=arguments.max_samples, seed=arguments.seed
    )
    leaks = find_leaks(sources, open_data(arguments.train_data)) if arguments.train_data else None
    results = []
    for model, name in names.items():
        with progress_of(name, {source.name: len(source) for source in sources}) as progress:
            results.append(
                evaluate_model(model, sources, settings, arguments.output, name=name, say=_say, progress=progress)
            )
    report = Report(
        settings={"models": dict(zip(names.values(), names, strict=True)), "data": arguments.data, **asdict(settings)},
        rows=rows(results, None if leaks is None else leaks.places),
        comparisons=comparisons(results, arguments.seed),
        leaks=leaks,
        duplicate_ids={source.name: duplicate_ids(source) for source in sources},
        skipped=_skipped(results, sources),
    )
    written = report.write(arguments.output)
    if arguments.json:
        json.dump(report.as_json(), sys.stdout, indent=1, ensure_ascii=False)
        print()
        return 0
    _show(report, written)
    return 0


def _names(models: Sequence[str]) -> dict[str, str]:
    """What each is called in tables: its last folder, or more of its path where that is another's too."""
    from grpo_fast.errors import BadSettings

    if twice := {model for model in models if models.count(model) > 1}:
        raise BadSettings(f"--model names {', '.join(sorted(twice))} twice")
    for parts in range(1, max(len(Path(model).parts) for model in models)):
        names = {model: "/".join(Path(model).parts[-parts:]) for model in models}
        if len(set(names.values())) == len(models):
            return names
    return {model: model for model in models}


def _skipped(results: Sequence[Result], sources: Sequence[Source]) -> dict[str, dict[int, str]]:
    """Place and reason by source. Models differ in them at most by what their processors take."""
    return {
        source.name: {
            answer.place: answer.skipped
            for result in results
            for answer in result.answers[source.name]
            if answer.skipped
        }
        for source in sources
    }


def _say(word: str) -> None:
    print(f"grpo-fast: {word}", file=sys.stderr)


def _show(report: Report, written: Sequence[Path]) -> None:
    from rich.console import Console

    console = Console()
    for table in report.rich_tables(console.width):
        console.print(table)
    for note in report.notes():
        console.print(note, style="yellow", markup=False, highlight=False)
    console.print("written: " + ", ".join(map(str, written)), markup=False, highlight=False, soft_wrap=True)
