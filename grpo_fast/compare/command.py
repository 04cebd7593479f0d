"""`grpo-fast compare`: a baseline, the same after SFT, the same after RL, on the same questions and budget."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_fast.train import flags

if TYPE_CHECKING:
    from grpo_fast.compare.output import Comparing

FOLDER = "comparison"
PHANTOM_COMBINATIONS = 8  # of forty
EXAMPLES = """\
examples:
  grpo-fast compare            the embedded questions: three seeds, eight of forty combinations of modality and
                               question type left out of training
  grpo-fast compare --recipe gmai-vl-r1 --data train.jsonl --eval-data test.jsonl --benchmarks slake:SLAKE --seeds 0
                               your own data, and a benchmark beside the held-out questions

Baseline: the model as it is given; a tiny one after its short warm start. +SFT and +RL both start from it, draw from
the same questions and make the same number of optimizer updates; what else is equal is printed. Every setting of
`grpo-fast train` is a flag here too. The same command again goes on where it stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from grpo_fast.compare.budget import EQUAL

    own = parser.add_argument_group("The comparison")
    own.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="each trains its own (default 0 1 2)"
    )
    own.add_argument(
        "--held-out-combinations", type=int, metavar="N",
        help="leave this many combinations of modality and question type out of training, others for each seed "
        f"(default: {PHANTOM_COMBINATIONS} on phantom, else 0)",
    )  # fmt: skip
    own.add_argument(
        "--equal", choices=EQUAL, default=EQUAL[0],
        help="what an update of SFT and one of RL hold as much of: questions, or completions (SFT then takes as many "
        f"demonstrations as RL samples; default {EQUAL[0]})",
    )  # fmt: skip
    own.add_argument(
        "--benchmarks", nargs="+", default=[], metavar="DATA", help="asked too, as `grpo-fast eval --data` names them"
    )
    own.add_argument(
        "--test-samples", type=int, default=0, metavar="N",
        help="ask N of the held-out questions and of each benchmark; 0: all (default 0)",
    )  # fmt: skip
    own.add_argument(
        "--jobs", type=int, default=0, metavar="N",
        help="processes at once (default: one for each GPU; on a CPU one for every --threads cores, or for four)",
    )  # fmt: skip
    flags.add_arguments(parser, command="train")
    parser.usage = "%(prog)s [--seeds N …] [--SETTING VALUE …] [--output DIR]"
    parser.epilog = EXAMPLES


def run(arguments: argparse.Namespace) -> int:
    from grpo_fast.compare.output import comparing
    from grpo_fast.compare.plan import STAGES, plan
    from grpo_fast.compare.result import parts
    from grpo_fast.errors import BadSettings
    from grpo_fast.evaluate.sources import open_sources
    from grpo_fast.matrix.study import identity, study
    from grpo_fast.matrix.watch import say, watching
    from grpo_fast.matrix.workers import usual_count, workers
    from grpo_fast.train.interrupts import how_to_go_on
    from grpo_fast.train.resolved import resolved

    settings = resolved(flags.settings_of(arguments, command="train"))
    folder = Path(settings.run.output or FOLDER)
    combinations = arguments.held_out_combinations
    if combinations is None:
        combinations = PHANTOM_COMBINATIONS if settings.data.data == ["phantom"] else 0
    for name, value in (("--held-out-combinations", combinations), ("--test-samples", arguments.test_samples)):
        if value < 0:
            raise BadSettings(f"{name} must be at least 0, got {value}")
    if len(set(arguments.seeds)) < len(arguments.seeds) or min(arguments.seeds) < 0:
        raise BadSettings("--seeds: give each once, and none below 0")
    open_sources(arguments.benchmarks)  # what is not there is better said before hours of training
    # Seeds, benchmarks and samples may change later: what was trained still holds.
    known = {"held_out_combinations": combinations, "equal": arguments.equal}
    with study(folder, identity(settings, study="compare", **known), say) as lock:
        seeds = plan(
            settings, folder, seeds=arguments.seeds, combinations=combinations, equal=arguments.equal,
            benchmarks=arguments.benchmarks, samples=arguments.test_samples, say=say,
        )  # fmt: skip
        for line in seeds[0].budget.lines():
            say(line)
        count = arguments.jobs or usual_count(settings.run.threads)
        try:
            with watching() as watch, workers(count, folder, watch, lock) as pool:
                baseline, *others = STAGES
                done = pool.run([one.jobs[baseline] for one in seeds])
                done |= pool.run([one.jobs[stage] for one in seeds for stage in others])
        except KeyboardInterrupt:
            say(how_to_go_on(folder))
            return 1
        answers = {
            (one.number, stage): done[job.name].answers for one in seeds for stage, job in one.jobs.items()
        }  # fmt: skip
        found = parts(answers, {one.number: one.left_out for one in seeds})
        asked = {"model": settings.model.model, "data": settings.data.data, "seeds": arguments.seeds, **known}
        asked |= {"benchmarks": arguments.benchmarks, "test_samples": arguments.test_samples}
        return _shown(comparing(seeds, found, asked, settings.run.seed), folder, arguments.json)


def _shown(found: Comparing, folder: Path, as_json: bool) -> int:
    import json

    from grpo_fast.compare.charts import draw
    from grpo_fast.compare.output import MEANING

    written = [*found.write(folder), *draw(found.lines, found.found, folder)]
    if as_json:
        json.dump(found.as_json(), sys.stdout, indent=1, ensure_ascii=False)
        print()
        return 0
    from rich.console import Console

    console = Console()
    for table in found.rich_tables():
        console.print(table)
    for text in [*found.notes(), "", *found.verdict(), "", MEANING]:
        console.print(text, markup=False, highlight=False)
    console.print("written: " + ", ".join(map(str, written)), markup=False, highlight=False, soft_wrap=True)
    return 0
