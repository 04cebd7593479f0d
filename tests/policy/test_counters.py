"""What a step computes, counted from outside with hooks: every image once, every prompt once per group."""

import pytest
import torch
from policy_lab import KINDS, group, picture, prompt, tiny_model

from grpo_fast.policy.model import GRPOPolicy
from grpo_fast.policy.packing import Packer


class Counts:
    def __init__(self, model):
        core = model.model
        self.patches, self.tower_calls, self.attention_calls, self.tokens = 0, 0, [], []
        core.visual.blocks[0].register_forward_pre_hook(self._tower)
        core.language_model.layers[0].register_forward_pre_hook(self._layer, with_kwargs=True)

    def _tower(self, module, args):
        self.tower_calls += 1
        self.patches += args[0].shape[0]

    def _layer(self, module, args, kwargs):
        self.tokens.append((args[0] if args else kwargs["hidden_states"]).shape[1])


def two_groups(model):
    one, two = picture(1), picture(2, (1, 8, 4))
    first = group(prompt(model, [4, one, 3, two, 2], 0), [3, 5, 2, 9], 0)
    second = group(prompt(model, [2, one, 1], 1), [1, 4], 1)
    return [first, second], one.pixels.shape[0] + two.pixels.shape[0]


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_tokens_of_a_step(kind):
    model = tiny_model(kind)
    policy, counts = GRPOPolicy(model), Counts(model)
    groups, patches = two_groups(model)
    (batch,) = Packer(policy.prompt_spec, 10**6, policy.loss.options).pack(groups).batches
    policy(batch).loss.backward()
    assert counts.patches == patches  # three uses of two distinct images
    tokens = sum(len(g.prompt.input_ids) + sum(len(c) for c in g.completions) for g in groups)
    assert counts.tokens == [tokens] == [batch.lm_tokens]


def test_frozen_tower_is_run_once_for_all_passes():
    model = tiny_model("qwen2_5_vl")
    model.model.visual.requires_grad_(False)
    policy, counts = GRPOPolicy(model), Counts(model)
    groups, patches = two_groups(model)
    packer = Packer(policy.prompt_spec, 30, policy.loss.options)
    for batch in packer.pack(groups).batches:
        policy.logps(batch)
    for batch in packer.pack(groups).batches:
        policy(batch).loss.backward()
    assert counts.patches == patches
    with torch.no_grad():  # written to: nothing remembered may be used
        model.model.visual.merger.mlp[0].bias.add_(1.0)
    batch = packer.pack(groups).batches[0]
    before = policy.logps(batch)
    assert counts.patches > patches
    policy.features.clear()
    assert torch.equal(policy.logps(batch), before)


def test_features_that_a_prompt_brings_are_used():
    from dataclasses import replace

    model = tiny_model("qwen3_vl")
    model.model.visual.requires_grad_(False)
    policy, counts = GRPOPolicy(model, feature_cache_bytes=0), Counts(model)
    groups, patches = two_groups(model)
    packer = Packer(policy.prompt_spec, 10**6, policy.loss.options)
    expected = policy.logps(packer.pack(groups).batches[0])
    assert counts.patches == patches
    brought = [replace(g, prompt=replace(g.prompt, features=policy.encode(g.prompt.vision))) for g in groups]
    seen = counts.patches
    found = policy.logps(packer.pack(brought).batches[0])
    assert counts.patches == seen
    assert torch.allclose(found, expected, atol=1e-12)


def test_windows_are_one_attention_call_a_block(monkeypatch):
    from grpo_fast.policy import attention

    model = tiny_model("qwen2_5_vl")
    policy = GRPOPolicy(model)
    calls = []
    real = attention.segment_attention

    def counted(*args, **kwargs):
        calls.append(args[3])
        return real(*args, **kwargs)

    monkeypatch.setattr(attention, "segment_attention", counted)
    policy.encode([picture(1, (1, 10, 14))])
    assert len(calls) == len(model.model.visual.blocks)
    assert len(calls[0].host_q) - 1 == 3 * 4  # windows of 2 x 2 tokens over 5 x 7
