"""A checkpoint that answers: whole answer tags are tokens of its own, and its head is fond of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from policy_inputs.make import CHAT_TEMPLATE, SPECIAL, build_config, preprocessing
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ANSWERS = [f"<answer>{letter}</answer>" for letter in "ABCD"]


def make_checkpoint(folder: Path, seed: int = 0, says: Sequence[str] = ANSWERS) -> Path:
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bytes_.add_special_tokens(list(SPECIAL))
    bytes_.add_tokens([*sorted(pre_tokenizers.ByteLevel.alphabet()), *ANSWERS])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing("qwen2_vl")))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    torch.manual_seed(seed)
    config = build_config("qwen2_vl", tokenizer)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    model = transformers.Qwen2VLForConditionalGeneration(config)
    fond_of = tokenizer.convert_tokens_to_ids([*says, "<|im_end|>"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        for layer in model.model.language_model.layers:  # the prompt and its picture weigh more than the last token
            layer.self_attn.o_proj.weight *= 40
        model.lm_head.weight[fond_of] *= 8
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "first")


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "second", seed=1)


@pytest.fixture(scope="session")
def bare_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fond of letters without tags."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "bare", seed=7, says="ABCD")
