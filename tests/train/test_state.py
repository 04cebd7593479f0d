"""Checkpoints: going on bit by bit, on other numbers of ranks, after kill -9 anywhere, with a full disk."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import results_of
from safetensors import safe_open
from torch import Tensor
from train.state_ranks import VARIANTS, WRAPPERS, batch_of, bits, build, norms, optimizer_of, tensors_of, train

from grpo_fast.errors import BadCheckpoint, BadSettings
from grpo_fast.policy import GRPOPolicy
from grpo_fast.train import state
from grpo_fast.train.state import Position, latest, load, save

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STOOD = Position(
    "grpo", 2, 16, entropy_coef=0.1 + 0.2, accuracy={"start": 1 / 3}, skipped=1, sizes={"metrics.jsonl": 9}, seconds=1.5
)


def fresh(variant: str = "full", seed: int = 7, dtype: torch.dtype = torch.float32) -> tuple[GRPOPolicy, Any]:
    policy = build(variant, seed, dtype=dtype)
    return policy, optimizer_of(policy)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, GRPOPolicy, torch.optim.Optimizer]:
    policy, optimizer = fresh("lora")
    train(policy, optimizer, range(1))
    save(tmp_path, policy, optimizer, Position("grpo", 1), keep=3)
    return tmp_path, policy, optimizer


@pytest.mark.parametrize("variant", ["full", "untied", "lora"])
def test_resumed_run_has_the_bits_of_one_that_never_stopped(variant: str, tmp_path: Path) -> None:
    policy, optimizer = fresh(variant)
    losses = train(policy, optimizer, range(5))
    straight = tensors_of(policy, optimizer)

    policy, optimizer = fresh(variant)
    first = train(policy, optimizer, range(2))
    before = bits(tensors_of(policy, optimizer))
    path = save(tmp_path, policy, optimizer, STOOD, keep=1)
    assert bits(tensors_of(policy, optimizer)) == before
    assert path == tmp_path / "step-000002" == latest(tmp_path)

    policy, optimizer = fresh(variant, seed=8)
    assert load(path, policy, optimizer) == STOOD
    assert first + train(policy, optimizer, range(2, 5)) == losses
    assert bits(tensors_of(policy, optimizer)) == bits(straight)


@pytest.mark.parametrize("finished", [0, 2])
def test_weights_that_had_no_gradient_have_no_state(finished: int, tmp_path: Path) -> None:
    """The tower of a run that has seen no image, or the whole model before its first step."""
    policy, optimizer = fresh()
    policy.core.visual.requires_grad_(False)
    train(policy, optimizer, range(finished))
    path = save(tmp_path, policy, optimizer, Position("sft", finished), keep=1)
    assert path.name == f"sft-00000{finished}"
    policy.core.visual.requires_grad_(True)
    twin, twin_optimizer = fresh(seed=8)
    load(path, twin, twin_optimizer)
    assert len(twin_optimizer.state) == len(optimizer.state) < len(list(policy.parameters()))
    assert bits(tensors_of(twin, twin_optimizer)) == bits(tensors_of(policy, optimizer))
    assert train(policy, optimizer, range(2, 4)) == train(twin, twin_optimizer, range(2, 4))
    assert bits(tensors_of(twin, twin_optimizer)) == bits(tensors_of(policy, optimizer))


def test_weights_alone_forget_cached_features(trained: Any) -> None:
    folder, policy, _ = trained
    expected = policy.logps(batch_of(policy))
    twin = build("lora", 9, dtype=torch.float32)
    assert not torch.equal(twin.logps(batch_of(twin)), expected)
    load(folder / "step-000001", twin, None)
    assert torch.equal(twin.logps(batch_of(twin)), expected)


def test_files_hold_each_tensor_once_and_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "FILE_BYTES", 200_000)
    policy, optimizer = fresh()
    train(policy, optimizer, range(1))
    path = save(tmp_path, policy, optimizer, Position("grpo", 1), keep=1)
    files = sorted(path.iterdir())
    assert {file.suffix for file in files} == {".safetensors", ".json"} and len(files) > 3
    names = [name for file in files if file.suffix == ".safetensors" for name in safe_open(file, "pt").keys()]  # noqa: SIM118
    assert len(names) == len(set(names)) == 4 * len(list(policy.parameters()))
    assert not [name for name in names if "lm_head" in name]  # tied
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    twin, twin_optimizer = fresh(seed=8)
    load(path, twin, twin_optimizer)
    assert bits(tensors_of(twin, twin_optimizer)) == bits(tensors_of(policy, optimizer))


def test_only_the_adapter_is_saved(trained: Any) -> None:
    folder, policy, _ = trained
    (file,) = folder.glob("step-000001/*.safetensors")
    weights = [name for name in safe_open(file, "pt").keys() if name.startswith("model.")]  # noqa: SIM118
    assert len(weights) == sum(p.requires_grad for p in policy.parameters()) and all("lora_" in n for n in weights)


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    policy, optimizer = fresh("lora")
    train(policy, optimizer, range(1))

    def saved(phase: str, step: int, best: bool = False) -> list[str]:
        save(tmp_path, policy, optimizer, Position(phase, step), keep=2, best=best)
        return sorted(path.name for path in tmp_path.iterdir())

    assert saved("sft", 40, best=True) == ["best", "sft-000040"]
    assert saved("sft", 80) == ["best", "sft-000040", "sft-000080"]
    assert saved("grpo", 9) == ["best", "sft-000040", "sft-000080", "step-000009"]
    assert saved("grpo", 10) == ["best", "sft-000040", "step-000009", "step-000010"]
    assert load(tmp_path / "best", policy, None).step == 40
    assert saved("grpo", 11, best=True) == ["best", "step-000010", "step-000011"]
    assert saved("grpo", 100) == ["best", "step-000011", "step-000100"]
    assert saved("done", 100) == ["best", "step-000011", "step-000100"]
    assert load(tmp_path / "best", policy, None).step == 11
    last = latest(tmp_path)
    assert last is not None and load(last, policy, None).phase == "done"


def test_incomplete_ones_are_passed_over_and_cleaned_up(trained: Any) -> None:
    folder, policy, optimizer = trained
    assert latest(folder / "nowhere") is None
    save(folder, policy, optimizer, Position("grpo", 2), keep=3)
    save(folder, policy, optimizer, Position("grpo", 3), keep=3)
    (folder / ".writing-step-000004").mkdir()
    (folder / ".removing-step-000000").mkdir()
    (folder / "step-000003" / "position.json").write_text('{"form')
    assert latest(folder) == folder / "step-000002"
    with pytest.raises(BadCheckpoint, match=r"step-000003 is not a checkpoint of a run: position\.json cannot be read"):
        load(folder / "step-000003", policy, optimizer)
    (file,) = folder.glob("step-000002/*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert latest(folder) == folder / "step-000001"
    with pytest.raises(BadCheckpoint, match=rf"{file.name} has {len(whole) - 1} bytes, {len(whole)} were written"):
        load(folder / "step-000002", policy, optimizer)
    file.write_bytes(b"\xff" * len(whole))
    with pytest.raises(BadCheckpoint, match="its tensors cannot be read"):
        load(folder / "step-000002", policy, optimizer)
    save(folder, policy, optimizer, Position("grpo", 4), keep=3)
    assert not list(folder.glob(".*"))


def _of_rank_two(policy: GRPOPolicy) -> None:
    weight = next(p for p in policy.parameters() if p.requires_grad)
    weight.data = torch.cat([weight.data, weight.data])


@pytest.mark.parametrize(
    ("variant", "dtype", "change", "said"),
    [
        ("full", torch.float32, None, "tensors differ"),
        ("lora", torch.float64, None, r"torch.float32 of shape .* there and torch.float64"),
        ("lora", torch.float32, _of_rank_two, r"of shape \(1, \d+\) there and .* of shape \(2, "),
    ],
    ids=["adapter", "dtype", "shape"],
)
def test_another_model_is_refused(
    variant: str, dtype: torch.dtype, change: Callable[[GRPOPolicy], None] | None, said: str, trained: Any
) -> None:
    policy = build(variant, dtype=dtype)
    if change is not None:
        change(policy)
    with pytest.raises(BadCheckpoint, match=said):
        load(trained[0] / "step-000001", policy, optimizer_of(policy))


def test_another_optimizer_is_refused(trained: Any) -> None:
    folder, policy, _ = trained
    other = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    with pytest.raises(BadCheckpoint, match=r"lora_A.default.weight.exp_avg: the run has no such tensor"):
        load(folder / "step-000001", policy, other)


def test_unknown_state_is_refused(trained: Any) -> None:
    folder, policy, optimizer = trained
    next(iter(optimizer.state.values()))["history"] = [1, 2]
    with pytest.raises(BadSettings, match=r"state of AdamW cannot be saved: .*history is a list"):
        save(folder, policy, optimizer, Position("grpo", 2), keep=1)


# Adafactor and bitsandbytes count steps in a plain number, torchao has tensors of its own kind.
@pytest.mark.parametrize(
    ("module", "name", "options"),
    [
        ("transformers", "Adafactor", {"relative_step": False}),
        ("torchao.optim", "AdamW8bit", {}),
        ("bitsandbytes.optim", "AdamW8bit", {}),
    ],
)
def test_other_optimizers_go_on(module: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    kind = getattr(pytest.importorskip(module), name)

    def made(seed: int) -> tuple[GRPOPolicy, Any]:
        policy = build("lora", seed, dtype=torch.float32)
        policy.core.language_model.embed_tokens.weight.requires_grad_(True)  # large enough to be quantized
        return policy, kind([p for p in policy.parameters() if p.requires_grad], lr=1e-2, **options)

    policy, optimizer = made(1)
    train(policy, optimizer, range(2))
    path = save(tmp_path, policy, optimizer, Position("grpo", 2), keep=1)
    types = {
        safe_open(file, "pt").get_slice(name).get_dtype()
        for file in path.glob("*.safetensors")
        for name in safe_open(file, "pt").keys()  # noqa: SIM118
    }
    assert ("U8" in types) == ("8bit" in name)
    twin, twin_optimizer = made(2)
    load(path, twin, twin_optimizer)
    assert train(policy, optimizer, range(2, 5)) == train(twin, twin_optimizer, range(2, 5))
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), twin.parameters(), strict=True))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """The folder, what each rank found, and what one process has: the bits that it saved, and where it ended."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "source").mkdir()
    one: dict[str, Any] = {}
    for variant in VARIANTS:
        policy, optimizer = fresh(variant, 0, torch.float64)
        train(policy, optimizer, range(2))
        one[f"saved {variant}"] = bits(tensors_of(policy, optimizer))
        save(folder / "one" / variant, policy, optimizer, Position("grpo", 2, cursor=8), keep=1)
        train(policy, optimizer, range(2, 4))
        one[f"end {variant}"] = norms(tensors_of(policy, optimizer))
    os.environ["STATE_FOLDER"] = str(folder)
    try:
        return folder, results_of(HERE / "state_ranks.py"), one
    finally:
        del os.environ["STATE_FOLDER"]


