"""`grpo-fast data stats` and `convert` (check: test_broken.py)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.owners import QUESTION, easy_r1, med_r1, mm_eureka, picture, png, save, vlm_r1, write_lines
from exif import malformed_exif
from PIL import Image

from grpo_fast import datacli
from grpo_fast.data import open_data
from grpo_fast.errors import BadSettings
from grpo_fast.types import Sample


def data_command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    datacli.add_arguments(parser)
    return datacli.run(parser.parse_args([str(argument) for argument in arguments]))


def test_check_of_good_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.png")
    path = write_lines(tmp_path / "t.jsonl", [vlm_r1("a.png")] * 3)
    assert data_command("check", path, "--images") == 0
    out, err = capsys.readouterr()
    assert out == "" and err == f"{path}: 3 records, 0 bad\n"
    assert data_command("check", path, tmp_path / "no.jsonl", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["bad"] for one in told["files"]] == [0, 1] and "there is no such file" in told["bad"][0]["reason"]
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert data_command("check", path, path, "--image-folders", tmp_path, other) == 1
    assert capsys.readouterr().out.count("does not exist") == 3
    with pytest.raises(BadSettings, match="2 image folders for 3 data files"):
        data_command("check", path, path, path, "--image-folders", tmp_path, other)


def test_check_of_phantom(capsys: pytest.CaptureFixture[str]) -> None:
    data = open_data(["phantom:test"])
    assert data_command("check", "phantom:test") == 0
    assert f"{len(data)} records, 0 bad" in capsys.readouterr().err


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    records = []
    for number in range(30):
        kind = ("ct", "x_ray", "oct")[number % 3]
        save(tmp_path / f"2d/cls/{kind}/{number}.png", number)
        asked = "Modality Recognition" if number % 2 else "Lesion Grading"
        record = vlm_r1(f"2d/cls/{kind}/{number}.png", "<image> " + "word " * (number + 1), "ABCD"[number % 4])
        records.append({**record, "question_type": asked})
    records[7]["conversations"][1]["value"] = ""
    (tmp_path / "2d/cls/oct/5.png").write_bytes(b"broken")
    return write_lines(tmp_path / "t.jsonl", records)


def test_stats(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_command("stats", mixed, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["records"], told["bad"]) == (30, 1)
    assert told["modalities"] == {"ct": 10, "oct": 10, "x-ray": 9}
    assert told["question_types"] == {"lesion-grading": 15, "modality-recognition": 14}
    assert told["by_modality_and_question_type"]["x-ray"] == {"lesion-grading": 5, "modality-recognition": 4}
    assert told["answers"] == {"A": 8, "B": 8, "C": 7, "D": 6} and told["distinct_answers"] == 4
    lengths = [number + 1 for number in range(30) if number != 7]
    assert told["question_words"] == {
        "min": 1, "median": 16, "mean": round(float(np.mean(lengths)), 2), "p95": 29, "max": 30,
    }  # fmt: skip
    assert told["images_per_question"] == {"1": 29} and told["with_response"] == 29
    assert told["image_width"] == {"min": 40, "median": 40, "mean": 40, "p95": 40, "max": 40}
    assert (told["images_opened"], told["unreadable_images"]) == (28, 1)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_stats_drawn(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    chart = tmp_path / f"chart.{kind}"
    assert data_command("stats", mixed, "--chart", chart) == 0
    out = capsys.readouterr().out
    assert "x-ray" in out and "lesion-grading" in out and "█" in out and "30 records, 1 of them bad" in out
    if kind == "png":
        assert Image.open(chart).size[0] > 800
    else:
        assert "<svg" in chart.read_text()
    with pytest.raises(BadSettings, match="--chart"):
        data_command("stats", mixed, "--chart", tmp_path / "chart.wrong")


def same(one: Sample, other: Sample) -> bool:
    assert len(one.images) == len(other.images)
    pixels = [
        (np.asarray(a().convert("RGB")), np.asarray(b().convert("RGB")))
        for a, b in zip(one.images, other.images, strict=True)
    ]
    assert one.messages == other.messages and one.answer == other.answer
    labels = [(s.meta.get("modality"), s.meta.get("question_type")) for s in (one, other)]
    assert labels[0] == labels[1]
    return all(np.array_equal(a, b) for a, b in pixels)


def sources(folder: Path) -> dict[str, Any]:
    """One file of each kind: with embedded images, with files, with text alone, with an image at the end."""
    save(folder / "Images/0.png"), save(folder / "2d/cls/oct/1.png", 1)
    write_lines(folder / "vlm.jsonl", [
        {"id": "a", **vlm_r1("2d/cls/oct/1.png")}, vlm_r1("Images/0.png", f"{QUESTION} <image>", 3.5),
        {"conversations": vlm_r1(question="What?")["conversations"], "question_type": "Lesion Grading"},
        vlm_r1("Images/0.png", answer="<think>é ✓</think><answer>B</answer>"),
    ])  # fmt: skip
    (folder / "med.json").write_text(json.dumps([med_r1(), {**med_r1(), "modality": "CT"}]))
    write_lines(folder / "eureka.jsonl", [mm_eureka(f"file://{folder}/Images/0.png")])
    jpeg = folder / "x.jpg"
    picture(3).save(jpeg, quality=95)
    rows = [easy_r1([{"bytes": data, "path": None}]) for data in (png(), png(1), jpeg.read_bytes())]
    pq.write_table(pa.Table.from_pylist(rows), folder / "easy.parquet")
    return {name: folder / name for name in ("vlm.jsonl", "med.json", "eureka.jsonl", "easy.parquet")}


@pytest.mark.parametrize("layout", ["vlm-r1", "med-r1", "easyr1"])
def test_round_trip(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, path in sources(tmp_path / "in").items():
        out = tmp_path / "out" / f"{name}.{layout}"
        images = tmp_path / f"images {name}"
        assert data_command("convert", path, "--to", layout, out, "--images", images) == 0
        before, after = open_data([str(path)]), open_data([str(out)])
        assert len(before) == len(after) and all(map(same, before, after)), (name, layout)
        assert data_command("check", out, "--images") == 0
        assert images.exists() == (name == "easy.parquet")  # files stay where they are
        if images.exists():
            assert (images / "000000-0.png").read_bytes() == png()
    assert open_data([str(tmp_path / "out" / f"vlm.jsonl.{layout}")])[0].id == "a"
    kept = open_data([str(tmp_path / "out" / f"vlm.jsonl.{layout}")])[3].meta.get("response")
    assert kept == (None if layout == "easyr1" else "<think>é ✓</think><answer>B</answer>")
    capsys.readouterr()


def test_labels_that_a_files_name_gave_are_written(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "X-Ray_train.json", [{"problem": "q", "solution": "A"}])
    assert data_command("convert", path, "--to", "easyr1", tmp_path / "o.jsonl") == 0
    assert open_data([str(tmp_path / "o.jsonl")])[0].meta["modality"] == "x-ray"


def test_deep_and_turned_images_survive(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    picture(1).save(tmp_path / "turned.jpg", exif=malformed_exif(8))
    picture(2).convert("CMYK").save(tmp_path / "cmyk.jpg")
    names = ["deep.tif", "turned.jpg", "cmyk.jpg"]
    rows = [easy_r1([{"bytes": (tmp_path / name).read_bytes(), "path": name}]) for name in names]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert data_command("convert", tmp_path / "t.parquet", "--to", "easyr1", tmp_path / "o.jsonl") == 0
    found = [sample.images[0]() for sample in open_data([str(tmp_path / "o.jsonl")])]
    assert np.array_equal(np.asarray(found[0]), deep)
    assert found[1].getexif()[0x0112] == 8
    assert np.array_equal(np.asarray(found[1]), np.asarray(Image.open(tmp_path / "turned.jpg")))
    assert np.array_equal(np.asarray(found[2]), np.asarray(Image.open(tmp_path / "cmyk.jpg").convert("RGB")))


def test_what_cannot_be_converted_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.png")
    turns = vlm_r1()["conversations"]
    records = [
        vlm_r1("a.png"),
        vlm_r1(["a.png", "a.png"], "<image><image> x"),
        {"conversations": [*turns, *turns], "image": ["a.png", "a.png"]},
        vlm_r1("missing.png"),
        vlm_r1(answer=None),
    ]
    path = write_lines(tmp_path / "t.jsonl", records)
    assert data_command("convert", path, "--to", "med-r1", tmp_path / "o.json") == 1
    out, err = capsys.readouterr()
    assert "1 records written, 4 left out" in out
    said = err.splitlines()
    assert [line.startswith(f"{path}:{number}: ") for number, line in enumerate(said, 2)] == [True] * 4
    assert "2 images, and Med-R1's layout holds one" in said[0] and "does not exist" in said[2]
    assert json.loads((tmp_path / "o.json").read_text())[0]["image"] == "a.png"
    with pytest.raises(BadSettings, match=r"o\.json exists already"):
        data_command("convert", path, "--to", "med-r1", tmp_path / "o.json")
    assert not list(tmp_path.glob("*.part"))


def test_no_image_is_written_over(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        rows = [easy_r1([{"bytes": png(seed), "path": None}])]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    to = ("--to", "vlm-r1", "--images", tmp_path / "images")
    assert data_command("convert", tmp_path / "a.parquet", *to, tmp_path / "a.jsonl") == 0
    with pytest.raises(BadSettings, match=r"000000-0\.png is another image; give a folder of its own"):
        data_command("convert", tmp_path / "b.parquet", *to, tmp_path / "b.jsonl")
    assert (tmp_path / "images/000000-0.png").read_bytes() == png() and not (tmp_path / "b.jsonl").exists()


def test_several_turns_in_vlm_r1(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "Look."}, *vlm_r1()["conversations"]]
    turns += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    save(tmp_path / "a.png")
    path = write_lines(tmp_path / "t.jsonl", [{"image": "a.png", "conversations": turns, "accu_reward_method": "mcq"}])
    assert data_command("convert", path, "--to", "vlm-r1", tmp_path / "o.jsonl") == 0
    before, after = open_data([str(path)])[0], open_data([str(tmp_path / "o.jsonl")])[0]
    assert same(before, after) and after.meta["reward_method"] == "mcq" and len(after.messages) == 4


def test_help_names_the_actions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        data_command("--help")
    out = capsys.readouterr().out
    assert left.value.code == 0 and all(name in out for name in ("check", "stats", "convert"))
    for wrong in ([], ["chek"], ["check"], ["convert", "a.jsonl", "--to", "parquet", "o"]):
        with pytest.raises(SystemExit) as left:
            data_command(*wrong)
        assert left.value.code == 2
