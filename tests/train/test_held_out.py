"""Questions that are asked again and again: prepared once where their pixels fit, with the same answers."""

from __future__ import annotations

from typing import Any

import pytest
from train import lab

from grpo_fast.data.phantom import phantom
from grpo_fast.rollout import Engine
from grpo_fast.train import held_out
from grpo_fast.types import Prompt


@pytest.mark.parametrize(("room", "prepared"), [(held_out.KEPT_BYTES, 5), (0, 10), (None, 7)], ids=str)
def test_a_second_look_prepares_what_did_not_fit(
    room: int | None, prepared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def processor(sample: Any) -> Prompt:
        calls.append(sample)
        return lab.processor()(sample)

    samples = phantom("test", 5)
    if room is None:  # three questions' pixels
        room = sum(one.pixels.nbytes for sample in samples[:3] for one in processor(lab.PLAIN(sample)).vision)
        calls.clear()
    monkeypatch.setattr(held_out, "KEPT_BYTES", room)
    look = held_out.HeldOut(
        samples, processor, lab.PLAIN, lab.ALONE, count=0, seed=0, max_tokens=4  # type: ignore[arg-type]
    )  # fmt: skip
    engine = Engine(lab.policy(lab.settings()), tokenizer=lab.processor().tokenizer)
    first, second = look(engine), look(engine)
    assert len(calls) == prepared
    assert [one.sample.id for one in first] == [sample.id for sample in samples]
    assert [one.completion for one in first] == [one.completion for one in second]
