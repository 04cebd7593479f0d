"""One name for each modality and question type, from explicit columns, image paths or the data file's own name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Any

MODALITIES = {
    "ct": ("computed-tomography", "ct-scan", "ct-scans"),
    "mri": ("mr", "magnetic-resonance", "magnetic-resonance-imaging", "mr-imaging", "mri-scan"),
    "x-ray": ("xray", "x-rays", "radiograph", "radiography", "chest-x-ray", "cxr"),
    "ultrasound": ("us", "ultrasonography", "sonography", "echography"),
    "dermoscopy": ("dermatoscopy", "dermoscopic", "dermoscopic-images"),
    "fundus": ("fundus-photography", "fundus-photo", "color-fundus-photography", "fundus-images", "cfp"),
    "oct": ("optical-coherence-tomography",),
    "microscopy": ("microscopy-images", "microscope", "microscopic", "microscopic-images"),
    "endoscopy": ("endoscopic", "endoscopic-images"),
    "histopathology": ("histopathology-images", "histology", "pathology"),
}
QUESTION_TYPES = {
    "modality-recognition": (),
    "anatomy-identification": ("anatomy-recognition",),
    "disease-diagnosis": (),
    "lesion-grading": (),
    "other-biological-attributes": ("biological-attributes", "other-attributes"),
}
MODALITY_COLUMNS = ("modality", "modality_type", "image_modality", "imaging_modality")
QUESTION_TYPE_COLUMNS = ("question_type", "task_type")
CLASS_FOLDER = re.compile(r"(?:^|[/\\])[23]d[/\\][^/\\]+[/\\]([^/\\]+)[/\\]", re.IGNORECASE)
SPLIT_SUFFIX = re.compile(r"[_-](train|test|val|valid|validation|rl|sft)$", re.IGNORECASE)

_MODALITY_OF = {alias: name for name, aliases in MODALITIES.items() for alias in (name, *aliases)}
_QUESTION_TYPE_OF = {alias: name for name, aliases in QUESTION_TYPES.items() for alias in (name, *aliases)}
TOO_SHORT = frozenset({"us", "mr"})  # folders of that name may mean anything


def modality(name: str) -> str:
    """`CT(Computed Tomography)`, `MR (Mag-netic Resonance Imaging)`, `x_ray`, … by their one name; others as slugs."""
    return _MODALITY_OF.get(slug(name), slug(name))


def question_type(name: str) -> str:
    return _QUESTION_TYPE_OF.get(slug(name), slug(name))


@lru_cache(maxsize=4096)
def slug(name: str) -> str:
    before_brackets = re.sub(r"\(.*", "", name) or name
    return re.sub(r"[\W_]+", "-", before_brackets.lower()).strip("-")


def labels(columns: Mapping[str, Any], image_paths: Sequence[str], file: str) -> dict[str, Any]:
    """`modality` and `question_type`, where they are known."""
    found: dict[str, Any] = {}
    kind = _first(columns, MODALITY_COLUMNS)
    kind = modality(kind) if kind else _from_paths(image_paths) or _MODALITY_OF.get(_stem(file))
    if kind:
        found["modality"] = kind
    asked = _first(columns, QUESTION_TYPE_COLUMNS)
    asked = question_type(asked) if asked else _QUESTION_TYPE_OF.get(_stem(file))
    if asked:
        found["question_type"] = asked
    return found


def _first(columns: Mapping[str, Any], names: Sequence[str]) -> str | None:
    given = (columns.get(name) for name in names)
    return next((value for value in given if isinstance(value, str) and slug(value)), None)


def _from_paths(paths: Sequence[str]) -> str | None:
    return _from_path(paths[0]) if paths else None


def _from_path(path: str) -> str | None:
    if classes := CLASS_FOLDER.search(path):
        return modality(classes[1])
    folders = (slug(part) for part in reversed(PurePath(path).parts[:-1]))
    return next((_MODALITY_OF[name] for name in folders if name in _MODALITY_OF and name not in TOO_SHORT), None)


@lru_cache(maxsize=64)
def _stem(file: str) -> str:
    return slug(SPLIT_SUFFIX.sub("", PurePath(file).stem))
