"""VLM-R1's penalty for saying the same again."""

from __future__ import annotations

NGRAM = 6


def repetition(completion: str, n: int = NGRAM) -> float:
    """-(1 - distinct n-grams / all n-grams) of the words in lower case; 0 below n words."""
    words = completion.lower().split()
    if len(words) < n:
        return 0.0
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) - 1.0
