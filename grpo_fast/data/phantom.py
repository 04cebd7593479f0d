"""phantom: a synthetic stand-in for a medical VQA set, drawn with numpy from a seed when asked for.

8 modalities × 5 question types, multiple choice with four options, whose order belongs to the question and is never
shuffled. Every block of 160 questions has each modality, type and letter together once, so that chance is 25 % and the
text alone says nothing. The pictures are drawings, not photographs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from grpo_fast.data.phantom_scenes import MARKED, Scene, draw
from grpo_fast.errors import BadData
from grpo_fast.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train", "test"]
MODALITIES = ("ct", "mri", "x-ray", "ultrasound", "dermoscopy", "fundus", "oct", "microscopy")
QUESTION_TYPES = (
    "modality-recognition",
    "anatomy-identification",
    "disease-diagnosis",
    "lesion-grading",
    "other-biological-attributes",
)
COUNTS: dict[str, int] = {"train": 8192, "test": 512}
SIZE = 84
LETTERS = "ABCD"

NAMES = {
    "ct": "CT", "mri": "MRI", "x-ray": "X-ray", "ultrasound": "Ultrasound", "dermoscopy": "Dermoscopy",
    "fundus": "Fundus", "oct": "OCT", "microscopy": "Microscopy",
}  # fmt: skip
ANATOMIES = {
    "ct": ("Abdomen", "Chest", "Brain", "Pelvis"),
    "mri": ("Brain", "Knee", "Spine", "Heart"),
    "x-ray": ("Chest", "Hand", "Skull", "Leg"),
    "ultrasound": ("Liver", "Kidney", "Heart", "Fetus"),
    "dermoscopy": ("Trunk", "Scalp", "Palm", "Nail"),
    "fundus": ("Posterior pole", "Optic disc", "Macula", "Periphery"),
    "oct": ("Fovea", "Optic nerve", "Cornea", "Chamber angle"),
    "microscopy": ("Liver", "Blood", "Muscle", "Gland"),
}
DISEASES = {  # nothing found, a dark lesion, a bright one, a ring
    "ct": ("Normal", "Cyst", "Calcification", "Abscess"),
    "mri": ("Normal", "Haemorrhage", "Tumour", "Abscess"),
    "x-ray": ("Normal", "Bulla", "Nodule", "Cavity"),
    "ultrasound": ("Normal", "Cyst", "Haemangioma", "Abscess"),
    "dermoscopy": ("Normal", "Melanoma", "Vitiligo", "Ringworm"),
    "fundus": ("Normal", "Haemorrhage", "Exudate", "Scar"),
    "oct": ("Normal", "Fluid", "Drusen", "Cyst"),
    "microscopy": ("Normal", "Malignancy", "Fat", "Parasite"),
}
LOOKS = ("no lesion", "dark", "bright", "hollow")
GRADES = ("Grade 1", "Grade 2", "Grade 3", "Grade 4")
SIZES = ("tiny", "small", "medium", "large")
COLOURS = ("Red", "Yellow", "Green", "Blue")


class Question(NamedTuple):
    text: str
    options: tuple[str, ...]
    seen: str  # what answers it in the picture, in a few words
    scene: Scene


@dataclass(frozen=True, slots=True)
class Drawing:
    """The loader of a sample's image: draws anew at each call."""

    scene: Scene
    size: int
    key: tuple[int, int, int]  # seed, split, number of the question

    def __call__(self) -> Image:
        from PIL import Image

        return Image.fromarray(draw(self.scene, self.size, np.random.default_rng((*self.key, 1))))


class Phantom(Sequence[Sample]):
    """Questions of one split. Equal arguments give equal samples in any process; splits share no drawing."""

    def __init__(self, split: str, count: int | None = None, seed: int = 0, size: int = SIZE) -> None:
        if split not in COUNTS:
            raise BadData(f"phantom has the splits {' and '.join(COUNTS)}, not {split!r}")
        count = COUNTS[split] if count is None else count
        if count < 0 or seed < 0 or size < 1:
            raise BadData(f"phantom needs a count and a seed of at least 0 and a size, got {count}, {seed} and {size}")
        self.split, self.length, self.seed, self.size = split, count, seed, size

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self._sample(i) for i in range(*index.indices(self.length))]
        if not -self.length <= index < self.length:
            raise IndexError(f"phantom {self.split} has {self.length} questions, there is no number {index}")
        return self._sample(index % self.length)

    def __iter__(self) -> Iterator[Sample]:
        return (self._sample(index) for index in range(self.length))

    def _sample(self, index: int) -> Sample:
        key = (self.seed, list(COUNTS).index(self.split), index)
        modality, question_type, answer = _cell(key)
        asked = _question(modality, question_type, answer, np.random.default_rng((*key, 0)))
        letter = LETTERS[answer]
        return Sample(
            id=f"phantom-{self.split}-{self.seed}-{index}",
            messages=[
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _worded(asked)}]},
            ],
            images=(Drawing(asked.scene, self.size, key),),
            answer=letter,
            meta={
                "modality": modality,
                "question_type": question_type,
                "source": f"phantom:{self.split}:{index}",
                "response": f"<think>{asked.seen}</think><answer>{letter}</answer>",
            },
        )


