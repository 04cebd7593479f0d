"""The trained model in the hub's layout, for plain transformers: weights, config, tokenizer and processor files."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from grpo_fast.errors import BadCheckpoint, BadSettings, RunFailed
from grpo_fast.policy import GRPOPolicy
from grpo_fast.train.state_folder import begin, on_first_rank, put_in_place, writing_place
from grpo_fast.train.state_tensors import bare, is_adapter

SHARD = "5GB"
BESIDE_WEIGHTS = [
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
]


def export(policy: nn.Module, source: str | Path, path: Path, *, merge: bool = False) -> Path:
    """Called by every rank; rank 0 writes. `source` brings tokenizer and processor: a folder, or a name on the hub.

    An adapter is written alone, or with `merge` as the model that it makes. The policy stays as it is. A model that was
    at `path` is replaced once the new one is whole.
    """
    found = bare(policy)
    if merge and not is_adapter(found):
        raise BadSettings("there is no adapter to merge: save_merged needs a lora_rank")
    weights = _gathered(found, merge)
    on_first_rank(partial(_write, found, weights, source, path, merge))
    return path


def _gathered(policy: GRPOPolicy, merge: bool) -> dict[str, Tensor]:
    """Whole tensors on rank 0's CPU, nothing on the others; one at a time is whole on the device."""
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    found = {}
    for name, parameter in policy.model.named_parameters(remove_duplicate=not merge):
        if is_adapter(policy) and not merge and not parameter.requires_grad:
            continue
        tensor = parameter.detach()
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if first:
            found[name] = whole.to("cpu", copy=merge)  # merging writes to it
    return found


def _write(policy: GRPOPolicy, weights: dict[str, Tensor], source: str | Path, path: Path, merge: bool) -> None:
    _refuse_to_replace(path)
    beside = Path(source) if Path(source).is_dir() else _downloaded(str(source))
    place = writing_place(path)
    try:
        begin(path)
        with _no_progress_bar():
            if is_adapter(policy) and not merge:
                policy.model.save_pretrained(place, state_dict=weights, save_embedding_layers=False)
                _config_of(policy).save_pretrained(place)  # the processor and the adapter's readers look for it
            else:
                model = _merged(policy, weights) if merge else _twin(policy, weights)
                model.save_pretrained(place, max_shard_size=SHARD)
            for file in place.glob("*.safetensors"):
                shutil.copymode(place / "config.json", file)  # safetensors lets nobody but its owner read
        _copy_beside(beside, place)
        put_in_place(path)
    except (OSError, SafetensorError) as error:  # safetensors has its own name for a full disk
        shutil.rmtree(place, ignore_errors=True)
        raise RunFailed(
            f"the model could not be written to {path}: {error}. What was written of it is removed; the run's "
            "checkpoints are as they were. Make room and start the same command again"
        ) from error


def _twin(policy: GRPOPolicy, weights: dict[str, Tensor]) -> Any:
    """A model over the gathered weights that was never wrapped, patched or set to another attention."""
    twin = _without_storage(policy, _config_of(policy))
    twin.load_state_dict(weights, strict=False, assign=True)
    twin.tie_weights()
    return twin


def _merged(policy: GRPOPolicy, weights: dict[str, Tensor]) -> Any:
    """An adapter of a tied head or embedding makes two weights of the one, and the model says so."""
    import peft

    config = _config_of(policy)
    tied = config.tie_word_embeddings
    _set_tied(config, False)
    twin = _without_storage(policy, config)
    name, *others = policy.model.peft_config
    adapted: Any = peft.PeftModel(twin, copy.deepcopy(policy.model.peft_config[name]), name, low_cpu_mem_usage=True)
    for other in others:
        adapted.add_adapter(other, copy.deepcopy(policy.model.peft_config[other]), low_cpu_mem_usage=True)
    adapted.load_state_dict(weights, assign=True)
    adapted.base_model.set_adapter(policy.model.active_adapters)
    model = adapted.base_model.merge_and_unload()
    if tied and torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight):
        _set_tied(model.config, True)
        model.tie_weights()
    return model


def _without_storage(policy: GRPOPolicy, config: Any) -> Any:
    base = _base(policy)
    with torch.device("meta"):
        twin = type(base)(config)
    twin.generation_config = copy.deepcopy(base.generation_config)
    return twin


def _config_of(policy: GRPOPolicy) -> Any:
    base = _base(policy)
    config = copy.deepcopy(base.config)
    config.use_cache = True  # off while training
    config.architectures = [type(base).__name__]
    return config


def _base(policy: GRPOPolicy) -> Any:
    return policy.model.get_base_model() if is_adapter(policy) else policy.model


def _set_tied(config: Any, tied: bool) -> None:
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tied


def _copy_beside(folder: Path, place: Path) -> None:
    for pattern in BESIDE_WEIGHTS:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                copied = place / file.relative_to(folder)
                copied.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copied)


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=BESIDE_WEIGHTS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise BadCheckpoint(
            f"{name} is no folder, and its tokenizer and processor cannot be had from the hub: {error}"
        ) from error


def _refuse_to_replace(path: Path) -> None:
    ours = ("config.json", "adapter_config.json")
    if path.is_dir() and any(path.iterdir()) and not any((path / name).is_file() for name in ours):
        raise BadSettings(f"{path} holds something that is not a model, which would be removed: name another folder")
    if path.exists() and not path.is_dir():
        raise BadSettings(f"{path} is a file: name a folder for the model")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
