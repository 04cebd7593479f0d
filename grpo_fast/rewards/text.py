"""Wording without its dress: full-width characters, Markdown, LaTeX boxes, articles and punctuation do not count."""

from __future__ import annotations

import re
import unicodedata

RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
CHINESE = str.maketrans({"、": ", ", "。": ".", "【": "[", "】": "]"})  # what NFKC leaves as it is
DASHES = re.compile("[\u2010-\u2015\u2212]")
EDGES = " \t\r\n.,;:!?。、'\"“”‘’`*_"
LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")


def plain(text: str) -> str:
    """The characters that were meant: NFKC, ASCII dashes, no Markdown or `\\boxed{}` around them."""
    # NFKC alone would read 10³ as 103 and 1½ as 11/2
    text = RAISED.sub(lambda found: "^" + found[0].translate(SUPERSCRIPTS), text)
    text = re.sub("(?<=[0-9])(?=[½⅓⅔¼¾⅛])", " ", text)
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/").translate(CHINESE)
    text = " ".join(DASHES.sub("-", INVISIBLE.sub("", text)).split())
    text = LATEX_TEXT.sub(r"\1", unboxed(text)).replace("**", "").replace("__", "").strip()
    while len(text) > 2 and text[0] == text[-1] and text[0] in "*_`$\"'":
        text = text[1:-1].strip()
    return text


def unboxed(text: str) -> str:
    """What stands in the text's only `\\boxed{}`; the text itself where there is none or more than one."""
    if text.count(r"\boxed{") != 1:
        return text
    start = text.index(r"\boxed{") + len(r"\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[start:end].strip()
    return text


def key(text: str) -> str:
    """Two texts with the same key say the same: case, hyphens, articles and outer punctuation are ignored."""
    said = plain(text).casefold().replace("^", "")
    said = " ".join(re.sub("[-_]", " ", said).split()).strip(EDGES)
    return re.sub(r"^(?:an?|the) (?=.)", "", said)
