"""The two sides of the step benchmark: plain transformers with every prompt repeated G times, and GRPOPolicy.

As a script: the peak memory of one side, as JSON; see `peak_mb`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from measure import import_package
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

PAD, VISION_START, VISION_END, IMAGE, VIDEO, FIRST_TEXT = 0, 3, 4, 5, 6, 7
SIDES = ("ours", "repeated")


@dataclass(frozen=True, slots=True)
class Scale:
    """Qwen2-VL at the widths of its 2B model unless said otherwise, and one group."""

    hidden: int = 1536
    intermediate: int = 8960
    layers: int = 2
    heads: int = 12
    kv_heads: int = 2
    tower_width: int = 1280
    tower_layers: int = 2
    tower_heads: int = 16
    vocab: int = 2048
    image: int = 32  # patches a side; four patches make one token
    text: int = 32  # the prompt's tokens beside the image's, its two markers included
    completions: tuple[int, ...] = (64, 40, 64, 30, 50, 64, 20, 48)
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def prompt(self) -> int:
        return self.image**2 // 4 + self.text


QUICK = Scale(
    hidden=128, intermediate=256, heads=4, tower_width=64, tower_heads=2, vocab=512, image=8, completions=(8, 5, 7)
)
SMALL = Scale(
    hidden=512, intermediate=2048, layers=4, heads=8, tower_width=384, tower_layers=4, tower_heads=6, vocab=4096
)
FULL_2B = Scale(
    layers=28, tower_layers=32, vocab=151936, image=62, text=63, device="cuda", dtype="bfloat16",
    completions=(512, 330, 512, 240, 400, 512, 160, 384),
)  # fmt: skip


def build_model(scale: Scale) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    half = scale.hidden // scale.heads // 2
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=scale.vocab, hidden_size=scale.hidden, intermediate_size=scale.intermediate,
            num_hidden_layers=scale.layers, num_attention_heads=scale.heads, num_key_value_heads=scale.kv_heads,
            max_position_embeddings=32768, pad_token_id=PAD, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        ),
        vision_config=dict(
            depth=scale.tower_layers, embed_dim=scale.tower_width, hidden_size=scale.hidden,
            num_heads=scale.tower_heads, mlp_ratio=4, in_channels=3, patch_size=14, spatial_merge_size=2,
            temporal_patch_size=2,
        ),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END, tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device(scale.device):
        model = Qwen2VLForConditionalGeneration(config)
    return model.to(getattr(torch, scale.dtype)).train()


def build_group(scale: Scale, model: Any, seed: int = 1) -> Any:
    from grpo_fast.types import Group, Prompt, VisionInput

    generator = torch.Generator().manual_seed(seed)

    def text(count: int) -> Tensor:
        return torch.randint(FIRST_TEXT, scale.vocab, (count,), generator=generator)

    image = torch.full((scale.image**2 // 4,), IMAGE)
    ids = torch.cat([torch.tensor([1, VISION_START]), image, torch.tensor([VISION_END]), text(scale.text - 3)])
    grid = (1, scale.image, scale.image)
    pixels = torch.randn(scale.image**2, 3 * 2 * 14 * 14, generator=generator)
    types = (ids == IMAGE).int()[None]
    positions, _ = model.model.get_rope_index(ids[None], types, image_grid_thw=torch.tensor([grid]))
    return Group(
        Prompt(ids, positions[:, 0], (VisionInput("image", pixels, grid, f"image {seed}"),)),
        tuple(text(length) for length in scale.completions),
        advantages=torch.randn(len(scale.completions), generator=generator),
    )


def ours(model: Any, group: Any) -> Callable[[], None]:
    """Packing, forward, loss and backward. Features are forgotten first: a training step meets its images anew."""
    from grpo_fast.losses.grpo import GRPOLoss
    from grpo_fast.policy import GRPOPolicy, Packer

    policy = GRPOPolicy(model, GRPOLoss(loss_type="grpo"))
    device = next(model.parameters()).device

    def step() -> None:
        policy.features.clear()
        for batch in Packer(policy.prompt_spec, 2**20, policy.loss.options).pack([group]).batches:
            policy(batch.to(device)).loss.backward()

    return step


def repeated(model: Any, group: Any) -> Callable[[], None]:
    """The same loss on a right-padded batch of G prompts and G images; logits for completion rows only."""
    device = next(model.parameters()).device
    (image,) = group.prompt.vision
    prompt, completions, longest = group.prompt.input_ids, group.completions, max(map(len, group.completions))

    def step() -> None:
        ids = torch.full((len(completions), len(prompt) + longest), PAD)
        mask = torch.zeros_like(ids)
        for i, completion in enumerate(completions):
            end = len(prompt) + len(completion)
            ids[i, :end], mask[i, :end] = torch.cat([prompt, completion]), 1
        logits = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            pixel_values=image.pixels.repeat(len(completions), 1).to(device),
            image_grid_thw=torch.tensor([image.grid] * len(completions)).to(device),
            mm_token_type_ids=(ids == IMAGE).int().to(device),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits[:, :-1]
        targets, scored = ids[:, len(prompt) :].to(device), mask[:, len(prompt) :].to(device)
        logps = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        ratio = (logps - logps.detach()).exp()
        means = (ratio * scored).sum(1) / scored.sum(1)
        (-(means * group.advantages.to(device)).mean()).backward()

    return step


def sides(scale: Scale, trained: bool) -> dict[str, tuple[Any, Callable[[], None]]]:
    """Each side with a model of its own, equal in every weight."""
    made = {}
    for name in SIDES:
        model = build_model(scale)
        model.model.visual.requires_grad_(trained)
        made[name] = (model, (ours if name == "ours" else repeated)(model, build_group(scale, model)))
    return made


def fresh(model: Any, step: Callable[[], None]) -> Callable[[], None]:
    """The step from no gradients at all."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        step()

    return run


