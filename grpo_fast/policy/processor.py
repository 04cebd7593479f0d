"""A `Sample` to a `Prompt` for Qwen2-VL, Qwen2.5-VL and Qwen3-VL, without torchvision.

Ids, pixels and positions are those of transformers' processors and of the models' `get_rope_index`. Unlike them, a
placeholder that a user typed is refused, a prompt over the limit is refused or dropped whole, and every error names
the sample. It does not fetch or open files: a sample's loaders do, when asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from grpo_fast.errors import BadCheckpoint, PromptMismatch, PromptTooLong
from grpo_fast.policy.images import load_image, load_video
from grpo_fast.policy.patches import Clip, VisionSettings
from grpo_fast.policy.pretrained import load_chat_template, load_preprocessing, load_tokenizer_and_config
from grpo_fast.policy.rope_index import rope_index
from grpo_fast.policy.template import PromptTemplate, video_parts
from grpo_fast.types import Prompt, Sample

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
DEFAULT_FPS = 2.0  # the rate at which Qwen samples frames; a video part's own "fps" comes first

# What the processor classes assume where a checkpoint's files are silent.
QWEN2_VIDEO = {"min_pixels": 128 * 28 * 28, "max_pixels": 28 * 28 * 768}
QWEN3_IMAGE = {"patch_size": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3}
QWEN3_VIDEO = QWEN3_IMAGE | {"min_pixels": 128 * 32 * 32, "max_pixels": 32 * 32 * 768}


class Processor:
    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        images: VisionSettings,
        config: PretrainedConfig,
        *,
        videos: VisionSettings | None = None,  # None: as images
        chat_template: str | None = None,  # None: the tokenizer's
        max_prompt_tokens: int | None = None,
    ) -> None:
        if config.model_type not in MODEL_TYPES:
            raise BadCheckpoint(
                f"model type {config.model_type!r} is not supported; supported: {', '.join(MODEL_TYPES)}"
            )
        self.tokenizer = tokenizer
        self.config = config
        self.images = images
        self.videos = videos or images
        self.max_prompt_tokens = max_prompt_tokens
        self.template = PromptTemplate(tokenizer, config, chat_template)
        # Qwen3-VL writes the time into the prompt, one block per instant; Qwen2.5-VL into the positions.
        self.timestamps = config.model_type == "qwen3_vl"
        vision = config.vision_config
        self.tokens_per_second = vision.tokens_per_second if config.model_type == "qwen2_5_vl" else None
        wanted = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        for kind, settings in (("image", self.images), ("video", self.videos)):
            given = (settings.patch_size, settings.merge_size, settings.temporal_patch_size)
            if given != wanted:
                raise BadCheckpoint(
                    f"{kind} settings have (patch, merge, temporal patch) sizes {given}, the model's config {wanted}"
                )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_prompt_tokens: int | None = None,
        chat_template: str | None = None,
    ) -> Processor:
        """From a local folder or hub name. The pixel limits hold per image and, but for Qwen3-VL, per video frame."""
        tokenizer, config = load_tokenizer_and_config(name)
        image, video = load_preprocessing(name)
        qwen3 = config.model_type == "qwen3_vl"
        images = VisionSettings.from_dict(image, **(QWEN3_IMAGE if qwen3 else {}))
        videos = VisionSettings.from_dict(video, **(QWEN3_VIDEO if qwen3 else QWEN2_VIDEO))
        limits: dict[str, Any] = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        limits = {key: value for key, value in limits.items() if value is not None}
        return cls(
            tokenizer,
            replace(images, **limits),
            config,
            videos=videos if qwen3 else replace(videos, **limits),
            chat_template=chat_template or load_chat_template(name),
            max_prompt_tokens=max_prompt_tokens,
        )

    def __call__(self, sample: Sample) -> Prompt:
        text = self.template.render(sample)
        clips = self._load(text, sample)
        if self.timestamps:
            text = self._with_timestamps(text, clips)
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)

        blocks = [block for clip in clips for block in self._blocks(clip)]
        grids = torch.tensor([grid for grid, _ in blocks], dtype=torch.long).view(-1, 3)
        intervals = torch.tensor([interval for _, interval in blocks], dtype=torch.float32)
        placeholder = (ids == self.config.image_token_id) | (ids == self.config.video_token_id)
        if int(placeholder.sum()) != len(blocks):
            raise PromptMismatch(
                f"sample {sample.id!r}: {len(blocks)} vision blocks, but the tokenizer made {int(placeholder.sum())} "
                f"placeholder tokens; {self.template.image} and {self.template.video} must be special tokens"
            )
        counts = torch.ones_like(ids)
        counts[placeholder] = grids.prod(1)
        length = int(counts.sum())
        if self.max_prompt_tokens is not None and length > self.max_prompt_tokens:
            raise PromptTooLong(
                f"sample {sample.id!r}: the prompt has {length} tokens, {int(grids.prod(1).sum())} of them from images "
                f"and videos; the limit is {self.max_prompt_tokens}: raise max_prompt_tokens or lower max_pixels",
                tokens=length,
            )
        starts = (counts.cumsum(0) - counts)[placeholder]
        return Prompt(
            input_ids=ids.repeat_interleave(counts),
            positions=rope_index(length, starts, grids, intervals),
            vision=tuple(clip.patches() for clip in clips),
            sample=sample,
        )

    def many(
        self, samples: Iterable[Sample], on_long: Literal["error", "drop"] = "error"
    ) -> tuple[list[Prompt], list[str]]:
        """The prompts, and the ids of the samples dropped for being over `max_prompt_tokens`."""
        prompts: list[Prompt] = []
        dropped: list[str] = []
        for sample in samples:
            try:
                prompts.append(self(sample))
            except PromptTooLong:
                if on_long == "error":
                    raise
                dropped.append(sample.id)
        return prompts, dropped

    def _load(self, text: str, sample: Sample) -> list[Clip]:
        """In the order of their placeholders, which need not be images first."""
        images = (
            load_image(load, self.images, f"sample {sample.id!r}, image {index}")
            for index, load in enumerate(sample.images)
        )
        videos = (
            load_video(load, self.videos, fps, self.timestamps, f"sample {sample.id!r}, video {index}")
            for index, (load, fps) in enumerate(zip(sample.videos, self._rates(sample), strict=True))
        )
        return [next(images if kind == "image" else videos) for kind in self.template.kinds(text)]

    def _rates(self, sample: Sample) -> list[float]:
        rates = [part["fps"] if part.get("fps") is not None else DEFAULT_FPS for part in video_parts(sample)]
        if len(rates) != len(sample.videos):
            raise PromptMismatch(
                f'sample {sample.id!r} has {len(sample.videos)} video(s), but {len(rates)} {{"type": "video"}} part(s)'
            )
        for rate in rates:
            if not isinstance(rate, Real) or not 0 < float(rate) < math.inf:
                raise PromptMismatch(f"sample {sample.id!r}: a video's fps must be a number above 0, got {rate!r}")
        return [float(rate) for rate in rates]

    def _with_timestamps(self, text: str, clips: list[Clip]) -> str:
        """One placeholder per instant, each after its time: the mean of its first and last frame's."""
        template = self.template
        remaining = iter(clips)

        def expanded(clip: Clip) -> str:
            if clip.kind == "image":
                return template.image
            depth, last = clip.settings.temporal_patch_size, len(clip.frames) - 1
            times = [
                (first / clip.fps + min(first + depth - 1, last) / clip.fps) / 2
                for first in range(0, len(clip.frames), depth)
            ]
            block = template.vision_start + template.video + template.vision_end
            return "".join(f"<{time:.1f} seconds>{block}" for time in times)

        return template.placeholder.sub(lambda match: expanded(next(remaining)), text)

    def _blocks(self, clip: Clip) -> list[tuple[tuple[int, int, int], float]]:
        """(grid in tokens, positions that one step of t covers) of each run of placeholder tokens."""
        merge = clip.settings.merge_size
        steps, rows, columns = clip.grid[0], clip.grid[1] // merge, clip.grid[2] // merge
        if clip.kind == "video" and self.timestamps:
            return [((1, rows, columns), 1.0)] * steps
        if clip.kind == "video" and self.tokens_per_second is not None:
            return [((steps, rows, columns), self.tokens_per_second * clip.seconds_per_grid)]
        return [((steps, rows, columns), 1.0)]
