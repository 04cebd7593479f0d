"""Shared libraries that setup.py builds from csrc/: a plain C ABI, with a number that says which, loaded by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "_native"


def load(
    path: Path,
    abi: int,
    functions: Mapping[str, tuple[Any, Sequence[Any]]],  # result and arguments, as ctypes has them
    needs: str,  # what to build it with
    open_library: Callable[[str], ctypes.CDLL] = ctypes.CDLL,
) -> ctypes.CDLL | str:
    """The library, or why there is none."""
    rebuild = f"install from a checkout with {needs} at hand (GRPO_FAST_REQUIRE_NATIVE=1 shows why a build fails)"
    if not path.is_file():
        return f"{path} was not built: {rebuild}"
    try:
        library = open_library(str(path))
    except OSError as error:
        return f"{path} does not load ({error}): {rebuild}"
    found = library.gf_abi_version()
    if found != abi:
        return f"{path} has ABI {found}, this package needs {abi}: {rebuild}"
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
