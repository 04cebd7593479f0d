"""Several images per question in every layout, volumes among them; the patient's context; all of it converted."""

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
from data.scans import CT, MR, ULTRASOUND, animation, bundled, series

from grpo_fast import datacli
from grpo_fast.data import open_data
from grpo_fast.data.prompts import prompt_style
from grpo_fast.data.stats import question_of
from grpo_fast.errors import BadData
from grpo_fast.types import Sample

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def data_command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    datacli.add_arguments(parser)
    return datacli.run(parser.parse_args([str(argument) for argument in arguments]))


def eureka(*content: Any) -> dict[str, Any]:
    return {**mm_eureka(""), "message": json.dumps([{"role": "user", "content": list(content)}])}


def test_lists_and_places_in_every_layout(tmp_path: Path) -> None:
    """Images 2, 0, 1, in that order: between words, side by side, and without tags."""
    names = [str(save(tmp_path / f"{number}.png", number)) for number in range(3)]
    names = [names[2], names[0], names[1]]
    tagged = "A <image> B <image><image> C?"
    apart = [text("A "), IMAGE, text(" B "), IMAGE, IMAGE, text(" C?")]
    pictures = [{"type": "image", "image": name} for name in names]
    solved = {"solution": "<answer>C</answer>"}
    records = [
        ({**vlm_r1(names, tagged)}, apart),
        ({**vlm_r1(None, tagged), "images": names}, apart),
        (vlm_r1(names, QUESTION), [IMAGE] * 3 + [text(QUESTION)]),
        (easy_r1(names, tagged), apart),
        (easy_r1(names, QUESTION), [IMAGE] * 3 + [text(QUESTION)]),
        ({"problem": tagged, "image": names, **solved}, apart),
        ({"problem": QUESTION, "images": names, **solved}, [IMAGE] * 3 + [text(QUESTION)]),
        ({"problem": tagged, "image": None, "image_path": names, **solved}, apart),
        (eureka(text("A "), pictures[0], text(" B "), pictures[1], pictures[2], text(" C?")), apart),
    ]
    rows = [({"bytes": png(number), "path": None}) for number in (2, 0, 1)]
    table = [({"problem": tagged, "images": rows, **solved}, apart), (easy_r1(rows, tagged), apart)]
    for number, (record, parts) in enumerate([*records, *table]):
        path = tmp_path / f"{number}.data"
        if number < len(records):
            write_lines(path, [record])
        else:
            pq.write_table(pa.Table.from_pylist([record]), path)
        (sample,) = open_data([str(path)])
        assert sample.messages[0]["content"] == parts, record
        found = [np.asarray(load().convert("RGB")) for load in sample.images]
        assert all(np.array_equal(one, np.asarray(picture(seed))) for one, seed in zip(found, (2, 0, 1), strict=True))


def test_a_tag_expands_to_the_slices_of_its_volume(tmp_path: Path) -> None:
    series(tmp_path / "ct", 7)
    save(tmp_path / "0.png")
    images = ["0.png", "ct#slices=3", str(bundled(MR))]
    for record in (
        easy_r1(images, "X <image> and <image> or <image> now?"),
        vlm_r1(images, "X <image> and <image> or <image> now?"),
    ):
        (sample,) = open_data([str(write_lines(tmp_path / "t.jsonl", [record]))])
        parts = [text("X "), IMAGE, text(" and "), IMAGE, IMAGE, IMAGE, text(" or "), IMAGE, text(" now?")]
        assert sample.messages[0]["content"] == parts
        assert [load().size for load in sample.images] == [(40, 30), *[(128, 128)] * 3, (64, 64)]
        assert sample.meta["image_paths"] == [str(tmp_path / "0.png"), *[str(tmp_path / "ct")] * 3, str(bundled(MR))]
    (sample,) = open_data([str(write_lines(tmp_path / "t.jsonl", [vlm_r1("ct#slices=24", QUESTION)]))])
    assert sample.messages[0]["content"] == [IMAGE] * 7 + [text(QUESTION)]  # it has no more
    means = [float(np.asarray(load()).mean()) for load in sample.images]
    assert means == sorted(means) and len(set(means)) == 7


CONTEXT = "61 years, A) smoker, B) hypertension, C) gout, D) asthma, E) obesity"


def test_context_stands_between_images_and_question(tmp_path: Path) -> None:
    save(tmp_path / "0.png")
    record = {**vlm_r1(["0.png"] * 2, f"<image><image>\n{QUESTION}"), "patient_context": CONTEXT, "history": " Cough. "}
    (sample,) = open_data([str(write_lines(tmp_path / "t.jsonl", [record]))])
    words = f"Patient: {CONTEXT}\nHistory: Cough.\n"
    assert sample.messages[0]["content"] == [IMAGE, IMAGE, text(words), text(QUESTION)]
    assert sample.meta["context"] == words and question_of(sample) == QUESTION
    worded = prompt_style("Look: {Question} Answer!")(sample).messages[0]["content"]
    assert worded == [IMAGE, IMAGE, text(words), text(f"Look: {QUESTION} Answer!")]
    for record in (
        {**med_r1("0.png"), "context": "ICU."},
        {**easy_r1(["0.png"]), "clinical_information": "ICU.", "history": None, "context": ""},
        {**mm_eureka("0.png"), "history": "ICU."},
    ):
        (sample,) = open_data([str(write_lines(tmp_path / "t.jsonl", [record]))])
        first, context, asked = sample.messages[0]["content"]
        assert first == IMAGE and asked == text(QUESTION) and context["text"].endswith(": ICU.\n")
        assert prompt_style("think")(sample).messages[0]["content"][1] == context
    (sample,) = open_data([str(write_lines(tmp_path / "t.jsonl", [{**med_r1("0.png"), "context": ""}]))])
    assert sample.messages[0]["content"] == [IMAGE, text(QUESTION)] and "context" not in sample.meta


