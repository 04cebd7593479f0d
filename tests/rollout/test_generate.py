"""`grpo-fast generate` from a checkpoint folder to what is printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from policy_inputs.make import CHAT_TEMPLATE, SPECIAL, build_config, preprocessing
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from grpo_fast.cli import main
from grpo_fast.policy.processor import Processor
from grpo_fast.rollout import Engine, SamplingParams


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["what is shown here?"] * 9,
        trainers.BpeTrainer(vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing("qwen2_vl")))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    config = build_config("qwen2_vl", tokenizer)
    torch.manual_seed(0)
    transformers.Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    Image.new("RGB", (56, 84), "teal").save(folder / "scan.png")
    return folder


def test_completions_of_a_question(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--image", str(checkpoint / "scan.png"), "--prompt", "what is shown?", "--prompt", "where?"]
    options += ["--completions", "3", "--max-tokens", "5", "--seed", "7", "--json"]
    assert main(["generate", "--model", str(checkpoint), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["prompt"] for one in report["prompts"]] == ["what is shown?", "where?"]
    assert report["stats"]["images"] == 1  # shown with both prompts
    processor = Processor.from_pretrained(checkpoint)
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(checkpoint)
    engine = Engine(model, tokenizer=processor.tokenizer)
    end = processor.tokenizer.eos_token_id
    assert end in engine.stop_tokens(SamplingParams())
    assert set(processor.tokenizer.all_special_ids) - {end} <= set(engine.banned_tokens(SamplingParams()))
    for one in report["prompts"]:
        assert len(one["completions"]) == 3
        for completion in one["completions"]:
            assert len(completion["tokens"]) == len(completion["logps"]) <= 5
            assert completion["text"] == processor.tokenizer.decode(completion["tokens"], skip_special_tokens=True)
            assert completion["finished"] == (completion["tokens"][-1] == end)


def test_a_person_reads_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model", str(checkpoint), "--prompt", "what?", "--greedy", "--max-tokens", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() and "{" not in printed.out.splitlines()[0]
    assert "tokens" in printed.err and "a second" in printed.err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--temperature", "0"], "greedy"),
        (["--completions", "0"], "group_size"),
        (["--image", "/nowhere.png"], "no such file"),
        (["--image", __file__], "image"),
        (["--device", "gpu"], "device gpu cannot be used"),
        (["--device", "cuda:"], "device cuda: cannot be used"),
        (["--device", f"cuda:{torch.cuda.device_count()}"], "grpo-fast doctor"),
    ],
)
def test_mistakes_are_named(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert main(["generate", "--model", str(checkpoint), "--prompt", "what?", *options]) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err and printed.out == ""


def test_an_unknown_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model", str(tmp_path), "--prompt", "what?"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_served_is_a_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sliding"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"layer_types": ["sliding_attention"], "use_sliding_window": True, "sliding_window": 16}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["generate", "--model", str(folder), "--prompt", "what?"]) == 2
    assert "set use_sliding_window to false" in capsys.readouterr().err
