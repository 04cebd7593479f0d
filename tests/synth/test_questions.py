"""Questions from labels: distractors, letters, templates, and rows that cannot be used."""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from grpo_fast.data import open_data
from grpo_fast.errors import BadData, BadSettings
from grpo_fast.rewards.answers import is_correct, options
from grpo_fast.synth import command
from grpo_fast.synth.meaning import clash
from grpo_fast.synth.metadata import Entry, read_metadata
from grpo_fast.synth.questions import write_questions
from grpo_fast.synth.wording import STEMS, stems

DISEASES = ["Pneumonia", "Pleural effusion", "Cardiomegaly", "Pneumothorax", "Normal", "Lung nodule"]
ORGANS = ["Liver", "Kidney", "Spleen", "Pancreas", "Stomach"]


def entry(number: int, label: str, kind: str = "x-ray", asked: str = "disease-diagnosis", image: str = "") -> Entry:
    return Entry(f"rows:{number}", Path(image or f"{number}.png"), kind, asked, label)


def table(count: int = 60) -> list[Entry]:
    return [
        entry(n, DISEASES[n // 2 % 6]) if n % 2 else entry(n, ORGANS[n // 2 % 5], "ct", "anatomy-identification")
        for n in range(count)
    ]


def test_every_question_has_its_answer_among_labels_of_its_kind() -> None:
    written = write_questions(table()).questions
    assert len(written) == 60
    for question in written:
        shown = options(question.text)
        kind = DISEASES if question.entry.modality == "x-ray" else ORGANS
        assert shown[question.letter] == question.entry.label
        assert len(set(shown.values())) == 4 and set(shown.values()) <= set(kind)
        assert is_correct(f"<answer>{question.letter}</answer>", question.letter, question=question.text)
        assert is_correct(f"<answer>{question.entry.label}</answer>", question.letter, question=question.text)


@pytest.mark.parametrize("count", [10, 11, 30, 61])
@pytest.mark.parametrize("number", [2, 3, 4])
def test_letters_are_balanced_and_shuffled(count: int, number: int) -> None:
    letters = [question.letter for question in write_questions(table(count), options=number).questions]
    counts = Counter(letters)
    assert len(letters) == count and len(counts) == number
    assert max(counts.values()) - min(counts.values()) <= 1
    if count > 20:
        periods = [letters[at : at + number] for at in range(0, count - number, number)]
        assert len({tuple(period) for period in periods}) > 1


def test_the_seed_decides() -> None:
    texts = [[question.text for question in write_questions(table(), seed=seed).questions] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        ("Pneumonia", "pneumonia.", True),
        ("Haemorrhage", "hemorrhage", True),
        ("Brain tumour", "Brain tumors", True),
        ("Cancer of the lung", "lung cancer", True),
        ("Diabetic retinopathy (DR)", "DR", True),
        ("X-ray", "Radiography", True),
        ("CT", "Computed Tomography", True),
        ("Normal", "healthy", True),
        ("No finding", "Normal", True),
        ("Grade II", "grade 2", True),
        ("Nodule", "Lung nodule", True),
        ("Rib fracture", "Fracture of the ribs", True),
        ("Lesion (benign)", "benign", True),
        ("Melanoma", "No melanoma", False),
        ("Non-proliferative retinopathy", "Proliferative retinopathy", False),
        ("Grade 1", "Grade 2", False),
        ("Grade 1", "Grade 10", False),
        ("Grade II", "Grade III", False),
        ("Left lung", "Right lung", False),
        ("Benign", "Malignant", False),
        ("Normal", "Abnormal", False),
        ("Pneumonia", "Pneumothorax", False),
    ],
)
def test_what_could_both_be_right(a: str, b: str, both: bool) -> None:
    assert clash(a, b) == clash(b, a) == both


def test_no_distractor_clashes() -> None:
    labels = [
        "Melanoma",
        "melanoma",
        "Melanoma in situ",
        "Naevus",
        "nevus",
        "Nævus",
        "Keratosis",
        "Wart",
        "No melanoma",
    ]
    entries = [entry(n, labels[n % len(labels)], "dermoscopy") for n in range(90)]
    written = write_questions(entries)
    assert len(written.questions) == 90
    for question in written.questions:
        shown = list(options(question.text).values())
        assert not any(clash(a, b) for n, a in enumerate(shown) for b in shown[n + 1 :])


def test_other_labels_of_the_image_are_no_distractors() -> None:
    entries = [entry(n, DISEASES[n % 6]) for n in range(12)]
    entries += [entry(n, label, image="both.png") for n, label in enumerate(DISEASES[:2], 12)]
    written = write_questions(entries)
    for question in written.questions[12:]:
        other = DISEASES[1 - DISEASES.index(question.entry.label)]
        assert other not in options(question.text).values()


def test_labels_with_too_few_distractors_are_named() -> None:
    entries = [entry(n, label, "oct") for n, label in enumerate(["Drusen", "Normal", "Fluid", "Drusen"])]
    written = write_questions([*table(20), *entries])
    assert len(written.questions) == 20
    assert written.short == {
        ("oct", "disease-diagnosis", name): 1 + (name == "Drusen") for name in ("Drusen", "Normal", "Fluid")
    }
    assert len(write_questions(entries, options=3).questions) == 4


def test_candidates_come_before_other_labels() -> None:
    own = Entry(
        "rows:1", Path("1.png"), "ct", "disease-diagnosis", "Cyst", ("cyst", "Tumour", "Abscess", "Stone", "tumor")
    )
    (question,) = write_questions([own]).questions
    assert set(options(question.text).values()) == {"Cyst", "Abscess", "Stone"} | (
        {"Tumour", "tumor"} & set(options(question.text).values())
    )


def test_options_that_cannot_be_told_apart_are_refused() -> None:
    entries = [entry(n, label) for n, label in enumerate([*DISEASES, "see A) first, B) second, C) third"])]
    written = write_questions(entries)
    assert len(written.unreadable) >= 1 and "rows:6" in "".join(written.unreadable)
    for question in written.questions:
        assert options(question.text)[question.letter] == question.entry.label


def test_templates_do_not_tell_the_modality_that_is_asked_for() -> None:
    assert not any("{modality}" in stem for stem in STEMS["modality-recognition"])
    assert all(len(stems(kind)) >= 2 for kind in (*STEMS, "organ-counting"))
    asked = {write_questions(table(), seed=seed).questions[1].text.partition(" A)")[0] for seed in range(20)}
    assert len(asked) == 3


def rows(folder: Path) -> list[dict[str, str]]:
    made = []
    for number in range(12):
        Image.new("L", (30, 30), 10 * number).save(folder / f"{number}.png")
        label = DISEASES[number % 6]
        made.append(
            {"image": f"{number}.png", "modality": "X_Ray", "question_type": "Disease Diagnosis", "label": label}
        )
    return made


def command_line(*given: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(["questions", *map(str, given)]))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_from_a_table_to_a_data_file(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / f"labels.{suffix}"
    made = rows(tmp_path)
    with file.open("w", newline="") as out:
        if suffix == "csv":
            writer = csv.DictWriter(out, [*made[0], "candidates"])
            writer.writeheader()
            writer.writerows([{**made[0], "candidates": "Cyst|Stone|Tumour"}, *made[1:]])
        else:
            out.writelines(
                json.dumps(row) + "\n" for row in [{**made[0], "candidates": ["Cyst", "Stone", "Tumour"]}, *made[1:]]
            )
    assert command_line("--metadata", file, "--output", tmp_path / "out" / "q.jsonl", "--image-root", tmp_path) == 0
    assert "12 questions (answers: A 3 B 3 C 3 D 3)" in capsys.readouterr().out
    found = open_data([str(tmp_path / "out" / "q.jsonl")], image_folders=[str(tmp_path)])
    assert len(found) == 12
    for number, sample in enumerate(found):
        assert sample.meta["modality"] == "x-ray" and sample.meta["question_type"] == "disease-diagnosis"
        assert sample.images[0]().getpixel((0, 0)) == 10 * number
        shown = options(sample.messages[0]["content"][1]["text"])
        assert shown[str(sample.answer)] == made[number]["label"]
    assert "Cyst" in options(found[0].messages[0]["content"][1]["text"]).values()
    with pytest.raises(BadSettings, match="exists already"):
        command_line("--metadata", file, "--output", tmp_path / "out" / "q.jsonl")


def test_rows_that_cannot_be_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [json.dumps(row) for row in rows(tmp_path)]
    made[2] = made[2].replace("2.png", "nowhere.png")
    made[4] = "{"
    made[5] = json.dumps({**json.loads(made[5]), "label": "  "})
    made[7] = json.dumps({**json.loads(made[7]), "candidates": [1]})
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(made) + "\n")
    assert command_line("--metadata", file, "--output", tmp_path / "q.jsonl") == 1
    said = capsys.readouterr()
    assert all(f"{file}:{line}" in said.err for line in (3, 5, 6, 8)) and "8 questions" in said.out


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no column image"),
        ("image,modality,label\n", "no column question_type"),
        ("image,modality,question_type,label\n", "holds no rows"),
    ],
)
def test_tables_that_are_none(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BadData, match=word):
        read_metadata(tmp_path / "t.csv")
