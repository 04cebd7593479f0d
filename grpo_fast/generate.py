"""`grpo-fast generate`: completions of a question, with or without images, from any checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.errors import BadImage
from grpo_fast.types import Group, Sample

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a folder with a checkpoint or an adapter, or a name on the hub")
    parser.add_argument("--prompt", required=True, action="append", help="the question; may be given several times")
    parser.add_argument(
        "--image", action="append", default=[], type=Path, metavar="FILE",
        help="shown with every prompt, in this order; may be given several times",
    )  # fmt: skip
    parser.add_argument("--completions", type=int, default=1, metavar="G", help="of each prompt (default 1)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of a completion (default 256)")
    parser.add_argument("--temperature", type=float, default=1.0, help="default 1")
    parser.add_argument("--top-k", type=int, default=0, help="0: off (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="1: off (default)")
    parser.add_argument("--min-p", type=float, default=0.0, help="0: off (default)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1: off (default)")
    parser.add_argument("--greedy", action="store_true", help="the most probable token each time")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a completion; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same completions (default 0)")
    parser.add_argument("--max-pixels", type=int, help="of an image; larger ones are made smaller")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: the checkpoint's)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object with tokens and log-probs")


def run(arguments: argparse.Namespace) -> int:
    from grpo_fast.evaluate.models import load_engine, load_processor
    from grpo_fast.rollout import SamplingParams
    from grpo_fast.rollout.progress import progress_bar

    sampling = SamplingParams(
        temperature=arguments.temperature, greedy=arguments.greedy, top_k=arguments.top_k, top_p=arguments.top_p,
        min_p=arguments.min_p, repetition_penalty=arguments.repetition_penalty, max_tokens=arguments.max_tokens,
        stop_strings=tuple(arguments.stop), seed=arguments.seed,
    )  # fmt: skip
    processor = load_processor(arguments.model, arguments.max_pixels)
    prompts = [processor(sample) for sample in _samples(arguments.prompt, arguments.image)]
    engine = load_engine(arguments.model, processor.tokenizer, dtype=arguments.dtype, device=arguments.device)
    with nullcontext() if arguments.json else progress_bar() as watch:
        groups = engine.generate(prompts, arguments.completions, sampling, watch=watch)
    found = [_described(group, processor.tokenizer) for group in groups]
    if arguments.json:
        json.dump({"model": arguments.model, "prompts": found, "stats": asdict(engine.stats)}, sys.stdout, indent=1)
        print()
    else:
        _show(found)
        print(f"{engine.stats.sampled_tokens} tokens, {engine.stats.tokens_per_second:.0f} a second", file=sys.stderr)
    return 0


def _samples(questions: Sequence[str], images: Sequence[Path]) -> list[Sample]:
    content = [{"type": "image"} for _ in images]
    return [
        Sample(
            id=f"prompt {number}",
            messages=[{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
            images=tuple(_opener(path) for path in images),
        )
        for number, question in enumerate(questions, 1)
    ]


def _opener(path: Path) -> Callable[[], Image]:
    if not path.is_file():
        raise BadImage(f"--image {path}: there is no such file")

    def load() -> Image:
        from PIL import Image

        return Image.open(path)

    return load


def _described(group: Group, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    assert group.sampler_logps is not None and group.prompt.sample is not None
    (message,) = group.prompt.sample.messages
    return {
        "prompt": message["content"][-1]["text"],
        "prompt_tokens": group.prompt.input_ids.numel(),
        "completions": [
            {
                "text": tokenizer.decode(tokens, skip_special_tokens=True),
                "finished": finished,
                "tokens": tokens.tolist(),
                "logps": logps.tolist(),
            }
            for tokens, logps, finished in zip(group.completions, group.sampler_logps, group.finished, strict=True)
        ],
    }


def _show(found: Sequence[dict[str, Any]]) -> None:
    for one in found:
        if len(found) > 1:
            print(f"# {one['prompt']}")
        for number, completion in enumerate(one["completions"], 1):
            cut = "" if completion["finished"] else " …"
            head = f"[{number}] " if len(one["completions"]) > 1 else ""
            print(f"{head}{completion['text']}{cut}")
