"""Which launch table a GPU gets."""

from __future__ import annotations

import pytest
import torch

from grpo_fast.kernels.launch import INTERPRETED, TABLES, launch_for, table_for
from grpo_fast.kernels.shifted_exp import shifted_exp


@pytest.mark.parametrize(
    ("capability", "arch"),
    # the tables' own; Orin has sm_80's shared memory; consumer Blackwell has 99 KB and neither wgmma nor tcgen05
    [
        ((8, 0), 80),
        ((8, 6), 86),
        ((8, 7), 80),
        ((8, 9), 89),
        ((9, 0), 90),
        ((10, 0), 100),
        ((10, 3), 100),
        ((12, 0), 89),
    ],
)
def test_table_of_a_capability(capability: tuple[int, int], arch: int) -> None:
    assert table_for(capability) is TABLES[arch] and TABLES[arch].arch == arch


def test_an_old_gpu_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match=r"7\.5"):
        table_for((7, 5))


def test_store_and_sums_share_what_decides_the_bits() -> None:
    for table in TABLES.values():
        for store, sums in ((table.store, table.sums), *([table.plain] if table.plain else [])):
            assert (store.bm, store.bn, store.bk, store.warps) == (sums.bm, sums.bn, sums.bk, sums.warps)
            assert store.specialised == sums.specialised


def test_products_by_pointer_are_not_specialised(device: torch.device) -> None:
    for table in TABLES.values():
        store, sums = (table.product(what, descriptors=False) for what in (True, False))
        assert not store.specialised and not sums.specialised
        assert (store.bm, store.bn, store.bk, store.warps) == (sums.bm, sums.bn, sums.bk, sums.warps)
        assert (table.product(True, True), table.product(False, True)) == (table.store, table.sums)
    x, y = torch.zeros(2, 8, device=device).bfloat16(), torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="descriptors"):
        shifted_exp(x, x, y, 1.0, tiles=TABLES[90].store, descriptors=False)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_a_cpu_tensor_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        launch_for(torch.device("cpu"))
