"""`grpo-fast matrix`: one model for each modality or question type, and what each makes of all the others."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_fast.train import flags

if TYPE_CHECKING:
    from grpo_fast.errors import BadCheckpoint
    from grpo_fast.evaluate.answers import Answer
    from grpo_fast.matrix.jobs import Job
    from grpo_fast.matrix.table import Matrix
    from grpo_fast.train.settings import Settings

FACETS = ("modality", "question_type")
STYLES = ("think", "no-think")
FOLDER = "matrix"
TINY_SETTINGS = {"steps": 80}  # one kind of question is learned sooner than all
EXAMPLES = """\
examples:
  grpo-fast matrix             eight tiny models, one for each modality of the embedded questions
  grpo-fast matrix --by question_type --recipe med-r1 --data train.json --eval-data test.json --output five-by-five
  grpo-fast matrix --data train.json --eval-data test.json --models ct=runs/ct/model mri=runs/mri/model
                               models that are there already
  grpo-fast matrix --think-minus-no-think --base
                               both prompt styles, their difference, and the model before training

Every setting of `grpo-fast train` is a flag here too; --modality and --question-type choose what the matrix has.
The same command again goes on where it stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("The matrix")
    own.add_argument(
        "--by", choices=FACETS, default=FACETS[0], help=f"what each model is trained on one of (default {FACETS[0]})"
    )
    own.add_argument("--models", nargs="+", default=[], metavar="NAME=DIR", help="ask these models; nothing is trained")
    own.add_argument("--base", action="store_true", help="also ask the model that every training starts from")
    own.add_argument(
        "--think-minus-no-think", action="store_true", help="train with both prompt styles, and show the difference"
    )
    own.add_argument(
        "--test-samples", type=int, default=0, metavar="N", help="ask N of the held-out questions; 0: all (default 0)"
    )
    own.add_argument(
        "--jobs", type=int, default=0, metavar="N",
        help="processes at once (default: one for each GPU; on a CPU one for every --threads cores, or for four)",
    )  # fmt: skip
    own.add_argument(
        "--skip-unreadable", action="store_true", help="leave the row of a model that cannot be loaded empty"
    )
    flags.add_arguments(parser, command="train")
    parser.usage = "%(prog)s [--by modality|question_type] [--models NAME=DIR …] [--SETTING VALUE …] [--output DIR]"
    parser.epilog = EXAMPLES


def run(arguments: argparse.Namespace) -> int:
    from grpo_fast.errors import BadSettings
    from grpo_fast.matrix.questions import groups, with_held_out
    from grpo_fast.matrix.study import identity, study
    from grpo_fast.matrix.watch import say
    from grpo_fast.train.interrupts import how_to_go_on
    from grpo_fast.train.questions import datasets
    from grpo_fast.train.resolved import TINY, changed, resolved

    settings = resolved(flags.settings_of(arguments, command="train", tiny=TINY_SETTINGS))
    folder = Path(settings.run.output or FOLDER)
    models = _models(arguments.models, arguments.by)
    styles = STYLES if arguments.think_minus_no_think else ("",)
    if arguments.test_samples < 0:
        raise BadSettings(f"--test-samples must be at least 0, got {arguments.test_samples}")
    if len(styles) > 1 and models:
        raise BadSettings("--think-minus-no-think trains a model for each style: leave --models out")
    if arguments.base and models and settings.model.model == TINY:
        raise BadSettings("--base beside --models asks the model that they were trained from: name it with --model")
    # What is asked may change, and answers are then asked for anew; what was trained may not.
    known = identity(settings, study="matrix", by=arguments.by, trained=not models, styles=styles)
    with study(folder, known, say) as lock:
        asked = with_held_out(settings, folder / "data", say)
        train, held_out = datasets(changed(asked, max_samples=0))
        columns = groups(held_out if models else train, arguments.by)
        if len(columns) < 2:
            raise BadSettings(f"the data have one {arguments.by.replace('_', ' ')}, {columns[0]}: a matrix needs two")
        try:
            found = _matrices(arguments, asked, folder, columns, models, styles, lock)
        except KeyboardInterrupt:
            say(how_to_go_on(folder))
            return 1
    return _shown(found, folder, arguments.json)


