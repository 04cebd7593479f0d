"""How a question about an image is put, by question type. The modality is never named where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from grpo_fast.data.names import question_type

NAMES = {"ct": "CT", "mri": "MRI", "x-ray": "X-ray", "oct": "OCT"}
STEMS: dict[str, tuple[str, ...]] = {
    "modality-recognition": (
        "Which imaging technique produced this picture?",
        "How was this image acquired?",
        "What kind of medical image is this?",
    ),
    "anatomy-identification": (
        "Which part of the body does this {modality} image show?",
        "What anatomy can be seen in this {modality} image?",
        "Name the structure in view in this {modality} image.",
    ),
    "disease-diagnosis": (
        "Which diagnosis does this {modality} image support?",
        "What condition is visible in this {modality} image?",
        "What is the most fitting finding for this {modality} image?",
    ),
    "lesion-grading": (
        "How severe is what this {modality} image shows?",
        "Which grade applies to this {modality} image?",
        "What degree of change does this {modality} image show?",
    ),
    "other-biological-attributes": (
        "Which description holds for what this {modality} image shows?",
        "Which attribute can be read from this {modality} image?",
    ),
}
OTHERS = (
    "Which of the options fits this {modality} image?",
    "What does this {modality} image show?",
)


def stems(type: str) -> Sequence[str]:
    return STEMS.get(question_type(type), OTHERS)


def worded(stem: str, modality: str, options: Sequence[str]) -> str:
    named = stem.format(modality=NAMES.get(modality, modality.replace("-", " ")))
    return named + " " + ", ".join(f"{letter}) {text}" for letter, text in zip(ascii_uppercase, options, strict=False))
