"""The engine with the decoding kernels, interpreted: the same tokens as without them."""

from __future__ import annotations

import pytest
import torch
from policy_lab import tiny_model
from rollout_lab import mixed_prompts

from grpo_fast.rollout import Engine, SamplingParams, decode, static

ROW_BYTES = 2 * 3 * 2 * 8 * 4  # keys and values, 3 layers, 2 heads of 8, fp32


@pytest.mark.parametrize("static_shapes", [False, True])
def test_the_same_tokens_with_kernels(static_shapes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, which the kernels are not used for: interpreted they take it, and no rounding hides a slip."""
    model = tiny_model("qwen2_vl", torch.float32, tied=False)
    prompts, params = mixed_prompts(model, 4), SamplingParams(max_tokens=6, stop_tokens=tuple(range(20, 36)))
    expected = Engine(model).generate(prompts, 2, params)
    calls = []

    def fused(*_: object) -> bool:
        calls.append(1)
        return True

    for module in (decode, static):
        monkeypatch.setattr(module, "is_fused", fused)
    engine = Engine(model, static_shapes=static_shapes, kv_bytes=200 * ROW_BYTES)  # a few groups at a time
    found = engine.generate(prompts, 2, params)
    assert calls
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.completions, b.completions, strict=True))
        for x, y in zip(a.sampler_logps, b.sampler_logps, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
