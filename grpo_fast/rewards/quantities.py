"""Numbers as people write them: thousands, fractions, powers of ten, percent and units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from grpo_fast.rewards.text import EDGES, plain

# unit: what it measures, and how many of the first unit of that kind it holds
UNITS: dict[str, tuple[str, Fraction]] = {
    unit: (kind, Fraction(size))
    for kind, sizes in {
        "share": {"%": "1", "percent": "1", "per cent": "1"},
        "length": {"mm": "1", "millimeter": "1", "cm": "10", "centimeter": "10", "m": "1000", "meter": "1000",
                   "um": "1/1000", "μm": "1/1000", "micron": "1/1000", "nm": "1/1000000"},
        "area": {"mm2": "1", "cm2": "100", "m2": "1000000"},
        "mass": {"mg": "1", "g": "1000", "gram": "1000", "kg": "1000000", "μg": "1/1000", "ug": "1/1000"},
        "volume": {"ml": "1", "cc": "1", "mm3": "1/1000", "cm3": "1", "dl": "100", "l": "1000", "liter": "1000"},
        "time": {"ms": "1/1000", "s": "1", "sec": "1", "second": "1", "min": "60", "minute": "60", "h": "3600",
                 "hr": "3600", "hour": "3600", "day": "86400", "week": "604800"},
        "age": {"month": "1", "year": "12", "yr": "12"},
        "density": {"hu": "1"},
        "pressure": {"mmhg": "1"},
        "rate": {"bpm": "1"},
        "angle": {"°": "1", "deg": "1", "degree": "1"},
        "temperature": {"°c": "1"},
    }.items()
    for unit, size in sizes.items()
}  # fmt: skip
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]

LATEX = {"{,}": ",", r"\%": "%", r"\times": "x", r"\cdot": "x", r"\,": " ", r"\;": " ", r"\ ": " ", "~": " ",
         r"\circ": "°", "×": "x", "·": "x", "$": "", r"\left": "", r"\right": ""}  # fmt: skip
FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
RAISED = re.compile(r"\^\{([^{}]*)\}")
LEAD_IN = re.compile(r"(?:[a-z]\w{0,9}\s*=|=|~|≈|about|around|roughly|approximately|approx\.?|ca\.?)\s*", re.IGNORECASE)
QUANTITY = re.compile(
    r"(?P<sign>[-+]?)\s*(?:(?P<whole>\d+)\s+(?=\d+\s*/))?"
    r"(?P<digits>\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+|(?=\.\d))(?P<decimals>\.\d+)?"
    r"(?:\s*/\s*(?P<below>\d+(?![\d.])))?"
    r"(?:(?:e|\s*[x*]\s*10\s*\^)\s*\{?(?P<power>[-+]?\d{1,3})\}?)?"
    r"\s*(?P<unit>\D{0,40}|\D{0,19}[^\W\d_]\^?[23])",
    re.IGNORECASE,
)
HEDGE = re.compile(r"(?:^|\s)(?:or|to|and|than|not|plus|minus|more|less)(?:\s|$)|[<>=+*/,;:?-]|\d\s*$")
# what multiplies a number, or raises it, is no unit of it
FACTOR = re.compile(r"^\^|[√π\\]|\b(?:hundred|thousand|million|billion|dozen|squared|cubed|factorial)\b", re.IGNORECASE)
FRACTION_TOLERANCE = Fraction(2, 1000)  # relative: a third may be written 0.333


@dataclass(frozen=True, slots=True)
class Quantity:
    value: Fraction
    unit: str  # "" without one
    tolerance: Fraction  # half a unit of the last decimal written; 0 for a whole number

    @property
    def kind(self) -> str:
        return UNITS[self.unit][0] if self.unit in UNITS else ""


def quantity(text: str) -> Quantity | None:
    """The one quantity that a text states; None for two of them, a range, a bound, or prose."""
    said = plain(text)
    for latex, meant in LATEX.items():
        said = said.replace(latex, meant)
    said = RAISED.sub(r"^\1", FRACTION.sub(r"\1/\2", said)).strip().strip(EDGES.replace(".", "")).removesuffix(".")
    said = LEAD_IN.sub("", said, count=1) if LEAD_IN.match(said) else said
    for number, word in enumerate(WORDS):
        said = re.sub(rf"^{word}\b", str(number), said, flags=re.IGNORECASE)
    found = QUANTITY.fullmatch(said)
    if found is None:
        return None
    unit = _unit(found["unit"])
    if unit is None or (found["below"] and not int(found["below"])):
        return None
    decimals, power = (found["decimals"] or "."), int(found["power"] or 0)
    value = Fraction(re.sub("[, ]", "", found["digits"] or "0") + (decimals if len(decimals) > 1 else ""))
    value = value / int(found["below"] or 1) + int(found["whole"] or 0)
    value *= Fraction(10) ** power * (-1 if found["sign"] == "-" else 1)
    places = len(decimals) - 1
    tolerance = Fraction(10) ** (power - places) / 2 if places else Fraction(0)
    if found["below"] and value.denominator != 1:
        tolerance = abs(value) * FRACTION_TOLERANCE
    return Quantity(value, unit, tolerance)


def _unit(text: str) -> str | None:
    said = " ".join(text.casefold().replace("^", "").split()).strip(" .()[]")
    for name in (said, said.removesuffix("s"), said.replace("metre", "meter").removesuffix("s"), said.split(" old")[0]):
        if name in UNITS:
            return name
        if name.removesuffix("s") in UNITS:
            return name.removesuffix("s")
    hedged = HEDGE.search(said.removesuffix("2").removesuffix("3"))
    return None if hedged or FACTOR.search(text) or len(said.split()) > 4 else said


def equal(gold: Quantity, said: Quantity) -> bool:
    """Equal to the precision that the gold is written in; units are converted, and one of the two may leave its out."""
    if not gold.unit or not said.unit:
        percent = "share" in (gold.kind, said.kind)
        scales = (
            (Fraction(1), Fraction(100) if gold.kind == "share" else Fraction(1, 100)) if percent else (Fraction(1),)
        )
        return any(abs(said.value * scale - gold.value) <= gold.tolerance for scale in scales)
    if not gold.kind or not said.kind:
        return gold.unit.removesuffix("s") == said.unit.removesuffix("s") and _close(gold, said.value)
    return gold.kind == said.kind and _close(gold, said.value * UNITS[said.unit][1] / UNITS[gold.unit][1])


def _close(gold: Quantity, value: Fraction) -> bool:
    return abs(value - gold.value) <= gold.tolerance
