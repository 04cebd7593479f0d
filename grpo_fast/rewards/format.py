"""Does a completion keep to the form that the prompt asked for?

The whole completion has to match, each tag has to occur once, and white space around it is free.
"""

from __future__ import annotations

import re

THINK, ANSWER = r"<think>.*?</think>", r"<answer>.*?</answer>"
FORMS = {
    "think": re.compile(rf"\s*{THINK}\s*{ANSWER}\s*", re.DOTALL),
    "think-after": re.compile(rf"\s*{ANSWER}\s*{THINK}\s*", re.DOTALL),
    "no-think": re.compile(rf"\s*{ANSWER}\s*", re.DOTALL),
}
TAG = re.compile(r"<\s*/?\s*(?:think|answer)\s*>", re.IGNORECASE)


def follows_format(completion: str, style: str = "think") -> bool:
    """Styles without a form of their own (plain, templates) are held to that of think."""
    tags = 2 if style == "no-think" else 4
    return len(TAG.findall(completion)) == tags and bool(FORMS.get(style, FORMS["think"]).fullmatch(completion))
