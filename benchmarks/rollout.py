"""`throughput.py rollout`: G completions of each prompt by our engine beside `generate` of transformers.

transformers runs at its best of a dynamic and a static cache (which it compiles on CUDA), with every prompt and image
repeated G times, and with `num_return_sequences`, which encodes the image once; it is not asked for log-probs, ours are
recorded. Greedy tokens are compared before any time is taken. Every completion is cut at R tokens, none stops earlier.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from measure import commit, machine, synchronize, versions
from step_sides import FULL_2B, IMAGE, QUICK, Scale, build_group, build_model

CPU = Scale(
    hidden=512, intermediate=2048, layers=4, heads=8, kv_heads=2, tower_width=512, tower_layers=4, tower_heads=8,
    vocab=8192, image=32, text=44, completions=(64,) * 8,
)  # fmt: skip
CUDA = replace(FULL_2B, completions=(256,) * 8)
TINY = replace(QUICK, completions=(6,) * 3)
BRIEF = {"cpu": ["--rounds", "1", "--prompts", "1", "--caches", "dynamic"], "cuda": ["--rounds", "1"]}
CACHES = ("dynamic", "static")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, help="prompts at once (default 2 on a CPU, 64 on CUDA)")
    parser.add_argument(
        "--caches", nargs="+", choices=CACHES, default=list(CACHES), help="of transformers; default: both"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model and one round: checks, not numbers")


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    scale = TINY if args.quick else CUDA if args.device == "cuda" else CPU
    scale = replace(scale, device=args.device)
    count = args.prompts or (64 if args.device == "cuda" and not args.quick else 2)
    device, group, tokens = torch.device(args.device), len(scale.completions), scale.completions[0]
    engine, sides = build_sides(scale, count, args.caches)
    check_greedy(sides, scale.dtype)

    clock = 0 if device.type == "cuda" else 1  # prefill's share of CPU time: wall clocks of two runs differ by too much
    totals, shares = ({name: [] for name in sides} for _ in range(2))
    ours = []
    names = list(sides)
    for number in range(1 if args.quick else args.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:  # drift falls on all alike
            generate = sides[name]
            whole = seconds(lambda run=generate: run(tokens, False), device)
            totals[name].append(whole)
            if name == "ours":
                ours.append(stats := engine.stats)
                shares[name].append(stats.prefill_seconds / (stats.prefill_seconds + stats.decode_seconds))
            else:
                shares[name].append(seconds(lambda run=generate: run(1, False), device)[clock] / whole[clock])
    rows = []
    for name, found in totals.items():
        wall, share = [first for first, _ in found], statistics.median(shares[name])
        median = statistics.median(wall)
        rows.append(
            {
                "side": name,
                "seconds": median,
                "seconds_min": min(wall),
                "seconds_max": max(wall),
                "cpu_seconds": statistics.median(cpu for _, cpu in found),
                "tokens_per_s": count * group * tokens / median,
                "prefill_s": share * median,
                "decode_s": (1 - share) * median,
                "kv_bytes": ours[0].kv_bytes if name == "ours" else repeated_kv_bytes(scale, count, group, tokens),
            }
        )
    best = {kind: min(row["seconds"] for row in rows if row["side"].startswith(kind)) for kind in ("repeated", "num")}
    mine = next(row for row in rows if row["side"] == "ours")
    result = {
        "speedup_vs_hf_generate": best["repeated"] / mine["seconds"],
        "speedup_vs_num_return_sequences": best["num"] / mine["seconds"],
        "kv_bytes_vs_hf": mine["kv_bytes"] / rows[-1]["kv_bytes"],
        **(decode_shares(engine, scale, count, ours) if device.type == "cuda" else {}),
        "scale": asdict(scale) | {"prompts": count, "prompt": scale.prompt, "group": group, "tokens": tokens},
        "rollout": rows,
    }
    return result | {"machine": machine(device), "versions": versions(), "commit": commit()}


def build_sides(
    scale: Scale, count: int, caches: Sequence[str]
) -> tuple[Any, dict[str, Callable[[int, bool], torch.Tensor]]]:
    """Each side as `generate(tokens, greedy)`, giving [prompts * G, tokens]; every side with a model of its own."""
    from grpo_fast.rollout import Engine, SamplingParams

    model, plain = (build_model(scale).eval().requires_grad_(False) for _ in range(2))
    group = len(scale.completions)
    prompts = [prompt(scale, model, number) for number in range(count)]
    engine = Engine(model, static_shapes=scale.device == "cuda")
    banned = list(engine.banned_tokens(SamplingParams(stop_tokens=())))

    def ours(tokens: int, greedy: bool) -> torch.Tensor:
        engine.policy.features.clear()  # a step meets its images anew
        groups = engine.generate(prompts, group, SamplingParams(max_tokens=tokens, stop_tokens=(), greedy=greedy))
        return torch.stack([completion for one in groups for completion in one.completions])

    def transformers(copies: int, cache: str) -> Callable[[int, bool], torch.Tensor]:
        ids = torch.stack([one.input_ids for one in prompts]).repeat_interleave(copies, 0).to(scale.device)
        images = [one.vision[0] for one in prompts for _ in range(copies)]
        pixels = torch.cat([image.pixels for image in images]).to(scale.device)
        grids = torch.tensor([image.grid for image in images], device=scale.device)

        @torch.no_grad()
        def generate(tokens: int, greedy: bool) -> torch.Tensor:
            # Greedy search refuses num_return_sequences; its rows are repeated afterwards, for the comparison alone.
            returned = 1 if greedy else group // copies
            out = plain.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, image_grid_thw=grids,
                mm_token_type_ids=(ids == IMAGE).int(), do_sample=not greedy, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=tokens, min_new_tokens=tokens, suppress_tokens=banned, pad_token_id=0, eos_token_id=2,
                num_return_sequences=returned, cache_implementation=None if cache == "dynamic" else cache,
            )  # fmt: skip
            return out[:, ids.shape[1] :].repeat_interleave(group // copies // returned, 0).cpu()

        return generate

    sides: dict[str, Callable[[int, bool], torch.Tensor]] = {"ours": ours}
    for cache in caches:
        sides[f"repeated, {cache} cache"] = transformers(group, cache)
        sides[f"num_return_sequences, {cache} cache"] = transformers(1, cache)
    return engine, sides


def prompt(scale: Scale, model: Any, number: int) -> Any:
    """The step benchmark's prompt with an image and a question of its own."""
    base = build_group(scale, model).prompt
    image = base.vision[0]
    ids = base.input_ids.clone()
    generator = torch.Generator().manual_seed(number)
    ids[-8:] = torch.randint(7, scale.vocab, (8,), generator=generator)
    pixels = torch.randn(image.pixels.shape, generator=generator)
    return replace(base, input_ids=ids, vision=(replace(image, pixels=pixels, key=str(number)),))


