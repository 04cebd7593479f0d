"""Is a completion's answer right?

`auto` decides by the gold answer and the question: a letter where the question has options, labels separated by `|`,
yes or no, a number, a formula, and otherwise text. A gold answer that cannot be read is never rewarded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from grpo_fast.errors import BadReward
from grpo_fast.rewards import labels, quantities, symbolic
from grpo_fast.rewards.extract import extract
from grpo_fast.rewards.letters import BARE, letter_of, options, yes_no
from grpo_fast.rewards.text import key, plain

__all__ = ["METHODS", "Gold", "Method", "extract", "graded", "is_correct", "options", "read_gold"]

Method = Literal["auto", "letter", "text", "multi-label", "math", "yes-no", "numeric"]
LONGEST_ANSWER = 1000  # characters; reading takes longer than linear time, and no answer is an essay
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold answer, read."""

    method: str
    value: Any  # letter, key of a text, set of labels, formula, "yes"…, or Quantity
    choices: Mapping[str, str]


def is_correct(completion: str, gold: str, *, question: str = "", method: str = "auto", lenient: bool = False) -> bool:
    """Whether the completion's answer is the gold one; of labels, exactly the gold ones."""
    return _score(completion, gold, question, method, lenient, exact=True) > 0


def graded(completion: str, gold: str, *, question: str = "", method: str = "auto", lenient: bool = False) -> float:
    """1 or 0; for labels 1 for each gold one that is found, and 0 with any other."""
    return _score(completion, gold, question, method, lenient, exact=False)


def _score(completion: str, gold: str, question: str, method: str, lenient: bool, exact: bool) -> float:
    wanted = read_gold(gold, question, method)
    said = extract(completion, lenient=lenient)
    if wanted is None or not said or len(said) > max(LONGEST_ANSWER, 2 * len(gold)):
        return 0.0
    if wanted.method == "multi-label":
        named = labels.said_labels(said, wanted.value)
        return float(named == wanted.value) if exact else labels.graded(named, wanted.value)
    return float(_same(wanted, said))


def _same(gold: Gold, said: str) -> bool:
    if gold.method == "letter":
        return letter_of(said, gold.choices) == gold.value
    if gold.method == "yes-no":
        return yes_no(said) == gold.value
    if gold.method == "numeric":
        found = quantities.quantity(said)
        return found is not None and quantities.equal(gold.value, found)
    if gold.method == "math":
        return symbolic.equal(gold.value, symbolic.formula(said))
    return key(said) == gold.value


@lru_cache(maxsize=4096)  # the completions of a group share theirs
def read_gold(gold: str, question: str = "", method: str = "auto") -> Gold | None:
    """The gold answer as `method` reads it; None where it cannot."""
    if method not in METHODS:
        raise BadReward(f"unknown answer method {method!r}: choose one of {', '.join(METHODS)}")
    tagged = extract(gold)
    gold = gold.strip() if tagged is None else tagged
    choices = options(question)
    method = _method(gold, choices) if method == "auto" else method
    readers = {
        "letter": lambda: letter_of(gold, choices),
        "yes-no": lambda: yes_no(gold),
        "multi-label": lambda: labels.gold_labels(gold),
        "numeric": lambda: quantities.quantity(gold),
        "math": lambda: symbolic.formula(gold),
        "text": lambda: key(gold),
    }
    value = readers[method]()
    if not value:
        return None
    return Gold(method, value, choices if method == "letter" else {})


def _method(gold: str, choices: Mapping[str, str]) -> str:
    if choices and letter_of(gold, choices) is not None:
        return "letter"
    if BARE.fullmatch(plain(gold)):  # "E. coli" is none
        return "letter"
    if key(gold) == labels.NO_FINDING or ("|" in gold and labels.gold_labels(gold)):
        return "multi-label"
    if key(gold) in ("yes", "no", "true", "false"):
        return "yes-no"
    number = quantities.quantity(gold)
    if number is not None and (not number.unit or number.kind):
        return "numeric"
    return "math" if symbolic.looks_like_formula(gold) else "text"
