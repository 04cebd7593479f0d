"""`grpo-fast synth questions`: multiple choice from a table of images and labels, as a data file."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from grpo_fast.errors import BadSettings, RunFailed

if TYPE_CHECKING:
    from grpo_fast.synth.questions import Question

NAMED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metadata", type=Path, required=True, metavar="FILE",
        help="CSV or JSON lines with the columns image, modality, question_type, label and perhaps candidates",
    )  # fmt: skip
    parser.add_argument("--image-folder", type=Path, metavar="DIR", help="where images lie (default: beside the file)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the data file to write, JSON lines")
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR",
        help="image paths are written relative to this where they lie below it, else in full (default: where the "
        "output lies)",
    )  # fmt: skip
    parser.add_argument("--options", type=int, default=4, help="of each question (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same file (default 0)")


def run(arguments: argparse.Namespace) -> int:
    from grpo_fast.synth.metadata import read_metadata
    from grpo_fast.synth.questions import write_questions

    if not 2 <= arguments.options <= len(ascii_uppercase):
        raise BadSettings(f"--options must lie between 2 and {len(ascii_uppercase)}, got {arguments.options}")
    output: Path = arguments.output
    if output.exists():
        raise BadSettings(f"{output} exists already; give another name, or remove it")
    root = arguments.image_root or output.parent
    if arguments.image_root is not None and not root.is_dir():
        raise BadSettings(f"--image-root {root} is no folder")
    entries, refused = read_metadata(arguments.metadata, arguments.image_folder)
    written = write_questions(entries, options=arguments.options, seed=arguments.seed)
    _write(output, [_line(question, root) for question in written.questions])
    refused += written.unreadable
    refused += [
        f"{modality}, {question_type}: {label!r} ({rows} rows) has fewer than {arguments.options - 1} distractors that "
        "cannot be right too"
        for (modality, question_type, label), rows in sorted(written.short.items())
    ]
    for reason in refused[:NAMED]:
        print(reason, file=sys.stderr)
    if len(refused) > NAMED:
        print(f"… and {len(refused) - NAMED} more", file=sys.stderr)
    letters = Counter(question.letter for question in written.questions)
    shares = " ".join(f"{letter} {letters[letter]}" for letter in ascii_uppercase[: arguments.options])
    left = len(entries) - len(written.questions)
    print(f"{output}: {len(written.questions)} questions (answers: {shares}); {left} labelled rows left out")
    return 1 if refused else 0


def _line(question: Question, root: Path) -> dict[str, Any]:
    from grpo_fast.synth.pictures import reference

    entry = question.entry
    told = {
        "image": reference(entry.image, root),
        "conversations": [
            {"from": "human", "value": f"<image>\n{question.text}"},
            {"from": "gpt", "value": question.letter},
        ],
        "modality": entry.modality,
        "question_type": entry.question_type,
    }
    return told | ({"id": entry.id} if entry.id else {})


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    from grpo_fast.synth.chains import replace

    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise RunFailed(f"{path} cannot be written: {error}") from error
