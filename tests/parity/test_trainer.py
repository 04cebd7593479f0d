"""The real GRPOTrainer on a tiny Qwen2: its own scoring step, its own forward, its own loss.

The rollout alone is replaced (ids and sampler log-probs are given), so that the advantages, the sampler correction, the
mask of truncated completions and the old log-probs come out of `_generate_and_score_completions` itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl", minversion="1.16")

from datasets import Dataset
from parity.batch import Batch
from parity.compare import relative_error
from parity.trl_side import importance_sampling_ratio
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from grpo_fast import GRPOLoss, group_advantages

WORDS = [f"w{i}" for i in range(35)]
PAD, EOS = 0, 1
GROUP = 4
# ids of the completions as a rollout would give them: stopped (…, EOS) or cut at the limit
COMPLETIONS = [
    [7, 9, EOS],
    [8, 8, 8, 8, 8],
    [12, EOS],
    [30, 4, 22, EOS],
    [5, EOS],
    [6, 7, 8, 9, EOS],
    [3, 3, 3, 3, 3],
    [9, EOS],
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "<eos>", *WORDS])}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def noisy_reward(completions: list[str], **_: Any) -> list[float]:
    return [(len(c) % 5) * 0.7 - 0.2 * i for i, c in enumerate(completions)]


def coarse_reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(c) > 6) for c in completions]


def build(
    tokenizer: PreTrainedTokenizerFast, folder: Path, *, with_sampler: bool = False, **options: Any
) -> GRPOTrainer:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=PAD, eos_token_id=EOS, pad_token_id=PAD,
        initializer_range=0.15, tie_word_embeddings=True,
    )  # fmt: skip
    beta = options.pop("beta", 0.0)  # a reference model would be loaded from a hub name: log-probs are given instead
    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=len(COMPLETIONS), num_generations=GROUP, report_to=[],
        max_completion_length=5, use_cpu=True, bf16=False, gradient_checkpointing=False, **options,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=Qwen2ForCausalLM(config),
        reward_funcs=[noisy_reward, coarse_reward],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["w1 w2", "w3 w4 w5"]}),
        processing_class=tokenizer,
    )
    gen = torch.Generator().manual_seed(3)
    sampler = None
    if with_sampler:
        trainer.use_vllm = True
        sampler = [(-3.6 + 0.3 * torch.randn(len(ids), generator=gen)).tolist() for ids in COMPLETIONS]
        sampler[3][1] = None  # what TRL writes for a log-prob that vLLM could not give
        sampler[7] = [None] * len(sampler[7])

    def generate(prompts: list[str]) -> tuple[Any, ...]:
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        texts = tokenizer.batch_decode(COMPLETIONS)
        return prompt_ids, COMPLETIONS, None, texts, sampler, {}, None, [[]] * len(prompts)

    trainer._generate = generate
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = beta
    trainer.model.train()
    return trainer


def score(trainer: GRPOTrainer) -> dict[str, Tensor]:
    beta, trainer.beta = trainer.beta, 0.0
    rows = [{"prompt": "w1 w2"}] * GROUP + [{"prompt": "w3 w4 w5"}] * GROUP
    inputs = trainer._generate_and_score_completions(rows)
    trainer.beta = beta
    if beta:
        gen = torch.Generator().manual_seed(4)
        inputs["ref_per_token_logps"] = -2.5 - torch.rand(inputs["completion_ids"].shape, generator=gen)
    return inputs


def grad_of_trl(trainer: GRPOTrainer, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in trainer.model.parameters()]


def grad_of_ours(loss_fn: GRPOLoss, trainer: GRPOTrainer, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    model, targets = trainer.model, inputs["completion_ids"]
    model.zero_grad()
    ids = torch.cat([inputs["prompt_ids"], targets], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    hidden = model.model(input_ids=ids, attention_mask=attention).last_hidden_state
    out = loss_fn(
        hidden[:, -targets.shape[1] - 1 : -1],
        model.lm_head.weight,
        targets,
        advantages=inputs["advantages"],
        mask=inputs["completion_mask"],
        old_logps=inputs.get("old_per_token_logps"),
        ref_logps=inputs.get("ref_per_token_logps"),
        sampler_logps=inputs.get("sampling_per_token_logps"),
        num_items_in_batch=inputs["num_items_in_batch"],
        truncated=torch.tensor([ids[-1] != EOS for ids in COMPLETIONS]),
    )
    out.loss.backward()
    return out.loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}, id="grpo-kl"),
        pytest.param({"loss_type": "bnpo", "importance_sampling_level": "sequence"}, id="bnpo-sequence"),
        pytest.param({"loss_type": "dr_grpo", "mask_truncated_completions": True}, id="dr_grpo-truncated-masked"),
        pytest.param({"loss_type": "cispo", "epsilon_high": 5.0, "temperature": 0.8}, id="cispo-temperature"),
        pytest.param({"loss_type": "sapo", "top_entropy_quantile": 0.6, "entropy_coef": 0.02}, id="sapo-entropy"),
        pytest.param({"loss_type": "luspo", "importance_sampling_level": "sequence", "beta": 0.1}, id="luspo-sequence"),
        pytest.param({"loss_type": "vespo"}, id="vespo"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_sampler", [False, True], ids=["", "sampler"])
def test_whole_model_gradient_equals_the_trainers(
    options: dict[str, Any], with_sampler: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    if with_sampler:
        options = {**options, "vllm_importance_sampling_mode": "token_truncate", "off_policy_mask_threshold": 0.4}
    trainer = build(tokenizer, tmp_path, with_sampler=with_sampler, **options)
    inputs = score(trainer)
    with torch.no_grad():  # one step away, so that the ratios are not all 1
        for p in trainer.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.01)
    loss_fn = GRPOLoss(
        **{name.removeprefix("vllm_"): value for name, value in options.items()}, max_completion_length=5
    )
    loss, grads = grad_of_trl(trainer, inputs)
    our_loss, our_grads = grad_of_ours(loss_fn, trainer, inputs)
    assert abs(our_loss - loss) <= 1e-5 * max(abs(loss), inputs["advantages"].abs().mean())  # on policy it cancels
    whole, ours = (torch.cat([g.flatten() for g in each]) for each in (grads, our_grads))
    assert whole.norm() > 0
    assert relative_error(ours, whole) <= 1e-5


def rewards_of(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """[N, 2], as the trainer's two reward functions give them."""
    texts = tokenizer.batch_decode(COMPLETIONS)
    return torch.tensor([noisy_reward(texts), coarse_reward(texts)]).T


MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bounds", [(None, 1.05), (0.97, None), (0.9, 1.2)], ids=["max", "min", "both"])
def test_our_transcription_of_the_sampler_correction_is_the_trainers(
    mode: str, bounds: tuple[float | None, float | None], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    names = ("vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max")
    options = {"vllm_importance_sampling_mode": mode, **dict(zip(names, bounds, strict=True))}
    trainer = build(tokenizer, tmp_path, with_sampler=True, **options)
    inputs = score(trainer)
    batch = Batch(
        *[torch.empty(0)] * 2, inputs["completion_ids"], inputs["advantages"], inputs["completion_mask"],
        sampler_logps=inputs["sampling_per_token_logps"],
    )  # fmt: skip
    ours = importance_sampling_ratio(trainer.args, batch, inputs["old_per_token_logps"])
    scored = inputs["completion_mask"].bool() if mode.startswith("token") else torch.ones(8, 1, dtype=torch.bool)
    expected = inputs["importance_sampling_ratio"]
    torch.testing.assert_close(ours[scored], expected[scored], rtol=1e-6, atol=0)
    assert len(expected[scored].unique()) > 2  # neither all clipped nor all let through


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("weights", [None, [0.3, 2.0]], ids=["equal", "weighted"])
def test_group_advantages_equal_the_trainers(
    scale: str, weights: list[float] | None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = build(tokenizer, tmp_path, scale_rewards=scale, reward_weights=weights)
    expected = score(trainer)["advantages"]
    rewards = rewards_of(tokenizer)
    ours = group_advantages(rewards, group_sizes=GROUP, scale=scale, weights=torch.tensor(weights or [1.0, 1.0]))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_normalising_each_reward_first_is_two_calls(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trainer = build(
        tokenizer, tmp_path, multi_objective_aggregation="normalize_then_sum", reward_weights=[0.3, 2.0]
    )  # fmt: skip
    expected = score(trainer)["advantages"]
    first, second = (group_advantages(r, group_sizes=GROUP) for r in rewards_of(tokenizer).T)
    ours = group_advantages(0.3 * first + 2.0 * second, group_sizes=len(COMPLETIONS))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
