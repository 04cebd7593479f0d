"""LoRA through peft, the head's adapter included; the adapter turned off is the reference policy."""

import peft
import pytest
import torch
from policy_lab import dapo_loss, gradients, group, picture, plain, prompt, repeated_logps, tiny_model, worst_relative

from grpo_fast.losses.grpo import GRPOLoss
from grpo_fast.policy.head import head_operands
from grpo_fast.policy.model import GRPOPolicy
from grpo_fast.policy.packing import Packer, split_rows

TEXT = r".*language_model.*(q_proj|v_proj|down_proj)"
TOWER = r".*(language_model.*q_proj|visual.*qkv)"
HEAD = r".*(language_model.*q_proj|lm_head)"


def adapted(kind="qwen2_vl", target=TEXT, tied=True, **options):
    base = tiny_model(kind, tied=tied)
    settings = dict(r=4, lora_alpha=6, target_modules=target, init_lora_weights=False) | options
    return base, peft.get_peft_model(base, peft.LoraConfig(**settings)).train()


def groups_of(model):
    return [group(prompt(model, [3, picture(i), 2], i), [2, 5, 3], i) for i in range(2)]


def batch_of(policy, groups):
    return Packer(policy.prompt_spec, 10**6, policy.loss.options).pack(groups).batches[0]


def plain_peft(model):
    import copy

    twin = copy.deepcopy(model)
    core = twin.get_base_model()
    for part in (core, core.model, core.model.visual, core.model.language_model):
        part.config._attn_implementation = "sdpa"
    return twin


@pytest.mark.parametrize(
    ("target", "tied", "options"),
    [
        (TEXT, True, {}),
        (TOWER, True, {}),
        (HEAD, False, {}),
        (HEAD, True, {}),
        (TEXT, False, dict(modules_to_save=["lm_head"])),
    ],
    ids=["text", "tower", "head", "tied head", "head saved whole"],
)
def test_gradients_of_adapters_equal_plain_peft(target, tied, options):
    base, model = adapted(target=target, tied=tied, **options)
    truth = plain_peft(model)
    policy = GRPOPolicy(model)
    groups = groups_of(base)
    loss = dapo_loss(groups, repeated_logps(truth, groups))
    loss.backward()
    out = policy(batch_of(policy, groups))
    out.loss.backward()
    assert abs(out.loss.item() - loss.item()) < 1e-6
    found = gradients(model)
    assert worst_relative(found, gradients(truth)) < 1e-6
    assert all(g.norm() > 0 for g in found.values())
    if "lm_head" in target:
        assert any("lm_head" in name for name in found)


@pytest.mark.parametrize("target", [TEXT, TOWER, HEAD])
def test_reference_is_the_model_without_adapter(target):
    base = tiny_model("qwen2_5_vl", tied=False)
    groups = groups_of(base)
    untouched = plain(base)
    with torch.no_grad():
        expected = repeated_logps(untouched, groups)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=target, init_lora_weights=False))
    policy = GRPOPolicy(model)
    batch = batch_of(policy, groups)
    found = split_rows(batch, policy.logps(batch, reference=True))
    assert all((found[i, j] - x).abs().max() < 1e-6 for i, rows in enumerate(expected) for j, x in enumerate(rows))
    assert (policy.logps(batch) - policy.logps(batch, reference=True)).abs().max() > 1e-3


def test_features_of_a_frozen_adapter_are_not_the_references():
    base, model = adapted(target=TOWER)
    model.requires_grad_(False)
    policy = GRPOPolicy(model)
    batch = batch_of(policy, groups_of(base))
    model.requires_grad_(False)
    found = policy.logps(batch)
    reference = policy.logps(batch, reference=True)
    policy.features.clear()
    assert torch.equal(policy.logps(batch, reference=True), reference)
    assert (found - reference).abs().max() > 1e-3


def test_two_active_adapters_on_the_head():
    base, model = adapted(target=HEAD, tied=False)
    model.add_adapter("second", peft.LoraConfig(r=2, lora_alpha=8, target_modules=HEAD, init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    x = torch.randn(5, 32, dtype=torch.float64)
    head = head_operands(base.lm_head)
    assert head.lora is not None
    down, up, scaling = head.lora
    ours = x @ head.weight.T + scaling * (x @ down.T) @ up.T
    assert torch.allclose(ours, base.lm_head(x))


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("lora_dropout", 0.1, "lora_dropout"),
        ("use_dora", True, "use_dora"),
        ("lora_bias", True, "lora_bias"),
        ("alora_invocation_tokens", [3], "ALora"),
    ],
)
def test_head_adapters_that_the_loss_cannot_apply(option, value, named):
    base, model = adapted(target=HEAD, tied=False, **{option: value})
    policy = GRPOPolicy(model, GRPOLoss())
    with pytest.raises(NotImplementedError, match=named):
        policy(batch_of(policy, groups_of(base)))


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[]),
        peft.LoHaConfig(target_modules=["lm_head"]),
        peft.AdaLoraConfig(target_modules=["lm_head"], total_step=10),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_other_adapters_on_the_head_are_refused_not_left_out(config):
    model = peft.get_peft_model(tiny_model("qwen2_vl", tied=False), config)
    with pytest.raises(TypeError, match=r"output layer is a \w+ \(peft"):
        head_operands(model.get_base_model().lm_head)


def test_unknown_head_is_refused():
    with pytest.raises(TypeError, match="output layer is a Identity"):
        head_operands(torch.nn.Identity())
