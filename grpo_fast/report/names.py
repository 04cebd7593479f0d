"""How names and numbers are shown."""

from __future__ import annotations

ACRONYMS = {"ct": "CT", "mri": "MRI", "oct": "OCT", "x-ray": "X-ray", "sft": "SFT", "grpo": "GRPO", "kl": "KL"}


def label(slug: str) -> str:
    """`disease-diagnosis` as Disease diagnosis; what already has capitals or spaces stays as it is."""
    if slug in ACRONYMS:
        return ACRONYMS[slug]
    if slug != slug.lower() or " " in slug:
        return slug
    words = slug.replace("-", " ").replace("_", " ")
    return words[:1].upper() + words[1:]


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def signed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def compact(value: float | None) -> str:
    """Four digits that count, without an exponent where there is no need of one."""
    if value is None:
        return "–"
    shown = f"{value:,.0f}" if abs(value) >= 10000 and abs(value) < 1e12 else f"{value:.4g}"
    return shown.replace("-", "−")


def duration(seconds: float | None) -> str:
    if seconds is None or seconds < 0:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
