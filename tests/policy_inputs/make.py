"""Tiny configs and files of the three families, pictures and samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLModel,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLModel,
    Qwen3VLProcessor,
)

from grpo_fast.types import Sample

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
FAMILIES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLModel, Qwen2VLProcessor),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2_5_VLProcessor),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLModel, Qwen3VLProcessor),
}
# Renders what Qwen2-VL's published template renders: a default system turn, then each turn with its parts in order.
CHAT_TEMPLATE = """
{%- for message in messages -%}
{%- if loop.first and message.role != "system" -%}
{{ "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" }}
{%- endif -%}
{{ "<|im_start|>" + message.role + "\n" }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == "image" or "image" in part -%}{{ "<|vision_start|><|image_pad|><|vision_end|>" }}
{%- elif part.type == "video" or "video" in part -%}{{ "<|vision_start|><|video_pad|><|vision_end|>" }}
{%- elif "text" in part -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ "<|im_end|>\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\n" }}{%- endif -%}
"""


def build_config(model_type: str, tokenizer: PreTrainedTokenizerFast):
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "num_heads": 2, "patch_size": 16 if model_type == "qwen3_vl" else 14}
    vision |= {"embed_dim": 32} if model_type == "qwen2_vl" else {"intermediate_size": 32, "out_hidden_size": 32}
    vision |= {"tokens_per_second": 2} if model_type == "qwen2_5_vl" else {}
    vision |= {"hidden_size": 32}
    tokens = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()}
    return FAMILIES[model_type][0](text_config=text, vision_config=vision, **ids)


def preprocessing(model_type: str) -> dict:
    """As the hub has it: Qwen2 and 2.5 with pixel limits, Qwen3 with edges."""
    if model_type == "qwen3_vl":
        size = {"shortest_edge": 64 * 64, "longest_edge": 256 * 256}
        values = {"size": size, "patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return {"image_processor_type": "Qwen2VLImageProcessorFast", "temporal_patch_size": 2, "merge_size": 2} | values
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 56 * 56,
        "max_pixels": 224 * 224,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels, "RGBA")
    return rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)


def sample_of(*parts: str | Image.Image | list[Image.Image], id: str = "s1", fps: Any = None) -> Sample:
    """One user turn; strings are text, images are images, lists of images are videos."""
    content, images, videos = [], [], []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif isinstance(part, list):
            content.append({"type": "video"} if fps is None else {"type": "video", "fps": fps})
            videos.append(lambda part=part: part)
        else:
            content.append({"type": "image"})
            images.append(lambda part=part: part)
    return Sample(id, [{"role": "user", "content": content}], tuple(images), tuple(videos))
