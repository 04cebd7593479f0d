"""Tiny checkpoints in the hub's layout, and transformers' own processors beside them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from policy_inputs.make import CHAT_TEMPLATE, FAMILIES, SPECIAL, build_config, preprocessing
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from grpo_fast.policy.processor import Processor


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    corpus = ["You are a helpful assistant. system user which of the 2.5 seconds shows the modality? A) CT B) MRI"] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
    )


@pytest.fixture(params=FAMILIES)
def model_type(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, tokenizer: PreTrainedTokenizerFast) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    for model_type in FAMILIES:
        folder = root / model_type
        tokenizer.save_pretrained(folder)
        build_config(model_type, tokenizer).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing(model_type)))
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    return root


@pytest.fixture
def checkpoint(checkpoints: Path, model_type: str, tmp_path: Path) -> Path:
    """A copy to be changed at will."""
    return Path(shutil.copytree(checkpoints / model_type, tmp_path / model_type))


@pytest.fixture(scope="session")
def loaded(checkpoints: Path) -> dict[str, Processor]:
    return {model_type: Processor.from_pretrained(checkpoints / model_type) for model_type in FAMILIES}


@pytest.fixture
def processor(loaded: dict[str, Processor], model_type: str) -> Processor:
    return copy.copy(loaded[model_type])


@pytest.fixture
def rope_model(model_type: str, tokenizer: PreTrainedTokenizerFast):
    with torch.device("meta"):
        return FAMILIES[model_type][1](build_config(model_type, tokenizer))


@pytest.fixture
def reference(model_type: str, tokenizer: PreTrainedTokenizerFast):
    """transformers' processor of the family with the parts that need no torchvision."""
    base = FAMILIES[model_type][2]

    class WithoutVideo(base):
        def __init__(self, image_processor, tokenizer, chat_template=None):
            for name in ("image", "video"):
                setattr(self, f"{name}_token", f"<|{name}_pad|>")
                setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>"))
            self.vision_start_token, self.vision_end_token = "<|vision_start|>", "<|vision_end|>"
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    settings = {key: value for key, value in preprocessing(model_type).items() if key != "image_processor_type"}
    processor = WithoutVideo(Qwen2VLImageProcessorPil(**settings), tokenizer, chat_template=CHAT_TEMPLATE)
    processor.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    return processor
