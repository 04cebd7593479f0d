"""Tables against values worked out by hand, their files, and what is empty."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from grpo_fast.evaluate.answers import Answer
from grpo_fast.evaluate.stats import wilson
from grpo_fast.matrix.heat import draw
from grpo_fast.matrix.output import as_json, markdown, notes, rich_table, write_matrix
from grpo_fast.matrix.table import Matrix, difference, matrix

COLUMNS = ["ct", "mri", "oct"]
RIGHT = {  # of 4 questions about ct, 2 about mri, 1 about oct
    "base": {"ct": 1, "mri": 0, "oct": 0},
    "ct": {"ct": 3, "mri": 1, "oct": 0},
    "mri": {"ct": 1, "mri": 2, "oct": 1},
    "oct": {"ct": 0, "mri": 0, "oct": 1},
}
ASKED = {"ct": 4, "mri": 2, "oct": 1}


def answers(right: dict[str, int]) -> list[Answer]:
    made = [
        Answer(place=place, id=f"{name}{place}", question="?", gold="A", modality=name, strict=place < right[name])
        for name, n in ASKED.items() for place in range(n)
    ]  # fmt: skip
    skipped = Answer(place=9, id="x", question="?", gold="A", modality="ct", skipped="no picture")
    return [*made, skipped]


def whole() -> Matrix:
    return matrix("t", "modality", COLUMNS, {row: answers(own) for row, own in RIGHT.items()}, {}, apart=["base"])


def with_a_gap() -> Matrix:
    given = {row: None if row == "mri" else answers(own) for row, own in RIGHT.items()}
    return matrix("t", "modality", COLUMNS, given, {"mri": "its weights cannot be loaded"}, apart=["base"])


def test_values_and_overall_figures() -> None:
    found = whole()
    assert found.rows == list(RIGHT) and found.columns == COLUMNS
    assert found.values == [[0.25, 0, 0], [0.75, 0.5, 0], [0.25, 1, 1], [0, 0, 1]]
    assert found.n == [[4, 2, 1]] * 4
    # micro: by questions, the untrained model in no column
    assert found.row_overall == [1 / 7, 4 / 7, 4 / 7, 1 / 7]
    assert found.column_overall == [4 / 12, 3 / 6, 2 / 3]
    assert found.overall == 9 / 21
    # plain means off the diagonal
    assert found.generalisation == [None, pytest.approx(0.25), pytest.approx(0.625), 0]
    assert found.score == pytest.approx((0.5 + 0 + 0.25 + 1 + 0 + 0) / 6)
    assert found.empty_cells == 0


def test_an_empty_row_is_in_no_average() -> None:
    found = with_a_gap()
    assert found.values[2] == [None, None, None] and found.row_overall[2] is None and found.n[2] == [0, 0, 0]
    assert found.column_overall == [3 / 8, 1 / 4, 1 / 2] and found.overall == 5 / 14
    assert found.generalisation == [None, pytest.approx(0.25), None, 0]
    assert found.score == pytest.approx((0.5 + 0 + 0 + 0) / 4)
    said = "\n".join(notes(found))
    assert "3 of 12 cells are empty" in said and "mri could not be asked: its weights cannot be loaded" in said
    assert "| mri | – | – | – | – | – |" in markdown(found)


def test_a_group_that_nobody_was_asked_about_is_empty() -> None:
    found = matrix("t", "modality", [*COLUMNS, "fundus"], {"ct": answers(RIGHT["ct"])}, {})
    assert found.values == [[0.75, 0.5, 0, None]] and found.column_overall[3] is None and found.empty_cells == 1
    assert found.generalisation == [pytest.approx(0.25)]


def test_difference() -> None:
    found = difference("d", whole(), with_a_gap())
    assert found.signed and found.values == [[0, 0, 0], [0, 0, 0], [None, None, None], [0, 0, 0]]
    assert found.column_overall == [pytest.approx(4 / 12 - 3 / 8), pytest.approx(1 / 4), pytest.approx(1 / 6)]
    assert found.score == pytest.approx(1.75 / 6 - 0.5 / 4) and found.overall == pytest.approx(9 / 21 - 5 / 14)
    assert found.empty == {"mri": "its weights cannot be loaded"}
    other = matrix("t", "modality", COLUMNS[:2], {"ct": answers(RIGHT["ct"])}, {})
    with pytest.raises(ValueError, match="same rows and columns"):
        difference("d", whole(), other)


def test_files(tmp_path: Path) -> None:
    write_matrix(with_a_gap(), tmp_path, "matrix")
    found = json.loads((tmp_path / "matrix.json").read_text())
    assert found == json.loads(json.dumps(as_json(with_a_gap())))
    assert found["values"][1] == [0.75, 0.5, 0] and found["values"][2] == [None] * 3
    assert found["overall"]["columns"]["ct"] == 3 / 8 and found["overall"]["average"] == "micro"
    assert found["generalisation"]["rows"] == {"base": None, "ct": 0.25, "mri": None, "oct": 0}
    lines = list(csv.reader((tmp_path / "matrix.csv").open()))
    assert lines[0] == ["trained on", "ct", "mri", "oct", "overall", "generalisation"]
    assert lines[2][:4] == ["ct", "0.75", "0.5", "0.0"] and lines[3] == ["mri", "", "", "", "", ""]
    cells = list(csv.DictReader((tmp_path / "matrix-cells.csv").open()))
    assert len(cells) == 12 and cells[6]["trained_on"] == "mri" and cells[6]["accuracy"] == ""
    low, high = wilson(3, 4)
    assert (float(cells[3]["low"]), float(cells[3]["high"])) == (low, high)


def test_pictures_and_the_terminal(tmp_path: Path) -> None:
    from PIL import Image
    from rich.console import Console

    for name, one in (("matrix", with_a_gap()), ("matrix-difference", difference("d", whole(), with_a_gap()))):
        files = draw(one, tmp_path, name)
        assert [file.suffix for file in files] == [".svg", ".png"]
        assert len(np.unique(np.asarray(Image.open(files[1]).convert("L")))) > 20
    console = Console(width=100, record=True, file=StringIO())
    console.print(rich_table(with_a_gap()))
    shown = console.export_text()
    assert "75.0" in shown and "–" in shown and "questions" in shown


def test_eight_columns_fit_the_terminal() -> None:
    from rich.console import Console

    names = [f"modality-of-length-{number}" for number in range(8)]
    asked = [Answer(place=0, id="a", question="?", gold="A", modality=names[0], strict=True)]
    console = Console(width=80, record=True, file=StringIO())
    console.print(rich_table(matrix("t", "modality", names, dict.fromkeys(names, asked), {})))
    shown = console.export_text()
    assert shown.count("100.0") == 8 + 8 + 7 + 3  # whole, in the first column, "all" and "others", and in the last line


def test_the_report_page_draws_it(tmp_path: Path) -> None:
    from grpo_fast.report.folder import read_folders
    from grpo_fast.report.tables import matrix_map

    write_matrix(with_a_gap(), tmp_path, "matrix")
    better = {row: answers(own | {"ct": 4}) for row, own in RIGHT.items()}
    worse = difference("d", whole(), matrix("t", "modality", COLUMNS, better, {}))
    write_matrix(worse, tmp_path, "matrix-difference")
    (folder,) = read_folders([tmp_path])
    signed, plain = [str(matrix_map(folder, one)) for one in folder.matrices]
    assert not folder.problems and ">75<" in plain and ">−25.0<" in signed.replace("-25.0", "−25.0")
