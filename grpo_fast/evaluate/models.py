"""A checkpoint, or a LoRA folder on its base, ready to answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_fast.errors import BadCheckpoint, BadSettings
from grpo_fast.policy.pretrained import first_line, load_model
from grpo_fast.policy.processor import Processor
from grpo_fast.rollout import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER = "adapter_config.json"
PROMPT_FILES = ("tokenizer_config.json", "config.json")  # an adapter's folder that has both needs no base for prompts


def load_processor(name: str, max_pixels: int | None = None) -> Processor:
    return Processor.from_pretrained(_prompts_of(name), max_pixels=max_pixels)


def load_engine(
    name: str, tokenizer: PreTrainedTokenizerBase, *, dtype: str = "auto", device: str | None = None
) -> Engine:
    place = usable_device(device)
    base = base_of(name)
    model = load_model(base or name, dtype)
    if base is not None:
        model = _adapted(model, name)
    model.requires_grad_(False)
    return Engine(model.to(place).eval(), tokenizer=tokenizer)


def usable_device(name: str | None = None) -> str:
    """None, auto: cuda where there is one, else cpu."""
    import torch

    if name in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":  # counted, not touched: whoever only plans takes no GPU's memory
            if (device.index or 0) >= torch.cuda.device_count():
                raise RuntimeError(f"torch finds {torch.cuda.device_count()} CUDA devices")
        else:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadSettings(f"device {name} cannot be used: {first_line(error)}; `grpo-fast doctor` says more") from None
    return name


def base_of(name: str) -> str | None:
    """The checkpoint that an adapter's folder stands on; None for a checkpoint itself."""
    file = Path(name) / ADAPTER
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise BadCheckpoint(f"{file} cannot be read: {error}") from error
    if not isinstance(base, str) or not base:
        raise BadCheckpoint(f"{file} names no base_model_name_or_path: the adapter's base is not known")
    beside = Path(name) / base
    return str(beside) if not Path(base).exists() and beside.is_dir() else base


def fingerprint(name: str) -> list[list[Any]]:
    """Name, size and time of every file of a local checkpoint (and of its base): equal means unchanged."""
    folders = [Path(name), Path(base_of(name) or name)]
    files = {file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.is_file()}
    kinds = (".safetensors", ".json", ".jinja")
    return [[str(f), (s := f.stat()).st_size, s.st_mtime_ns] for f in sorted(files) if f.suffix in kinds]


def _prompts_of(name: str) -> str:
    base = base_of(name)
    return name if base is None or all((Path(name) / file).is_file() for file in PROMPT_FILES) else base


def _adapted(model: Any, name: str) -> Any:
    from safetensors import SafetensorError

    try:
        from peft import PeftModel
    except ImportError:
        raise BadCheckpoint(f"{name} is an adapter, which needs peft: pip install peft") from None
    try:
        return PeftModel.from_pretrained(model, name)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadCheckpoint(f"{name}: the adapter cannot be put on its base: {first_line(error)}") from error
