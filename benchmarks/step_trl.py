"""TRL's real GRPOTrainer beside GRPOPolicy on the optimisation part of a step: loss, backward, nothing else.

TRL generates and scores one group by its own methods, offline, without torchvision; its completions are then cut to
unequal lengths, and both sides train on exactly that batch. Gradients are compared before any time is taken.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from measure import interleave
from step_sides import QUICK, SMALL, Scale, build_model, fresh, worst_gradient_difference
from torch import Tensor

SPECIAL = (
    "<|endoftext|>",
    "<|bos|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
QUESTION = "which modality is this: ct, mri, x ray or ultrasound?"
ALLOWED_GRADIENT_DIFFERENCE = 1e-5
NOTE = "on a CPU, TRL scores every completion position, padding included; on a Triton device it leaves padding out"


def measure_trl(device: str, rounds: int, quick: bool) -> dict[str, Any]:
    scale = replace(QUICK if quick else SMALL, device=device)
    sides, prompt = beside_trl(scale)
    for _, step in sides.values():
        step()
    difference = worst_gradient_difference(sides["ours"][0].model, sides["trl"][0])
    if not difference < ALLOWED_GRADIENT_DIFFERENCE:
        raise RuntimeError(f"gradients differ by {difference:.1e} from TRL's: no time is reported")
    steps = {name: fresh(*side) for name, side in sides.items()}
    timings = interleave(steps, rounds, torch.device(device), lambda: None)
    return {
        "speedup": timings["trl"].median_ms / timings["ours"].median_ms,
        "ours_ms": timings["ours"].median_ms,
        "trl_ms": timings["trl"].median_ms,
        "grad_difference": difference,
        "hidden": scale.hidden,
        "vocab": scale.vocab,
        "prompt": prompt,
        "completions": list(scale.completions),
        "note": NOTE,
    }


def beside_trl(scale: Scale) -> tuple[dict[str, tuple[Any, Callable[[], None]]], int]:
    """TRL's own loss and backward and GRPOPolicy's, on the batch that TRL generated, each with a model of its own; and
    the prompt's tokens. A step adds to the gradients that are there."""
    from grpo_fast.losses.grpo import GRPOLoss
    from grpo_fast.policy import GRPOPolicy, Packer

    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(scale, folder)
        batch = cut(generate(trainer), scale.completions)
    theirs = trainer.model
    policy = GRPOPolicy(copy.deepcopy(theirs), GRPOLoss(loss_type="dapo"))
    group = group_of(batch, policy)
    packer = Packer(policy.prompt_spec, 2**20, policy.loss.options)

    def ours_step() -> None:
        policy.features.clear()
        for packed in packer.pack([group]).batches:
            policy(packed.to(scale.device)).loss.backward()

    def trl_step() -> None:
        trainer.compute_loss(theirs, dict(batch)).backward()

    return {"ours": (policy, ours_step), "trl": (theirs, trl_step)}, len(group.prompt.input_ids)


def build_trainer(scale: Scale, folder: str, prompts: int = 1) -> Any:
    """Its data set holds every prompt once for each of its completions."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    group = len(scale.completions)
    rows = prompts * group
    images = [image for image in pictures(scale, prompts) for _ in range(group)]
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": QUESTION}]] * rows, "image": images})
    config = GRPOConfig(
        output_dir=folder, per_device_train_batch_size=rows, num_generations=group, bf16=False, report_to=[],
        max_completion_length=max(scale.completions), gradient_checkpointing=False, use_cpu=scale.device == "cpu",
        loss_type="dapo", beta=0.0, generation_kwargs={"suppress_tokens": list(range(len(SPECIAL)))},
        disable_tqdm=True,
    )  # fmt: skip

    return GRPOTrainer(
        model=build_model(scale),
        reward_funcs=reward,
        args=config,
        train_dataset=data,
        processing_class=_processor(scale),
    )


def pictures(scale: Scale, count: int) -> list[Any]:
    import numpy as np
    from PIL import Image

    side = 14 * scale.image
    noise = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


def reward(completions: list[Any], **_: Any) -> list[float]:
    return [float(i % 3) for i in range(len(completions))]


def generate(trainer: Any) -> dict[str, Any]:
    rows = list(trainer.train_dataset)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions(rows)


def cut(batch: dict[str, Any], lengths: tuple[int, ...]) -> dict[str, Any]:
    """The same batch with completions that end where `lengths` say, as if each had met its stop token there."""
    mask = torch.zeros_like(batch["completion_mask"])
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = 1
    ids = torch.where(mask.bool(), batch["completion_ids"], 0)
    return batch | {"completion_ids": ids, "completion_mask": mask, "num_items_in_batch": mask.sum()}


def group_of(batch: dict[str, Any], policy: Any) -> Any:
    from grpo_fast.types import Group, Prompt, VisionInput

    prompt = batch["prompt_ids"][0][batch["prompt_mask"][0].bool()].cpu()
    grid = batch["image_grid_thw"][:1].cpu()
    pixels: Tensor = batch["pixel_values"][: int(grid.prod())].cpu()
    types = (prompt == policy.config.image_token_id).int()[None]
    positions, _ = policy.model.model.get_rope_index(prompt[None], types, image_grid_thw=grid)
    t, h, w = grid[0].tolist()
    completions = [
        ids[mask.bool()].cpu() for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    image = VisionInput("image", pixels, (t, h, w), "one")
    return Group(Prompt(prompt, positions[:, 0], (image,)), tuple(completions), advantages=batch["advantages"].cpu())


def _processor(scale: Scale) -> Any:
    """A tokenizer made on the spot and the PIL image processor: no files, no network, no torchvision."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.processing_utils import ProcessorMixin

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    made.train_from_iterator([QUESTION] * 4, learn)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=SPECIAL[2], pad_token=SPECIAL[0], additional_special_tokens=list(SPECIAL[3:])
    )

    class OfflineProcessor(Qwen2VLProcessor):
        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any
        ) -> None:
            self.image_token, self.video_token = SPECIAL[5], SPECIAL[6]
            self.image_token_id, self.video_token_id = map(tokenizer.convert_tokens_to_ids, SPECIAL[5:])
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    side = (14 * scale.image) ** 2
    return OfflineProcessor(Qwen2VLImageProcessorPil(min_pixels=side, max_pixels=side), tokenizer, TEMPLATE)
