"""Every refusal names the argument, what it got and what it wants."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grpo_fast import GRPOLoss, linear_logprobs

B, T, H, V = 2, 3, 4, 7
CU = torch.tensor([0, 2, 6])


def arguments(**changed: Any) -> dict[str, Any]:
    good = {
        "hidden": torch.zeros(B, T, H),
        "weight": torch.zeros(V, H),
        "targets": torch.zeros(B, T, dtype=torch.long),
        "advantages": torch.ones(B),
        "mask": torch.ones(B, T),
        "old_logps": torch.zeros(B, T),
        "ref_logps": torch.zeros(B, T),
    }
    return {**good, **changed}


def packed(**changed: Any) -> dict[str, Any]:
    good = arguments()
    flat = {k: v.flatten(0, 1) if k not in ("weight", "advantages") else v for k, v in good.items()}
    return {**flat, "cu_seqlens": CU, **changed}


def test_the_good_arguments_are_taken() -> None:
    GRPOLoss(beta=0.1)(**arguments())
    GRPOLoss(beta=0.1)(**packed())


CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "hidden of one dimension": (arguments(hidden=torch.zeros(H)), "hidden"),
    "hidden of integers": (arguments(hidden=torch.zeros(B, T, H, dtype=torch.long)), "hidden"),
    "hidden that is no tensor": (arguments(hidden=[[1.0]]), "hidden"),
    "weight's width": (arguments(weight=torch.zeros(V, H + 1)), "weight"),
    "weight transposed": (arguments(weight=torch.zeros(H, V)), "weight"),
    "targets of another shape": (arguments(targets=torch.zeros(B, T + 1, dtype=torch.long)), "targets"),
    "targets of floats": (arguments(targets=torch.zeros(B, T)), "targets"),
    "target beyond the vocabulary": (arguments(targets=torch.full((B, T), V)), "targets"),
    "negative target that is scored": (arguments(targets=torch.full((B, T), -100)), "targets"),
    "advantages of another length": (arguments(advantages=torch.ones(B + 1)), "advantages"),
    "advantages of another shape": (arguments(advantages=torch.ones(B, T - 1)), "advantages"),
    "NaN advantage": (arguments(advantages=torch.tensor([1.0, float("nan")])), r"advantages\[1\]"),
    "advantages missing": ({k: v for k, v in arguments().items() if k != "advantages"}, "advantages"),
    "mask of another shape": (arguments(mask=torch.ones(B, T + 1)), "mask"),
    "mask that is neither 0 nor 1": (arguments(mask=torch.full((B, T), 0.5)), "mask"),
    "mask that is no tensor": (arguments(mask=[[1, 1, 1], [1, 1, 0]]), "mask"),
    "old_logps of another shape": (arguments(old_logps=torch.zeros(B)), "old_logps"),
    "old_logps of integers": (arguments(old_logps=torch.zeros(B, T, dtype=torch.long)), "old_logps"),
    "ref_logps of another shape": (arguments(ref_logps=torch.zeros(B, T, 1)), "ref_logps"),
    "sampler_logps of another shape": (arguments(sampler_logps=torch.zeros(T, B)), "sampler_logps"),
    "beta without ref_logps": (arguments(ref_logps=None), "ref_logps"),
    "bias of another length": (arguments(bias=torch.zeros(V - 1)), "bias"),
    "lora that does not chain": (arguments(lora=(torch.zeros(2, H), torch.zeros(V, 3), 1.0)), "lora"),
    "lora without a scaling": (arguments(lora=(torch.zeros(2, H), torch.zeros(V, 2))), "lora"),
    "num_items_in_batch below 0": (arguments(num_items_in_batch=-3), "num_items_in_batch"),
    "num_items_in_batch of every rank": (arguments(num_items_in_batch=torch.tensor([6, 6])), "num_items_in_batch.*2"),
    "hidden on another device": (arguments(hidden=torch.zeros(B, T, H, device="meta")), "hidden.*meta"),
    "old_logps on another device": (arguments(old_logps=torch.zeros(B, T, device="meta")), "old_logps.*meta"),
    "packed without cu_seqlens": ({k: v for k, v in packed().items() if k != "cu_seqlens"}, "cu_seqlens"),
    "padded with cu_seqlens": (arguments(cu_seqlens=CU), "cu_seqlens"),
    "cu_seqlens that ends early": (packed(cu_seqlens=torch.tensor([0, 2, 5])), "cu_seqlens"),
    "cu_seqlens that starts late": (packed(cu_seqlens=torch.tensor([1, 2, 6])), "cu_seqlens"),
    "cu_seqlens that goes back": (packed(cu_seqlens=torch.tensor([0, 7, 6])), "cu_seqlens"),
    "cu_seqlens of nothing": (packed(cu_seqlens=torch.zeros(0, dtype=torch.long)), "cu_seqlens"),
    "cu_seqlens of floats": (packed(cu_seqlens=CU.float()), "cu_seqlens"),
    "cu_seqlens that is no tensor": (packed(cu_seqlens=[0, 2, 6]), "cu_seqlens"),
    "cu_seqlens of int16": (packed(cu_seqlens=CU.short()), "cu_seqlens.*int16"),
    "packed advantages of another length": (packed(advantages=torch.ones(3)), "advantages"),
    "unknown argument": (arguments(old_logprobs=None), "old_logprobs|old_logps"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call_is_refused_by_name(name: str) -> None:
    call, named = CALLS[name]
    with pytest.raises((ValueError, TypeError, IndexError), match=named):
        GRPOLoss(beta=0.1)(**call)


# what it got and what it wants: both shapes are in the message
@pytest.mark.parametrize(
    ("changed", "got", "wanted"),
    [
        ({"weight": torch.zeros(V, H + 1)}, r"\[7, 5\]|7, 5", "4"),
        ({"targets": torch.zeros(B, T + 1, dtype=torch.long)}, "2, 4", "2, 3"),
        ({"old_logps": torch.zeros(B)}, r"2\b", "2, 3"),
        ({"mask": torch.ones(B, T + 1)}, "2, 4", "2, 3"),
        ({"targets": torch.full((B, T), V)}, "7", "7"),
    ],
)
def test_messages_say_what_they_got_and_what_they_want(changed: dict[str, Any], got: str, wanted: str) -> None:
    with pytest.raises((ValueError, IndexError), match=got) as raised:
        GRPOLoss(beta=0.1)(**arguments(**changed))
    assert wanted in str(raised.value)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a slip of the keyboard": ({"epsilom": 0.2}, "epsilon"),
    "TRL's name of a sampler option": ({"vllm_importance_sampling_mode": "token_mask"}, "importance_sampling_mode"),
    "unknown option": ({"nonsense": 1}, "nonsense"),
    "unknown loss": ({"loss_type": "dappo"}, "dapo"),
    "unknown level": ({"importance_sampling_level": "tokens"}, "token"),
    "unknown sampler mode": ({"importance_sampling_mode": "token_trunc"}, "token_truncate"),
    "negative epsilon": ({"epsilon": -0.1}, "epsilon"),
    "negative beta": ({"beta": -0.1}, "beta"),
    "NaN beta": ({"beta": float("nan")}, "beta"),
    "epsilon of text": ({"epsilon": "0.2"}, "epsilon"),
    "temperature 0": ({"temperature": 0.0}, "temperature"),
    "softcap 0": ({"softcap": 0.0}, "softcap"),
    "quantile above 1": ({"top_entropy_quantile": 1.5}, "top_entropy_quantile"),
    "no accumulation step": ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
    "no completion length": ({"max_completion_length": 0}, "max_completion_length"),
    "dr_grpo without a length": ({"loss_type": "dr_grpo", "max_completion_length": None}, "max_completion_length"),
    "clip_min above clip_max": (
        {"importance_sampling_clip_min": 3.0, "importance_sampling_clip_max": 2.0}, "importance_sampling_clip_min",
    ),
    "truncation without a bound": (
        {"importance_sampling_mode": "token_truncate", "importance_sampling_clip_max": None},
        "importance_sampling_clip_max",
    ),
    "adaptive bounds crossed": (
        {"use_adaptive_entropy": True, "entropy_coef_min": 0.5, "entropy_coef_max": 0.1}, "entropy_coef_min",
    ),
    "delta for a loss without a clip": ({"loss_type": "cispo", "delta": 2.0}, "delta"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bad_setting_is_refused_by_name(name: str) -> None:
    settings, named = SETTINGS[name]
    with pytest.raises((ValueError, TypeError), match=named):
        GRPOLoss(**settings)


def test_vespo_with_a_sequence_level_sampler_correction_is_refused() -> None:
    with pytest.raises(ValueError, match="importance_sampling_mode"):
        GRPOLoss(loss_type="vespo", importance_sampling_mode="sequence_mask")(
            **arguments(), sampler_logps=torch.zeros(B, T)
        )


@pytest.mark.parametrize("chunk_bytes", [1e9, 0, -1, "64MB"])
def test_chunk_bytes_are_whole_bytes(chunk_bytes: Any) -> None:
    good = arguments()
    with pytest.raises(ValueError, match="chunk_bytes"):
        GRPOLoss(beta=0.1, chunk_bytes=chunk_bytes)(**good)
    with pytest.raises(ValueError, match="chunk_bytes"):
        linear_logprobs(good["hidden"], good["weight"], good["targets"], chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_truncated_of_any_dtype_but_one_per_sequence(dtype: torch.dtype) -> None:
    loss_fn = GRPOLoss(beta=0.1, mask_truncated_completions=True)
    assert loss_fn(**arguments(truncated=torch.tensor([0, 1], dtype=dtype))).scored.sum() == T
    for wrong in (None, [False, True], torch.zeros(B, T, dtype=dtype)):
        with pytest.raises(ValueError, match=rf"truncated \[{B}\]"):
            loss_fn(**arguments(truncated=wrong))
