"""HTML that is safe by construction: text becomes markup only through `tag`, which escapes it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"circle", "img", "input", "line", "rect"})
# control characters that HTML forbids or that would hide or reorder the text around them
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | None | Iterable["Child"]


def plain(text: str) -> str:
    """Without carriage returns and with a visible sign where a character cannot be shown."""
    return UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def join(*children: Child) -> Markup:
    return Markup("".join(_flat(children)))


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, str):
            yield html.escape(plain(child))
        else:
            yield from _flat(child)


def tag(name: str, *children: Child, **attributes: Any) -> Markup:
    """An element. `class_` is class, `data_x` is data-x; True is an attribute without a value, None and False none."""
    shown = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            shown.append(f" {key}")
        elif value is not None and value is not False:
            shown.append(f' {key}="{html.escape(plain(str(value)))}"')
    start = f"<{name}{''.join(shown)}"
    # the closing slash is for SVG, whose elements are never void by name
    return Markup(f"{start}/>") if name in VOID else Markup(f"{start}>{join(*children)}</{name}>")


def embedded_json(value: Any) -> Markup:
    """For the inside of a script element: no character of it can end the element or start another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
