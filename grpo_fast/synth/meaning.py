"""Whether two labels could both be right: spelling, order of words, abbreviations in brackets, and labels within one
another ("nodule", "lung nodule"). It knows no medicine: synonyms of other words are for the metadata to settle."""

from __future__ import annotations

import re
from functools import lru_cache

from grpo_fast.data.names import MODALITIES, modality
from grpo_fast.rewards.text import key

NORMAL = frozenset(
    {
        "normal",
        "healthy",
        "no finding",
        "no findings",
        "unremarkable",
        "no abnormality",
        "no abnormalities",
        "no disease",
    }
)
NOT = frozenset({"no", "not", "non", "without", "absent", "absence", "negative"})
FILLERS = frozenset({"of", "the", "a", "an", "in", "on", "with", "and", "to", "for", "type"})
ROMAN = {"ii": "2", "iii": "3", "iv": "4", "vi": "6", "vii": "7", "viii": "8", "ix": "9"}
Words = frozenset[str]


@lru_cache(maxsize=1 << 16)
def forms(label: str) -> frozenset[Words]:
    """The label, and what it says in brackets, each as a set of words."""
    outside = re.sub(r"[(\[][^)\]]*[)\]]", " ", label)
    said = [outside, *re.findall(r"[(\[]([^)\]]*)[)\]]", label)]
    return frozenset(words for text in said if (words := _words(text)))


def clash(a: str, b: str) -> bool:
    return any(_same(one, other) for one in forms(a) for other in forms(b))


def _same(a: Words, b: Words) -> bool:
    if a <= b or b <= a:
        return not (a ^ b) & NOT
    return False


def _words(text: str) -> Words:
    said = key(text)
    if said in NORMAL:
        return frozenset({"normal"})
    if (name := modality(said)) in MODALITIES:
        return frozenset({name})
    found = re.findall(r"\w+", said)
    return frozenset(map(_word, (word for word in found if word not in FILLERS))) or frozenset(found)


def _word(word: str) -> str:
    if word in ROMAN:
        return ROMAN[word]
    if len(word) < 4:
        return word
    word = word.replace("ae", "e").replace("oe", "e").replace("our", "or")
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
