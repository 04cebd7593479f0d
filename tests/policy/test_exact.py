"""The shared prompt is not an approximation: log-probs and every gradient, the tower's included, are those of plain
transformers on repeated prompts."""

import warnings

import pytest
import torch
from policy_lab import (
    FIRST_TEXT,
    KINDS,
    dapo_loss,
    gradients,
    group,
    picture,
    plain,
    prompt,
    repeated_logps,
    tiny_model,
    worst_relative,
)

from grpo_fast.losses.grpo import GRPOLoss
from grpo_fast.policy.model import GRPOPolicy
from grpo_fast.policy.packing import Packer, split_rows


def packed(policy, groups, budget=10**6, **given):
    return Packer(policy.prompt_spec, budget, policy.loss.options).pack(groups, **given)


def mixed_groups(model, g, **kwargs):
    """Text only, one image, several images (one of them shared with another prompt), a video, all in one batch."""
    shared = picture(1)
    parts = [
        [9],
        [3, shared, 4],
        [2, picture(2, (1, 6, 4)), 1, shared, 3, picture(3, (1, 10, 6)), 2],
        [2, picture(4, (3, 4, 6), "video"), 5, picture(5, (1, 4, 4)), 1],
    ]
    lengths = [[1 + (5 * i + 3 * j) % 7 for j in range(g)] for i in range(len(parts))]
    return [group(prompt(model, p, i), r, i, **kwargs) for i, (p, r) in enumerate(zip(parts, lengths, strict=True))]


