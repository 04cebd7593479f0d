"""Stop strings: where a completion's text first holds one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopStrings:
    def __init__(self, strings: tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> None:
        self.strings, self.tokenizer = strings, tokenizer
        # A token may hold one byte of a character of four, so a string can take that many tokens, and the first
        # tokens of a cut may decode to other text than they do in their place.
        self.tail = 4 * max(map(len, strings)) + 4

    @classmethod
    def of(cls, strings: tuple[str, ...], tokenizer: PreTrainedTokenizerBase | None) -> StopStrings | None:
        return cls(strings, tokenizer) if strings and tokenizer is not None else None

    def ends(self, tokens: np.ndarray) -> bool:
        """Whether the text of a completion, which held none before its last token, now holds one."""
        text = str(self.tokenizer.decode(tokens[-self.tail :].tolist(), clean_up_tokenization_spaces=False))
        return any(string in text for string in self.strings)
