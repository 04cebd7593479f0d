from dataclasses import replace

import pytest
import torch
from policy_lab import IMAGE, PAD, group, picture, prompt, rope_positions, tiny_model

from grpo_fast.errors import BadGroup, PromptMismatch
from grpo_fast.losses.grpo import GRPOLoss
from grpo_fast.policy.attention import AttentionBackendError, choose_attention, usable_attention
from grpo_fast.policy.model import GRPOPolicy
from grpo_fast.policy.packing import Packer, split_rows
from grpo_fast.types import Group, Sample


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen2_vl")


def pack(model, *groups):
    policy = GRPOPolicy(model)
    return policy, Packer(policy.prompt_spec, 10**6, policy.loss.options).pack(groups).batches[0]


def with_prompt(one: Group, **changes) -> Group:
    return replace(one, prompt=replace(one.prompt, **changes))


def test_named_with_the_sample(model):
    one = with_prompt(group(prompt(model, [3, picture(1)]), [2]), vision=(), sample=Sample("case-7", ()))
    with pytest.raises(PromptMismatch, match=r"sample case-7: 6 image placeholder tokens .* make 0"):
        pack(model, one)


def test_too_few_placeholders(model):
    one = group(prompt(model, [3, picture(1)]), [2])
    ids = one.prompt.input_ids.clone()
    ids[5] = 9
    with pytest.raises(PromptMismatch, match="5 image placeholder tokens"):
        pack(model, with_prompt(one, input_ids=ids))


@pytest.mark.parametrize("grid", [(1, 6, 4), (1, 12, 2), (1, 2, 2)])
def test_grid_of_another_image(model, grid):
    one = group(prompt(model, [3, picture(1, (1, 4, 6))]), [2])
    with pytest.raises(PromptMismatch):
        pack(model, with_prompt(one, vision=(picture(2, grid),)))


def test_swapped_images(model):
    one = group(prompt(model, [3, picture(1, (1, 4, 6)), 1, picture(2, (1, 4, 4))]), [2])
    with pytest.raises(PromptMismatch, match="swapped"):
        pack(model, with_prompt(one, vision=one.prompt.vision[::-1]))


def test_pixels_of_another_grid(model):
    one = group(prompt(model, [3, picture(1)]), [2])
    cut = replace(one.prompt.vision[0], pixels=one.prompt.vision[0].pixels[:-1])
    with pytest.raises(PromptMismatch, match=r"pixels are \(23, 96\), but grid \(1, 4, 6\) needs \(24, 96\)"):
        pack(model, with_prompt(one, vision=(cut,)))


def test_grid_that_cannot_be_merged(model):
    one = group(prompt(model, [3, picture(1, (1, 4, 4))]), [2])
    odd = picture(2, (1, 3, 6))
    with pytest.raises(PromptMismatch, match="merge blocks"):
        pack(
            model,
            with_prompt(one, vision=(replace(odd),), input_ids=one.prompt.input_ids, positions=one.prompt.positions),
        )


def test_positions_of_another_prompt(model):
    one = group(prompt(model, [5]), [2])
    with pytest.raises(PromptMismatch, match=r"need \(3, 5\)"):
        pack(model, with_prompt(one, positions=one.prompt.positions[:, :4]))


def test_empty_completion(model):
    one = group(prompt(model, [5]), [2, 3])
    with pytest.raises(BadGroup, match="completion 1 is empty"):
        pack(model, replace(one, completions=(one.completions[0], torch.zeros(0, dtype=torch.int64))))


def test_no_completions(model):
    with pytest.raises(BadGroup, match="no completions"):
        pack(model, Group(prompt(model, [5]), ()))


def test_logps_of_other_lengths(model):
    one = group(prompt(model, [5]), [2, 3])
    with pytest.raises(BadGroup, match=r"old_logps have lengths \[3, 2\], the completions \[2, 3\]"):
        pack(model, replace(one, old_logps=one.old_logps[::-1]))


def test_advantages_of_another_group(model):
    one = group(prompt(model, [5]), [2, 3])
    with pytest.raises(BadGroup, match="one per completion"):
        pack(model, replace(one, advantages=torch.ones(3)))


def test_old_logps_for_some_groups_only(model):
    with pytest.raises(ValueError, match="1 of 2 groups have no old_logps"):
        pack(model, group(prompt(model, [5]), [2]), group(prompt(model, [6]), [2], old=False))


def test_one_completion_of_one_token(model):
    one = group(prompt(model, [3, picture(1)]), [1])
    policy, batch = pack(model, one)
    out = policy(batch)
    out.loss.backward()
    assert batch.lm_tokens == len(one.prompt.input_ids) + 1
    assert torch.isfinite(out.loss) and split_rows(batch, out.logps)[0, 0].shape == (1,)


def test_prompt_of_one_token(model):
    policy, batch = pack(model, group(prompt(model, [1]), [3, 2]))
    policy(batch).loss.backward()


def test_text_with_the_image_token_in_the_prompt(model):
    one = group(prompt(model, [5]), [2])
    ids = torch.tensor([7, IMAGE, 8, 9, 10])
    with pytest.raises(PromptMismatch, match="1 image placeholder"):
        pack(model, with_prompt(one, input_ids=ids, positions=rope_positions(model, ids, ())))


def test_loss_without_advantages(model):
    policy, batch = pack(model, replace(group(prompt(model, [5]), [2]), advantages=None))
    assert policy.logps(batch).shape == (2,)
    with pytest.raises(ValueError, match="no advantages"):
        policy(batch)


def test_reference_without_adapter(model):
    policy, batch = pack(model, group(prompt(model, [5]), [2]))
    with pytest.raises(ValueError, match="second GRPOPolicy"):
        policy.logps(batch, reference=True)


def test_nothing_to_pack(model):
    with pytest.raises(ValueError, match="no groups"):
        pack(model)


def test_models_that_cannot_be_served():
    sliding = tiny_model("qwen2_vl", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match="use_sliding_window"):
        GRPOPolicy(sliding)
    dropping = tiny_model("qwen2_vl")
    dropping.config.text_config.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"attention_dropout is 0\.1"):
        GRPOPolicy(dropping)
    text = tiny_model("qwen2_vl")
    text.config.model_type = "llama"
    with pytest.raises(ValueError, match="'llama' is not supported"):
        GRPOPolicy(text, GRPOLoss())


def test_attention_backends_are_named():
    assert usable_attention()["sdpa"] is None
    assert choose_attention("auto", "cpu", torch.float32, 64) == "sdpa"
    with pytest.raises(AttentionBackendError, match="needs a CUDA device"):
        choose_attention("varlen", "cpu", torch.bfloat16, 64)
    with pytest.raises(AttentionBackendError, match="no attention backend 'flash'"):
        choose_attention("flash", "cpu", torch.bfloat16, 64)
    assert PAD == 0


def test_a_loss_that_divides_by_accumulation_itself_is_refused(model):
    with pytest.raises(ValueError, match="gradient_accumulation_steps at 1, not 4"):
        GRPOPolicy(model, GRPOLoss(gradient_accumulation_steps=4))
