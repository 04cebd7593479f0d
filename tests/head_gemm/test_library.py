"""The library that nvcc built, where it did: it loads without a GPU, and what CUDA refuses is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grpo_fast.kernels import head_gemm

built = pytest.mark.skipif(not head_gemm.LIBRARY.is_file(), reason="nvcc was not at hand when this was installed")


@built
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_it_loads_without_a_gpu_and_a_launch_says_why_not() -> None:
    library = head_gemm._load()
    assert not isinstance(library, str), library
    code = library.gf_head_gemm(0, *[None] * 7, 1, 1, 8, 8, 8, 0, 1.0, 1)
    assert code and b"CUDA" in library.gf_head_gemm_message(code)


def test_why_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not a CUDA device" in str(head_gemm.why_unavailable(torch.device("cpu")))
    monkeypatch.setattr(head_gemm, "LIBRARY", tmp_path / "missing.so")
    head_gemm._load.cache_clear()
    try:
        nothing = torch.empty(1, 8)
        with pytest.raises(RuntimeError, match=r"missing\.so was not built.*nvcc"):
            head_gemm.head_gemm(nothing, nothing, None, nothing[:, 0], nothing, None, 1.0, 16)
    finally:
        head_gemm._load.cache_clear()
