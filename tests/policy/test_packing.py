from dataclasses import replace

import pytest
import torch
from policy_lab import gradients, group, picture, prompt, tiny_model, worst_relative

from grpo_fast.losses.grpo import GRPOLoss
from grpo_fast.policy.model import GRPOPolicy
from grpo_fast.policy.packing import Packer, first_fit_decreasing, split_rows, spread

TRUNCATED = dict(mask_truncated_completions=True)
LOSSES = [
    dict(loss_type="dapo"),
    dict(loss_type="grpo"),
    dict(loss_type="bnpo"),
    dict(loss_type="dr_grpo"),
    dict(loss_type="cispo", epsilon_high=2.0),
    dict(loss_type="sapo"),
    dict(loss_type="luspo", importance_sampling_level="sequence"),
    dict(loss_type="vespo"),
    dict(loss_type="bnpo", **TRUNCATED),
    dict(loss_type="dapo", **TRUNCATED),
]


def some_groups(model):
    made = [group(prompt(model, [4 + i, picture(i), 2]), [2 + i, 1, 5, 3], seed=i) for i in range(5)]
    finished = [(True, i % 2 == 0, True, True) for i in range(5)]
    return [replace(one, finished=done) for one, done in zip(made, finished, strict=True)]


def without_advantage(one, keep=()):
    kept = torch.tensor([1.0 if i in keep else 0.0 for i in range(len(one.completions))])
    return replace(one, advantages=one.advantages * kept)


def run(model, groups, options, budget, leave_out=True, **given):
    model.zero_grad()
    policy = GRPOPolicy(model, GRPOLoss(**options))
    packer = Packer(policy.prompt_spec, budget, policy.loss.options)
    if not leave_out:
        packer.options = None
    step = packer.pack(groups, **given)
    loss = 0.0
    for batch in step.batches:
        out = policy(batch)
        out.loss.backward()
        loss += out.loss.item()
    return loss, gradients(model), step


