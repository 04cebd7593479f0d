"""Folders as they are while a run writes them, after a crash, or when someone edited them: a page, not a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
from exif import malformed_exif
from PIL import Image
from report.make import make_run, write_lines
from report.reading import Page

from grpo_fast.errors import BadData
from grpo_fast.report.folder import read_folders
from grpo_fast.report.page import build
from grpo_fast.report.pictures import Picture, picture


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only."""
    return make_run(tmp_path_factory.mktemp("whole") / "run", steps=3, sft_steps=2, held_out=4)


def page_of(folder: Path) -> Page:
    page = Page(build(read_folders([folder]), cases=60))
    assert not page.open
    return page


# one line each of what a JSON Lines file can go wrong with
@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"null", b"[1, 2]", b'"text"', b"\xff\xfe\x00", b'{"step": 1e999, "phase": "grpo"}', b"{}",
        b'{"step": "3", "phase": 7}', b'{"step": 1, "phase": "grpo", "reward": NaN, "kl": -Infinity, "loss": null}',
        b'{"step": 1, "phase": "grpo", "reward": {"a": 1}, "length": [1], "entropy": "high", "grad_norm": true}',
        b'{"step": 1, "phase": null, "reward": 1' + b"0" * 400 + b"}", b"[" * 100_000,
        b'{"step": 1' + b"0" * 5000 + b"}",
        b'{"step": -5, "phase": "eval", "accuracy": 7.5, "accuracy/": 1, "accuracy/ct": -1}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "timing.jsonl"])
def test_a_broken_line_is_skipped(name: str, line: bytes, whole: Path, tmp_path: Path) -> None:
    folder = copytree(whole, tmp_path / "run")
    (folder / name).write_bytes(line + b"\n" + (whole / name).read_bytes())
    page = page_of(folder)
    assert page.cases and page.data["charts"]


WRONG = (None, 3, float("nan"), float("inf"), "text", [], {}, [None], {"a": []}, True)


@pytest.mark.parametrize(
    "key", ["step", "phase", "id", "modality", "question_type", "question", "answer", "images", "completions"]
)
def test_a_sample_of_the_wrong_shape(key: str, tmp_path: Path) -> None:
    row = {
        "step": 1, "phase": "grpo", "id": "a", "modality": "ct", "question_type": "lesion-grading", "question": "?",
        "answer": "A", "images": [], "completions": [{"text": "A", "rewards": {"accuracy": 1.0}, "correct": True}],
    }  # fmt: skip
    write_lines(tmp_path / "samples.jsonl", [row, *[row | {key: value} for value in WRONG]])
    assert page_of(tmp_path).cases


@pytest.mark.parametrize("key", ["text", "rewards", "reward", "advantage", "tokens", "finished", "correct"])
def test_a_completion_of_the_wrong_shape(key: str, tmp_path: Path) -> None:
    one = {"text": "A", "rewards": {"accuracy": 1.0}, "reward": 1.0, "advantage": 0.5, "tokens": 3, "correct": True}
    rows = [{"step": 1, "phase": "grpo", "completions": [one | {key: value}, one]} for value in WRONG]
    write_lines(tmp_path / "samples.jsonl", rows)
    assert len(page_of(tmp_path).cases) == len(WRONG)


def test_half_a_line_at_the_end_is_named(whole: Path, tmp_path: Path) -> None:
    folder = copytree(whole, tmp_path / "run")
    (folder / "summary.json").unlink()
    data = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(data[:-30])
    page = page_of(folder)
    assert "metrics.jsonl ends in half a line" in page.text and "not finished" in page.text


def test_broken_lines_are_counted_and_the_first_is_named(whole: Path, tmp_path: Path) -> None:
    folder = copytree(whole, tmp_path / "run")
    first, *others = (whole / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join([first, b"{\n", *others, b"null\n"]))
    number = len(others) + 3
    assert f"metrics.jsonl: 2 of {number} lines are no JSON objects (the first is line 2)" in page_of(folder).text


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "timing.jsonl", "settings.yaml", "summary.json"])
def test_each_file_may_be_missing_or_alone_or_empty(name: str, whole: Path, tmp_path: Path) -> None:
    folder = copytree(whole, tmp_path / "run")
    text = (folder / name).read_bytes()
    (folder / name).unlink()
    page_of(folder)
    for place, data in enumerate((text, b"", b"\x80{", b"- a\n- b")):
        alone = tmp_path / f"alone-{place}"
        alone.mkdir()
        (alone / name).write_bytes(data)
        page_of(alone)


@pytest.mark.parametrize(
    "text", ["a: [", "!!int x", "!!timestamp x", "!!bool x", "? {a: 1}", "a: !!python/name:os.system"]
)
def test_settings_that_are_no_yaml(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    page_of(tmp_path)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl", "settings.yaml", "summary.json", "results.json", "matrix.json"):
        (tmp_path / name).mkdir()
    assert "cannot be read" in page_of(tmp_path).text


@pytest.mark.parametrize(
    "matrix",
    [
        {}, {"rows": ["a"]}, {"rows": ["a"], "columns": ["b"], "values": []},
        {"rows": "a", "columns": 3, "values": None}, {"rows": ["a"], "columns": ["b"], "values": [["x"]], "n": "many"},
        {"rows": ["a"], "columns": ["b"], "values": [None]},
        {"rows": ["a"], "columns": ["b"], "values": [[0.5]], "n": [[]]},
        {"rows": ["a"], "columns": ["b"], "values": [[0]], "n": 0},
    ],
)  # fmt: skip
def test_a_matrix_of_the_wrong_shape(matrix: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "matrix.json").write_text(json.dumps(matrix))
    page_of(tmp_path)


@pytest.mark.parametrize(
    "rows", [None, [3], [{}], [{"facet": "overall"}], [{"facet": "overall", "accuracy": 0.5, "n": -3}]]
)
def test_results_of_the_wrong_shape(rows: object, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    page_of(tmp_path)


def test_a_picture_with_a_malformed_tag_is_shown_upright(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=malformed_exif(6))
    shown = picture(tmp_path, "a.jpg")
    assert isinstance(shown, Picture) and (shown.width, shown.height) == (20, 40)


def test_pictures_that_cannot_be_shown_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    (tmp_path / "outside.png").write_bytes(b"secret")
    images = ["broken.png", "missing.png", "../outside.png", str(tmp_path / "outside.png")]
    write_lines(
        folder / "samples.jsonl", [{"step": 1, "phase": "grpo", "images": images, "completions": [{"text": "A"}]}]
    )
    text = page_of(folder).text
    for reason in ("it cannot be read", "the file is missing", "it lies outside the run's folder"):
        assert reason in text


def test_what_is_no_run_is_refused_with_a_hint(tmp_path: Path) -> None:
    make_run(tmp_path / "mine", steps=1, held_out=2)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path, "it holds the runs mine"), (tmp_path / "file", "is a file"),
                       (tmp_path / "empty", "is no run"), (tmp_path / "nowhere", "no such folder")):  # fmt: skip
        with pytest.raises(BadData, match=said):
            read_folders([path])
    with pytest.raises(BadData, match="named twice"):
        read_folders([tmp_path / "mine", tmp_path / "mine" / ".." / "mine"])
