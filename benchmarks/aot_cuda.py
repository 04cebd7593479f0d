"""What nvcc makes of csrc/head_gemm_sm90.cu, read off its machine code; needs nvcc and no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "csrc" / "head_gemm_sm90.cu"
VARIANTS = {"ILb1ELb0E": "store", "ILb0ELb0E": "sums", "ILb0ELb1E": "entropy"}  # <STORE, ENTROPY> as they are mangled


def compiled(compiler: str, tools: Path) -> dict[str, tuple[str, Counter[str]]]:
    """For each variant its line of resource usage and how often each instruction occurs."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "head_gemm.cubin")
        flags = ["--options-file", SOURCE.with_name("nvcc.flags"), "-cubin"]
        done = subprocess.run([compiler, *flags, SOURCE, "-o", cubin], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{compiler} failed on {SOURCE}:\n{done.stdout}{done.stderr}")
        if "wgmma" in done.stderr + done.stdout:  # the advisory on products that were made to wait for one another
            raise RuntimeError(f"{compiler} on {SOURCE}:\n{done.stdout}{done.stderr}")
        usage = _run(tools / "cuobjdump", "-res-usage", cubin)
        code = _run(tools / "nvdisasm", "-c", "-ndf", cubin)
    found = {}
    for mangled, variant in VARIANTS.items():
        (line,) = re.findall(rf"Function \S*{mangled}\S*:\s*\n\s*(.+)", usage)
        (text,) = re.findall(rf"^\.text\.\S*{mangled}\S*:\n(.*?)(?=^\.text\.|\Z)", code, re.DOTALL | re.MULTILINE)
        found[variant] = line, Counter(re.findall(r"^\s*/\*\w+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", text, re.MULTILINE))
    return found


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
