"""Greedy tokens of `model.generate`, log-probs of GRPOPolicy, and the same tokens whatever the batch holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policy_lab import picture, plain, prompt, tiny_model
from rollout_lab import ROW_BYTES, hf_greedy, mixed_prompts, trainer_error

from grpo_fast.policy import GRPOPolicy, Packer
from grpo_fast.rollout import Engine, SamplingParams, static
from grpo_fast.rollout.engine import free_on_gpu

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


# 64 prompts for the two models that the engine is made for; a third family rides along on fewer. The budget of keys
# and values holds a few groups only, so that prompts enter while others are being decoded.
@pytest.mark.parametrize(("kind", "count"), [("qwen2_vl", 64), ("qwen2_5_vl", 64), ("qwen3_vl", 12)])
@pytest.mark.parametrize("static_shapes", [False, True])
def test_greedy_tokens_are_those_of_generate(kind: str, count: int, static_shapes: bool) -> None:
    model = tiny_model(kind, torch.float32, tied=False)  # a tied one says every token again
    twin = plain(model).eval()
    engine = Engine(model, kv_bytes=(400 if static_shapes else 220) * ROW_BYTES, static_shapes=static_shapes)
    params = SamplingParams(greedy=True, max_tokens=9, stop_tokens=(2, *range(20, 36)))
    count = 12 if static_shapes else count
    prompts = mixed_prompts(model, count)
    groups = engine.generate(prompts, 1 + static_shapes, params)
    assert any(any(one.finished) for one in groups) and not all(all(one.finished) for one in groups)
    assert len(torch.cat([c for one in groups for c in one.completions]).unique()) > 20
    for one, made in zip(prompts, groups, strict=True):
        expected = hf_greedy(twin, one, engine, params)
        for completion, finished in zip(made.completions, made.finished, strict=True):
            assert torch.equal(completion, expected)
            assert finished == (int(expected[-1]) in engine.stop_tokens(params))


def test_preparing_a_static_step_leaves_the_cache_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where a step is run to compile and warm it up before it is captured and replayed."""
    model = tiny_model("qwen2_vl", torch.float32, tied=False)
    prompts, params = mixed_prompts(model, 6), SamplingParams(max_tokens=9, stop_tokens=tuple(range(20, 36)))
    expected = Engine(model).generate(prompts, 3, params)
    monkeypatch.setattr(static, "OWN_MULTIPLE", 4)  # several buckets within a completion
    prepare, prepared = static.StaticDecoder._prepare, []

    def warmed_up(self, inputs, groups, own):
        run = prepare(self, inputs, groups, own)
        prepared.append((groups, own))
        run(), run()
        return run

    monkeypatch.setattr(static.StaticDecoder, "_prepare", warmed_up)
    engine = Engine(model, static_shapes=True, kv_bytes=4 * (64 + 27) * ROW_BYTES)
    same_tokens(expected, engine.generate(prompts, 3, params))
    assert len(prepared) == len(set(prepared)) and {own for _, own in prepared} == {
        4,
        8,
    }  # the ninth token is never an input
    assert {groups for groups, _ in prepared} == {1, 2, 4}


def same_tokens(expected, found) -> None:
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.completions, b.completions, strict=True))


@pytest.mark.gpu
def test_captured_steps_say_what_eager_ones_do() -> None:
    model = tiny_model("qwen2_vl", torch.float32, tied=False)
    prompts, params = mixed_prompts(model, 6), SamplingParams(greedy=True, max_tokens=9)
    model.cuda()
    eager, captured = (Engine(model, static_shapes=on).generate(prompts, 3, params) for on in (False, True))
    same_tokens(eager, captured)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"temperature": 1.4, "top_k": 20, "top_p": 0.8}, {"repetition_penalty": 1.3}]
)
def test_logps_are_the_trainers(kind: str, options: dict[str, float]) -> None:
    policy = GRPOPolicy(tiny_model(kind, torch.float32))
    groups = Engine(policy).generate(
        mixed_prompts(policy.model, 6), 3, SamplingParams(max_tokens=14, seed=5, **options)
    )
    assert trainer_error(policy, groups, options.get("temperature", 1.0)) < 1e-5


@pytest.mark.gpu
def test_memory_that_a_step_left_to_torch_is_free() -> None:
    """The update's activations stay reserved; without them the second rollout's budget would be a fraction."""
    device = torch.device("cuda", torch.cuda.current_device())
    before = free_on_gpu(device)
    activations = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    assert before - free_on_gpu(device) >= 1 << 30
    del activations
    assert abs(free_on_gpu(device) - before) < 1 << 26


