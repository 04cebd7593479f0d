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
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
NATIVE = Path("grpo_fast", "_native")  # under the build folder, or the checkout when editable
ROW_PASS, HEAD_GEMM = NATIVE / "librow_pass.so", NATIVE / "libhead_gemm_sm90.so"

COMPILE = ["-O3", "-std=c++17", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# OpenMP's symbols stay undefined: torch's own runtime provides them, so that both share one thread pool
LINK = ["-shared", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-Wl,--as-needed"]
# from the best to what every compiler takes: one clone per instruction set, threads, neither
ATTEMPTS = (["-fopenmp"], ["-fopenmp", "-DGF_SINGLE_ISA"], ["-fopenmp-simd", "-DGF_SINGLE_ISA"], ["-DGF_SINGLE_ISA"])
# links with no library of CUDA's, and so loads without a GPU
HOPPER = ["--options-file", str(CSRC / "nvcc.flags"), "-shared", "-cudart", "static", "-Xcompiler", "-fPIC"]


def wanted(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def compiler() -> list[str] | None:
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        return given if shutil.which(given[0]) else None
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [found] if found else None


def nvcc() -> str | None:
    """NVCC names it, or names none where it is empty."""
    given = os.environ.get("NVCC")
    if given is not None:
        return given or None
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which(str(Path(home, "bin", "nvcc")))


def attempt(*commands: list[str]) -> str | None:
    """The reason where one of them fails."""
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return f"`{shlex.join(command)}` does not run: {error}"
        if done.returncode:
            return f"`{shlex.join(command)}` failed:\n{done.stdout}{done.stderr}"
    return None


def build_row_pass(cxx: list[str], library: Path) -> str | None:
    reason = None
    with tempfile.TemporaryDirectory() as folder:
        made = str(Path(folder, "row_pass.o"))
        for extra in ATTEMPTS:
            reason = attempt(
                [*cxx, *COMPILE, *extra, "-c", str(CSRC / "row_pass.cpp"), "-o", made],
                [*cxx, *LINK, made, "-o", str(library)],
            )
            if reason is None:
                break
    return reason


def build_native(folder: Path) -> Iterator[str]:
    """Compile what can be compiled here; the reasons where something is missing that should not be."""
    row_pass, head_gemm = folder / ROW_PASS, folder / HEAD_GEMM
    for library in (row_pass, head_gemm):
        library.unlink(missing_ok=True)
    if wanted("GRPO_FAST_NO_NATIVE"):
        yield "GRPO_FAST_NO_NATIVE is set"
        return
    cxx = compiler()
    if cxx is None:
        yield f"no C++ compiler (CXX={os.environ.get('CXX', '')!r}; looked for c++, g++, clang++)"
        return
    row_pass.parent.mkdir(parents=True, exist_ok=True)
    reason = build_row_pass(cxx, row_pass)
    if reason:
        yield f"plain torch serves on CPUs: {reason}"
    cuda = nvcc() if sys.platform == "linux" else None
    if cuda:
        host = ["-ccbin", *cxx] if len(cxx) == 1 else []  # nvcc takes no compiler with options or a launcher before it
        reason = attempt([cuda, *HOPPER, *host, str(CSRC / "head_gemm_sm90.cu"), "-o", str(head_gemm)])
        if reason:
            yield f"Triton alone serves on Hopper: {reason}"


class BuildNative(build_py):
    def run(self) -> None:
        super().run()
        for reason in build_native(ROOT if self.editable_mode else Path(self.build_lib)):
            if wanted("GRPO_FAST_REQUIRE_NATIVE"):
                raise SystemExit(f"GRPO_FAST_REQUIRE_NATIVE is set, and native code was not built: {reason}")
            print(f"grpo-fast: native code left out: {reason}", file=sys.stderr)


class TagByContent(bdist_wheel):
    """py3-none-<platform> with native code (no CPython or torch ABI in it), py3-none-any without."""

    def get_tag(self) -> tuple[str, str, str]:
        folder = Path(self.get_finalized_command("build_py").build_lib)
        self.root_is_pure = not any((folder / library).is_file() for library in (ROW_PASS, HEAD_GEMM))
        return "py3", "none", super().get_tag()[2]


if not (ROOT / "grpo_fast" / "kernels").is_dir():
    raise SystemExit(
        "grpo_fast/kernels must be a folder: it is a symbolic link to ../kernels, which this checkout did not keep. "
        "Enable links (git config core.symlinks true; on Windows, developer mode) and run "
        "git checkout grpo_fast/kernels"
    )

setup(cmdclass={"build_py": BuildNative, "bdist_wheel": TagByContent})