def phantom(split: Split, count: int | None = None, seed: int = 0, size: int = SIZE) -> Sequence[Sample]:
    """`size`: pixels along a side of the pictures."""
    return Phantom(split, count, seed, size)


def write(
    folder: str | Path, *, train: int | None = None, test: int | None = None, seed: int = 0, size: int = SIZE
) -> dict[str, Path]:
    """The JSONL file of each split, VLM-R1's form, beside PNG pictures."""
    folder = Path(folder)
    written = {}
    for split, count in (("train", train), ("test", test)):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        written[split] = folder / f"{split}.jsonl"
        with written[split].open("w", encoding="utf-8") as lines:
            for index, sample in enumerate(Phantom(split, count, seed, size)):
                image = f"images/{split}/{index:06d}.png"
                sample.images[0]().save(folder / image)
                lines.write(json.dumps(_line(sample, image)) + "\n")
    return written


def _line(sample: Sample, image: str) -> dict[str, Any]:
    return {
        "id": sample.id,
        "image": image,
        "conversations": [
            {"from": "human", "value": "<image>" + sample.messages[0]["content"][1]["text"]},
            {"from": "gpt", "value": sample.meta["response"]},
        ],
        "modality": sample.meta["modality"],
        "question_type": sample.meta["question_type"],
    }


def _cell(key: tuple[int, int, int]) -> tuple[str, str, int]:
    """Modality, question type and answer of a question: every block of 160 has each combination once."""
    seed, split, index = key
    cells = len(MODALITIES) * len(QUESTION_TYPES) * len(LETTERS)
    cell = int(_order(seed, split, index // cells, cells)[index % cells])
    modality, question_type, answer = cell % 8, cell // 8 % 5, cell // 40
    if question_type == 0:  # what is shown is what is asked for: one of the same four
        modality = modality // 4 * 4 + answer
    return MODALITIES[modality], QUESTION_TYPES[question_type], answer


@lru_cache(maxsize=64)
def _order(seed: int, split: int, block: int, cells: int) -> np.ndarray:
    return np.random.default_rng((seed, split, block, 2)).permutation(cells)


def _worded(asked: Question) -> str:
    options = " ".join(f"{letter}) {option}" for letter, option in zip(LETTERS, asked.options, strict=True))
    return f"{asked.text} {options}"


def _question(modality: str, question_type: str, answer: int, rng: np.random.Generator) -> Question:
    name, grade = NAMES[modality], int(rng.integers(2, 4))
    if question_type == "modality-recognition":
        first = MODALITIES.index(modality) // 4 * 4
        four = tuple(NAMES[one] for one in MODALITIES[first : first + 4])
        return Question("Which modality is this?", four, f"This is {name}", Scene(modality, int(rng.integers(4))))
    if question_type == "anatomy-identification":
        options = ANATOMIES[modality]
        return Question(f"What does this {name} show?", options, f"It shows {options[answer]}", Scene(modality, answer))
    if question_type == "disease-diagnosis":
        options, scene = DISEASES[modality], Scene(modality, kind=answer, grade=grade)
        return Question(f"What is the diagnosis in this {name}?", options, f"{LOOKS[answer]}: {options[answer]}", scene)
    if question_type == "lesion-grading":
        scene = Scene(modality, kind=MARKED, grade=answer, colour=COLOURS.index("Blue"))
        return Question(f"How large is the lesion in this {name}?", GRADES, f"{SIZES[answer]}: {GRADES[answer]}", scene)
    colour = COLOURS[answer]
    scene = Scene(modality, kind=MARKED, grade=grade, colour=answer)
    return Question(f"Which colour has the lesion in this {name}?", COLOURS, f"It is {colour}", scene)
