"""What a chain depends on, and what makes one good enough to keep."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from grpo_fast.errors import BadSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSettings:
    """With the model, all that a chain depends on: changed, the chains on disk no longer go together."""

    k: int = 8  # chains sampled per question
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512  # of a chain
    max_pixels: int | None = None  # of an image
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("k", "max_tokens"):
            if getattr(self, name) < 1:
                raise BadSettings(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 1 << 32:
            raise BadSettings(f"--seed must lie between 0 and {(1 << 32) - 1}, got {self.seed}")
        if not self.temperature > 0:
            raise BadSettings(f"--temperature must be above 0, got {self.temperature}: chains have to differ")
        if not 0 < self.top_p <= 1:
            raise BadSettings(f"--top-p must lie in (0, 1], got {self.top_p}")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise BadSettings(f"--max-pixels must be at least 1, got {self.max_pixels}")

    def seed_of(self, place: int) -> int:
        """Of a question by its place in the data, whatever else is asked. 31 bits: servers take no more."""
        digest = hashlib.sha256(f"{self.seed} {place}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """They judge chains that are on disk already: changing them samples nothing anew."""

    min_words: int = 10  # of the reasoning
    max_words: int = 600
    max_repetition: float = 0.1  # share of 6-grams of words that stood before
    max_similarity: float = 0.7  # Jaccard index of word shingles with a kept chain of the same question
    keep: int = 1  # chains per question at most: the first good ones in the order they were sampled

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise BadSettings(f"--keep must be at least 1, got {self.keep}")
        if not 0 <= self.min_words <= self.max_words:
            raise BadSettings(f"--min-words ({self.min_words}) and --max-words ({self.max_words}) leave nothing")
        for name in ("max_repetition", "max_similarity"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadSettings(f"--{name.replace('_', '-')} must lie in [0, 1], got {getattr(self, name)}")
