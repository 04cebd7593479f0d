"""What a local folder or hub repository holds: its weights, and what it says about its prompts in every layout that the
hub has used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.errors import BadCheckpoint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def load_model(name: str | Path, dtype: Any, *, trust_remote_code: bool = False) -> Any:
    """`dtype`: torch's, or "auto" for the checkpoint's own. Pickled weights are not read, missing ones not made up."""
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadCheckpoint(f"{name}: its weights cannot be loaded: {first_line(error)}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise BadCheckpoint(f"{name}: {len(missing)} weights are missing, {missing[0]} the first")
    return model


def load_tokenizer_and_config(name: str | Path) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    from transformers import AutoConfig, AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name), AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{name}: tokenizer or config.json cannot be loaded: {error}") from error


def load_chat_template(name: str | Path) -> str | None:
    """The processor's template, where several are given the one that transformers takes; None: the tokenizer's own."""
    for file in ("processor_config.json", "chat_template.json"):
        if text := (read_json(name, file) or {}).get("chat_template"):
            return text
    return read(name, "chat_template.jinja")


def load_preprocessing(name: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(image, video): nested in processor_config.json first, then their own files, then the image's for both."""
    nested = read_json(name, "processor_config.json") or {}
    image = nested.get("image_processor") or read_json(name, "preprocessor_config.json")
    if image is None:
        raise BadCheckpoint(
            f"{name} has neither preprocessor_config.json nor an image_processor in processor_config.json"
        )
    video = nested.get("video_processor") or read_json(name, "video_preprocessor_config.json") or image
    return image, video


def read_json(name: str | Path, filename: str) -> dict[str, Any] | None:
    text = read(name, filename)
    try:
        return None if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise BadCheckpoint(f"{name}: {filename} is not JSON: {error}") from error


def read(name: str | Path, filename: str) -> str | None:
    if Path(name).is_dir():
        path = Path(name) / filename
        return path.read_text(encoding="utf-8") if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(str(name), filename)).read_text(encoding="utf-8")
    except EntryNotFoundError:
        return None


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
