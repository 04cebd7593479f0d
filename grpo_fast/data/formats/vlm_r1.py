"""VLM-R1's lines, which are GMAI-Reasoning10K's too: a conversation that ends with the answer.

Unlike VLM-R1's own reader, `<image>` keeps its place and earlier turns are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_fast.data.record import Format, Record, Turn
from grpo_fast.types import Sample

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system",
}  # fmt: skip


def recognise(columns: Mapping[str, Any]) -> bool:
    return "conversations" in columns


def sample(record: Record) -> Sample:
    turns = _turns(record)
    role, value = turns[-1]
    if role != "assistant":
        raise record.bad("the conversation does not end with an answer (a turn from gpt)")
    _check_order(record, [role for role, _ in turns])
    what = f"conversations[{len(turns) - 1}], the answer,"
    answer = record.gold(value, what)
    asked: list[Turn] = [
        (role, record.checked(value, f"conversations[{index}]")) for index, (role, value) in enumerate(turns[:-1])
    ]
    method = record.columns.get("accu_reward_method")
    return record.sample(
        asked,
        record.image_references(),
        answer,
        videos=record.video_references(),
        response=value if isinstance(value, str) else answer,
        reward_method=None if method is None else record.checked(method, "accu_reward_method"),
    )


def _turns(record: Record) -> list[tuple[str, Any]]:
    given = record.columns.get("conversations")
    if not isinstance(given, list):
        raise record.bad(f"conversations is {'missing' if given is None else 'not a list of turns'}")
    if not given:
        raise record.bad("conversations is empty")
    turns = []
    for index, turn in enumerate(given):
        if not isinstance(turn, Mapping):
            raise record.bad(f"conversations[{index}] is of type {type(turn).__name__}, not an object")
        speaker = turn.get("from", turn.get("role"))
        if speaker is None:
            raise record.bad(f"conversations[{index}] does not say whom it is from")
        if not isinstance(speaker, str) or speaker.lower() not in ROLES:
            raise record.bad(f"conversations[{index}] is from {speaker!r}; known are human, gpt and system")
        turns.append((ROLES[speaker.lower()], turn.get("value", turn.get("content"))))
    return turns


def _check_order(record: Record, roles: list[str]) -> None:
    spoken = roles[1:] if roles[0] == "system" else roles
    wanted = ["user", "assistant"] * (len(spoken) // 2)
    if spoken != wanted:
        raise record.bad(f"the turns are {', '.join(roles)}; after a system turn, user and assistant take turns")


VLM_R1 = Format("vlm-r1", "conversations, image", recognise, sample)