@pytest.mark.parametrize("merge", [False, True])
def test_adapters_are_active(merge: bool) -> None:
    import peft  # here: a GPU machine may lack it, and takes this file for its marked test

    torch.manual_seed(1)
    target = r".*(q_proj|down_proj|visual.*qkv)" if merge else r".*(q_proj|down_proj|lm_head|visual.*qkv)"
    lora = peft.LoraConfig(r=4, lora_alpha=32, target_modules=target, init_lora_weights=False, lora_dropout=0.3)
    model = peft.get_peft_model(tiny_model("qwen2_vl", torch.float32), lora)
    policy = GRPOPolicy(model.train())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    prompts = mixed_prompts(model.get_base_model(), 4)
    params = SamplingParams(max_tokens=10)
    groups = Engine(policy, merge_adapters=merge).generate(prompts, 3, params)
    assert trainer_error(policy, groups, 1.0) < 1e-5
    with model.disable_adapter():
        other = Engine(policy).generate(prompts, 3, params)
        assert trainer_error(policy, groups, 1.0) > 1e-3
    assert any(
        not torch.equal(a, b)
        for x, y in zip(groups, other, strict=True)
        for a, b in zip(x.completions, y.completions, strict=True)
    )
    assert policy.training and all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_an_interrupt_amid_merging_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import peft
    from peft.tuners.lora import Linear as LoraLinear

    lora = peft.LoraConfig(target_modules=r".*(q_proj|down_proj)", init_lora_weights=False)
    model = peft.get_peft_model(tiny_model("qwen2_vl", torch.float32), lora)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    merged = []

    def merge(layer: LoraLinear, *arguments: object, **options: object) -> None:
        if len(merged) == 2:
            raise KeyboardInterrupt
        merged.append(layer)
        whole(layer, *arguments, **options)

    whole = LoraLinear.merge
    monkeypatch.setattr(LoraLinear, "merge", merge)
    with pytest.raises(KeyboardInterrupt):
        Engine(model, merge_adapters=True).generate(mixed_prompts(model.get_base_model(), 1), 1)
    assert len(merged) == 2 < len(layers) and not any(layer.merged for layer in layers)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_repetition_penalty_is_that_of_generate() -> None:
    model = tiny_model("qwen2_vl", torch.float32)
    engine, twin = Engine(model), plain(model).eval()
    params = SamplingParams(greedy=True, max_tokens=12, stop_tokens=(), repetition_penalty=1.8)
    for one, made in zip(prompts := mixed_prompts(model, 6), engine.generate(prompts, 1, params), strict=True):
        twin.generation_config.eos_token_id = None
        assert torch.equal(made.completions[0], hf_greedy(twin, one, engine, params))


def test_a_seed_gives_the_same_tokens_and_bits_in_any_company() -> None:
    """Alone, among others, in a larger group, and waiting for room; log-probs to the last bit."""
    model = tiny_model("qwen2_5_vl", torch.float32)
    prompts = mixed_prompts(model, 7)
    params = SamplingParams(max_tokens=12, stop_tokens=(2, 20, 33, 50))
    (alone,) = Engine(model).generate(prompts[3:4], 3, params, seeds=[99])
    for order, group_size, kv_rows in (([3, 0, 1, 2], 3, None), ([6, 5, 4, 3], 5, None), ([5, 3, 2], 4, 130)):
        engine = Engine(model, kv_bytes=None if kv_rows is None else kv_rows * ROW_BYTES)
        seeds = [99 if number == 3 else number for number in order]
        groups = engine.generate([prompts[i] for i in order], group_size, params, seeds=seeds)
        together = groups[order.index(3)]
        for i in range(3):
            assert torch.equal(alone.completions[i], together.completions[i])
            assert torch.equal(alone.sampler_logps[i], together.sampler_logps[i])
    assert len({tuple(c.tolist()) for c in alone.completions}) == 3
    (another,) = Engine(model).generate(prompts[3:4], 3, params, seeds=[100])
    assert not torch.equal(alone.completions[0], another.completions[0])


def test_a_short_prompt_has_the_same_bits_in_any_company() -> None:
    """A product of few rows takes another path, with other last bits, than one of many."""
    model = tiny_model("qwen2_vl", torch.float32)
    engine, params = Engine(model), SamplingParams(max_tokens=4, stop_tokens=())
    (long,) = mixed_prompts(model, 4)[3:]
    for length in range(1, 12):
        short = prompt(model, [length], seed=length)
        (alone,) = engine.generate([short], 2, params, seeds=[9])
        together, _ = engine.generate([short, long], 2, params, seeds=[9, 1])
        for a, b in zip(alone.sampler_logps, together.sampler_logps, strict=True):
            assert torch.equal(a, b), f"a prompt of {length}"


def test_a_prompt_that_comes_twice_gets_different_completions() -> None:
    model = tiny_model("qwen2_vl", torch.float32)
    one = prompt(model, [3, picture(1, dtype=torch.float32), 2])
    first, second = Engine(model).generate([one, one], 2, SamplingParams(max_tokens=8))
    assert not torch.equal(first.completions[0], second.completions[0])


def test_groups_go_into_training_as_they_are() -> None:
    """Same ids, features of a frozen tower handed on, and an importance ratio of 1 on policy."""
    model = tiny_model("qwen2_vl", torch.float32)
    model.model.visual.requires_grad_(False)
    policy = GRPOPolicy(model)
    prompts = mixed_prompts(model, 4)
    groups = Engine(policy).generate(prompts, 4, SamplingParams(max_tokens=6))
    assert all(made.prompt.input_ids is one.input_ids for made, one in zip(groups, prompts, strict=True))
    policy.features.clear()
    encoded = []
    model.model.visual.blocks[0].register_forward_pre_hook(lambda *_: encoded.append(1))
    scored = [replace(one, advantages=torch.randn(4), old_logps=one.sampler_logps) for one in groups]
    for batch in Packer(policy.prompt_spec, 10**6, policy.loss.options).pack(scored).batches:
        out = policy(batch)
        out.loss.backward()
        assert out.metrics.as_dict()["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert not encoded


def test_a_trained_tower_hands_no_features_on() -> None:
    model = tiny_model("qwen2_vl", torch.float32)
    groups = Engine(model).generate(mixed_prompts(model, 3), 1, SamplingParams(max_tokens=1))
    assert all(one.prompt.features is None for one in groups)