def _matrices(
    arguments: argparse.Namespace, settings: Settings, folder: Path, columns: Sequence[str], models: dict[str, str],
    styles: Sequence[str], lock: int | None,
) -> dict[str, Matrix]:  # fmt: skip
    """By the name of their files."""
    from grpo_fast.matrix.plan import BASE, plan
    from grpo_fast.matrix.table import difference, matrix
    from grpo_fast.matrix.watch import watching
    from grpo_fast.matrix.workers import usual_count, workers
    from grpo_fast.train.resolved import changed

    plans = {
        style: plan(
            changed(settings, prompt=style) if style else settings, folder, by=arguments.by, columns=columns,
            models=models, asks_base=arguments.base, samples=arguments.test_samples, style=style,
        )
        for style in styles
    }  # fmt: skip
    reasons: dict[str, str] = {}
    count = arguments.jobs or usual_count(settings.run.threads)
    with watching() as watch, workers(count, folder, watch, lock) as pool:

        def skips(job: Job, error: BadCheckpoint) -> bool:
            reasons[job.name] = str(error).removeprefix(f"{job.name}: ")
            watch.note(f"cannot be read: {error}")
            return arguments.skip_unreadable

        done = pool.run([one.base for one in plans.values() if one.base is not None])
        done |= pool.run([job for one in plans.values() for job in one.jobs], skips=skips)

    found: dict[str, Matrix] = {}
    what = arguments.by.replace("_", " ")
    for style, one in plans.items():
        rows: dict[str, Sequence[Answer] | None] = {}
        prefix = f"{style}/" if style else ""
        for job in [one.base, *one.jobs] if arguments.base else one.jobs:
            assert job is not None
            answers = done[job.name].answers if job.name in done else None
            rows[job.name.removeprefix(prefix)] = None if answers is None else next(iter(answers.values()))
        empty = {row: reasons[prefix + row] for row in rows if prefix + row in reasons}
        title = f"Trained on one {what}, asked about all" + (f" ({style})" if style else "")
        found[f"matrix-{style}" if style else "matrix"] = matrix(
            title, arguments.by, columns, rows, empty, apart=[BASE] if arguments.base else []
        )
    if len(styles) > 1:
        think, other = found.values()
        found["matrix-difference"] = difference(f"{STYLES[0]} minus {STYLES[1]}, by {what}", think, other)
    return found


def _shown(found: dict[str, Matrix], folder: Path, as_json: bool) -> int:
    import json

    from grpo_fast.matrix import output
    from grpo_fast.matrix.heat import draw

    written: list[Path] = []
    for name, one in found.items():
        written += [*output.write_matrix(one, folder, name), *draw(one, folder, name)]
    if as_json:
        json.dump({name: output.as_json(one) for name, one in found.items()}, sys.stdout, indent=1, ensure_ascii=False)
        print()
        return 0
    from rich.console import Console

    console = Console()
    for one in found.values():
        console.print(output.rich_table(one, console.width))
        for note in output.notes(one):
            console.print(note, markup=False, highlight=False)
    console.print("written: " + ", ".join(map(str, written)), markup=False, highlight=False, soft_wrap=True)
    return 0


def _models(given: Sequence[str], by: str) -> dict[str, str]:
    from grpo_fast.data import names
    from grpo_fast.errors import BadSettings

    found: dict[str, str] = {}
    for text in given:
        name, equals, model = text.partition("=")
        if not (name and equals and model):
            raise BadSettings(f"--models {text}: give each as NAME=DIR, as in ct=runs/ct/model")
        name = names.modality(name) if by == "modality" else names.question_type(name)
        if name in found:
            raise BadSettings(f"--models names {name} twice")
        found[name] = model
    return found
