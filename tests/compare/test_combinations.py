"""Which combinations are left out of training: one of each modality, question types evenly, nothing left out whole."""

from __future__ import annotations

from collections import Counter

import pytest

from grpo_fast.compare.combinations import left_out
from grpo_fast.data.phantom import MODALITIES, QUESTION_TYPES
from grpo_fast.errors import BadSettings

FORTY = [(modality, question_type) for modality in MODALITIES for question_type in QUESTION_TYPES]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 5, 8, 16, 23, 32])
def test_a_latin_square(count: int, seed: int) -> None:
    found = left_out(FORTY * 3, count, seed)
    assert len(set(found)) == count and found == sorted(found) and found == left_out(FORTY, count, seed)
    for facet, size in ((0, 8), (1, 5)):
        counts = Counter(cell[facet] for cell in found)
        shares = [counts[name] for name in {cell[facet] for cell in FORTY}]
        # modalities exactly in turn; types in turn within each round of eight
        assert max(shares) - min(shares) <= (1 if facet == 0 else -(-count // 8)), (facet, size)
        assert {cell[facet] for cell in set(FORTY) - set(found)} == {cell[facet] for cell in FORTY}


def test_seeds_choose_differently() -> None:
    assert len({tuple(left_out(FORTY, 8, seed)) for seed in range(6)}) == 6
    assert left_out(FORTY, 0, 0) == []


def test_gaps_in_the_data() -> None:
    """The only question type of a modality stays."""
    known = [("ct", "a"), ("ct", "b"), ("mri", "a"), ("oct", "b"), ("oct", "a")]
    for seed in range(10):
        found = left_out(known, 2, seed)
        assert ("mri", "a") not in found and {cell[0] for cell in found} == {"ct", "oct"}


def test_too_many() -> None:
    with pytest.raises(BadSettings, match="--held-out-combinations 33: of the 40 combinations"):
        left_out(FORTY, 33, 0)
    with pytest.raises(BadSettings, match="--held-out-combinations 1: of the 0 combinations"):
        left_out([], 1, 0)
