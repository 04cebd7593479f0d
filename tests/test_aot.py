"""Every kernel compiles for every GPU of the launch tables, without spills and with the instructions meant for it.

Ahead-of-time compilation needs a process without TRITON_INTERPRET, hence `benchmarks/aot_report.py` as a program.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "benchmarks" / "aot_report.py"
ARCHS = (80, 86, 89, 90, 100)
IN_CUDA = "head_gemm (csrc)"


def compiled_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def binaries() -> list[dict[str, Any]]:
    done = compiled_python(str(PROGRAM), "--brief", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("arch", ARCHS)
def test_no_violations(arch: int, binaries: list[dict[str, Any]]) -> None:
    mine = [b for b in binaries if b["arch"] == arch]
    assert mine
    assert not [f"{b['kernel']} {b['variant']}: {b['violations']}" for b in mine if b["violations"]]


def test_every_kernel_is_compiled(binaries: list[dict[str, Any]]) -> None:
    defined = {
        name.removeprefix("_")
        for file in (ROOT / "grpo_fast" / "kernels").glob("*.py")
        for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), flags=re.MULTILINE)
    }
    assert len(defined) >= 10
    for arch in ARCHS:
        found = {b["kernel"] for b in binaries if b["arch"] == arch}
        assert found == defined | ({IN_CUDA} if arch == 90 and shutil.which("nvcc") else set())


def test_hopper_products_are_specialised_and_fed_by_tma(binaries: list[dict[str, Any]]) -> None:
    products = [b for b in binaries if b["arch"] == 90 and b["kernel"] == "gemm_exp_kernel"]
    ways = ("", "plain ", "by pointers ")
    assert {b["variant"] for b in products} == {f"{way}{v}" for way in ways for v in ("store", "sums", "entropy")}
    for b in products:
        by_pointers = b["variant"].startswith("by pointers")
        assert b["hgmma"] > 0 and b["hmma"] == 0
        assert (b["tma_loads"] > 0) == (b["scratch"] > 0) == (not by_pointers)
        assert (b["setmaxnreg"] > 0) == (not by_pointers and not b["variant"].startswith("plain"))


def test_rows_of_logits_are_read_by_wide_loads(binaries: list[dict[str, Any]]) -> None:
    """Where a vocabulary is a multiple of 16, which Triton must know: the mask decides how wide a load may be."""
    for kernel in ("block_sums_kernel", "exp_rows_kernel", "grad_rows_kernel"):
        found = [
            b
            for b in binaries
            if b["kernel"] == kernel and b["variant"].endswith(" aligned") | (b["variant"] == "aligned")
        ]
        assert {b["arch"] for b in found} == set(ARCHS) and all(b["wide_loads"] > 0 for b in found)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_product_in_cuda_is_fed_by_tma_and_takes_turns_with_registers(binaries: list[dict[str, Any]]) -> None:
    products = {b["variant"]: b for b in binaries if b["kernel"] == IN_CUDA}
    assert set(products) == {"store", "sums", "entropy"}
    for b in products.values():
        assert b["hgmma"] > 0 and b["hmma"] == 0 and b["tma_loads"] > 0 and b["setmaxnreg"] == 2 and b["stack"] == 0


def test_the_report_on_disk_is_of_these_tables(binaries: list[dict[str, Any]]) -> None:
    report = (ROOT / "benchmarks" / "results" / "aot.md").read_text()
    for b in binaries:
        assert f"| sm_{b['arch']} | {b['kernel']} | {b['variant']} | {b['warps']} | {b['stages']} |" in report


# what Triton accepts in silence: specialisation with 8 warps, a tile too large for 4 warps, too many stages
BAD = {
    "specialisation was dropped": {"warps": 8},
    "local loads and stores": {"specialised": False},
    "shared memory": {"stages": 4},
}


@pytest.fixture(scope="module")
def judged() -> list[str]:
    program = f"""
import sys
from dataclasses import replace
sys.path.insert(0, "benchmarks")
import aot_report
entry = next(e for e in aot_report.entries(90) if e.variant == "store" and e.gemm)
for change in {list(BAD.values())!r}:
    constants = dict(entry.constants, SPECIALISED=change.get("specialised", True))
    print(aot_report.compile_entry(replace(entry, constants=constants, **change)).violations)
"""
    done = compiled_python("-c", program)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("number", "complaint"), enumerate(BAD))
def test_the_judge_sees_a_bad_configuration(number: int, complaint: str, judged: list[str]) -> None:
    assert complaint in judged[number]


def test_check_ends_with_1_on_a_violation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("aot_report", PROGRAM)
    assert spec is not None and spec.loader is not None
    monkeypatch.setattr(sys, "path", [str(PROGRAM.parent), *sys.path])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))  # the module drops it
        report = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "aot_report", report)
        spec.loader.exec_module(report)
    good = report.Binary(90, "k", "v", 4, 3, 100, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, ())
    bad = report.Binary(90, "k", "v", 4, 3, 255, 0, 8, 2, 1, 0, 0, 1, 0, 0, 0, ("8 bytes of stack",))
    for binaries, status in (([good], 0), ([good, bad], 1)):
        monkeypatch.setattr(report, "compile_all", lambda *_, found=binaries: found)
        monkeypatch.setattr(sys, "argv", ["aot_report", "--check", "--output", str(tmp_path / "aot.md")])
        assert report.main() == status
    assert "8 bytes of stack" in (tmp_path / "aot.md").read_text()
