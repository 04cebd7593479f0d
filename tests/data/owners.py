"""Small data sets written as the owners of each format write them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

QUESTION = "Which modality is shown? A) CT, B) MRI, C) X-ray, D) Ultrasound"


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)
    return path


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def vlm_r1(image: Any = "2d/cls/x_ray/0.png", question: str = f"<image>\n {QUESTION}", answer: Any = "C") -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns}


def med_r1(image: str = "Images/0.png") -> dict:
    return {"image": image, "problem": QUESTION, "solution": "<answer> C </answer>"}


def easy_r1(images: Any = ("Images/0.png",), problem: str = f"<image>{QUESTION}") -> dict:
    return {"problem": problem, "answer": "C", "images": list(images)}


def mm_eureka(image: str, id: str = "0") -> dict:
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    return {"id": id, "message": json.dumps([{"role": "user", "content": content}]), "answer": "C"}
