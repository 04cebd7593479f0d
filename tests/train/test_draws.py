"""Questions in an order that depends on the seed alone, and records that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from train import lab

from grpo_fast.data.phantom import phantom
from grpo_fast.errors import BadData, RunFailed
from grpo_fast.train.draws import Draws
from grpo_fast.types import Sample


class Some(Sequence[Sample]):
    """Phantom's questions, some of whose records cannot be read."""

    def __init__(self, count: int, bad: Sequence[int] = ()) -> None:
        self.samples, self.bad = phantom("train", count), set(bad)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        if index in self.bad:
            raise BadData(f"file.jsonl:{index + 1}: not JSON")
        return replace(self.samples[index], id=str(index))


def draws(samples: Sequence[Sample], seed: int = 0, stop: bool = False) -> Draws:
    return Draws(samples, lab.processor(), lab.PLAIN, lab.ALONE, seed=seed, stop_on_bad=stop)


def ids(found) -> list[int]:
    return [int(one.prompt.sample.id) for one in found]


def test_an_epoch_asks_every_question_once_and_the_next_in_another_order() -> None:
    every = draws(Some(13))
    first, second = (ids(every.take(13)) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(13))
    assert first != second


def test_the_order_is_the_seeds_and_goes_on_from_the_cursor() -> None:
    straight, broken = draws(Some(11), seed=3), draws(Some(11), seed=3)
    expected = ids(straight.take(17))
    found = ids(broken.take(6))
    later = draws(Some(11), seed=3)
    later.cursor = broken.cursor
    assert found + ids(later.take(11)) == expected
    assert ids(draws(Some(11), seed=4).take(11)) != expected[:11]


def test_a_record_that_cannot_be_used_is_replaced_counted_and_named() -> None:
    some = draws(Some(9, bad=[2, 5]))
    found = ids(some.take(7))
    assert len(found) == 7 and not {2, 5} & set(found)
    again = ids(some.take(7))
    assert len(again) == 7 and some.skipped.count >= 2
    assert any("file.jsonl:3: not JSON" in reason for reason in some.skipped.take_new())
    assert some.skipped.take_new() == []


def test_bad_records_stop_the_run_where_that_is_asked_for() -> None:
    with pytest.raises(BadData, match=r"file\.jsonl:\d+: not JSON"):
        draws(Some(9, bad=[2, 5]), stop=True).take(9)


def test_a_file_without_a_usable_record_ends() -> None:
    with pytest.raises(RunFailed, match=r"records cannot be used in a step of 2 questions; file\.jsonl:\d: not JSON"):
        draws(Some(4, bad=range(4))).take(2)


def test_no_questions() -> None:
    with pytest.raises(BadData, match="no questions"):
        draws(Some(0))
