"""Images of a run folder, made small and written into the page."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

SIDE = 320  # pixels
MOST_PIXELS = 64_000_000  # a larger file is not opened


class Picture(NamedTuple):
    uri: str
    width: int
    height: int


def picture(folder: Path, name: str) -> Picture | str:
    """A data URI, or the reason why there is none. Only files inside the run's folder are opened."""
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            return "it lies outside the run's folder"
        found = path.stat()
    except FileNotFoundError:
        return "the file is missing"
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        return f"it cannot be read: {error}"
    return _made(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _made(path: Path, changed: int, size: int) -> Picture | str:
    """`changed` and `size` tell one content of the file from another."""
    from PIL import Image

    from grpo_fast.policy.images import upright

    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                return f"it is too large ({image.width} × {image.height})"
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            shown = upright(image).convert("RGBA" if image.mode in ("RGBA", "LA", "PA") else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"it cannot be read: {error}"
    if shown.mode == "RGBA":
        shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    kind, data = min(_encoded(shown), key=lambda one: len(one[1]))
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", shown.width, shown.height)


def _encoded(image: Any) -> list[tuple[str, bytes]]:
    """Drawn pictures are smaller as PNG, photographs as JPEG."""
    found = []
    for kind, options in (("png", {}), ("jpeg", {"quality": 82})):
        data = io.BytesIO()
        image.save(data, kind.upper(), **options)
        found.append((kind, data.getvalue()))
    return found