def close(found: dict[str, float], truth: dict[str, float]) -> bool:
    return found.keys() == truth.keys() and all(abs(found[n] - x) <= 1e-9 * (1 + abs(x)) for n, x in truth.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_go_on_from_one_and_from_each_other(variant: str, two_ranks: Any) -> None:
    _, found, one = two_ranks
    for rank in found:
        for wrapper, other in zip(WRAPPERS, reversed(WRAPPERS), strict=True):
            loads = {source: rank[f"load {wrapper} {variant} {source}"] for source in ("one", other)}
            assert loads["one"]["loaded"] == one[f"saved {variant}"]
            assert loads[other]["loaded"] == rank[f"save {other} {variant}"]["saved"]
            assert rank[f"save {wrapper} {variant}"]["saved"] != one[f"saved {variant}"]  # they differ by rounding
            ends = [rank[f"save {wrapper} {variant}"]["end"], *(one_load["end"] for one_load in loads.values())]
            assert all(close(end, one[f"end {variant}"]) for end in ends)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_one_process_goes_on_from_two(wrapper: str, variant: str, two_ranks: Any) -> None:
    folder, found, one = two_ranks
    policy, optimizer = fresh(variant, 7, torch.float64)
    path = latest(folder / wrapper / variant)
    assert path is not None and load(path, policy, optimizer) == Position("grpo", 2, cursor=8)
    assert len(list(path.glob("*.safetensors"))) == 2
    assert bits(tensors_of(policy, optimizer)) == found[0][f"save {wrapper} {variant}"]["saved"]
    train(policy, optimizer, range(2, 4))
    assert close(norms(tensors_of(policy, optimizer)), one[f"end {variant}"])


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_ranks_export_what_they_trained(wrapper: str, two_ranks: Any) -> None:
    from safetensors.torch import load_file

    folder, found, _ = two_ranks

    def of(what: str) -> dict[str, Tensor]:
        (file,) = (folder / "exported" / wrapper / what).glob("*.safetensors")
        return load_file(file)

    def lengths(tensors: dict[str, Tensor]) -> list[float]:
        return sorted(t.double().norm().item() for t in tensors.values())

    policy = build("full")
    ended = found[0][f"save {wrapper} full"]["end"]
    assert lengths(of("full")) == sorted(ended[name] for name, _ in policy.named_parameters())
    policy = build("lora")
    ended = found[0][f"save {wrapper} lora"]["end"]
    assert lengths(of("lora")) == sorted(ended[n] for n, p in policy.named_parameters() if p.requires_grad)
    base, merged, adapter = dict(build("full").named_parameters()), of("merged"), of("lora")
    name = "model.layers.1.mlp.down_proj"
    a, b = (adapter[f"base_model.model.model.language_model.layers.1.mlp.down_proj.lora_{x}.weight"] for x in "AB")
    weight = base["model.model.language_model.layers.1.mlp.down_proj.weight"].detach() + 8.0 * b @ a  # alpha 8, rank 1
    assert torch.allclose(merged[f"{name}.weight"], weight, rtol=0, atol=1e-12)


def test_faults_of_one_rank_reach_all(two_ranks: Any) -> None:
    folder, found, _ = two_ranks
    for rank in found:
        assert "exp_avg is a Tensor beside a sharded weight; take optimizer: adamw, or parallel: ddp" in rank["refused"]
        said, *left = rank["no room"]
        assert "step-000001 could not be written: [Errno 27] File too large" in said
        assert said.endswith(
            f"the last one is intact: {folder}/full/sft-000001. Make room and start the same command again"
        )
        assert left == ["sft-000001"]
    assert not (folder / "refused").exists()


def test_killed_anywhere_or_out_of_room(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "state_faults.py")],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "STATE_FOLDER": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for again in ("next", "same"):  # a new checkpoint, and one in place of another
        assert found[again]["events"] >= 15 and min(found[again]["old"], found[again]["new"]) > 5, found
    assert "step-000003 could not be written: [Errno 27] File too large" in found["no room"]
    assert f"the last one is intact: {tmp_path}/before/step-000002" in found["no room"]
    assert f"the model could not be written to {tmp_path}/model:" in found["no model"]
    assert "File too large" in found["no model"]
    assert found["left"] == ["before", "before/best", "before/step-000001", "before/step-000002", "said", "source"]
