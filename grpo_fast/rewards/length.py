"""A small penalty for long completions.

It is added to the other rewards and never below -0.2: at equal weights a right answer of any length stays above a wrong
one, and no length makes up for a missing answer.
"""

from __future__ import annotations

FREE_WORDS, LAST_WORD = 160, 480  # reasoning of 60 to 160 tokens, as Med-R1's settles at, costs nothing
WORST = -0.2


def length(completion: str, free: int = FREE_WORDS, last: int = LAST_WORD, worst: float = WORST) -> float:
    """0 up to `free` words, from there linearly down to `worst` at `last` words."""
    over = len(completion.split()) - free
    return worst * min(max(over / (last - free), 0.0), 1.0)
