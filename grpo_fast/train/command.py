"""`grpo-fast train` and `grpo-fast sft`: settings in, a run, what was learned out."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, TextIO

from grpo_fast.train import flags
from grpo_fast.train.resolved import resolved

if TYPE_CHECKING:
    from grpo_fast.train.view import View

DESCRIPTIONS = {
    "train": "Trains a vision-language model with GRPO. Without arguments: a tiny model on synthetic questions, in "
    "a few minutes on any machine.",
    "sft": "Trains a vision-language model to imitate the answers of a file, through the same fused head.",
}


def add_arguments(parser: argparse.ArgumentParser, *, command: str) -> None:
    flags.add_arguments(parser, command=command)


def run(arguments: argparse.Namespace, *, command: str) -> int:
    settings = resolved(flags.settings_of(arguments, command=command))
    from transformers.utils import logging

    from grpo_fast.train.interrupts import Interrupted
    from grpo_fast.train.program import train

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    with open(os.devnull, "w") as null, _view(arguments.json, rank, null) as shown:
        shown.start(flags.describe(settings, world=world, command=command))
        try:
            shown.done(train(settings, shown, command=command))
        except Interrupted:
            return 1
    return 0


def _view(json: bool, rank: int, null: TextIO) -> View:
    """The first rank speaks for all."""
    from grpo_fast.train.view import Silent, view

    return view(json, sys.stdout.isatty()) if rank == 0 else Silent(null, null)