# Every loss: its normaliser decides what a micro-batch must be multiplied with.
@pytest.mark.parametrize("options", LOSSES, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_micro_batches_add_up_to_one_batch(options):
    model = tiny_model("qwen2_vl")
    groups = some_groups(model)
    whole, truth, one = run(model, groups, options, 10**6)
    parts, found, several = run(model, groups, options, 45)
    assert len(one.batches) == 1 and len(several.batches) > 2
    assert parts == pytest.approx(whole, abs=1e-7)
    assert worst_relative(found, truth) < 1e-6


@pytest.mark.parametrize("options", LOSSES[:8], ids=lambda o: o["loss_type"])
def test_leaving_zero_advantage_out_changes_nothing(options):
    model = tiny_model("qwen2_vl")
    groups = some_groups(model)
    groups[1], groups[3] = without_advantage(groups[1]), without_advantage(groups[3], keep=(2,))
    whole, truth, full = run(model, groups, options, 10**6, leave_out=False)
    loss, found, step = run(model, groups, options, 10**6)
    assert loss == pytest.approx(whole, abs=1e-7)
    assert worst_relative(found, truth) < 1e-9
    assert (step.left_out_groups, step.left_out_completions) == (1, 7)
    assert step.batches[0].lm_tokens < full.batches[0].lm_tokens
    assert len(step.batches[0].vision) == len(full.batches[0].vision) - 1
    assert step.batches[0].targets.numel() == full.batches[0].targets.numel()


def test_masked_truncated_completions_leave_too():
    model = tiny_model("qwen2_vl")
    groups = some_groups(model)
    _, truth, kept = run(model, groups, dict(beta=0.0), 10**6)
    options = dict(mask_truncated_completions=True)
    _, found, step = run(model, groups, options, 10**6)
    cut = sum(not done for one in groups for done in one.finished)
    assert step.left_out_completions == cut == 2
    assert step.batches[0].num_items_in_batch == kept.batches[0].num_items_in_batch - 2 * 1
    # The masked completions have one token each: the same gradient with them taken away by hand.
    by_hand = [
        replace(
            one,
            completions=tuple(c for c, done in zip(one.completions, one.finished, strict=True) if done),
            advantages=one.advantages[torch.tensor(one.finished)],
            old_logps=tuple(c for c, done in zip(one.old_logps, one.finished, strict=True) if done),
            finished=(),
        )
        for one in groups
    ]
    _, expected, _ = run(model, by_hand, dict(loss_type="dapo"), 10**6)
    assert worst_relative(found, expected) < 1e-9
    assert worst_relative(found, truth) > 1e-3


@pytest.mark.parametrize(
    "options", [dict(beta=0.1), dict(entropy_coef=0.01), dict(top_entropy_quantile=0.5)], ids=lambda o: next(iter(o))
)
def test_nothing_is_left_out_where_it_could_have_a_gradient(options):
    model = tiny_model("qwen2_vl")
    groups = [without_advantage(one) for one in some_groups(model)]
    policy = GRPOPolicy(model, GRPOLoss(**options))
    step = Packer(policy.prompt_spec, 10**6, policy.loss.options).pack(groups)
    assert (step.left_out_groups, step.left_out_completions) == (0, 0)


def test_a_step_without_any_advantage_has_gradients_of_zero():
    model = tiny_model("qwen2_vl")
    loss, found, step = run(model, [without_advantage(one) for one in some_groups(model)], {}, 10**6)
    assert loss == 0.0
    assert len(found) == len(list(model.parameters()))
    assert all((g == 0).all() for g in found.values())
    assert step.left_out_groups == 4 and len(step.batches) == 1


def test_first_fit_decreasing_fills_and_never_overflows():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 100, (200,), generator=generator).tolist()
    bins = first_fit_decreasing(sizes, 100)
    assert sorted(i for one in bins for i in one) == list(range(200))
    assert all(sum(sizes[i] for i in one) <= 100 for one in bins)
    assert len(bins) <= -(-sum(sizes) // 100) * 11 / 9 + 1
    assert first_fit_decreasing([150, 20], 100) == [[0], [1]]


def test_spread_reaches_the_count_of_other_ranks():
    sizes = [10, 20, 30, 40, 50]
    bins = spread([[4, 3, 2, 1, 0]], sizes, 3)
    assert len(bins) == 3 and sorted(i for one in bins for i in one) == [0, 1, 2, 3, 4]
    assert spread([[0], [1]], sizes, 5) == [[0], [1]]


def test_filler_batches_weigh_nothing():
    model = tiny_model("qwen2_vl")
    groups = some_groups(model)[:2]
    for options in (dict(loss_type="dapo"), dict(loss_type="grpo")):
        whole, truth, _ = run(model, groups, options, 10**6)
        loss, found, step = run(model, groups, options, 10**6, at_least=4)
        assert len(step.batches) == 4
        assert loss == pytest.approx(whole, abs=1e-7)
        assert worst_relative(found, truth) < 1e-6


def test_reports_fill_and_oversized_groups():
    model = tiny_model("qwen2_vl")
    groups = some_groups(model)
    policy = GRPOPolicy(model)
    step = Packer(policy.prompt_spec, 30, policy.loss.options).pack(groups)
    assert step.fill == pytest.approx(sum(b.lm_tokens for b in step.batches) / (30 * len(step.batches)))
    assert step.over_budget == sum(
        len(one.prompt.input_ids) + sum(len(c) for c in one.completions) > 30 for one in groups
    )


def test_split_rows_gives_every_completion_its_own():
    model = tiny_model("qwen2_vl")
    groups = some_groups(model)
    groups[2] = without_advantage(groups[2], keep=(1,))
    policy = GRPOPolicy(model)
    packer = Packer(policy.prompt_spec, 60, policy.loss.options)
    seen = {}
    for batch in packer.pack(groups).batches:
        seen |= split_rows(batch, batch.targets)
    assert set(seen) == {(g, i) for g in range(5) for i in range(4) if g != 2 or i == 1}
    assert all(torch.equal(rows, groups[g].completions[i]) for (g, i), rows in seen.items())
