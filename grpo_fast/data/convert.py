"""Writes samples in another layout: question, answer and images come back equal when it is read again."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from grpo_fast.data.context import is_context
from grpo_fast.data.dataset import Dataset
from grpo_fast.data.images import ImageBytes, ImageFile
from grpo_fast.data.record import IMAGE_TAG, VIDEO_TAG
from grpo_fast.data.videos import FrameList, Video
from grpo_fast.data.volumes.opening import is_picture
from grpo_fast.errors import BadData, BadImage, BadSettings
from grpo_fast.types import Sample

EXIF_ORIENTATION = 0x0112
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
                    describe(
                        sample, Shown([""] * len(sample.images), [""] * len(sample.videos))
                    )  # before a PNG is written
                    shown = _shown(sample, out.parent, image_folder / f"{index:06d}")
                    line = json.dumps({**describe(sample, shown), **_others(sample)}, ensure_ascii=False)
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


class Shown(NamedTuple):
    """Paths as they are written."""

    images: list[str]
    videos: list[str | list[str]]  # a file with its choice, or frames


def vlm_r1(sample: Sample, shown: Shown) -> Written:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": names[turn["role"]], "value": _tagged(turn["content"], sample.meta)} for turn in sample.messages]
    turns.append({"from": "gpt", "value": sample.meta.get("response", sample.answer)})
    written: Written = {}
    for column, paths in (("image", shown.images), ("video", shown.videos)):
        if paths:  # a video of frames is a list itself
            written[column] = paths[0] if len(paths) == 1 and isinstance(paths[0], str) else paths
    method = sample.meta.get("reward_method")
    return {**written, "conversations": turns, **({"accu_reward_method": method} if method else {})}


def med_r1(sample: Sample, shown: Shown) -> Written:
    if len(shown.images) > 1 or shown.videos:
        held = f"{len(shown.images)} images" + (f" and {len(shown.videos)} video(s)" if shown.videos else "")
        raise BadData(f"{_place(sample)}: {held}, and Med-R1's layout holds one image: take vlm-r1 or easyr1")
    content = _only_turn(sample, "Med-R1's")
    if content[:1] == [{"type": "image"}]:
        content = content[1:]
    response = sample.meta.get("response", "")
    solution = response if "<answer>" in response else f"<answer> {sample.answer} </answer>"
    image: Written = {"image": shown.images[0]} if shown.images else {}
    return {**image, "problem": _tagged(content, sample.meta), "solution": solution}


def easy_r1(sample: Sample, shown: Shown) -> Written:
    problem = _tagged(_only_turn(sample, "EasyR1's"), sample.meta)
    videos: Written = {"videos": shown.videos} if shown.videos else {}
    return {"problem": problem, "answer": sample.answer, "images": shown.images, **videos}


LAYOUTS: Mapping[str, Callable[[Sample, Shown], Written]] = {
    "vlm-r1": vlm_r1,
    "med-r1": med_r1,
    "easyr1": easy_r1,
}
# Columns that the layouts say in their own way.
OWN = {"id", "image", "images", "image_path", "video", "videos", "problem", "solution", "answer"}
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


def _tagged(content: str | list[Mapping[str, Any]], meta: Mapping[str, Any]) -> str:
    """Without the patient's context, whose columns are written as they are."""
    if isinstance(content, str):
        return content
    tags = {"image": IMAGE_TAG, "video": VIDEO_TAG}
    return "".join(tags.get(part["type"]) or part["text"] for part in content if not is_context(part, meta))


def _only_turn(sample: Sample, whose: str) -> list[Mapping[str, Any]]:
    if len(sample.messages) > 1:
        raise BadData(f"{_place(sample)}: {len(sample.messages)} turns, and {whose} layout holds one: take vlm-r1")
    return sample.messages[0]["content"]


def _place(sample: Sample) -> str:
    return sample.meta.get("source", sample.id)


def _shown(sample: Sample, beside: Path, stem: Path) -> Shown:
    images = [
        _reference(load, beside, stem.with_name(f"{stem.name}-{number}.png"))
        for number, load in enumerate(sample.images)
    ]
    videos: list[str | list[str]] = []
    for number, clip in enumerate(sample.videos):
        if isinstance(clip, Video):
            choice = f"#{clip.choice.text}" if clip.choice.text else ""
            videos.append(_relative(clip.found(), beside) + choice)
        elif isinstance(clip, FrameList):
            frames = enumerate(clip.frames)
            names = ((stem.with_name(f"{stem.name}-v{number}-{frame}.png"), load) for frame, load in frames)
            videos.append([_reference(load, beside, png) for png, load in names])
    return Shown(images, videos)


def _reference(load: Callable[[], Any], beside: Path, png: Path) -> str:
    """The path of a picture's file; what is embedded, a slice or a frame is written to `png`."""
    if isinstance(load, ImageFile) and is_picture(load.found()):
        png = load.found()
    else:
        data = _as_png(load)
        png.parent.mkdir(parents=True, exist_ok=True)
        if png.exists() and png.read_bytes() != data:
            raise BadSettings(f"{png} is another image; give a folder of its own with --images")
        png.write_bytes(data)
    return _relative(png, beside)


def _relative(path: Path, beside: Path) -> str:
    """Where it lies below the folder of the written file."""
    absolute, base = path.resolve(), beside.resolve()
    return str(absolute.relative_to(base) if absolute.is_relative_to(base) else absolute)


def _as_png(load: Callable[[], Any]) -> bytes:
    if isinstance(load, ImageBytes) and load.data.startswith(PNG_MARK):
        return load.data
    from PIL.Image import Exif

    image = load()
    file, turned = io.BytesIO(), Exif()
    if EXIF_ORIENTATION in image.getexif():  # no other tag: a single malformed one, and none can be written
        turned[EXIF_ORIENTATION] = image.getexif()[EXIF_ORIENTATION]
    try:
        (image if image.mode in PNG_MODES else image.convert("RGB")).save(file, "PNG", exif=turned)
    except (OSError, ValueError) as error:
        raise BadImage(f"an image of mode {image.mode} cannot be written as PNG: {error}") from error
    return file.getvalue()
