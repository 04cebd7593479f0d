"""What is done to a model before it is trained."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from grpo_fast.errors import BadSettings
from grpo_fast.train.assemble import _apply_liger
from grpo_fast.train.settings import ModelSettings

MODEL = SimpleNamespace(config=SimpleNamespace(model_type="qwen2_vl"))
CUDA = torch.device("cuda")


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What liger-kernel's function for Qwen2-VL is called with."""
    calls: list[dict[str, Any]] = []
    outer, inner, patch = (ModuleType(name) for name in ("liger_kernel", "transformers", "monkey_patch"))
    patch.apply_liger_kernel_to_qwen2_vl = lambda **options: calls.append(options)  # type: ignore[attr-defined]
    inner.monkey_patch, outer.transformers = patch, inner  # type: ignore[attr-defined]
    for name, module in (("", outer), (".transformers", inner), (".transformers.monkey_patch", patch)):
        monkeypatch.setitem(sys.modules, f"liger_kernel{name}", module)
    return calls


def test_liger_replaces_norms_and_feed_forward_layers_alone(applied: list[dict[str, Any]]) -> None:
    _apply_liger(MODEL, ModelSettings(liger="auto"), CUDA)
    _apply_liger(MODEL, ModelSettings(liger="auto"), torch.device("cpu"))
    _apply_liger(MODEL, ModelSettings(liger="off"), CUDA)
    (options,) = applied
    assert {name for name, value in options.items() if value is True} == {"rms_norm", "swiglu"}
    assert options["model"] is MODEL


def test_a_liger_kernel_of_another_transformers(applied: list[dict[str, Any]]) -> None:
    """Its function imports what this transformers lacks: without it where nobody asked, a sentence where one did."""

    def fails(**_: Any) -> None:
        raise ImportError("cannot import name 'LigerOutput' from 'liger_kernel'")

    sys.modules["liger_kernel.transformers.monkey_patch"].apply_liger_kernel_to_qwen2_vl = fails  # type: ignore[attr-defined]
    _apply_liger(MODEL, ModelSettings(liger="auto"), CUDA)
    with pytest.raises(BadSettings, match=r"cannot import name 'LigerOutput'.*pip install -U liger-kernel"):
        _apply_liger(MODEL, ModelSettings(liger="on"), CUDA)


def test_a_model_that_liger_kernel_does_not_know(applied: list[dict[str, Any]]) -> None:
    other = SimpleNamespace(config=SimpleNamespace(model_type="other"))
    _apply_liger(other, ModelSettings(liger="auto"), CUDA)
    with pytest.raises(BadSettings, match="no layers for other"):
        _apply_liger(other, ModelSettings(liger="on"), CUDA)
    assert not applied