def check_greedy(sides: dict[str, Callable[[int, bool], torch.Tensor]], dtype: str) -> None:
    """In fp32 every side must say the same; in lower precision near-ties may fall either way."""
    found = {name: generate(8 if dtype == "float32" else 1, True) for name, generate in sides.items()}
    wrong = [name for name, tokens in found.items() if not torch.equal(tokens, found["ours"])]
    if wrong and dtype == "float32":
        raise RuntimeError(f"greedy tokens differ from those of {', '.join(wrong)}: no time is reported")


def seconds(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall clock, and what this process spent on the CPU."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def row_bytes(scale: Scale) -> int:
    size = getattr(torch, scale.dtype).itemsize
    return 2 * scale.layers * scale.kv_heads * (scale.hidden // scale.heads) * size


def repeated_kv_bytes(scale: Scale, prompts: int, group: int, tokens: int) -> int:
    return prompts * group * (scale.prompt + tokens) * row_bytes(scale)


def decode_shares(engine: Any, scale: Scale, prompts: int, stats: Sequence[Any]) -> dict[str, float]:
    """Least times of decoding over its own: weights and distinct keys and values read once a step, as fast as a large
    copy; and the same where the products, as fast as a large one, take longer than reading their weights."""
    buffer = torch.empty(1 << 30, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(buffer)
    square = torch.randn(8192, 8192, dtype=getattr(torch, scale.dtype), device=scale.device)
    device = buffer.device

    def rate(step: Callable[[], object], work: float) -> float:
        step()
        return 20 * work / seconds(lambda: [step() for _ in range(20)], device)[0]

    bytes_per_s = rate(lambda: target.copy_(buffer), 2 * buffer.numel())
    flops_per_s = rate(lambda: square @ square, 2 * len(square) ** 3)
    model = engine.policy.model
    parameters = [*model.model.language_model.layers.parameters(), model.lm_head.weight]
    reading = sum(p.numel() * p.element_size() for p in parameters) / bytes_per_s
    steps, rows = scale.completions[0] - 1, prompts * len(scale.completions)
    multiplying = 2 * rows * sum(p.numel() for p in parameters) / flops_per_s
    kv = (steps * prompts * scale.prompt + rows * steps * (steps + 1) // 2) * row_bytes(scale) / bytes_per_s
    took = statistics.median(one.decode_seconds for one in stats)
    return {
        "share_of_bandwidth_floor": (steps * reading + kv) / took,
        "share_of_roofline": (steps * max(reading, multiplying) + kv) / took,
    }


def show(result: dict[str, Any]) -> None:
    scale = result["scale"]
    print(
        f"{scale['prompts']} prompts x {scale['group']} completions, {scale['prompt']} prompt tokens "
        f"({scale['image'] ** 2 // 4} of an image), {scale['tokens']} tokens each; hidden {scale['hidden']}, "
        f"{scale['layers']} layers, vocabulary {scale['vocab']}, {scale['dtype']}"
    )
    heads = f"{'tokens/s':>9} {'seconds':>8} {'(min - max)':>15} {'CPU s':>6} {'prefill':>8} {'decode':>7} {'KV MB':>7}"
    print(f"{'':36} {heads}")
    for row in sorted(result["rollout"], key=lambda row: row["seconds"]):
        spread = f"({row['seconds_min']:.2f} - {row['seconds_max']:.2f})"
        print(
            f"{row['side']:36} {row['tokens_per_s']:9.0f} {row['seconds']:8.2f} {spread:>15} {row['cpu_seconds']:6.2f} "
            f"{row['prefill_s']:8.2f} {row['decode_s']:7.2f} {row['kv_bytes'] / 1e6:7.1f}"
        )
    shares = ""
    if "share_of_roofline" in result:
        bandwidth, roofline = (100 * result[f"share_of_{name}"] for name in ("bandwidth_floor", "roofline"))
        shares = f"; decoding at {bandwidth:.0f} % of the bandwidth floor, {roofline:.0f} % of the roofline"
    print(
        f"{result['speedup_vs_hf_generate']:.2f} x generate with repeated prompts, "
        f"{result['speedup_vs_num_return_sequences']:.2f} x num_return_sequences" + shares
    )