# G of 1, a middle one, 8; tied and untied head; the third kind has deepstack features.
@pytest.mark.parametrize("g", [1, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_logps_and_gradients_equal_repeated_prompts(kind, g):
    model = tiny_model(kind, tied=g != 4)
    truth, policy = plain(model), GRPOPolicy(model, GRPOLoss(loss_type="dapo"))
    groups = mixed_groups(model, g)
    expected = repeated_logps(truth, groups)
    loss = dapo_loss(groups, expected)
    loss.backward()

    (batch,) = packed(policy, groups).batches
    out = policy(batch)
    out.loss.backward()
    found = split_rows(batch, out.logps)
    for i, rows in enumerate(expected):
        for j, logps in enumerate(rows):
            assert (found[i, j] - logps).abs().max() < 1e-6
    assert abs(out.loss.item() - loss.item()) < 1e-6
    assert worst_relative(gradients(model), gradients(truth)) < 1e-6
    assert len(gradients(model)) == len(list(model.parameters()))


def test_ratio_is_exactly_one_on_policy():
    model = tiny_model("qwen2_5_vl", torch.float32)
    policy = GRPOPolicy(model)
    (batch,) = packed(policy, mixed_groups(model, 3, old=False)).batches
    assert torch.equal(policy.logps(batch), policy(batch).logps)


@pytest.mark.parametrize("kind", KINDS)
def test_another_groups_tokens_change_no_bit(kind):
    model = tiny_model(kind, torch.float32)
    policy = GRPOPolicy(model)
    groups = mixed_groups(model, 3)
    other = group(groups[1].prompt, [len(c) for c in groups[1].completions], seed=77)
    first, second = (
        split_rows(batch, policy.logps(batch))
        for batch in (packed(policy, groups).batches[0], packed(policy, [groups[0], other, *groups[2:]]).batches[0])
    )
    assert not torch.equal(first[1, 0], second[1, 0])
    for key in first:
        if key[0] != 1:
            assert torch.equal(first[key], second[key])


def test_sampled_image_token_is_text():
    model = tiny_model("qwen2_vl")
    groups = mixed_groups(model, 2)
    groups[1].completions[0][0] = model.config.image_token_id
    groups[2].completions[1][-1] = model.config.video_token_id
    policy = GRPOPolicy(model)
    (batch,) = packed(policy, groups).batches
    found = split_rows(batch, policy.logps(batch))
    # The plain model would put features there; ask it about the prompt's images through embeddings instead.
    truth = plain(model)
    embed = truth.model.language_model.embed_tokens
    one = groups[1]
    ids = torch.cat([one.prompt.input_ids, one.completions[0]])
    features = truth.model.visual(one.prompt.vision[0].pixels, torch.tensor([one.prompt.vision[0].grid])).pooler_output
    embeds = embed(ids).clone()
    embeds[: len(one.prompt.input_ids)][one.prompt.input_ids == model.config.image_token_id] = features
    length = len(one.completions[0])
    positions = torch.cat(
        [one.prompt.positions, one.prompt.positions.max() + 1 + torch.arange(length).expand(3, -1)], 1
    )
    hidden = truth.model.language_model(inputs_embeds=embeds[None], position_ids=positions[:, None]).last_hidden_state
    logits = truth.lm_head(hidden[0, -length - 1 : -1])
    expected = logits.log_softmax(-1).gather(-1, one.completions[0][:, None])[:, 0]
    assert (found[1, 0] - expected).abs().max() < 1e-6


def test_stock_packed_detection_would_be_wrong():
    """The same positions through transformers' own packing give other numbers: it cannot see a shared prompt."""
    model = tiny_model("qwen2_vl")
    policy = GRPOPolicy(model)
    (batch,) = packed(policy, [group(prompt(model, [9]), [4, 6])]).batches
    language_model = model.model.language_model
    embeds = language_model.embed_tokens(batch.input_ids)[None]
    given = dict(inputs_embeds=embeds, position_ids=batch.positions[:, None], use_cache=False)
    ours = language_model(attention_mask={"full_attention": None}, plan=batch.plan, **given).last_hidden_state
    stock = language_model(**given).last_hidden_state
    assert torch.allclose(ours[:, :9], stock[:, :9])
    assert (ours - stock)[:, 9:].abs().max() > 1e-3


def test_checkpointing_and_plain_calls_after_wrapping():
    model = tiny_model("qwen2_5_vl")
    policy = GRPOPolicy(model)
    groups = mixed_groups(model, 2)
    (batch,) = packed(policy, groups).batches
    policy(batch).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # such as transformers' of a name that it will drop
        again = GRPOPolicy(model, checkpointing=True)
    again(batch).loss.backward()
    assert worst_relative(gradients(model), whole) < 1e-9
    ids = torch.randint(FIRST_TEXT, 100, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    model.eval()
    assert torch.equal(model(ids, attention_mask=mask).logits, plain(model)(ids, attention_mask=mask).logits)


def test_checkpointing_recomputes_in_a_model_that_was_loaded_in_eval_mode():
    model = tiny_model("qwen2_5_vl").eval()
    policy = GRPOPolicy(model, checkpointing=True)
    runs = []
    for name, block in (("tower", model.model.visual.blocks[0]), ("text", model.model.language_model.layers[0])):
        block.mlp.register_forward_pre_hook(lambda *_, name=name: runs.append(name))
    (batch,) = packed(policy, mixed_groups(model, 2)).batches
    policy(batch).loss.backward()
    assert sorted(runs) == ["text", "text", "tower", "tower"]


def test_scoring_leaves_every_part_in_its_mode():
    model = tiny_model("qwen2_vl").eval()
    policy = GRPOPolicy(model)
    (batch,) = packed(policy, mixed_groups(model, 2)).batches
    model.model.language_model.layers[1].train()
    before = {name: part.training for name, part in policy.named_modules()}
    assert len(set(before.values())) == 2
    policy.logps(batch)
    assert {name: part.training for name, part in policy.named_modules()} == before


def test_bf16_autocast_stays_near_fp32():
    model = tiny_model("qwen2_vl", torch.float32)
    groups = mixed_groups(model, 4)
    exact, low = GRPOPolicy(model), GRPOPolicy(model, autocast=torch.bfloat16)
    (batch,) = packed(exact, groups).batches
    truth = plain(model)
    with torch.no_grad():
        reference = repeated_logps(truth, groups)
        with torch.autocast("cpu", torch.bfloat16):
            eager = repeated_logps(truth, groups)
    found = split_rows(batch, low.logps(batch))
    keys = [(i, j) for i, rows in enumerate(reference) for j in range(len(rows))]
    ours = max((found[i, j] - reference[i][j]).abs().max() for i, j in keys)
    theirs = max((eager[i][j] - reference[i][j]).abs().max() for i, j in keys)
    assert ours <= 1.5 * theirs + 1e-5
    low(batch).loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
