"""Decides what native code is built; everything else is in pyproject.toml.

GRPO_FAST_REQUIRE_NATIVE=1 makes a failed native build fatal, GRPO_FAST_NO_NATIVE=1 leaves native code out.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SOURCE = ROOT / "csrc" / "row_pass.cpp"
LIBRARY = Path("grpo_fast", "_native", "librow_pass.so")  # under the build folder, or the checkout when editable

COMPILE = ["-O3", "-std=c++17", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# OpenMP's symbols stay undefined: torch's own runtime provides them, so that both share one thread pool
LINK = ["-shared", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-Wl,--as-needed"]
# from the best to what every compiler takes: one clone per instruction set, threads, neither
ATTEMPTS = (["-fopenmp"], ["-fopenmp", "-DGF_SINGLE_ISA"], ["-fopenmp-simd", "-DGF_SINGLE_ISA"], ["-DGF_SINGLE_ISA"])


def wanted(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def compiler() -> list[str] | None:
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        return given if shutil.which(given[0]) else None
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [found] if found else None


def build_native(library: Path) -> str | None:
    """Compile to `library`; the reason where that fails."""
    library.unlink(missing_ok=True)
    if wanted("GRPO_FAST_NO_NATIVE"):
        return "GRPO_FAST_NO_NATIVE is set"
    cxx = compiler()
    if cxx is None:
        return f"no C++ compiler (CXX={os.environ.get('CXX', '')!r}; looked for c++, g++, clang++)"
    library.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    with tempfile.TemporaryDirectory() as folder:
        object_file = str(Path(folder, "row_pass.o"))
        for extra in ATTEMPTS:
            compile_ = [*cxx, *COMPILE, *extra, "-c", str(SOURCE), "-o", object_file]
            for command in (compile_, [*cxx, *LINK, object_file, "-o", str(library)]):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    reason = f"`{shlex.join(command)}` failed:\n{done.stderr}"
                    break
            else:
                return None
    return reason


class BuildNative(build_py):
    def run(self) -> None:
        super().run()
        reason = build_native((ROOT if self.editable_mode else Path(self.build_lib)) / LIBRARY)
        if reason is None:
            return
        if wanted("GRPO_FAST_REQUIRE_NATIVE"):
            raise SystemExit(f"GRPO_FAST_REQUIRE_NATIVE is set, and the native code was not built: {reason}")
        print(f"grpo-fast: native code left out, plain torch serves on CPUs: {reason}", file=sys.stderr)


class TagByContent(bdist_wheel):
    """py3-none-<platform> with native code (no CPython or torch ABI in it), py3-none-any without."""

    def get_tag(self) -> tuple[str, str, str]:
        built = Path(self.get_finalized_command("build_py").build_lib, LIBRARY).is_file()
        self.root_is_pure = not built
        return "py3", "none", super().get_tag()[2]


if not (ROOT / "grpo_fast" / "kernels").is_dir():
    raise SystemExit(
        "grpo_fast/kernels must be a folder: it is a symbolic link to ../kernels, which this checkout did not keep. "
        "Enable links (git config core.symlinks true; on Windows, developer mode) and run "
        "git checkout grpo_fast/kernels"
    )

setup(cmdclass={"build_py": BuildNative, "bdist_wheel": TagByContent})
