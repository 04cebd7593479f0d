"""One step of TRL's real GRPOTrainer on the tiny Qwen2-VL: what it sampled, and what that did to the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Equally long: transformers 5.23 places images wrongly in the left-padded rows that TRL makes of unequal prompts.
QUESTIONS = tuple(f"Is sign {number} seen? A) yes B) no" for number in range(1, 5))
GROUP = 4
LIMIT = 10


@dataclass
class Step:
    prompts: list[Tensor]  # one for each group
    completions: list[tuple[Tensor, ...]]  # G for each group
    finished: list[tuple[bool, ...]]
    rewards: Tensor  # [groups, G]
    loss: float
    gradients: dict[str, Tensor]  # after clipping
    norm: float
    weights: dict[str, Tensor]  # afterwards


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (len(QUESTIONS), 56, 84, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


def run(model: Path, folder: Path, *, accumulation: int, learning_rate: float, **options: Any) -> Step:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer, processor = _processor(model)
    config = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=len(QUESTIONS) * GROUP // accumulation, max_steps=1,
        gradient_accumulation_steps=accumulation, num_generations=GROUP, max_completion_length=LIMIT, use_cpu=True,
        bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True, logging_steps=1,
        learning_rate=learning_rate, lr_scheduler_type="constant", optim="adamw_torch", save_strategy="no",
        shuffle_dataset=False, model_init_kwargs={"dtype": "float32"}, seed=1,
        generation_kwargs={"suppress_tokens": [0, 1, 3, 4, 5, 6]}, **options,
    )  # fmt: skip
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    data = Dataset.from_dict({"prompt": prompts, "image": pictures()})
    sampled: dict[str, Any] = {}
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}

    class Recording(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            sampled.update({name: value.clone() for name, value in found.items() if isinstance(value, Tensor)})
            return found

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

    class Before(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    trainer = Recording(
        model=str(model), reward_funcs=reward, args=config, train_dataset=data, processing_class=processor,
        callbacks=[Before()],
    )  # fmt: skip
    trainer.train()
    ids, mask = sampled["completion_ids"], sampled["completion_mask"].bool()
    prompt_mask = sampled["prompt_mask"].bool()
    rows = [row[keep] for row, keep in zip(ids, mask, strict=True)]
    ends = [bool(row[-1] == tokenizer.eos_token_id) for row in rows]
    groups = range(0, len(rows), GROUP)
    norm = next(line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line)
    assert trainer.model is not None
    return Step(
        prompts=[sampled["prompt_ids"][i][prompt_mask[i]] for i in groups],
        completions=[tuple(rows[i : i + GROUP]) for i in groups],
        finished=[tuple(ends[i : i + GROUP]) for i in groups],
        rewards=torch.tensor([reward([row.tolist() for row in rows[i : i + GROUP]]) for i in groups]),
        loss=sum(losses),
        gradients=gradients,
        norm=float(norm),
        weights={name: p.detach().clone() for name, p in trainer.model.named_parameters()},
    )


def _processor(model: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.processing_utils import ProcessorMixin

    class WithoutVideo(Qwen2VLProcessor):  # transformers' own asks for torchvision, for videos
        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any
        ) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = (
                tokenizer.convert_tokens_to_ids(token) for token in (self.image_token, self.video_token)
            )
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    tokenizer = AutoTokenizer.from_pretrained(model)
    images = Qwen2VLImageProcessorPil.from_pretrained(model)
    return tokenizer, WithoutVideo(images, tokenizer, tokenizer.chat_template)
