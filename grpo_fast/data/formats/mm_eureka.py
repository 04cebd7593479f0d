"""MM-EUREKA: `message` is a chat written as a JSON string, its images given as file:// URLs, beside an `answer`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from grpo_fast.data.record import IMAGE_TAG, VIDEO_TAG, Format, Record, Turn
from grpo_fast.types import Sample

ROLES = ("system", "user", "assistant")


def recognise(columns: Mapping[str, Any]) -> bool:
    return "message" in columns and "answer" in columns


def sample(record: Record) -> Sample:
    answer = record.gold(record.columns.get("answer"), "answer")
    shown: dict[str, list[Any]] = {"image": [], "video": []}
    turns: list[Turn] = []
    for index, turn in enumerate(_chat(record)):
        what = f"message[{index}]"
        if not isinstance(turn, Mapping):
            raise record.bad(f"{what} is of type {type(turn).__name__}, not an object")
        role = turn.get("role")
        if role not in ROLES:
            raise record.bad(f"{what} has the role {role!r}; known are {', '.join(ROLES)}")
        turns.append((role, _text(record, turn.get("content"), what, shown)))
    if turns[-1][0] != "user":
        raise record.bad(f"the message ends with a turn of {turns[-1][0]}, not with the user's question")
    return record.sample(turns, shown["image"], answer, videos=shown["video"])


def _chat(record: Record) -> list[Any]:
    chat = record.columns.get("message")
    if isinstance(chat, str):
        try:
            chat = json.loads(record.text("message"))
        except (json.JSONDecodeError, RecursionError) as error:
            reason = f"{error.msg} at character {error.pos + 1}" if isinstance(error, ValueError) else "too deep"
            raise record.bad(f"message is not valid JSON: {reason}") from error
    if not isinstance(chat, list):
        raise record.bad(f"message is {'missing' if chat is None else 'not a list of turns'}")
    if not chat:
        raise record.bad("message is empty")
    return chat


def _text(record: Record, content: Any, what: str, shown: dict[str, list[Any]]) -> str:
    """With a tag where an image or a video part stands; what it shows is added to `shown`."""
    if not isinstance(content, list):
        return record.checked(content, f"{what}.content")
    if not content:
        raise record.bad(f"{what}.content is empty")
    texts = []
    for number, part in enumerate(content):
        where = f"{what}.content[{number}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(record.checked(part.get("text"), f"{where}.text"))
        elif kind in ("image", "video"):
            if part.get(kind) is None:
                article = "an" if kind == "image" else "a"
                raise record.bad(f"{where} is {article} {kind} part without {article} {kind}")
            shown[kind].append(part[kind])
            texts.append(IMAGE_TAG if kind == "image" else VIDEO_TAG)
        else:
            raise record.bad(f"{where} is neither a text nor an image or video part")
    return "".join(texts)


MM_EUREKA = Format("mm-eureka", "message, answer", recognise, sample)
