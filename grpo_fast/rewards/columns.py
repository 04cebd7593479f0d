"""A sample as other trainers' reward functions expect to see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpo_fast.rewards.accuracy import question_of
from grpo_fast.rewards.base import Ask
from grpo_fast.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

NO_COLUMNS = frozenset({"prompt", "prompts", "completion", "completions", "completion_ids"})  # TRL's own


@dataclass(slots=True, eq=False)
class ImageColumn(Sequence):
    """One sample's images, repeated per completion, and opened once when first looked at."""

    open_all: Sequence[Callable[[], Image]]
    count: int
    first_only: bool = False
    opened: list[Image] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        if self.opened is None:
            self.opened = [open_one() for open_one in self.open_all]
        one: Any = self.opened
        if self.first_only:
            one = self.opened[0] if self.opened else None
        repeated = [one] * self.count
        return repeated[i]


def columns(ask: Ask) -> dict[str, Any]:
    """What TRL would pass by keyword: prompts, completions, and each column of the data once per completion."""
    sample, count = ask.sample, len(ask.completions)
    question, meta = question_of(sample), sample.meta
    own = meta.get("columns", {})
    known = {
        "id": sample.id,
        "answer": sample.answer,
        "solution": f"<answer> {sample.answer} </answer>" if "conversations" in own else sample.answer,  # as VLM-R1
        "question": question,
        "problem": question,
        "accu_reward_method": meta.get("reward_method") or "default",
        "image_path": list(meta.get("image_paths", ())),
        **{name: meta[name] for name in ("modality", "question_type") if name in meta},
        **{name: value for name, value in own.items() if name not in NO_COLUMNS},
    }
    given: dict[str, Any] = {name: [value] * count for name, value in known.items()}
    given["images"] = ImageColumn(sample.images, count)
    given["image"] = ImageColumn(sample.images, count, first_only=True)
    given["prompts"] = [[dict(turn) for turn in sample.messages] for _ in range(count)]
    given["completions"] = [[{"role": "assistant", "content": text}] for text in ask.completions]
    if ask.completion_ids is not None:
        given["completion_ids"] = [list(ids) for ids in ask.completion_ids]
    return given


def chatml(sample: Sample) -> str:
    """The prompt as Qwen's template words it, for a caller that has not rendered it."""
    turns = []
    for turn in sample.messages:
        content = turn.get("content", "")
        if not isinstance(content, str):
            marks = {"image": "<|vision_start|><|image_pad|><|vision_end|>",
                     "video": "<|vision_start|><|video_pad|><|vision_end|>"}  # fmt: skip
            content = "".join(marks.get(part.get("type"), part.get("text") or "") for part in content)
        turns.append(f"<|im_start|>{turn['role']}\n{content}<|im_end|>\n")
    return "".join(turns) + "<|im_start|>assistant\n"
