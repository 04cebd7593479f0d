"""Rows, macro averages, comparisons and their files, against numbers counted by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from grpo_fast.evaluate.answers import Answer
from grpo_fast.evaluate.report import Report
from grpo_fast.evaluate.run import Result
from grpo_fast.evaluate.stats import macro, wilson
from grpo_fast.evaluate.tables import ALL, comparisons, generalisation, rows


def answers(marks: str, modality: str = "ct", start: int = 0) -> list[Answer]:
    """s: right strictly, l: leniently alone, x: wrong, -: not asked."""
    return [
        Answer(
            place=start + number, id=f"{modality}{number}", question="q", gold="A", modality=modality, completion="a b",
            question_type="disease-diagnosis", strict=mark == "s", lenient=mark in "sl", formatted=mark == "s",
            finished=mark != "x", tokens=3, skipped="no picture" if mark == "-" else "",
        )
        for number, mark in enumerate(marks)
    ]  # fmt: skip


def result(name: str, first: str, second: str, other: str = "sx") -> Result:
    both = answers(first) + answers(second, "mri", len(first))
    return Result(name, {"slake": both, "mmmu": answers(other, "")})


def test_rows() -> None:
    found = {(r.source, r.facet, r.group): r for r in rows([result("m", "sslx", "sxxxxx-")])}
    every = found["slake", "overall", "micro"]
    assert (every.n, every.correct, every.skipped) == (10, 3, 1)
    assert (every.accuracy, every.low, every.high) == (0.3, *wilson(3, 10))
    assert (every.lenient_accuracy, every.lenient_low) == (0.4, wilson(4, 10).low)
    assert (every.format, every.words, every.unfinished) == (0.3, 2.0, 0.6)
    ct, mri = found["slake", "modality", "ct"], found["slake", "modality", "mri"]
    assert (ct.n, ct.accuracy, mri.n, mri.accuracy) == (4, 0.5, 6, 1 / 6)
    over = found["slake", "modality", "macro"]
    assert over.accuracy == pytest.approx((0.5 + 1 / 6) / 2)
    assert (over.low, over.high) == macro([(2, 4), (1, 6)])[1]
    assert ("mmmu", "modality", "macro") not in found  # its questions name none
    assert found[ALL, "overall", "micro"].n == 12 and found[ALL, "overall", "micro"].correct == 4
    assert found[ALL, "source", "macro"].accuracy == pytest.approx((0.3 + 0.5) / 2)


def test_nothing_asked_is_no_zero() -> None:
    (row,) = rows([Result("m", {"slake": answers("--")})])
    assert (row.n, row.skipped, row.low, row.high) == (0, 2, 0.0, 1.0)
    (line,) = (line for line in Report({}, [row], []).markdown().splitlines() if line.startswith("|  |"))
    assert line == "|  | 0 |  |  |"


def test_seen_questions_stand_apart() -> None:
    found = {(r.source, r.facet, r.group): r for r in rows([result("m", "ssxx", "ss")], {"slake": frozenset({0, 2})})}
    seen, unseen = found["slake", "training_data", "in it"], found["slake", "training_data", "not in it"]
    assert (seen.n, seen.correct, unseen.n, unseen.correct) == (2, 1, 4, 3)
    assert found[ALL, "training_data", "not in it"].n == 6


def test_models_are_compared_on_what_both_answered() -> None:
    a, b = result("a", "ssss", "s-ss"), result("b", "xxlx", "xs-s")
    found = {(c.source, c.extraction): c.paired for c in comparisons([a, b])}
    assert found["slake", "strict"].n == 6 and found["slake", "strict"].difference == pytest.approx(5 / 6)
    assert found["slake", "lenient"].difference == pytest.approx(4 / 6)
    assert found[ALL, "strict"].n == 8 and found["mmmu", "strict"].p == 1.0
    assert {(c.a, c.b) for c in comparisons([a, b, result("c", "ssss", "ssss")])} == {
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    }


def test_generalisation_leaves_the_own_domain_out() -> None:
    score = generalisation({"ct": {"ct": 0.9, "mri": 0.5, "oct": 0.3}, "mri": {"ct": 0.2, "mri": 1.0, "oct": 0.6}})
    assert score == pytest.approx({"ct": 0.4, "mri": 0.4})
    with pytest.raises(ValueError, match="ct: tested on nothing but"):
        generalisation({"ct": {"ct": 1.0}})


def test_files(tmp_path: Path) -> None:
    results = [result("a|1", "ssss", "sxss"), result("b", "xxlx", "xs-s")]
    made = rows(results)
    report = Report({"prompt": "think"}, made, comparisons(results), None, {"slake": {"7": 2}}, {"slake": {9: "gone"}})
    assert {path.name for path in report.write(tmp_path)} == {
        "results.json", "results.csv", "comparisons.csv", "results.md",
    }  # fmt: skip
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["rows"][0]["accuracy"] == made[0].accuracy and read["duplicate_ids"] == {"slake": {"7": 2}}
    assert read["comparisons"][0]["difference"] == report.comparisons[0].paired.difference
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(made) and lines[0]["model"] == "a|1" and float(lines[0]["high"]) == made[0].high
    text = (tmp_path / "results.md").read_text()
    low, high = wilson(7, 8)
    assert f"87.5 [{100 * low:.1f}, {100 * high:.1f}]" in text
    assert "a\\|1: strict" in text  # a bar would end the cell
    assert "1 questions could not be asked: gone" in text and "1 ids stand for several questions: 7" in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in tables if "modality" in line} == {7}


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize(("count", "other"), [(1, "sslx"), (4, "ssxx"), (4, "sslx")])
def test_no_number_and_no_name_is_cut_in_a_terminal(width: int, count: int, other: str) -> None:
    from rich.console import Console

    results = [
        Result(f"qwen2-vl-2b-step-{n}", {"held-out": answers("s" * n + other) + answers("sx", "microscopy", 100)})
        for n in range(count)
    ]
    report = Report({}, rows(results), comparisons(results))
    console = Console(width=width, record=True, file=io.StringIO())
    for table in report.rich_tables(width):
        console.print(table)
    shown = console.export_text()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    for row in report.rows:
        assert f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]" in shown
    for name in ("all questions", "mean over modality", "microscopy", *(result.model for result in results)):
        assert name in shown
    for one in report.comparisons:
        assert f"{100 * one.paired.difference:+.1f} [{100 * one.paired.low:+.1f}, " in shown
