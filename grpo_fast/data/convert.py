"""Writes samples in another layout: question, answer and images come back equal when it is read again."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from grpo_fast.data.dataset import Dataset
from grpo_fast.data.images import ImageBytes, ImageFile
from grpo_fast.data.record import IMAGE_TAG
from grpo_fast.errors import BadData, BadImage, BadSettings
from grpo_fast.types import Sample

PNG_MARK = b"\x89PNG\r\n\x1a\n"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")
Written = dict[str, Any]


def convert(
    dataset: Dataset,
    layout: str,
    out: Path,
    image_folder: Path,
    tick: Callable[[], None] = lambda: None,
) -> tuple[int, list[str]]:
    """How many records were written, and why the others were not. The file appears when it is whole."""
    if out.exists():
        raise BadSettings(f"{out} exists already; give another name, or remove it")
    describe = LAYOUTS[layout]
    writing = out.with_name(out.name + ".part")
    written, refused = 0, []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(writing, "w", encoding="utf-8") as file:
            for index in range(len(dataset)):
                try:
                    sample = dataset[index]
                    images = [
                        _reference(load, out.parent, image_folder / f"{index:06d}-{number}.png")
                        for number, load in enumerate(sample.images)
                    ]
                    line = json.dumps({**describe(sample, images), **_others(sample)}, ensure_ascii=False)
                except (BadData, BadImage) as error:
                    refused.append(str(error))
                else:
                    _write(file, line, written, layout)
                    written += 1
                tick()
            if layout == "med-r1":
                file.write("\n]\n" if written else "[]\n")
        os.replace(writing, out)
    except OSError as error:
        raise BadSettings(f"{out} cannot be written: {error}") from error
    finally:
        with suppress(FileNotFoundError):
            writing.unlink()
    return written, refused


def vlm_r1(sample: Sample, images: list[str]) -> Written:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": names[turn["role"]], "value": _tagged(turn["content"])} for turn in sample.messages]
    turns.append({"from": "gpt", "value": sample.meta.get("response", sample.answer)})
    shown: Written = {"image": images[0] if len(images) == 1 else images} if images else {}
    method = sample.meta.get("reward_method")
    return {**shown, "conversations": turns, **({"accu_reward_method": method} if method else {})}


def med_r1(sample: Sample, images: list[str]) -> Written:
    if len(images) > 1:
        raise BadData(f"{_place(sample)}: {len(images)} images, and Med-R1's layout holds one: take vlm-r1 or easyr1")
    content = _only_turn(sample, "Med-R1's")
    if content[:1] == [{"type": "image"}]:
        content = content[1:]
    response = sample.meta.get("response", "")
    solution = response if "<answer>" in response else f"<answer> {sample.answer} </answer>"
    return {**({"image": images[0]} if images else {}), "problem": _tagged(content), "solution": solution}


def easy_r1(sample: Sample, images: list[str]) -> Written:
    return {"problem": _tagged(_only_turn(sample, "EasyR1's")), "answer": sample.answer, "images": images}


LAYOUTS: Mapping[str, Callable[[Sample, list[str]], Written]] = {
    "vlm-r1": vlm_r1,
    "med-r1": med_r1,
    "easyr1": easy_r1,
}
# Columns that the layouts say in their own way.
OWN = {"id", "image", "images", "image_path", "problem", "solution", "answer"}
OWN |= {"conversations", "message", "accu_reward_method"}


def _write(file: IO[str], line: str, before: int, layout: str) -> None:
    if layout == "med-r1":
        file.write(",\n" if before else "[\n")
        file.write(line)
    else:
        file.write(line + "\n")


def _others(sample: Sample) -> Written:
    """What else the record said: its id, its labels where no column of its own holds them, its other columns."""
    found: Written = {} if sample.id == sample.meta.get("source") else {"id": sample.id}
    for name, value in sample.meta.get("columns", {}).items():
        if name not in OWN and _is_json(value):
            found[name] = value
    for label in ("modality", "question_type"):
        if label in sample.meta:
            found.setdefault(label, sample.meta[label])
    return found


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _tagged(content: str | list[Mapping[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(IMAGE_TAG if part["type"] == "image" else part["text"] for part in content)


def _only_turn(sample: Sample, whose: str) -> list[Mapping[str, Any]]:
    if len(sample.messages) > 1:
        raise BadData(f"{_place(sample)}: {len(sample.messages)} turns, and {whose} layout holds one: take vlm-r1")
    return sample.messages[0]["content"]


def _place(sample: Sample) -> str:
    return sample.meta.get("source", sample.id)


def _reference(load: Callable[[], Any], beside: Path, png: Path) -> str:
    """A file's path, relative where it lies below the written file; an embedded image is written to `png`."""
    if isinstance(load, ImageFile):
        png = load.found()
    else:
        data = _as_png(load)
        png.parent.mkdir(parents=True, exist_ok=True)
        if png.exists() and png.read_bytes() != data:
            raise BadSettings(f"{png} is another image; give a folder of its own with --images")
        png.write_bytes(data)
    absolute, base = png.resolve(), beside.resolve()
    return str(absolute.relative_to(base) if absolute.is_relative_to(base) else absolute)


def _as_png(load: Callable[[], Any]) -> bytes:
    if isinstance(load, ImageBytes) and load.data.startswith(PNG_MARK):
        return load.data
    image = load()
    file = io.BytesIO()
    turned = image.getexif()
    try:
        (image if image.mode in PNG_MODES else image.convert("RGB")).save(file, "PNG", exif=turned)
    except (OSError, ValueError) as error:
        raise BadImage(f"an embedded image of mode {image.mode} cannot be written as PNG: {error}") from error
    return file.getvalue()
