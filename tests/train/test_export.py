"""What a run leaves: folders that plain transformers and peft load, with the logits that the policy had."""

from __future__ import annotations

import copy
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
from policy.policy_lab import KINDS, picture, prompt, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from train.state_ranks import build, optimizer_of, train

from grpo_fast.errors import BadCheckpoint, BadSettings
from grpo_fast.policy import GRPOPolicy
from grpo_fast.policy.processor import Processor
from grpo_fast.train import tiny
from grpo_fast.train.export import export

HEAD = r".*(q_proj|lm_head)"
EMBEDDING = r".*(q_proj|embed_tokens)"
PLAIN = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

asked, found = json.loads(sys.argv[1]), {}
inputs = load_file(asked["inputs"])
for name, (folder, base) in asked["models"].items():
    model = AutoModelForImageTextToText.from_pretrained(base or folder)
    if base:
        import peft
        model = peft.PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        found[name] = model.eval()(**inputs, use_cache=False).logits
    found[name + " generated"] = model.generate(**inputs, max_new_tokens=3, do_sample=False)
assert not [name for name in sys.modules if name.startswith("grpo_fast")]
save_file(found, asked["outputs"])
"""


def adapted(target: str, tied: bool = True, **options: Any) -> GRPOPolicy:
    base = tiny_model("qwen2_vl", torch.float32, tied)
    config = peft.LoraConfig(r=2, target_modules=target, init_lora_weights=False, **options)
    return GRPOPolicy(peft.get_peft_model(base, config).train())


POLICIES = {
    **{kind: lambda kind=kind: GRPOPolicy(tiny_model(kind, torch.float32)) for kind in KINDS},
    "untied": lambda: build("untied", dtype=torch.float32),
    "adapter": lambda: build("lora", dtype=torch.float32),
    "adapter of a tied head": lambda: adapted(HEAD),
    "adapter of a tied embedding": lambda: adapted(EMBEDDING),
    "adapter with a head of its own": lambda: adapted(r".*q_proj", modules_to_save=["lm_head"]),
}


def inputs_of(policy: GRPOPolicy) -> dict[str, Tensor]:
    model = policy.model.get_base_model() if hasattr(policy.model, "get_base_model") else policy.model
    image = picture(3, dtype=torch.float32)
    asked = prompt(model, [3, image, 4])
    return {
        "input_ids": asked.input_ids[None],
        "attention_mask": torch.ones_like(asked.input_ids[None]),
        "pixel_values": image.pixels,
        "image_grid_thw": torch.tensor([image.grid]),
        "mm_token_type_ids": (asked.input_ids[None] == policy.config.image_token_id).int(),
    }


@pytest.fixture(scope="module")
def plainly(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Tensor], Path]:
    """(the policy's logits, those of a process that never heard of us) by name of the folder, and the folders."""
    root = tmp_path_factory.mktemp("exports")
    (root / "source").mkdir()
    expected: dict[str, Tensor] = {}
    models: dict[str, tuple[str, str | None]] = {}
    inputs: dict[str, Tensor] = {}
    for name, made in POLICIES.items():
        policy = made()
        policy.model.config.use_cache = False
        train(policy, optimizer_of(policy), range(1))
        before = [p.detach().clone() for p in policy.parameters()]
        ways = {name: False, f"{name}, merged": True} if "adapter" in name else {name: False}
        for way, merge in ways.items():
            export(policy, root / "source", root / way, merge=merge)
        base = None
        if "adapter" in name:
            base = str(root / f"base of {name}")
            clean = copy.deepcopy(policy.model)
            clean.unload().save_pretrained(base)
        assert all(torch.equal(p, old) for p, old in zip(policy.parameters(), before, strict=True))
        inputs = inputs_of(policy)
        with torch.no_grad():
            logits = policy.eval().model(**inputs, use_cache=False).logits
        for way, merge in ways.items():
            expected[way], models[way] = logits, (str(root / way), None if merge else base)
    save_file(inputs, root / "inputs")
    asked = {"inputs": str(root / "inputs"), "outputs": str(root / "outputs"), "models": models}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps(asked)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return expected, load_file(root / "outputs"), root


@pytest.mark.parametrize("name", [*POLICIES, *(f"{name}, merged" for name in POLICIES if "adapter" in name)])
def test_plain_transformers_has_the_policys_logits(name: str, plainly: Any) -> None:
    expected, found, _ = plainly
    assert expected[name].abs().max() > 0.1
    error = (found[name] - expected[name]).abs().max().item()
    assert error <= 2e-5 * expected[name].abs().max().item(), error
    assert found[f"{name} generated"].shape[1] > 0


def test_weights_are_in_the_layout_of_the_hub(plainly: Any) -> None:
    _, _, root = plainly
    tiny_model("qwen2_vl", torch.float32).save_pretrained(root / "saved plainly")
    truth = load_file(root / "saved plainly" / "model.safetensors")
    for name in ("qwen2_vl", "adapter, merged"):
        found = load_file(root / name / "model.safetensors")
        assert {n: t.shape for n, t in found.items()}.keys() == truth.keys()
    config = json.loads((root / "qwen2_vl" / "config.json").read_text())
    assert config["use_cache"] and "grpo_fast" not in json.dumps(config)
    for name, tied in (("adapter, merged", True), ("adapter of a tied head, merged", False)):
        config = json.loads((root / name / "config.json").read_text())
        assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is tied
    adapter = load_file(root / "adapter of a tied head" / "adapter_model.safetensors")
    assert adapter and all("lora_" in name for name in adapter)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (root / "qwen2_vl").iterdir()}
    assert len(modes) == 1  # who may read the config may read the weights


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["which modality is shown? A) CT, B) MRI <answer> A </answer>"] * 4
    folder = tmp_path_factory.mktemp("tiny")
    tiny.build(folder / "model", texts, hidden=64, layers=1, vision_layers=1, vocabulary=300)
    (folder / "model" / "chat_template.json").write_text(json.dumps({"chat_template": tiny.CHAT_TEMPLATE}))
    (folder / "model" / "additional_chat_templates").mkdir()
    (folder / "model" / "additional_chat_templates" / "short.jinja").write_text("{{ messages }}")
    (folder / "model" / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5}')
    (folder / "model" / "README.md").write_text("about the model that it came from")
    return folder / "model"


