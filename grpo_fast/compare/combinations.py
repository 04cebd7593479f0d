"""Combinations of modality and question type that are left out of training, to be asked about all the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grpo_fast.errors import BadSettings

Combination = tuple[str, str]  # modality, question type


def left_out(known: Sequence[Combination], count: int, seed: int) -> list[Combination]:
    """`count` of the combinations that the data have, as in a Latin square: one of each modality before a second of
    any, question types in turn. Every modality and every question type stays in training with another."""
    if count == 0:
        return []
    rng = np.random.default_rng(seed)
    present = set(known)
    modalities = [str(one) for one in rng.permutation(sorted({one for one, _ in present}))]
    types = [str(one) for one in rng.permutation(sorted({one for _, one in present}))]
    found: list[Combination] = []
    for number in range(len(modalities) * len(types)):
        round_, place = divmod(number, len(modalities))
        cell = (modalities[place], types[(place + round_) % len(types)])
        if cell in present and len(found) < count and _stays(present, [*found, cell]):
            found.append(cell)
    if len(found) < count:
        raise BadSettings(
            f"--held-out-combinations {count}: of the {len(present)} combinations of modality and question type in the "
            f"data {len(found)} can be left out, so that each modality and each question type is still trained on"
        )
    return sorted(found)


def _stays(present: set[Combination], out: Sequence[Combination]) -> bool:
    kept = present - set(out)
    return all({one[facet] for one in kept} == {one[facet] for one in present} for facet in (0, 1))
