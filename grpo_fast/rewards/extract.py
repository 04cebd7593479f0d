"""Where in a completion the answer stands."""

from __future__ import annotations

import re
from collections.abc import Iterator

from grpo_fast.rewards.text import plain

FLAGS = re.DOTALL | re.IGNORECASE
LOOSE_ANSWER = re.compile(r"<\s*answer\s*>(.*?)(?:<\s*/\s*answer\s*>|</?\w*\Z|\Z)", FLAGS)
TAG = re.compile(r"<\s*/?\s*(?:think|answer)\s*>", re.IGNORECASE)

BOXED = re.compile(r"\\boxed\{(?:[^{}]|\{[^{}]*\})*\}")
PHRASE = re.compile(
    r"\b(?:answer|choice|option)\b\W{0,4}(?:(?:is|are|would be|should be|must be)\b\s*|[:=]\s*)"
    r"(?!not\b)(?=(?P<said>\S[^\n]*))",
    re.IGNORECASE,
)
TWO_LETTERS = r"[)\]*]*\s*(?:,|/|&|or\b|and\b)\W{0,3}[A-Z]\b"  # "(C) or (D)" is no one letter
LETTER = re.compile(
    rf"[\W_]*?([A-Z])(?!{TWO_LETTERS})"
    r"(?:[)\]*:,]|\.(?=\s+[A-Z]|\W*$)|\s+(?:because|since|as|for)\b|[\W_]*$)"
)
SENTENCE_END = re.compile(r"(?<!\b[A-Za-z])[.;](?=\s|$)")  # not the point of "E. coli"
ALONE = re.compile(r"[\s*_`\"'$]*[(\[]?([A-Z])[)\].:]?[\s*_`\"'.$]*")
WITH_TEXT = re.compile(r"[\s*_`\"']*[(\[]?[A-Z][)\].:]\s*\S.*")
FEW_WORDS = 8


def extract(completion: str, *, lenient: bool = False) -> str | None:
    """The text of the first answer tag outside the thinking, None where there is none.

    `lenient` also takes an unclosed tag, a box, "the answer is C", a bare "C", "(C)" or "C)", a completion of a few
    words, and at last an answer tag within the thinking.
    """
    outside = _outside_thinking(completion)
    first = next(_blocks(outside, "answer"), None)
    if first is not None or not lenient:
        return None if first is None else _innermost(outside[first[1] : first[2]])
    found = _loosely_tagged(outside)
    if found is None:
        found = _said(TAG.sub("\n", outside))
    return found if found is not None else _loosely_tagged(completion)


def _blocks(text: str, tag: str) -> Iterator[tuple[int, int, int, int]]:
    """Start, start and end of the inside, and end of each closed block; in linear time, whatever a model repeats."""
    opening, closing = re.compile(f"<{tag}>", re.IGNORECASE), re.compile(f"</{tag}>", re.IGNORECASE)
    end = 0
    while (opened := opening.search(text, end)) and (closed := closing.search(text, opened.end())):
        end = closed.end()
        yield opened.start(), opened.end(), closed.start(), end


def _outside_thinking(text: str) -> str:
    kept, end = [], 0
    for start, _, _, block_end in _blocks(text, "think"):
        kept.append(text[end:start])
        end = block_end
    return "\n".join([*kept, text[end:]])


def _loosely_tagged(text: str) -> str | None:
    found = LOOSE_ANSWER.search(text)
    return None if found is None else _innermost(found[1])


def _innermost(text: str) -> str:
    return TAG.split(text)[-1].strip()  # of nested tags the last opening counts


def _said(text: str) -> str | None:
    text = text.strip()
    if not text:
        return None
    boxes = BOXED.findall(text)
    if boxes:
        return boxes[-1]
    phrases = list(PHRASE.finditer(text))
    if phrases:
        said = phrases[-1]["said"]
        if not said.strip(": *_"):  # the answer stands below
            said = text[phrases[-1].end("said") :].lstrip().partition("\n")[0]
        letter = LETTER.match(said)
        return letter[1] if letter else SENTENCE_END.split(said)[0].strip()
    last = text.splitlines()[-1].strip()
    letter = ALONE.fullmatch(plain(last))
    if letter:
        return letter[1]
    if WITH_TEXT.fullmatch(last) or ("\n" not in text and len(text.split()) <= FEW_WORDS):
        return last
    return None
