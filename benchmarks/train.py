"""`throughput.py train`: whole training steps, ours beside TRL's GRPOTrainer on the same small Qwen2-VL.

A step is everything between a question with its picture and new weights: processing, rollout, reward, scoring, update.
Both sample every completion to its full length, so both make equally many tokens. TRL runs by its own methods, with
the loss and the generation that it comes with. That gradients agree is measured by `throughput.py step`.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from measure import commit, interleave, machine, versions
from progress import Progress
from step_sides import FULL_2B, QUICK, SMALL, Scale
from step_trl import NOTE, QUESTION, TEMPLATE, build_trainer, generate, pictures, reward

BRIEF = {"cpu": ["--rounds", "2", "--prompts", "1"], "cuda": ["--rounds", "1"]}
LEARNING_RATE = 1e-6
CPU = replace(SMALL, completions=(64,) * 8)
CUDA = replace(FULL_2B, completions=(512,) * 8)
TINY = replace(QUICK, completions=(6,) * 3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, help="questions of a step (default 2 on a CPU, 8 on CUDA)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and one round: checks, not numbers")


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    scale = TINY if args.quick else CUDA if args.device == "cuda" else CPU
    scale = replace(scale, device=args.device)
    prompts = args.prompts or (8 if args.device == "cuda" and not args.quick else 2)
    rounds = 1 if args.quick else args.rounds
    with tempfile.TemporaryDirectory() as folder, Progress() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainer's own
        progress.expect(2 * (rounds + 1))
        trainer = build_trainer(scale, folder, prompts)
        ours, prompt_ids = our_step(scale, trainer, prompts)
        if prompt_ids != trainer_prompt_ids(trainer):
            raise RuntimeError("the two sides were given different prompts: no time is reported")
        sides = {"ours": ours, "trl": trl_step(trainer)}
        for name, step in sides.items():
            progress.say(name)
            made = step()
            progress.tick()
            expected = prompts * sum(scale.completions)
            if made != expected:
                raise RuntimeError(f"{name} made {made} tokens, not {expected}: no time is reported")
        timings = interleave(
            {name: lambda step=step: step() and None for name, step in sides.items()}, rounds,
            torch.device(args.device), progress.tick,
        )  # fmt: skip
    completions = prompts * len(scale.completions)
    rows = [
        {
            "side": name,
            "seconds": timing.median_ms / 1e3,
            "seconds_min": timing.min_ms / 1e3,
            "seconds_max": timing.max_ms / 1e3,
            "completions_per_s": completions / timing.median_ms * 1e3,
        }
        for name, timing in timings.items()
    ]
    result: dict[str, Any] = {
        "speedup_vs_trl": timings["trl"].median_ms / timings["ours"].median_ms,
        "train": rows,
        "scale": asdict(scale) | {"prompts": prompts, "prompt": len(prompt_ids[0]), "group": len(scale.completions)},
        "note": NOTE,
    }
    return result | {"machine": machine(torch.device(args.device)), "versions": versions(), "commit": commit()}


def our_step(scale: Scale, trainer: Any, count: int) -> tuple[Callable[[], int], list[list[int]]]:
    """The step, which gives the number of tokens it sampled, and its prompts' ids."""
    from grpo_fast.ops.advantages import group_advantages
    from grpo_fast.policy.patches import VisionSettings
    from grpo_fast.policy.processor import Processor
    from grpo_fast.rollout import Engine, SamplingParams
    from grpo_fast.train import assemble
    from grpo_fast.train.optim import build_optimizer
    from grpo_fast.train.ranks import Ranks
    from grpo_fast.train.settings import Settings
    from grpo_fast.train.update import Updater
    from grpo_fast.types import Sample

    settings, ranks = Settings(), Ranks(0, 1, torch.device(scale.device))
    model = copy.deepcopy(trainer.model)
    policy = assemble.policy_of(model, settings, ranks)
    tokenizer, side = trainer.processing_class.tokenizer, (14 * scale.image) ** 2
    images = VisionSettings(min_pixels=side, max_pixels=side)
    processor = Processor(tokenizer, images, model.config, chat_template=TEMPLATE)
    engine = Engine(policy, tokenizer=tokenizer)
    optimizer = build_optimizer(policy, settings.optim, LEARNING_RATE)
    update = Updater(policy, optimizer, ranks, token_budget=settings.optim.token_budget, max_grad_norm=1.0)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    samples = [
        Sample(str(number), [{"role": "user", "content": content}], (lambda image=image: image,))
        for number, image in enumerate(pictures(scale, count))
    ]
    group = len(scale.completions)
    sampling = SamplingParams(max_tokens=scale.completions[0], stop_tokens=())

    def step() -> int:
        policy.features.clear()
        prompts = [processor(sample) for sample in samples]
        groups = engine.generate(prompts, group, sampling)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for one in groups for ids in one.completions]
        advantages = group_advantages(torch.tensor(reward(texts)), group).split(group)
        update(
            [
                replace(one, sampler_logps=None, advantages=advantage)
                for one, advantage in zip(groups, advantages, strict=True)
            ]
        )
        return sum(ids.numel() for one in groups for ids in one.completions)

    return step, [processor(sample).input_ids.tolist() for sample in samples]


def trl_step(trainer: Any) -> Callable[[], int]:
    model = trainer.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def step() -> int:
        batch = generate(trainer)
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return int(batch["completion_mask"].sum())

    return step


def trainer_prompt_ids(trainer: Any) -> list[list[int]]:
    batch = generate(trainer)
    group = trainer.num_generations
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)][
        ::group
    ]


def show(result: dict[str, Any]) -> None:
    scale = result["scale"]
    print(
        f"{scale['prompts']} prompts × {scale['group']} completions of {scale['completions'][0]} tokens, prompts of "
        f"{scale['prompt']} tokens, hidden {scale['hidden']}, V={scale['vocab']}"
    )
    print(f"{'side':6} {'seconds':>9} {'min':>8} {'max':>8} {'completions/s':>14}")
    for row in result["train"]:
        print(
            f"{row['side']:6} {row['seconds']:9.2f} {row['seconds_min']:8.2f} {row['seconds_max']:8.2f} "
            f"{row['completions_per_s']:14.2f}"
        )
    print(f"{result['speedup_vs_trl']:.2f} x TRL's trainer; {result['note']}")
