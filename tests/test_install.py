"""Wheels and sdists: what they hold, how they are tagged, and that no top-level `kernels` comes with them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (
    "pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md",
    "constraints.txt",
)  # fmt: skip
LIBRARY = "grpo_fast/_native/librow_pass.so"
FOR_HOPPER = "grpo_fast/_native/libhead_gemm_sm90.so"
BUILD = (  # a PEP 517 front end without isolation: builds with the setuptools at hand, installs nothing
    "import sys; from setuptools import build_meta; "
    "print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]), file=sys.stderr)"
)

NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(not (ROOT / "kernels").is_dir(), reason="needs a checkout: here is an sdist")


def has_compiler() -> bool:
    return any(map(shutil.which, ("c++", "g++", "clang++")))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy without anything built in it."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    junk = shutil.ignore_patterns("__pycache__", "_native")
    for folder in ("grpo_fast", "kernels", "csrc", "benchmarks"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=junk)
    return copy


def build(what: str, source: Path, **environment: str) -> tuple[Path | None, str]:
    """The archive and everything the build said; None where it failed."""
    out = source.parent / f"{what}-{len(list(source.parent.iterdir()))}"
    out.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GRPO_FAST_") and k != "CXX"} | {"NVCC": ""}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(out)],
        cwd=source,
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )
    archives = sorted(out.iterdir())
    return (archives[0] if done.returncode == 0 and archives else None), done.stdout + done.stderr


def in_wheel(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def check_contents(files: dict[str, bytes]) -> None:
    tops = {name.split("/")[0] for name in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"grpo_fast"}  # and so no `kernels`
    for folder in ("grpo_fast", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            assert (name if folder == "grpo_fast" else f"grpo_fast/{name}") in files
    assert "grpo_fast/py.typed" in files
    assert not [name for name in files if "__pycache__" in name]


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_wheel_with_native_code(checkout: Path) -> None:
    wheel, said = build("wheel", checkout, GRPO_FAST_REQUIRE_NATIVE="1")
    assert wheel is not None, said
    assert re.fullmatch(r"grpo_fast-[^-]+-py3-none-(?!any)\w+\.whl", wheel.name)
    files = in_wheel(wheel)
    check_contents(files)
    assert LIBRARY in files
    (info,) = (content.decode() for name, content in files.items() if name.endswith(".dist-info/WHEEL"))
    assert "Root-Is-Purelib: false" in info

    # the library of an earlier build must not slip into a pure wheel
    wheel, said = build("wheel", checkout, GRPO_FAST_NO_NATIVE="1")
    assert wheel is not None and "-py3-none-any" in wheel.name and LIBRARY not in in_wheel(wheel), said


def test_wheel_without_compiler_is_pure_and_says_why(checkout: Path) -> None:
    wheel, said = build("wheel", checkout, CXX="no-such-compiler")
    assert wheel is not None, said
    assert wheel.name.endswith("-py3-none-any.whl")
    files = in_wheel(wheel)
    check_contents(files)
    assert LIBRARY not in files
    assert "native code left out" in said and "no-such-compiler" in said


@pytest.mark.skipif(not has_compiler() or not NVCC, reason="needs nvcc and a C++ compiler")
def test_wheel_with_the_product_for_hopper(checkout: Path) -> None:
    wheel, said = build("wheel", checkout, NVCC=str(NVCC), GRPO_FAST_REQUIRE_NATIVE="1")
    assert wheel is not None, said
    files = in_wheel(wheel)
    assert LIBRARY in files and FOR_HOPPER in files


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
@pytest.mark.parametrize("nvcc", ["no-such-nvcc", "false"])
def test_an_nvcc_that_fails_costs_hopper_its_product_alone(nvcc: str, checkout: Path) -> None:
    wheel, said = build("wheel", checkout, NVCC=nvcc)
    assert wheel is not None, said
    files = in_wheel(wheel)
    assert LIBRARY in files and FOR_HOPPER not in files
    assert "Triton alone serves on Hopper" in said and nvcc in said
    wheel, said = build("wheel", checkout, NVCC=nvcc, GRPO_FAST_REQUIRE_NATIVE="1")
    assert wheel is None and nvcc in said


@pytest.mark.parametrize("cxx", ["no-such-compiler", "false"])
def test_required_native_code_that_fails_is_fatal(cxx: str, checkout: Path) -> None:
    wheel, said = build("wheel", checkout, CXX=cxx, GRPO_FAST_REQUIRE_NATIVE="1")
    assert wheel is None
    assert "GRPO_FAST_REQUIRE_NATIVE" in said and cxx in said


def test_sdist_builds_the_same_wheel(checkout: Path, tmp_path: Path) -> None:
    own = checkout / "benchmarks" / "results" / "local" / "loss.json"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("{}")
    sdist, said = build("sdist", checkout)
    assert sdist is not None, said
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert "csrc/row_pass.cpp" in names and "grpo_fast/kernels/rows.py" in names
    assert not [name for name in names if name.startswith(("kernels/", "benchmarks/results/local"))]
    # what its README tells to run and to read, and what its tests run
    assert {"benchmarks/throughput.py", "benchmarks/results/README.md", "CONTRIBUTING.md"} <= set(names)
    (folder,) = (tmp_path / "unpacked").iterdir()
    again, said = build("wheel", folder, GRPO_FAST_NO_NATIVE="1")
    assert again is not None, said
    check_contents(in_wheel(again))


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_editable_install_gets_the_library(checkout: Path) -> None:
    wheel, said = build("editable", checkout, GRPO_FAST_REQUIRE_NATIVE="1")
    assert wheel is not None, said
    assert (checkout / LIBRARY).is_file()


def test_checkout_without_links_is_refused_with_advice(checkout: Path) -> None:
    link = checkout / "grpo_fast" / "kernels"
    link.unlink()
    link.write_text("../kernels")  # what git leaves where links are off
    wheel, said = build("wheel", checkout)
    assert wheel is None
    assert "core.symlinks" in said


def test_pre_commit_runs_the_ruff_that_ci_runs() -> None:
    (pinned,) = re.findall(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"rev: v{pinned} " in (ROOT / ".pre-commit-config.yaml").read_text()