def policy_of(source: Path, lora: bool) -> GRPOPolicy:
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    return GRPOPolicy(peft.get_peft_model(model, peft.LoraConfig(target_modules=r".*q_proj")) if lora else model)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapter"])
def test_processor_loads_from_the_folder(lora: bool, source: Path, tmp_path: Path) -> None:
    path = export(policy_of(source, lora), source, tmp_path / "model")
    text = "which modality? A) CT <answer>"
    mine, theirs = Processor.from_pretrained(path), Processor.from_pretrained(source)
    assert mine.tokenizer(text)["input_ids"] == theirs.tokenizer(text)["input_ids"]
    assert (mine.images, mine.template.chat_template) == (theirs.images, theirs.template.chat_template)
    for name in ("generation_config.json", "additional_chat_templates/short.jinja", "tokenizer_config.json"):
        assert (path / name).read_bytes() == (source / name).read_bytes()
    assert "about the model that it came from" not in "".join(p.read_text() for p in path.glob("README.md"))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    if lora:
        assert json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(source)


def test_tokenizer_of_a_name_on_the_hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache is made by hand; nothing is fetched."""
    repository = tmp_path / "cache" / "models--someone--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot.parent.mkdir()
    snapshot.symlink_to(source, target_is_directory=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    path = export(policy_of(source, False), "someone/model", tmp_path / "model")
    assert (path / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    with pytest.raises(BadCheckpoint, match="someone/else is no folder, and its tokenizer and processor cannot be had"):
        export(policy_of(source, False), "someone/else", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_model_is_replaced_and_nothing_else(source: Path, tmp_path: Path) -> None:
    policy = policy_of(source, False)
    path = export(policy, source, tmp_path / "model")
    (path / "left.txt").write_text("of the old one")
    export(policy, source, path)
    assert not (path / "left.txt").exists() and (path / "model.safetensors").is_file()
    thesis = tmp_path / "work"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("")
    with pytest.raises(BadSettings, match="work holds something that is not a model"):
        export(policy, source, thesis)
    with pytest.raises(BadSettings, match=r"thesis\.tex is a file"):
        export(policy, source, thesis / "thesis.tex")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "work"]
    with pytest.raises(BadSettings, match="no adapter to merge"):
        export(policy, source, path, merge=True)
    export(policy, path, path)  # over its own source
    assert (path / "tokenizer.json").is_file()
