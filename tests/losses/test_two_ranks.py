"""The entropy quantile and the adaptive coefficient see every rank's tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from losses.two_ranks import LENGTHS, entropies, truncated_batch
from ranks import results_of


def test_quantile_and_adaptive_entropy_over_two_ranks() -> None:
    found = results_of(Path(__file__).with_name("two_ranks.py"))
    everything = torch.cat(entropies())
    expected = (everything >= torch.quantile(everything, 0.7)).float().split(LENGTHS)
    assert 0 < expected[0].sum() < LENGTHS[0]  # each rank alone would choose others
    for rank in (0, 1):
        assert found[rank]["keep"] == expected[rank].tolist()
        assert found[rank]["coef"] == pytest.approx(0.105)
        assert found[rank]["nobody"] == 0.0
    # a rank without a scored row takes part in the quantile, and adds nothing to it
    assert found[0]["alone"] == truncated_batch(0, (False, False)) != 0.0 and found[1]["alone"] == 0.0