def worst_gradient_difference(model: Any, truth: Any) -> float:
    mine, theirs = dict(model.named_parameters()), dict(truth.named_parameters())
    if {n for n, p in mine.items() if p.grad is None} != {n for n, p in theirs.items() if p.grad is None}:
        raise RuntimeError("the two sides do not train the same parameters")
    return max(
        ((mine[n].grad.double() - p.grad.double()).norm() / p.grad.double().norm().clamp_min(1e-30)).item()
        for n, p in theirs.items()
        if p.grad is not None
    )


@dataclass(slots=True)
class Counts:
    patches: int = 0
    lm_tokens: int = 0
    flops: int = 0


@contextmanager
def counting(model: Any) -> Iterator[Counts]:
    """What passes through the first block of the tower and of the language model, and every product's FLOPs."""
    counts = Counts()

    def patches(_: Any, args: Any) -> None:
        counts.patches += args[0].shape[0]

    def tokens(_: Any, args: Any, kwargs: Any) -> None:
        counts.lm_tokens += (args[0] if args else kwargs["hidden_states"]).shape[:2].numel()

    _count_cpu_attention()
    core = model.model
    hooks = [
        core.visual.blocks[0].register_forward_pre_hook(patches),
        core.language_model.layers[0].register_forward_pre_hook(tokens, with_kwargs=True),
    ]
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            yield counts
    finally:
        counts.flops = counter.get_total_flops()
        for hook in hooks:
            hook.remove()


def _count_cpu_attention() -> None:
    """torch counts no FLOPs of attention on a CPU. Masked scores count in full, on both sides."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if forward in flop_registry:
        return

    def pair(q: Any, k: Any) -> int:  # one product of queries and keys: [B, Hq, Q, D] with [B, Hk, K, D]
        return 2 * q[0] * q[1] * q[2] * k[2] * q[3]

    @register_flop_formula(forward)
    def forward_flop(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return 2 * pair(q, k)

    @register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
    def backward_flop(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return 5 * pair(q, k)


def peak_mb(scale: Scale, side: str, trained: bool, threads: int) -> float | None:
    """Peak memory of a step beyond weights and gradients: the resident set's high-water mark on Linux, in a process of
    its own where freed blocks go back at once (see peak.py); the allocator's own mark on CUDA. None elsewhere."""
    import peak

    if scale.device == "cpu" and not os.access(peak.CLEAR_REFS, os.W_OK):
        return None
    request = {"scale": asdict(scale), "side": side, "trained": trained, "threads": threads}
    child = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=os.environ | peak.CHILD_ENV,
    )
    if child.returncode != 0:
        raise RuntimeError(f"measuring the memory of {side!r} failed:\n{child.stderr[-2000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def _serve() -> None:
    import peak

    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    import_package()
    scale = Scale(**request["scale"] | {"completions": tuple(request["scale"]["completions"])})
    model = build_model(scale)
    model.model.visual.requires_grad_(request["trained"])
    step = (ours if request["side"] == "ours" else repeated)(model, build_group(scale, model))
    step()  # gradients now exist; every later step adds to them in place
    gc.collect()
    if scale.device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        extra = torch.cuda.max_memory_allocated() - before
    else:
        before = peak.resident("VmRSS", reset=True)
        step()
        extra = peak.resident("VmHWM") - before
    print(extra / 1e6)


if __name__ == "__main__":
    _serve()
