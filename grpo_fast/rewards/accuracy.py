"""The accuracy of a sample's completions, and whether its gold answer can be rewarded at all."""

from __future__ import annotations

from grpo_fast.errors import BadReward
from grpo_fast.rewards.answers import graded, read_gold
from grpo_fast.types import Sample

# VLM-R1's accu_reward_method, in our words
REWARD_METHODS = {
    "default": "auto",
    "mcq": "letter",
    "yes_no": "yes-no",
    "math": "math",
    "numeric": "numeric",
    "all_match": "text",
    "multi_label": "multi-label",
}


def question_of(sample: Sample) -> str:
    """The text of the last user turn, the patient's context left out."""
    context = sample.meta.get("context")
    for turn in reversed(sample.messages):
        if turn.get("role") == "user":
            content = turn.get("content", "")
            if isinstance(content, str):
                return content
            texts = [part.get("text") or "" for part in content if part.get("type") == "text"]
            return "".join(text for text in texts if text != context)
    return ""


def gold_of(sample: Sample) -> str:
    return "" if sample.answer is None else str(sample.answer)


def method_of(sample: Sample) -> str:
    named = sample.meta.get("reward_method") or "default"
    if named not in REWARD_METHODS:
        raise BadReward(
            f"sample {sample.id}: unknown accu_reward_method {named!r}: use one of {', '.join(REWARD_METHODS)}, "
            "or give your own reward as FILE.py:FUNCTION"
        )
    return REWARD_METHODS[named]


def check_gold(sample: Sample) -> None:
    """Raises BadReward, naming the sample, where no completion could ever be right."""
    method, gold = method_of(sample), gold_of(sample)
    if not gold.strip():
        raise BadReward(f"sample {sample.id} has no gold answer: the accuracy reward needs one")
    if read_gold(gold, question_of(sample), method) is None:
        wanted = "an answer" if method == "auto" else f"a {method} answer"
        raise BadReward(
            f"sample {sample.id}: its gold answer {gold[:80]!r} cannot be read as {wanted}"
            " (a letter has to be one of the question's options): correct it or leave the sample out"
        )


def accuracy(sample: Sample, completion: str, *, lenient: bool = False) -> float:
    return graded(completion, gold_of(sample), question=question_of(sample), method=method_of(sample), lenient=lenient)


def is_slow(sample: Sample) -> bool:
    """Formulas alone: comparing them may take for ever."""
    gold = read_gold(gold_of(sample), question_of(sample), method_of(sample))
    return gold is not None and gold.method == "math"
