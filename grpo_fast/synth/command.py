"""`grpo-fast synth`: reasoning to learn from, by rejection sampling; `grpo-fast synth questions`: questions to ask."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from grpo_fast.errors import BadSettings
from grpo_fast.generate import DTYPES

WIDE = 140  # columns of the table where no terminal sets a limit

if TYPE_CHECKING:
    from grpo_fast.synth.exclude import HeldOut
    from grpo_fast.synth.run import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help="needed: questions with answers; phantom")
    parser.add_argument(
        "--image-folders", nargs="+", default=[], metavar="DIR",
        help="where relative image paths start: one for each of --data or one for all (default: beside each file)",
    )  # fmt: skip
    parser.add_argument("--max-samples", type=int, default=0, metavar="N", help="questions, drawn by the seed; 0: all")
    parser.add_argument(
        "--exclude", nargs="+", default=[], metavar="FILE",
        help="held-out data: questions with an id or a picture that is in there are left out, and named",
    )  # fmt: skip
    parser.add_argument("--exclude-image-folders", nargs="+", default=[], metavar="DIR", help="the same for --exclude")
    parser.add_argument(
        "--prompt", default="think", metavar="STYLE",
        help="think, no-think, think-after, plain, or a template or file with {Question} in it (default think)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help="needed: for chains, the two files and report.json")
    parser.add_argument("--name", default="synth", help="of the files: NAME_rl.jsonl, NAME_sft.jsonl (default synth)")
    parser.add_argument(
        "--image-root", type=Path, metavar="DIR",
        help="image paths are written relative to this where they lie below it, else in full (default: --output)",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="drop the chains that --output holds and start anew")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")

    chains = parser.add_argument_group("sampling")
    chains.add_argument("--k", type=int, default=8, help="chains sampled per question (default 8)")
    chains.add_argument("--temperature", type=float, default=1.0, help="default 1")
    chains.add_argument("--top-p", type=float, default=1.0, help="1: off (default)")
    chains.add_argument("--max-tokens", type=int, default=512, help="of a chain (default 512)")
    chains.add_argument("--max-pixels", type=int, help="of an image; larger ones are made smaller")
    chains.add_argument("--seed", type=int, default=0, help="the same seed gives the same chains (default 0)")

    kept = parser.add_argument_group("what is kept (changing these samples nothing anew)")
    kept.add_argument("--keep", type=int, default=1, metavar="N", help="good chains per question: the first N sampled")
    kept.add_argument("--min-words", type=int, default=10, help="of the reasoning (default 10)")
    kept.add_argument("--max-words", type=int, default=600, help="of the reasoning (default 600)")
    kept.add_argument(
        "--max-repetition", type=float, default=0.1, help="share of 6-grams that stood before (default 0.1)"
    )
    kept.add_argument(
        "--max-similarity", type=float, default=0.7,
        help="to a kept chain of the same question: Jaccard index of 3-word shingles (default 0.7)",
    )  # fmt: skip
    kept.add_argument(
        "--every-question", action="store_true", help="NAME_rl.jsonl also has questions without a kept chain"
    )

    local = parser.add_argument_group("a model in this process")
    local.add_argument("--model", metavar="MODEL", help="a checkpoint, an adapter or a name on the hub")
    local.add_argument("--batch", type=int, default=8, help="questions asked together: what a crash loses (default 8)")
    local.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: the checkpoint's)")
    local.add_argument("--device", help="default: cuda where there is one, else cpu")

    server = parser.add_argument_group("an OpenAI-compatible server")
    server.add_argument("--server", metavar="URL", help="such as http://localhost:8000")
    server.add_argument("--server-model", metavar="NAME", help="what the server calls the model")
    server.add_argument(
        "--key-env", metavar="VARIABLE",
        help="environment variable that holds the key, such as OPENAI_API_KEY; without it no key is sent",
    )  # fmt: skip
    server.add_argument("--rate", type=float, default=0.0, help="requests a minute at most; 0: no limit (default)")
    server.add_argument("--concurrency", type=int, default=8, help="requests at a time (default 8)")
    server.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer (default 120)")
    server.add_argument("--retries", type=int, default=6, help="of one request, ever later (default 6)")
    server.add_argument(
        "--extra", default="{}", metavar="JSON",
        help='more fields of a request; null takes one out, as in \'{"seed": null, "top_k": 50}\'',
    )  # fmt: skip

    actions = parser.add_subparsers(dest="action", metavar="questions")
    from grpo_fast.synth import questions_command

    questions_command.add_arguments(
        actions.add_parser(
            "questions",
            help="write multiple-choice questions from images and labels",
            description="Writes single-answer multiple-choice questions from a table of images and labels.",
        )
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "questions":
        from grpo_fast.synth import questions_command

        return questions_command.run(arguments)
    from grpo_fast.data import open_data
    from grpo_fast.data.prompts import prompt_style
    from grpo_fast.synth.run import Job, chosen, synthesise
    from grpo_fast.synth.settings import ChainSettings, Filters

    if not arguments.data or arguments.output is None:
        raise BadSettings("synth needs --data (questions with gold answers) and --output (a folder)")
    for name, least in (("max_samples", 0), ("batch", 1)):
        if (given := getattr(arguments, name)) < least:
            raise BadSettings(f"--{name.replace('_', '-')} must be at least {least}, got {given}")
    chains = ChainSettings(
        k=arguments.k, temperature=arguments.temperature, top_p=arguments.top_p, max_tokens=arguments.max_tokens,
        max_pixels=arguments.max_pixels, seed=arguments.seed,
    )  # fmt: skip
    filters = Filters(
        min_words=arguments.min_words, max_words=arguments.max_words, max_repetition=arguments.max_repetition,
        max_similarity=arguments.max_similarity, keep=arguments.keep,
    )  # fmt: skip
    style = prompt_style(arguments.prompt)
    model, who = _model(arguments)
    data = open_data(arguments.data, image_folders=arguments.image_folders)
    job = Job(
        data=data,
        places=chosen(len(data), arguments.max_samples, arguments.seed),
        style=style,
        chains=chains,
        filters=filters,
        who=who,
        output=arguments.output,
        name=arguments.name,
        image_root=arguments.image_root,
        every_question=arguments.every_question,
        held_out=_held_out(arguments),
        settings={**who, "data": arguments.data, "exclude": arguments.exclude, "prompt": style.template},
    )
    report = synthesise(job, model, fresh=arguments.fresh)
    if arguments.json:
        json.dump(report.as_json(), sys.stdout, indent=1)
        print()
        return 0
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(report.table())
    for note in report.notes():
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    written = ", ".join(f"{path} ({lines} lines)" for path, lines in report.files.items())
    console.print(f"written: {written}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _model(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """How to get the model once it is wanted, and what identifies it. A server's address does not."""
    if (arguments.model is None) == (arguments.server is None):
        raise BadSettings("name either --model (in this process) or --server with --server-model")
    if arguments.model is not None:
        from grpo_fast.evaluate.models import fingerprint

        def local() -> Model:
            from grpo_fast.synth.local import LocalModel

            return LocalModel(
                arguments.model, batch=arguments.batch, max_pixels=arguments.max_pixels, dtype=arguments.dtype,
                device=arguments.device,
            )  # fmt: skip

        return local, {"model": arguments.model, "weights": fingerprint(arguments.model), "dtype": arguments.dtype}
    from grpo_fast.synth.client import ServerSettings

    if not arguments.server_model:
        raise BadSettings("--server needs --server-model: what the server calls the model")
    settings = ServerSettings(
        url=arguments.server, model=arguments.server_model, key=_key(arguments.key_env), timeout=arguments.timeout,
        retries=arguments.retries, rate=arguments.rate, concurrency=arguments.concurrency,
        extra=_extra(arguments.extra),
    )  # fmt: skip
    if settings.key and not settings.on_loopback and urlsplit(settings.url).scheme == "http":
        _say(f"the key goes to {settings.address} unencrypted: https would hide it")

    def server() -> Model:
        from grpo_fast.synth.server import ServerModel

        return ServerModel(settings, _say)

    return server, {"server_model": settings.model, "extra": dict(settings.extra)}


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise BadSettings(f"--key-env {variable}: the environment has no such variable, or it is empty")
    return key


def _extra(text: str) -> dict[str, Any]:
    try:
        extra = json.loads(text)
    except ValueError as error:
        raise BadSettings(f"--extra is not valid JSON: {error}") from None
    if not isinstance(extra, dict):
        raise BadSettings(f'--extra must be a JSON object, as in {{"top_k": 50}}, got {text}')
    return extra


def _held_out(arguments: argparse.Namespace) -> HeldOut | None:
    if not arguments.exclude:
        return None
    from grpo_fast.data import open_data
    from grpo_fast.synth.exclude import HeldOut
    from grpo_fast.synth.progress import progress_of

    data = open_data(arguments.exclude, image_folders=arguments.exclude_image_folders)
    with progress_of("reading held-out data", len(data)) as progress:
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            progress(done, "")

        return HeldOut.of(data, tick)


def _say(word: str) -> None:
    print(f"grpo-fast: {word}", file=sys.stderr)