def test_context_belongs_to_the_last_turn(tmp_path: Path) -> None:
    turns = [*vlm_r1(question="<image>Look.")["conversations"], *vlm_r1(question="Which?")["conversations"]]
    record = {"image": "0.png", "conversations": turns, "history": "Cough."}
    (sample,) = open_data([str(write_lines(tmp_path / "t.jsonl", [record]))])
    assert sample.messages[0]["content"] == [IMAGE, text("Look.")]
    assert sample.messages[2]["content"] == [text("History: Cough.\n"), text("Which?")]
    for value, reason in ((["a", "b"], "history is of type list, not text"), (7, "is of type int"), ("  ", "is empty")):
        path = write_lines(tmp_path / "t.jsonl", [{**record, "history": value}])
        with pytest.raises(BadData, match=rf"^{path}:1: .*{reason}"):
            open_data([str(path)])[0]


def same(one: Sample, other: Sample) -> bool:
    assert one.messages == other.messages and one.answer == other.answer
    assert one.meta.get("context") == other.meta.get("context")
    pairs = [*zip(one.images, other.images, strict=True)]
    clips = [(a, b) for one_clip, other_clip in zip(one.videos, other.videos, strict=True)
             for a, b in zip(one_clip(), other_clip(), strict=True)]  # fmt: skip
    loaded = [(a(), b()) for a, b in pairs] + clips
    return all(np.array_equal(np.asarray(a.convert("RGB")), np.asarray(b.convert("RGB"))) for a, b in loaded)


@pytest.mark.parametrize("layout", ["vlm-r1", "easyr1", "med-r1"])
def test_scans_are_written_as_png_and_read_again(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    series(tmp_path / "in/ct", 5)
    save(tmp_path / "in/0.png"), animation(tmp_path / "in/a.gif", 4)
    records = [
        {**vlm_r1(str(bundled(CT))), "history": "Cough."},
        vlm_r1(str(bundled(ULTRASOUND))),
        vlm_r1("ct#window=40/400"),
        vlm_r1("0.png"),
        vlm_r1(["ct#slices=3", "0.png"], f"<image> or <image>? {QUESTION}"),
        {**vlm_r1(None, f"<video>{QUESTION}"), "video": "a.gif#fps=4"},
        {**vlm_r1("0.png", f"<image><video>{QUESTION}"), "videos": [["0.png", "ct", "0.png"]]},
    ]
    path = write_lines(tmp_path / "in/t.jsonl", records)
    assert data_command("check", path, "--images") == 0, capsys.readouterr().out
    out = tmp_path / "out.data"
    kept = 4 if layout == "med-r1" else 7
    assert data_command("convert", path, "--to", layout, out) == (0 if kept == 7 else 1)
    before, after = open_data([str(path)]), open_data([str(out)])
    assert len(after) == kept and all(same(before[number], after[number]) for number in range(kept))
    assert data_command("check", out, "--images") == 0
    pngs = sorted(one.name for one in (tmp_path / "out_images").iterdir())
    assert pngs[:3] == ["000000-0.png", "000001-0.png", "000002-0.png"]
    assert pngs[3:] == (["000004-0.png", "000004-1.png", "000004-2.png", "000006-v0-1.png"] if kept == 7 else [])
    assert after[0].meta["image_paths"] == [str(tmp_path / "out_images/000000-0.png")]


def test_check_names_what_cannot_be_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    animation(tmp_path / "a.gif", 6)
    (tmp_path / "cut.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:-60])
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/0.png").write_bytes(b"broken")
    records = [
        vlm_r1(str(bundled(CT))),
        vlm_r1(str(bundled("test-SR.dcm"))),
        {**vlm_r1(None, f"<video>{QUESTION}"), "video": "frames"},
        vlm_r1(str(bundled("MR_truncated.dcm"))),
        {**vlm_r1(None, f"<video>{QUESTION}"), "video": "nothing.mp4"},
        vlm_r1(str(bundled(MR))),
    ]
    path = write_lines(tmp_path / "t.jsonl", records)
    assert data_command("check", path) == 1
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == [f"{path}:5"]
    assert data_command("check", path, "--images") == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in said] == [f"{path}:{number}" for number in (2, 3, 4, 5)]
    assert "has no pixels" in said[0] and "0.png cannot be read" in said[1] and "fewer" not in said[2]
