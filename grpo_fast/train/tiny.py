"""A Qwen2-VL of about a million parameters, built from a config, in a folder that loads like any checkpoint.

Its tokenizer is trained on the texts it will meet and holds every byte, so that any text can be encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.errors import BadSettings, RunFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # one token each, which may be sampled
VOCABULARY = 768
MIN_PIXELS, MAX_PIXELS = 56 * 56, 84 * 56  # any square image, and one of 4:3, becomes 56 x 56: 4 tokens

# A prompt is its text and one token; a reply ends with another.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}{{ '<|im_start|>' }}{%- endif -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part.type == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif part.text is defined -%}{{ part.text }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- if message.role == 'assistant' -%}{{ '<|im_end|>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>' }}{%- endif -%}"
)


def build(
    folder: str | Path,
    texts: Iterable[str],
    *,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    hidden: int = 128,
    layers: int = 3,
    vision_layers: int = 2,
    vision_width: int = 96,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> Path:
    """Writes config, weights, tokenizer, preprocessing and chat template; the same arguments write the same bytes."""
    import torch
    from safetensors import SafetensorError
    from transformers import Qwen2VLForConditionalGeneration

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts, vocabulary)
    config = tiny_config(tokenizer, hidden, layers, vision_layers, vision_width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(config)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing(min_pixels, max_pixels), indent=1))
    except (OSError, SafetensorError) as error:  # safetensors has its own name for a full disk
        raise RunFailed(f"the tiny model could not be written to {folder}: {error}") from error
    return folder


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-level BPE: common words become one token, everything else falls back to bytes."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(SPECIAL) + len(TAGS) + len(alphabet)
    if vocabulary < smallest:
        raise BadSettings(f"a vocabulary of {vocabulary} tokens is too small: bytes and tags alone are {smallest}")
    bpe = Tokenizer(models.BPE())
    # An option's letter stands apart from the space before it, so that it is the same token in question and answer.
    option = pre_tokenizers.Split(Regex(r"(?<![\p{L}\p{N}])[A-Za-z](?=[).:])"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([option, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TAGS), special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((_without_tags(text) for text in texts), trainer)
    bpe.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _without_tags(text: str) -> str:
    for tag in TAGS:
        text = text.replace(tag, "\n")
    return text


def tiny_config(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, vision_layers: int, width: int) -> Any:
    from transformers import Qwen2VLConfig

    # With the stock 0.02 neither tower learns to look at the image within thousands of steps.
    spread = 0.08
    heads = hidden // 32
    token: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    ends: dict[str, Any] = {
        "eos_token_id": token["<|im_end|>"],
        "pad_token_id": token["<|endoftext|>"],
        "bos_token_id": None,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 2, 1),
        "max_position_embeddings": 8192,
        # With 1e4 the width axis, which has the lowest frequencies, turns by less than 0.004 a position.
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 7, 7], "rope_theta": 10.0},
        "tie_word_embeddings": True,
        "initializer_range": spread,
        **ends,
    }
    vision = {
        "depth": vision_layers,
        "embed_dim": width,
        "hidden_size": hidden,
        "num_heads": width // 32,
        "mlp_ratio": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": spread,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
        **ends,
    )


def preprocessing(min_pixels: int, max_pixels: int) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.27, 0.27, 0.27],
    }
