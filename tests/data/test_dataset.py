"""Choosing records: slices, splits, modalities and question types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data.owners import med_r1, vlm_r1, write_lines

from grpo_fast.data import Dataset, open_data
from grpo_fast.data.names import MODALITIES, labels, modality, question_type
from grpo_fast.errors import BadData, BadSettings


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    kinds = ["CT", "MR (Mag-netic Resonance Imaging)", "X-Ray"]
    asked = ["Modality Recognition", "Disease Diagnosis"]
    records = [
        {"id": n, **vlm_r1("a.png"), "modality_type": kinds[n % 3], "question_type": asked[n % 2]} for n in range(12)
    ]
    (tmp_path / "more.json").write_text(json.dumps([{"id": n, **med_r1()} for n in range(12, 20)]))
    return open_data([str(write_lines(tmp_path / "t.jsonl", records)), str(tmp_path / "more.json")])


def ids(data: Dataset) -> list[int]:
    return [int(sample.id) for sample in data]


def test_slices_and_choices(data: Dataset) -> None:
    everything = list(range(20))
    assert len(data) == 20 and ids(data) == everything
    for cut in (slice(3, 9), slice(None, None, -1), slice(-4, None), slice(15, 40), slice(5, 5), slice(1, 19, 4)):
        assert ids(data[cut]) == everything[cut]
    assert ids(data.take(3)) == [0, 1, 2] and len(data.take(99)) == 20
    assert ids(data.select([19, 0, 19, -1]).select([1, 0])) == [0, 19]
    assert data[-1].id == "19" and data[2:][-18].id == "2"
    for wrong in (20, -21):
        with pytest.raises(IndexError):
            data[wrong]
        with pytest.raises(IndexError):
            data.select([wrong])
    with pytest.raises(IndexError):
        data.take(3)[3]


def test_split_is_the_same_for_the_same_seed(data: Dataset) -> None:
    train, held_out = data.split(0.25, seed=3)
    assert len(held_out) == 5 and sorted(ids(train) + ids(held_out)) == list(range(20))
    assert ids(train) == sorted(ids(train)) and ids(held_out) == sorted(ids(held_out))
    assert ids(data.split(0.25, seed=3)[1]) == ids(held_out) != ids(data.split(0.25, seed=4)[1])
    assert ids(data.split(0.25, seed=0)[1]) == [1, 8, 10, 18, 19]  # for good: the stream behind it is frozen
    assert [len(part) for part in data.take(2).split(0.001)] == [1, 1]
    assert [len(part) for part in data.take(2).split(0.999)] == [1, 1]
    for share in (0, 1, -1, 2):
        with pytest.raises(BadSettings, match="between 0 and 1"):
            data.split(share)
    with pytest.raises(BadData, match=r"1 record\(s\) cannot be split"):
        data.take(1).split(0.5)


def test_where(data: Dataset) -> None:
    assert ids(data.where(modality=["mri"])) == [1, 4, 7, 10]
    assert ids(data.where(modality=["MR", "x_ray"], question_type=["Disease Diagnosis"])) == [1, 5, 7, 11]
    assert ids(data[5:].where(question_type=["modality-recognition"])) == [6, 8, 10]
    assert data.where() is data
    with pytest.raises(
        BadSettings, match=r"no record has the modality ctt \(did you mean ct\?\); found: unknown \(8\), ct"
    ):
        data.where(modality=["ctt"])
    with pytest.raises(BadSettings, match="no record has the question type lesion-grading"):
        data.where(question_type=["Lesion Grading"])


def test_where_reads_once_and_leaves_the_bad_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        {**vlm_r1(), "modality": "CT"},
        {**vlm_r1(answer=""), "modality": "MRI"},
        {**vlm_r1(), "modality": "MRI"},
    ]
    data = open_data([str(write_lines(tmp_path / "t.jsonl", records))])
    read: list[int] = []
    source = data.parts[0].source
    record = source.record
    monkeypatch.setattr(source, "record", lambda index: read.append(index) or record(index))
    ct = data.where(modality=["CT"])
    assert read == [0, 1, 2] and len(ct) == 2
    with pytest.raises(BadData, match=r"t\.jsonl:2: .*the answer, is empty"):
        ct[1]


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("CT(Computed Tomography)", "ct"),
        ("MR (Mag-netic Resonance Imaging)", "mri"),
        ("X-Ray", "x-ray"),
        ("x_ray", "x-ray"),
        ("ultrasound", "ultrasound"),
        ("Dermoscopy", "dermoscopy"),
        ("Fundus Photography", "fundus"),
        ("fundus_photography", "fundus"),
        ("OCT (Optical Coherence Tomography", "oct"),
        ("Microscopy Images", "microscopy"),
        ("endoscopy", "endoscopy"),
        ("Histopathology", "histopathology"),
        ("Infrared Reflectance Imaging", "infrared-reflectance-imaging"),
        ("Digital Photography", "digital-photography"),
    ],
)
def test_modality_names(name: str, normal: str) -> None:
    assert modality(name) == normal == modality(normal)


def test_question_type_names() -> None:
    for name in ("Modality Recognition", "Anatomy Identification", "Disease Diagnosis", "Lesion Grading",
                 "Other Biological Attributes"):  # fmt: skip
        assert question_type(name) == name.lower().replace(" ", "-") == question_type(question_type(name))


def test_where_labels_come_from() -> None:
    for columns, paths, file, found in [
        ({"modality": "CT"}, ["x/2d/cls/oct/1.png"], "X-Ray_train.json", {"modality": "ct"}),
        ({}, ["x/2d/cls/fundus_photography/set/1.png"], "X-Ray_train.json", {"modality": "fundus"}),
        ({}, ["/data/3D/seg/mr/1.png"], "t.json", {"modality": "mri"}),
        ({}, ["/data/2d/cls/colposcopy/1.png"], "t.json", {"modality": "colposcopy"}),
        ({}, ["Images/Chest CT Scan/1.png"], "CT(Computed Tomography)_test.json", {"modality": "ct"}),
        ({}, ["Images/x_ray/7/1.png"], "t.json", {"modality": "x-ray"}),
        ({}, ["us/ct.png"], "t.json", {}),  # a folder called us may be anything, and a file's own name is no label
        ({}, [], "Disease Diagnosis_train.json", {"question_type": "disease-diagnosis"}),
        ({"modality": 3, "question_type": ""}, [], "t.json", {}),
        ({"modality_type": "OCT", "question_type": "Weird One"}, [], "t.json",
         {"modality": "oct", "question_type": "weird-one"}),
    ]:  # fmt: skip
        assert labels(columns, paths, file) == found
    assert len({alias for name, aliases in MODALITIES.items() for alias in (name, *aliases)}) == sum(
        1 + len(aliases) for aliases in MODALITIES.values()
    )


def test_phantom_passes_through(tmp_path: Path) -> None:
    data = open_data(["phantom:test", str(write_lines(tmp_path / "t.jsonl", [vlm_r1("a.png")]))])
    assert data[0].images[0]().size[0] > 0 and data[0].answer and data[-1].answer == "C"
    assert len(data.where(modality=[data[0].meta["modality"]])) < len(data) - 1
