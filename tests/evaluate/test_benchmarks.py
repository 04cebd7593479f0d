"""Each benchmark from a folder written as its owners publish it, and folders that are laid out otherwise."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grpo_fast.errors import BadData, BadImage
from grpo_fast.evaluate.benchmarks import BENCHMARKS, benchmark_of, open_benchmark
from grpo_fast.rewards.accuracy import check_gold, question_of
from grpo_fast.rewards.answers import is_correct
from grpo_fast.types import Sample


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def put_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))


def put_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def put_parquet(path: Path, rows: list[dict[str, Any]], images: Sequence[str], group: int = 2) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([(name, kind if name in images else pa.string()) for name in rows[0]])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)


def shows(sample: Sample, *seeds: int) -> bool:
    given = [np.asarray(load().convert("RGB")) for load in sample.images]
    return len(given) == len(seeds) and all(
        (one == np.asarray(picture(seed))).all() for one, seed in zip(given, seeds, strict=True)
    )


def kinds(sample: Sample) -> list[str]:
    return [part["type"] for part in sample.messages[0]["content"]]


def omnimedvqa(folder: Path) -> None:
    entry = {
        "dataset": "ACRIMA", "question_id": "ACRIMA_0000", "question_type": "Modality Recognition",
        "question": "What imaging technique was used?", "gt_answer": "Fundus imaging",
        "image_path": "Images/ACRIMA/1.png",
        "option_A": "PET scan", "option_B": "Fundus imaging", "modality_type": "Fundus Photography",
    }  # fmt: skip
    ct = {**entry, "question_id": "CT_1", "modality": "CT(Computed Tomography)", "image_path": "Images/CT/1.png"}
    ct |= {"option_C": "CT, contrast", "option_D": "X-ray", "gt_answer": "CT, contrast"}
    del ct["modality_type"]
    put_json(folder / "QA_information/Open-access/ACRIMA.json", [entry])
    put_json(folder / "QA_information/Open-access/Chest CT Scan.json", [ct, {**ct, "gt_answer": "PET"}])
    put_picture(folder / "Images/ACRIMA/1.png", 1)
    put_picture(folder / "Images/CT/1.png", 2)


def gmai(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "GMAI_mm_bench_VAL.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(
            ["index", "image", "question", "A", "B", "C", "D", "E", "answer", "category", "clinical VQA task"]
        )
        for number in range(3):
            text = 'Which "sign"\nis seen, 肺?' if number == 1 else "Which sign?"
            coded = base64.b64encode(png(number)).decode()
            writer.writerow([number, coded, text, "edema", "cyst", "", "", "", "B", "cyst", "Disease Diagnosis"])


def mmmu(folder: Path) -> None:
    row = {
        "id": "validation_Clinical_Medicine_1", "question": "Compare <image 1> with <image 2>. Which is worse?",
        "options": "['<image 1>', 'the \\'second\\'', 'neither']", "explanation": "",
        "image_1": {"bytes": png(1), "path": "a.png"}, "image_2": {"bytes": png(2), "path": None}, "image_3": None,
        "answer": "B", "question_type": "multiple-choice",
    }  # fmt: skip
    opened = {**row, "id": "o", "question": "How many <image 1>?", "options": "[]", "answer": "['12', 'twelve']"}
    empty = {**row, "id": "e", "image_2": None}
    subjects = (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    )  # fmt: skip
    for subject in subjects:
        rows = [row, opened, empty] if subject == "Clinical_Medicine" else [{**row, "id": subject}]
        images = ("image_1", "image_2", "image_3")
        put_parquet(folder / subject / "validation-00000-of-00001.parquet", rows, images)


def vqa_rad(folder: Path) -> None:
    entry = {
        "qid": "7", "phrase_type": "test_freeform", "qid_linked_id": "x", "image_name": "synpic1.jpg",
        "image_organ": "HEAD", "question_type": "PRES", "answer_type": "CLOSED ",
        "question": "Is there edema?", "answer": "Yes",
    }  # fmt: skip
    train = {**entry, "qid": "8", "phrase_type": "freeform"}
    number = {
        **entry,
        "qid": 9,
        "phrase_type": "test_para",
        "answer_type": "OPEN",
        "question": "How many?",
        "answer": 2,
    }
    put_json(folder / "VQA_RAD Dataset Public.json", [entry, train, number])
    put_picture(folder / "VQA_RAD Image Folder/synpic1.jpg", 1)


def hub(folder: Path) -> None:
    rows = [
        {"image": {"bytes": png(n), "path": None}, "question": f"Is it {n}?", "answer": "yes" if n else "a cell"}
        for n in range(5)
    ]
    put_parquet(folder / "data/test-00000-of-00001-e5bc3d.parquet", rows, ["image"])


def slake(folder: Path) -> None:
    entry = {
        "img_id": 1, "img_name": "xmlab1/source.jpg", "question": "What modality is used?", "answer": "MRI",
        "q_lang": "en", "location": "Abdomen", "modality": "MRI", "answer_type": "OPEN",
        "content_type": "Modality", "qid": 9835,
    }  # fmt: skip
    put_json(folder / "test.json", [entry, {**entry, "q_lang": "zh", "question": "什么?", "qid": 1}])
    put_picture(folder / "imgs/xmlab1/source.jpg", 1)


def pmc_vqa(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "test_2.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        choices = ["Choice A", "Choice B", "Choice C", "Choice D"]
        writer.writerow(["index", "Figure_path", "Caption", "Question", *choices, "Answer", "split"])
        writer.writerow(
            [1, "PMC1_F1.jpg", "c", "What, then?", " A:Echo", " B:MRI, T1", " C: PET ", "D:CT", "B", "test"]
        )
        writer.writerow([2, "PMC1_F1.jpg", "c", "What?", "A:Echo", "B:MRI", "C:PET", "D:CT", "F", "test"])
    put_picture(folder / "figures/PMC1_F1.jpg", 1)


def medxpertqa(folder: Path) -> None:
    entry = {
        "id": "MM-26", "question": "A man of 40. What is it?\nAnswer Choices: (A) gout (B) lupus",
        "options": {"A": "gout", "B": "lupus"}, "label": "A", "images": ["MM-26-a.jpeg", "MM-26-b.jpeg"],
        "medical_task": "Diagnosis", "body_system": "Skeletal", "question_type": "Reasoning",
    }  # fmt: skip
    (folder / "MM").mkdir(parents=True)
    (folder / "MM/test.jsonl").write_text(json.dumps(entry) + "\n" + json.dumps({**entry, "images": None}) + "\n")
    put_picture(folder / "images/MM-26-a.jpeg", 1)
    put_picture(folder / "images/MM-26-b.jpeg", 2)


WRITERS: dict[str, Callable[[Path], None]] = {
    "omnimedvqa": omnimedvqa,
    "gmai-mmbench": gmai,
    "mmmu": mmmu,
    "vqa-rad": vqa_rad,
    "slake": slake,
    "pathvqa": hub,
    "pmc-vqa": pmc_vqa,
    "medxpertqa": medxpertqa,
}


def opened(name: str, folder: Path) -> Sequence[Sample]:
    WRITERS[name](folder)
    found = benchmark_of(f"{name}:{folder}")
    assert found == (name, folder)
    return open_benchmark(*found)


def test_every_benchmark_is_tested() -> None:
    assert WRITERS.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", WRITERS)
def test_gold_is_right_and_another_answer_is_not(name: str, tmp_path: Path) -> None:
    samples = opened(name, tmp_path / "data")
    first = samples[0]
    check_gold(first)
    asked = {"question": question_of(first)}
    assert is_correct(f"<answer> {first.answer} </answer>", first.answer, **asked)
    assert not is_correct("<answer>C or so</answer>", first.answer, **asked)
    assert first.images and all(load().size == (30, 20) for load in first.images)
    assert str(tmp_path) in first.meta["source"]


def test_omnimedvqa(tmp_path: Path) -> None:
    samples = opened("omnimedvqa", tmp_path)
    assert len(samples) == 3 and shows(samples[0], 1) and shows(samples[1], 2)
    assert samples[0].answer == "B" and samples[1].answer == "C"
    assert samples[0].meta["modality"] == "fundus" and samples[1].meta["modality"] == "ct"
    assert samples[0].meta["question_type"] == "modality-recognition"
    assert question_of(samples[1]).endswith("A) PET scan\nB) Fundus imaging\nC) CT, contrast\nD) X-ray")
    with pytest.raises(BadData, match=r"Chest CT Scan.json:2: 0 of the options are the answer 'PET'"):
        samples[2]


def test_gmai_mmbench_reads_pictures_where_they_lie(tmp_path: Path) -> None:
    samples = opened("gmai-mmbench", tmp_path)
    assert len(samples) == 3
    for number in (2, 0, 1):
        assert shows(samples[number], number)
    assert question_of(samples[1]) == 'Which "sign"\nis seen, 肺?\nA) edema\nB) cyst'
    assert samples[1].answer == "B" and samples[1].meta["question_type"] == "disease-diagnosis"


def test_mmmu_puts_pictures_where_the_text_has_them(tmp_path: Path) -> None:
    samples = opened("mmmu", tmp_path)
    assert [s.meta["question_type"] for s in (samples[0], samples[1])] == ["basic-medical-science", "clinical-medicine"]
    assert kinds(samples[1]) == ["text", "image", "text", "image", "text", "image", "text"]
    assert shows(samples[1], 1, 2, 1)
    assert "B) the 'second'" in question_of(samples[1]) and samples[1].meta["answer_type"] == "closed"
    assert samples[2].answer == "12" and samples[2].meta["answer_type"] == "open"
    with pytest.raises(BadData, match=r"parquet:3: the text shows <image 2>, but image_2 is empty"):
        samples[3]


def test_vqa_rad_has_its_test_questions_alone(tmp_path: Path) -> None:
    samples = opened("vqa-rad", tmp_path)
    assert [s.id for s in samples] == ["vqa-rad-7", "vqa-rad-9"]
    assert samples[0].meta["answer_type"] == "closed" and samples[1].answer == "2" and shows(samples[0], 1)


@pytest.mark.parametrize("name", ["vqa-rad", "pathvqa"])
def test_hub_parquet(name: str, tmp_path: Path) -> None:
    hub(tmp_path)
    samples = open_benchmark(name, tmp_path)
    assert len(samples) == 5 and all(shows(samples[i], i) for i in (3, 4, 0, 1, 2))
    assert samples[0].meta["answer_type"] == "open" and samples[1].meta["answer_type"] == "closed"


def test_slake_is_asked_in_english(tmp_path: Path) -> None:
    samples = opened("slake", tmp_path)
    assert [s.id for s in samples] == ["slake-9835"] and shows(samples[0], 1)
    assert samples[0].meta["modality"] == "mri" and samples[0].meta["answer_type"] == "open"


def test_pmc_vqa(tmp_path: Path) -> None:
    samples = opened("pmc-vqa", tmp_path)
    assert samples[0].answer == "B" and shows(samples[0], 1)
    assert question_of(samples[0]) == "What, then?\nA) Echo\nB) MRI, T1\nC) PET\nD) CT"
    with pytest.raises(BadData, match=r"test_2.csv:3: 0 of the options are the answer 'F'"):
        samples[1]


def test_medxpertqa(tmp_path: Path) -> None:
    samples = opened("medxpertqa", tmp_path)
    assert kinds(samples[0]) == ["image", "image", "text"] and shows(samples[0], 1, 2)
    assert question_of(samples[0]) == "A man of 40. What is it?\nA) gout\nB) lupus"
    assert samples[0].meta["question_type"] == "reasoning"
    with pytest.raises(BadData, match=r"test.jsonl:2: 'images' is not a list"):
        samples[1]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_a_line_of_json_ends_where_json_says(tmp_path: Path, mark: str) -> None:
    medxpertqa(tmp_path)
    file = tmp_path / "MM/test.jsonl"
    entry = json.loads(file.read_text().splitlines()[0]) | {"question": f"Signs:{mark}a cough"}
    text = json.dumps(entry, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
    assert question_of(open_benchmark("medxpertqa", tmp_path)[0]).startswith(f"Signs:{mark}a cough")


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_laid_out_wrongly_says_what_was_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=rf"{name}:.*nowhere: there is no such folder; expected there: "):
        open_benchmark(name, tmp_path / "nowhere")
    with pytest.raises(BadData, match=rf"{name}:.*: (no|neither) .*; expected there: "):
        open_benchmark(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "pictures"),
    [("omnimedvqa", "Images"), ("vqa-rad", "VQA_RAD Image Folder"), ("slake", "imgs"), ("pmc-vqa", "figures"),
     ("medxpertqa", "images")],
)  # fmt: skip
def test_pictures_that_were_not_unpacked(name: str, pictures: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    (tmp_path / pictures).rename(tmp_path / "elsewhere")
    with pytest.raises(BadData, match=f"{pictures}.*; expected there"):
        open_benchmark(name, tmp_path)


def test_one_missing_picture_is_named(tmp_path: Path) -> None:
    samples = opened("slake", tmp_path)
    (tmp_path / "imgs/xmlab1/source.jpg").unlink()
    with pytest.raises(BadImage, match=r"test.json:1: image .*xmlab1/source.jpg does not exist"):
        samples[0].images[0]()


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "qas").mkdir()
    (tmp_path / "qas/test_qa.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(BadData, match=r"test_qa.pkl is a pickle and could run code; expected instead"):
        open_benchmark("pathvqa", tmp_path)


def test_pictures_in_parquet_without_bytes_are_named(tmp_path: Path) -> None:
    hub(tmp_path)
    file = tmp_path / "data/test-00000-of-00001-e5bc3d.parquet"
    put_parquet(file, [{"image": None, "question": "q", "answer": "a"}], ["image"])
    with pytest.raises(BadData, match=r"parquet:1: 'image' is empty"):
        open_benchmark("pathvqa", tmp_path)[0]
    put_parquet(file, [{"image": "a.png", "question": "q", "answer": "a"}], [])
    with pytest.raises(BadData, match=r"'image' holds string, expected a struct of bytes and path"):
        open_benchmark("pathvqa", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "complaint"),
    [
        ("slake", "test.json", "{", "cannot be read as JSON"),
        ("slake", "test.json", "{}", "expected a JSON array of objects"),
        ("slake", "test.json", "[]", "holds no questions"),
        ("medxpertqa", "MM/test.jsonl", "{}\nnot\n", r"test.jsonl:2 is not JSON"),
        ("medxpertqa", "MM/test.jsonl", "{}\n\n\nnot\n", r"test.jsonl:4 is not JSON"),
        ("pmc-vqa", "test_2.csv", "a,b\n1,2\n", r"no column Figure_path, .*\(there: a, b\)"),
        ("gmai-mmbench", "GMAI_mm_bench_VAL.tsv", "index\tanswer\n", r"no column image, question, A, B \(there: index"),
        ("mmmu", "Pharmacy/validation-0.parquet", "PAR1", "cannot be read as parquet"),
    ],
)
def test_broken_files_are_named(name: str, file: str, content: str, complaint: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(BadData, match=complaint):
        open_benchmark(name, tmp_path)


def test_names(tmp_path: Path) -> None:
    assert benchmark_of("VQA_RAD:/x") == ("vqa-rad", Path("/x"))
    assert benchmark_of("phantom:test") is benchmark_of("train.jsonl") is benchmark_of("C:/data.json") is None
    with pytest.raises(BadData, match=r"no benchmark 'omnimed-vqa'; did you mean omnimedvqa:"):
        benchmark_of(f"omnimed_vqa:{tmp_path}")
