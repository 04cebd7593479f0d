"""Checkpoints that load, adapters among them, and those that must not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from grpo_fast.data import open_data
from grpo_fast.errors import BadCheckpoint
from grpo_fast.evaluate.ask import ask, scores
from grpo_fast.evaluate.models import base_of, fingerprint, load_engine, load_processor


def loaded(name: Path):
    processor = load_processor(str(name))
    return load_engine(str(name), processor.tokenizer, device="cpu"), processor


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def test_answers_are_those_of_plain_transformers(checkpoint: Path) -> None:
    engine, processor = loaded(checkpoint)
    samples = [open_data(["phantom:test"])[place] for place in (0, 3, 9, 14)]
    prompts = [processor(sample) for sample in samples]
    found = ask(engine, prompts, style="no-think", max_tokens=10)
    model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    params = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": processor.tokenizer.pad_token_id}
    end = processor.tokenizer.eos_token_id
    banned = sorted(set(processor.tokenizer.all_special_ids) - {end})
    for one, prompt in zip(found, prompts, strict=True):
        ids = prompt.input_ids[None]
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=prompt.vision[0].pixels,
            image_grid_thw=torch.tensor([prompt.vision[0].grid]), eos_token_id=end, suppress_tokens=banned,
            mm_token_type_ids=(ids == model.config.image_token_id).int(), **params,
        )[0, ids.shape[1] :]  # fmt: skip
        assert one.completion == processor.tokenizer.decode(out, skip_special_tokens=True)
        assert one.tokens == len(out) and one.finished == (int(out[-1]) == end)
        first = one.completion.partition("<answer>")[2].partition("</answer>")[0]
        assert one.strict == (first == one.sample.answer)
    assert len({one.completion for one in found}) > 1  # the questions are told apart
    mean = scores(found)
    assert mean["accuracy"] == sum(one.strict for one in found) / 4
    assert mean["length"] == sum(len(one.completion.split()) for one in found) / 4
    kinds = {f"accuracy/{one.sample.meta[name]}" for one in found for name in ("modality", "question_type")}
    assert mean.keys() == {"accuracy", "accuracy_lenient", "format", "length"} | kinds
    assert scores([]) == {} and ask(engine, [], style="think", max_tokens=4) == []


def test_strict_lenient_and_format(checkpoint: Path, bare_checkpoint: Path) -> None:
    samples = open_data(["phantom:test"])[:24]
    found = {}
    for name in (checkpoint, bare_checkpoint):
        engine, processor = loaded(name)
        found[name] = ask(engine, [processor(one) for one in samples], style="no-think", max_tokens=1)
    tagged, bare = ([one for one in asked if one.completion.strip()] for asked in found.values())
    for one in tagged:
        right = one.completion == f"<answer>{one.sample.answer}</answer>"
        assert (one.strict, one.lenient) == (right, right)
        assert one.formatted == one.completion.startswith("<answer>")
    for one in bare:
        assert (one.strict, one.lenient, one.formatted) == (False, one.completion == one.sample.answer, False)
    assert {one.strict for one in tagged} == {one.lenient for one in bare} == {True, False}
    assert any(one.formatted for one in tagged)
    mean = scores(found[bare_checkpoint])
    assert mean["accuracy"] == mean["format"] == 0.0 < mean["accuracy_lenient"] < 1.0


def test_an_adapter_answers_as_its_merged_model(checkpoint: Path, copied: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForImageTextToText.from_pretrained(copied)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=4.0)
    adapted.save_pretrained(tmp_path / "adapter")
    assert base_of(str(tmp_path / "adapter")) == str(copied)
    merged = tmp_path / "merged"
    shutil.copytree(checkpoint, merged)
    adapted.merge_and_unload().save_pretrained(merged)
    samples = [open_data(["phantom:test"])[place] for place in range(6)]
    texts = []
    for name in (tmp_path / "adapter", merged, checkpoint):
        engine, processor = loaded(name)
        asked = ask(engine, [processor(sample) for sample in samples], style="think", max_tokens=6)
        texts.append([one.completion for one in asked])
    assert texts[0] == texts[1] != texts[2]
    before = fingerprint(str(tmp_path / "adapter"))
    (copied / "model.safetensors").touch()
    assert fingerprint(str(tmp_path / "adapter")) != before


def test_a_base_beside_the_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter/base").mkdir(parents=True)
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    assert base_of(str(tmp_path / "adapter")) == str(tmp_path / "adapter/base")
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="names no base_model_name_or_path"):
        base_of(str(tmp_path / "adapter"))


def test_unreadable_checkpoints_are_named(copied: Path) -> None:
    weights = copied / "model.safetensors"
    tensors = load_file(weights)
    processor = load_processor(str(copied))

    def refused(complaint: str) -> None:
        with pytest.raises(BadCheckpoint, match=complaint) as caught:
            load_engine(str(copied), processor.tokenizer, device="cpu")
        assert str(copied) in str(caught.value)

    dropped = next(name for name in tensors if name.endswith("q_proj.weight"))
    save_file({name: one for name, one in tensors.items() if name != dropped}, weights, {"format": "pt"})
    refused(r"1 weights are missing, .*q_proj.weight")
    save_file({**tensors, dropped: tensors[dropped][:3].clone()}, weights, {"format": "pt"})
    refused("cannot be loaded")
    weights.write_bytes(weights.read_bytes()[:500])
    refused("cannot be loaded")
    weights.unlink()
    refused("cannot be loaded")
    (copied / "config.json").write_text("{")
    with pytest.raises(BadCheckpoint, match=str(copied)):
        load_processor(str(copied))
