"""Formulas, compared by math_verify (`pip install math-verify`), which is imported when the first one is met."""

from __future__ import annotations

import logging
import re
import threading
from typing import Any

from grpo_fast.errors import BadReward
from grpo_fast.rewards.text import RAISED, SUPERSCRIPTS, unboxed

SECONDS = 2  # for reading one formula, and for comparing two
LONGEST = 300  # characters of an answer that is read
FORMULA = re.compile(
    r"\\[a-zA-Z]+|\$|\^|√|π|(?<![A-Za-z])[a-zA-Z]\s*=|\d\s*[-+*/]\s*[a-z\d(]|\d[a-z]\b|^[(\[{].*,.*[)\]}]$"
)
RANGE = re.compile(r"[\d\s.,/%-]+")  # 10-20 is no subtraction and 12/05/2020 no division
ROOT = re.compile(r"(?:√|(?<![\\A-Za-z])sqrt)\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]\b))")
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")
# a tower of powers or a huge exponent: comparing it takes for ever, and off the main thread nothing can end it
COSTLY = re.compile(r"\^[\s{]*-?\d{4,}|\^[^^]*\^[^^]*\^|\d{4,}\s*!|!\s*!")


def looks_like_formula(text: str) -> bool:
    return bool(FORMULA.search(text)) and not RANGE.fullmatch(text) and not PROSE.search(text.replace("$", " "))


def formula(text: str) -> list[Any]:
    """What math_verify reads in a text; [] where it reads nothing."""
    parse, _ = _math_verify()
    text = _in_latex(unboxed(text.strip()))
    if not text or len(text) > LONGEST or COSTLY.search(text):
        return []
    delimited = any(mark in text for mark in ("$", r"\(", r"\["))
    return parse(text if delimited or PROSE.search(text) else f"${text}$", parsing_timeout=_seconds())


def _in_latex(text: str) -> str:
    """math_verify reads the 2 of 2√3 and the 10 of 10^-3, and no further."""
    text = RAISED.sub(lambda found: f"^{{{found[0].translate(SUPERSCRIPTS)}}}", text)
    text = re.sub(r"\^(-\d+)", r"^{\1}", text)
    return ROOT.sub(lambda found: rf"\sqrt{{{found[found.lastindex or 0]}}}", text)


def equal(gold: list[Any], said: list[Any]) -> bool:
    _, verify = _math_verify()
    return bool(gold) and bool(said) and verify(gold, said, timeout_seconds=_seconds())


def _seconds() -> int | None:
    """math_verify's limits are alarms, which only a main thread can set."""
    return SECONDS if threading.current_thread() is threading.main_thread() else None


def _math_verify() -> tuple[Any, Any]:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise BadReward("answers that are formulas need math_verify: pip install math-verify") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns whenever its alarms are off
    return parse, verify
