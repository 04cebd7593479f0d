"""The tiny checkpoint loads like any other, holds every byte, and is the same bytes from the same arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from grpo_fast.data.phantom import phantom
from grpo_fast.errors import BadSettings, RunFailed
from grpo_fast.policy.processor import Processor
from grpo_fast.rollout import Engine, SamplingParams
from grpo_fast.train import tiny
from grpo_fast.types import Sample

TEXTS = [text for s in phantom("train", 160) for text in (s.messages[0]["content"][1]["text"], s.meta["response"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny"), TEXTS, seed=0)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Processor:
    return Processor.from_pretrained(folder)


def tokens(processor: Processor, text: str) -> list[str]:
    return [processor.tokenizer.decode([t]) for t in processor.tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_it_is_a_checkpoint_of_about_a_million_parameters(folder: Path, processor: Processor) -> None:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert 0.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.5e6
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    spread = model.model.language_model.layers[0].mlp.up_proj.weight.std().item()
    assert 0.07 < spread < 0.09 and 0.07 < model.model.visual.blocks[0].mlp.fc1.weight.std().item() < 0.09


def test_the_same_arguments_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """In another process, where strings hash differently."""
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from train.test_tiny import TEXTS, tiny\n"
        f"tiny.build({str(tmp_path)!r}, TEXTS, seed=0)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True, capture_output=True)
    files = sorted(path.name for path in folder.iterdir())
    assert "model.safetensors" in files and "tokenizer.json" in files and "preprocessor_config.json" in files
    assert files == sorted(path.name for path in tmp_path.iterdir())
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_another_seed_gives_other_weights_and_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny.build(tmp_path, TEXTS, seed=1)
    assert (torch.get_rng_state() == before).all()
    assert (folder / "model.safetensors").read_bytes() != (tmp_path / "model.safetensors").read_bytes()
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_tags_and_letters_are_single_tokens(processor: Processor) -> None:
    assert tokens(processor, "<think>dark: Cyst</think><answer>B</answer>") == [
        "<think>", "dark", ":", " Cyst", "</think>", "<answer>", "B", "</answer>"
    ]  # fmt: skip
    question = tokens(processor, "Which modality is this? A) CT B) MRI C) X-ray D) Ultrasound")
    assert {"A", "B", "C", "D", " CT", " MRI"} <= set(question)
    answer = processor.tokenizer("<answer>B</answer>", add_special_tokens=False)["input_ids"][1]
    assert answer in processor.tokenizer("Which? A) one B) two", add_special_tokens=False)["input_ids"]
    assert tokens(processor, "<answer>7</answer>") == ["<answer>", "7", "</answer>"]


def test_every_text_can_be_encoded(processor: Processor) -> None:
    tokenizer = processor.tokenizer
    every_byte = bytes(range(256)).decode("latin-1")
    for text in (every_byte, "Größe 3 µm; 診断?\n\t  two  spaces ", "🩻", *TEXTS[:40]):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_prompt_is_its_text_and_the_start_of_a_reply(processor: Processor) -> None:
    sample = phantom("test", 1)[0]
    prompt = processor(sample)
    text = processor.tokenizer.decode(prompt.input_ids)
    images = prompt.vision[0].grid[1] * prompt.vision[0].grid[2] // 4
    pads = "<|image_pad|>" * images
    assert text == f"<|vision_start|>{pads}<|vision_end|>{sample.messages[0]['content'][1]['text']}<|im_start|>"


def test_turns_keep_their_roles(processor: Processor) -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]
    assert processor.template.render(Sample("s", turns)) == "one<|im_start|>two<|im_end|>three<|im_start|>"
    assert processor.template.render(Sample("s", turns[:2])) == "one<|im_start|>two"


@pytest.mark.parametrize(
    ("sides", "images"), [((8, 8), 4), ((84, 84), 4), ((1024, 1024), 4), ((2000, 1500), 4), ((300, 40), 6)]
)
def test_other_peoples_images_become_few_tokens(processor: Processor, sides: tuple[int, int], images: int) -> None:
    picture = Image.fromarray(np.zeros((sides[1], sides[0], 3), np.uint8))
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    prompt = processor(Sample("s", [{"role": "user", "content": content}], (lambda: picture,)))
    _, height, width = prompt.vision[0].grid
    assert height * width // 4 == images


def test_it_samples_words_and_tags_but_no_vision_tokens(folder: Path, processor: Processor) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    engine = Engine(model, tokenizer=processor.tokenizer)
    params = SamplingParams(max_tokens=64, seed=1)
    banned = set(engine.banned_tokens(params))
    names = {processor.tokenizer.decode([t]) for t in banned}
    assert {"<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<|endoftext|>"} <= names
    assert not names & {"<think>", "</think>", "<answer>", "</answer>", "<|im_end|>", "A", "B"}
    (group,) = engine.generate([processor(phantom("test", 1)[0])], 16, params)
    assert not banned & {int(t) for completion in group.completions for t in completion}


def test_too_small_a_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="267"):
        tiny.build(tmp_path / "none", TEXTS, vocabulary=200)
    assert not (tmp_path / "none" / "config.json").exists()


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError
    from transformers import Qwen2VLForConditionalGeneration

    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(Qwen2VLForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(RunFailed, match=r"could not be written to .*No space left"):
        tiny.build(tmp_path / "tiny", ["a text"])
