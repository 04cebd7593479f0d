"""The engine with the decoding kernels, interpreted: the same tokens as without them."""

from __future__ import annotations

import pytest
import torch
from policy_lab import tiny_model
from rollout_lab import ROW_BYTES, mixed_prompts, trainer_error

from grpo_fast.kernels.launch import INTERPRETED
from grpo_fast.policy import GRPOPolicy
from grpo_fast.rollout import Engine, SamplingParams, schedule


@pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled for the GPU here, and the model is on the CPU")
@pytest.mark.parametrize("static_shapes", [False, True])
def test_the_same_tokens_with_kernels(static_shapes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, which the kernels are not used for: interpreted they take it, and no rounding hides a slip."""
    model = tiny_model("qwen2_vl", torch.float32, tied=False)
    prompts, params = mixed_prompts(model, 3), SamplingParams(max_tokens=5, stop_tokens=tuple(range(20, 36)))
    expected = Engine(model).generate(prompts, 2, params)
    calls = []

    def fused(*_: object) -> bool:
        calls.append(1)
        return True

    monkeypatch.setattr(schedule, "is_fused", fused)
    engine = Engine(model, static_shapes=static_shapes, kv_bytes=200 * ROW_BYTES)  # a few groups at a time
    found = engine.generate(prompts, 2, params)
    assert calls
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.completions, b.completions, strict=True))
        for x, y in zip(a.sampler_logps, b.sampler_logps, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("static_shapes", [False, True])
def test_log_probs_on_a_gpu_are_the_trainers(static_shapes: bool) -> None:
    """Heads of 16, which the kernels take; bf16 rounds each layer's result, in whichever order it was summed."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rope}
    model = tiny_model("qwen2_vl", torch.float32, tied=False, **heads).to("cuda", torch.bfloat16)
    policy = GRPOPolicy(model)
    engine = Engine(policy, static_shapes=static_shapes)
    assert schedule.is_fused(torch.device("cuda"), torch.bfloat16, 16)
    groups = engine.generate(mixed_prompts(model, 6), 3, SamplingParams(max_tokens=14, seed=5))
    assert trainer_error(policy, groups, 1.0) < 0.05
