"""The Triton row gather and its backward, against torch in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grpo_fast.kernels.kv_gather import gather, gather_backward


def inverse(index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Offsets and destinations: where the copies of each source row went, ascending."""
    offsets = torch.zeros(rows + 1, dtype=torch.int64, device=index.device)
    offsets[1:] = torch.bincount(index, minlength=rows).cumsum(0)
    return offsets, index.sort(stable=True).indices.to(torch.int32)


# one number a row; odd; heads and head dimension; longer than the kernel's block, with a tail
@pytest.mark.parametrize("shape", [(), (7,), (2, 8), (3, 350)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gather_and_its_backward(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(6, *shape, device=device).to(dtype)
    index = torch.tensor([0, 1, 2, 0, 1, 0, 5, 5, 0], device=device)  # 3 and 4 are nobody's
    assert torch.equal(gather(x, index.to(torch.int32)), x[index])
    grad = torch.randn(9, *shape, device=device).to(dtype)
    got = gather_backward(grad, *inverse(index, 6))
    exact = torch.zeros(6, *shape, dtype=torch.float64, device=device).index_add_(0, index, grad.double())
    rounding = {torch.float32: 3e-7, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=1e-6)
    assert not got[3:5].any()


def test_copies_are_summed_in_fp32_and_in_order(device: torch.device) -> None:
    """257 ones: bf16 sums stop at 256. And (1e8 + 1) - 1e8 differs from (1e8 - 1e8) + 1 in fp32."""
    index = torch.zeros(257, dtype=torch.int64, device=device)
    ones = torch.ones(257, 4, device=device, dtype=torch.bfloat16)
    offsets, dest = inverse(index, 1)
    assert gather_backward(torch.cat([ones, ones[:1]]), offsets + 1, torch.cat([dest[:1], dest]))[0, 0] >= 256
    halves = torch.full((300, 4), 0.5, device=device, dtype=torch.bfloat16)
    offsets, dest = inverse(torch.zeros(300, dtype=torch.int64, device=device), 1)
    assert gather_backward(halves, offsets, dest).unique().tolist() == [150.0]
    grad = torch.tensor([[1e8], [1.0], [-1e8]], device=device)
    offsets = torch.tensor([0, 3], device=device)
    for order, total in (([0, 1, 2], 0.0), ([0, 2, 1], 1.0)):
        assert gather_backward(grad, offsets, torch.tensor(order, device=device)).item() == total


def test_nothing_to_gather(device: torch.device) -> None:
    x = torch.randn(3, 4, device=device)
    none = torch.empty(0, dtype=torch.int32, device=device)
    assert gather(x, none).shape == (0, 4)
    offsets = torch.zeros(4, dtype=torch.int64, device=device)
    assert torch.equal(gather_backward(x[:0], offsets, none), torch.zeros(3, 4, device=device))


def test_strided_rows_and_expanded_gradients(device: torch.device) -> None:
    x = torch.randn(4, 10, device=device)
    index = torch.tensor([3, 1, 3], device=device)
    assert torch.equal(gather(x[:, 2:9], index), x[index, 2:9])
    grad = torch.ones((), device=device).expand(3, 7)
    assert gather_backward(grad, *inverse(index, 4))[:, 0].tolist() == [0.0, 1.0, 0.0, 2.0]


def test_bad_input_is_refused_by_name(device: torch.device) -> None:
    x = torch.zeros(2, 3, device=device)
    with pytest.raises(ValueError, match="index"):
        gather(x, torch.zeros(2, device=device))
    with pytest.raises(ValueError, match="float64"):
        gather(x.double(), torch.zeros(2, dtype=torch.int64, device=device))
