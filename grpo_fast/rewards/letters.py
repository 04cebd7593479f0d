"""Multiple choice: the options that a question offers, and the one that an answer means."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from grpo_fast.rewards.text import key, plain

MARKER = re.compile(r"(?<![A-Za-z0-9])([(\[]?)([A-Za-z])([)\].:])\s*")
AFTER_OPTIONS = re.compile(r"\n|(?<=[\s.])(?:Your task:|Please\b|Answer with\b|Respond with\b|Choose\b|Select\b)")

BARE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:,;!]?")
PREFIXED = re.compile(r"[(\[]?([A-Za-z])([)\]]\s*[.:,]?\s*|[.:,]\s+|[.:,](?=\S)|\s+-\s+)(.+)", re.DOTALL)
SPACED = re.compile(r"([A-Za-z])\s+(.+)", re.DOTALL)
SUFFIXED = re.compile(r"(.+?)\s*[(\[]([A-Za-z])[)\]]\.?", re.DOTALL)
LEAD_IN = re.compile(
    r"(?:(?:the\s+)?(?:(?:correct|final|best|right)\s+)?(?:answer|option|choice|letter)\b\s*(?:is\b|:|=)?\s*"
    r"(?:(?:option|choice|letter)\s+)?|(?:正确|最终)?(?:答案|选项|选择|选)\s*[是为:]?\s*)(.+)",
    re.IGNORECASE | re.DOTALL,
)
YES_NO = re.compile(r"(yes|no|true|false)\b(?!\s*(?:,|/|or|and)\s*(?:yes|no|true|false)\b)")


def options(question: str) -> dict[str, str]:
    """Letter to text, as in "A) CT, B) MRI", "(A) CT (B) MRI" or "A. CT" on lines of their own; {} where none are.

    The longest run A, B, … of one style counts, the last of equals.
    """
    question = unicodedata.normalize("NFKC", question)
    styles: dict[tuple[str, str, bool], list[re.Match[str]]] = {}
    for found in MARKER.finditer(question):
        styles.setdefault((found[1], found[3], found[2].isupper()), []).append(found)
    best: list[re.Match[str]] = []
    for markers in styles.values():
        run: list[re.Match[str]] = []
        for found in markers:
            letter = found[2].upper()
            if letter == "A":
                run = [found]
            elif run and ord(letter) == ord(run[-1][2].upper()) + 1:
                run.append(found)
            if len(run) > 1 and (len(run), run[0].start()) >= (len(best), best[0].start() if best else 0):
                best = list(run)
    ends = [marker.start() for marker in best[1:]] + [len(question)]
    texts = [question[marker.end() : end] for marker, end in zip(best, ends, strict=bool(best))]
    if texts:
        texts[-1] = AFTER_OPTIONS.split(texts[-1].lstrip())[0]
    return {marker[2].upper(): text.strip(" \t\r\n,;") for marker, text in zip(best, texts, strict=True)}


def letter_of(answer: str, choices: Mapping[str, str]) -> str | None:
    """The one letter that an answer means. Two of them, or a letter with another option's text, mean none."""
    said = plain(answer)
    bare = BARE.fullmatch(said)
    if bare and (not choices or bare[1].upper() in choices):
        return bare[1].upper()
    same = [letter for letter, text in choices.items() if key(text) == key(said) != ""]
    if same:
        return same[0] if len(same) == 1 else None
    prefixed = PREFIXED.fullmatch(said)
    if prefixed:
        return _prefixed(prefixed, choices)
    for pattern, at, rest_at in ((SPACED, 1, 2), (SUFFIXED, 2, 1)):
        found = pattern.fullmatch(said)
        if found and found[at].upper() in choices:
            rest, own = found[rest_at], key(choices[found[at].upper()])
            if own in (key(rest), key(rest.strip("()[]. "))):
                return found[at].upper()
    lead_in = LEAD_IN.fullmatch(said)
    if lead_in:
        return letter_of(lead_in[1], choices)
    return _by_yes_or_no(said, choices)


def _prefixed(found: re.Match[str], choices: Mapping[str, str]) -> str | None:
    letter, mark, rest = found[1].upper(), found[2], found[3]
    if choices and letter not in choices:
        return None
    named = letter_of(rest, choices)
    if named is not None:
        return letter if named == letter else None
    listed = PREFIXED.match(rest)  # "A, B, C"
    others = {other for _, other, _ in MARKER.findall(rest) if other.isupper()} - {letter}
    others |= {listed[1]} - {letter} if listed and listed[1].isupper() else set()
    if others & set(choices or others):
        return None
    if not choices:
        return letter
    if mark in (".", ":"):  # "A.P. view" names no option
        return None
    own, words = key(choices[letter]), f" {key(rest)} "
    rivals = (key(text) for other, text in choices.items() if other != letter)
    return None if any(f" {rival} " in words and rival not in own for rival in rivals if rival) else letter


def _by_yes_or_no(said: str, choices: Mapping[str, str]) -> str | None:
    meant = yes_no(said)
    letters = [letter for letter, text in choices.items() if key(text) == meant]
    return letters[0] if meant and len(letters) == 1 else None


def yes_no(answer: str) -> str | None:
    """ "yes", "no", "true" or "false" where the answer begins with it and does not take it back at once."""
    said = plain(answer).casefold()
    lead_in = LEAD_IN.fullmatch(said)
    found = YES_NO.match((lead_in[1] if lead_in else said).lstrip("\"'(["))
    return found[1] if found else None
