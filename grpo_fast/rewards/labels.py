"""Several findings at once: gold labels separated by `|`, as in the chest X-ray sets with their 15 labels."""

from __future__ import annotations

import re

from grpo_fast.rewards.text import key

NO_FINDING = key("No Finding")
FOUND, NO_FINDING_FOUND = 1.0, 0.25

GOLD_LABEL = re.compile(r"[\w ,'&/()+.-]+")
SEPARATOR = re.compile(r"[|,;\n/，；、]|\band\b|&")


def gold_labels(gold: str) -> frozenset[str] | None:
    """The labels of a gold answer; None where an item is empty or no label but a formula's `|`."""
    parts = gold.split("|")
    if not all(GOLD_LABEL.fullmatch(part) and part.count("(") == part.count(")") for part in parts):
        return None
    found = frozenset(map(key, parts))
    return None if "" in found else found


def said_labels(answer: str, gold: frozenset[str]) -> frozenset[str]:
    """The labels of an answer, separated by `|`, or by commas and "and" where no gold label holds those."""
    parts = answer.split("|") if "|" in answer or key(answer) in gold else SEPARATOR.split(answer)
    return frozenset(map(key, parts)) - {""}


def graded(said: frozenset[str], gold: frozenset[str]) -> float:
    """1 for each gold label found, 1/4 for "No Finding", and 0 as soon as a label is not among the gold ones."""
    if said - gold:
        return 0.0
    return sum(NO_FINDING_FOUND if label == NO_FINDING else FOUND for label in said)
